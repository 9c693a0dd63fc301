# SPDX-License-Identifier: Apache-2.0
"""`python -m trl_maxmin.cli`, which is what `accelerate launch` starts on every process."""

from .main import main


if __name__ == "__main__":
    raise SystemExit(main())
