# SPDX-License-Identifier: Apache-2.0
"""The Space: settings come from space.yaml beside this file and from environment variables."""

import sys
import tempfile
import zipfile
from pathlib import Path


HERE = Path(__file__).resolve().parent

try:
    import spaces  # noqa: F401  (ZeroGPU wants to be imported before torch)
except ImportError:
    pass

# A Space installs its requirements before its files are there, so they cannot name a wheel beside them. A wheel is a
# zip of the package; a folder of its own, as that of the files may be read-only, and none of an older push remains.
for wheel in HERE.glob("trl_maxmin-*.whl"):
    package = tempfile.mkdtemp(prefix="trl_maxmin-")
    zipfile.ZipFile(wheel).extractall(package)
    sys.path.insert(0, package)

from trl_maxmin.space.startup import end_in_order, without_garbage_collection  # noqa: E402


with without_garbage_collection():
    from trl_maxmin.space.app import create
    from trl_maxmin.space.config import CONFIG_NAME, SpaceConfig

    settings = HERE / CONFIG_NAME
    # At module level: ZeroGPU places models when they are loaded here.
    demo, launch_settings = create(SpaceConfig.load(settings if settings.is_file() else None))

if __name__ == "__main__":
    end_in_order()
    demo.launch(**launch_settings)
