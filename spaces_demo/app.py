# SPDX-License-Identifier: Apache-2.0
"""The Space: settings come from space.yaml beside this file and from environment variables."""

import sys
import zipfile
from pathlib import Path


HERE = Path(__file__).resolve().parent

try:
    import spaces  # noqa: F401  (ZeroGPU wants to be imported before torch)
except ImportError:
    pass

try:
    import trl_maxmin  # noqa: F401
except ImportError:
    # A private Space cannot install its own wheel while it is built; a wheel is a zip of the package.
    for wheel in HERE.glob("trl_maxmin-*.whl"):
        zipfile.ZipFile(wheel).extractall(HERE / ".package")
    sys.path.insert(0, str(HERE / ".package"))

from trl_maxmin.space.app import create  # noqa: E402
from trl_maxmin.space.config import CONFIG_NAME, SpaceConfig  # noqa: E402


settings = HERE / CONFIG_NAME
# At module level: ZeroGPU places models when they are loaded here.
demo, launch_settings = create(SpaceConfig.load(settings if settings.is_file() else None))

if __name__ == "__main__":
    demo.launch(**launch_settings)
