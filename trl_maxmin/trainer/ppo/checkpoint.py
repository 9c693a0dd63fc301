# SPDX-License-Identifier: Apache-2.0
"""Saving a policy with its critic, and resuming from both."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from ...models.lora import without_reward_adapters
from ..common.atomic_checkpoint import AtomicCheckpointMixin
from .policy import VALUE_HEAD_FILE, VALUE_MODEL_FOLDER


STATE_FILE = "ppo_state.json"


class PolicyCheckpointMixin(AtomicCheckpointMixin):
    """What [`PPOTrainer`] writes and reads: a folder that `from_pretrained` opens as the policy (or its adapter), with
    the critic and the KL coefficient beside it."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """The policy as `from_pretrained` expects it, the critic beside it."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        root = self._root
        options: dict[str, Any] = {}
        if state_dict is not None:
            options["state_dict"] = {
                name.removeprefix("policy."): tensor
                for name, tensor in state_dict.items()
                if name.startswith("policy.")
            }
        if isinstance(root.policy, PeftModel):
            # The copy of the adapter that serves as the reference is not part of the result.
            options["selected_adapters"] = [root.policy.active_adapter]
            weights = options.get("state_dict") or root.policy.state_dict()
            options["state_dict"] = without_reward_adapters(weights)
        root.policy.save_pretrained(folder, **options)
        if self.args.save_critic or self._staging is not None:
            root.save_critic(folder, state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        torch.save(self.args, folder / "training_args.bin")
        (folder / STATE_FILE).write_text(json.dumps({"kl_coef": self.kl_coef}))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # transformers copies the files it knows, and pushes the copies.
        if self._staging is None and self.args.save_critic and self.is_world_process_zero():
            for name in (VALUE_HEAD_FILE, VALUE_MODEL_FOLDER):
                source, target = Path(checkpoint_folder) / name, Path(self.args.output_dir) / name
                if source.is_file():
                    shutil.copy(source, target)
                elif source.is_dir():
                    shutil.copytree(source, target, dirs_exist_ok=True)
        super()._push_from_checkpoint(checkpoint_folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        state_file = Path(resume_from_checkpoint) / STATE_FILE
        if state_file.exists():
            self.kl_coef = json.loads(state_file.read_text())["kl_coef"]
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        super()._load_from_checkpoint(resume_from_checkpoint, self._root.policy)
        self._root.load_critic(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(os.fspath(self.state.best_model_checkpoint))
