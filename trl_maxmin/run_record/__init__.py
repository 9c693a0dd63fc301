# SPDX-License-Identifier: Apache-2.0
"""What was trained on what, and what came out: the record of a run, and the parts of it that may be published."""

from .fields import FIELDS, SCHEMA_VERSION, STAGES
from .parts import EM_SETTINGS, PARTS, TRAINING_SETTINGS, welfare_settings, without_secrets
from .record import RUN_RECORD_NAME, RunRecord, _file_path


__all__ = [
    "EM_SETTINGS",
    "FIELDS",
    "PARTS",
    "RUN_RECORD_NAME",
    "SCHEMA_VERSION",
    "STAGES",
    "TRAINING_SETTINGS",
    "RunRecord",
    "_file_path",
    "welfare_settings",
    "without_secrets",
]
