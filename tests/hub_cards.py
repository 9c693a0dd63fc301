# SPDX-License-Identifier: Apache-2.0
"""What our own Hub accepts as the metadata of a card. The real schema is not public: this is what is known."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml


LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "bsd-3-clause", "gpl-3.0", "other", "unknown"}
RELATIONS = {"adapter", "merge", "quantized", "finetune"}
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
SDKS = {"gradio", "docker", "static", "streamlit"}
TASKS = {"text-classification", "text-generation", "reinforcement-learning", "feature-extraction"}
_FRONT_MATTER = re.compile(r"^\s*---[\r\n]+(.*?)[\r\n]+---[\r\n]", re.DOTALL)


def read_front_matter(text: str) -> dict[str, Any]:
    """The YAML block of a card, `{}` without one or with a broken one."""
    match = _FRONT_MATTER.match(text)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def card_errors(text: str, repo_type: str) -> list[str]:
    """What is wrong with a card; nothing means that it is accepted."""
    match = _FRONT_MATTER.match(text)
    if match is None:
        return ["a Space needs a YAML block"] if repo_type == "space" else []
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"]
    if not isinstance(data, dict):
        return ["the YAML block must be a mapping"]
    errors = []
    if "license" in data and data["license"] not in LICENSES:
        errors.append(f'"license" must be one of {sorted(LICENSES)}')
    for name in ("tags", "datasets", "metrics", "language", "base_model", "models"):
        if name in data and not _strings(data[name]):
            errors.append(f'"{name}" must be a string or a list of strings')
    for name in ("base_model", "datasets", "models"):
        ids = data.get(name) or []
        for id in [ids] if isinstance(ids, str) else ids if _strings(ids) else []:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", id):
                errors.append(f'"{name}" holds {id!r}, which is not the id of a repository')
    if "base_model_relation" in data and data["base_model_relation"] not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {sorted(RELATIONS)}')
    if "pipeline_tag" in data and data["pipeline_tag"] not in TASKS:
        errors.append(f'"pipeline_tag" must be one of {sorted(TASKS)}')
    errors += _model_index_errors(data.get("model-index", []))
    if repo_type == "space":
        errors += _space_errors(data)
    if repo_type == "dataset":
        errors += _config_errors(data.get("configs", []))
    return errors


def _strings(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _model_index_errors(index: Any) -> list[str]:
    errors = []
    if not isinstance(index, list):
        return ['"model-index" must be a list']
    for model in index:
        if not isinstance(model, dict) or not isinstance(model.get("name"), str) or not model["name"]:
            errors.append('"model-index" needs a name')
            continue
        for result in model.get("results", []):
            if not isinstance(result.get("task", {}).get("type"), str):
                errors.append('"model-index" results need task.type')
            dataset = result.get("dataset", {})
            for key in ("name", "type"):
                if not isinstance(dataset.get(key), str) or not dataset[key]:
                    errors.append(f'"model-index" results need dataset.{key}')
            for metric in result.get("metrics", []):
                value = metric.get("value")
                if not isinstance(metric.get("type"), str):
                    errors.append('"model-index" metrics need a type')
                if isinstance(value, bool) or not isinstance(value, int | float | str):
                    errors.append('"model-index" metrics need a plain value')
                elif isinstance(value, float) and not math.isfinite(value):
                    errors.append('"model-index" metrics must be finite')
    return errors


def _space_errors(data: dict[str, Any]) -> list[str]:
    errors = []
    if data.get("sdk") not in SDKS:
        errors.append(f'"sdk" must be one of {sorted(SDKS)}')
    for name in ("colorFrom", "colorTo"):
        if name in data and data[name] not in COLORS:
            errors.append(f'"{name}" must be one of {sorted(COLORS)}')
    if len(data.get("short_description", "")) > 60:
        errors.append('"short_description" must have at most 60 characters')
    return errors


def _config_errors(configs: Any) -> list[str]:
    if not isinstance(configs, list):
        return ['"configs" must be a list']
    return [
        '"configs" entries need config_name and data_files'
        for config in configs
        if not isinstance(config, dict) or "config_name" not in config or "data_files" not in config
    ]
