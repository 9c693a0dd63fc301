# SPDX-License-Identifier: Apache-2.0
"""Cards and pushes of all trainers of this package: one commit per push, no pickles, nothing lost when it fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accelerate.logging import get_logger
from huggingface_hub import HfApi
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from ...run_record import RunRecord, _file_path
from .recording import policy_facts, recorded


logger = get_logger(__name__)

#: Below the output folder; with an underscore, so that nothing else uploads it.
PUSH_FOLDER = "_push"


class HubPushMixin:
    """Put before a trainer of transformers: `push_to_hub`, the pushes of checkpoints and the model card are ours.

    transformers uploads the whole output folder, `training_args.bin` (a pickle) included, and TRL writes a card that
    calls an adapter a model of transformers. Here the record of the run is written to `run_record.json`, the card is
    made from it, and what is known to be a model goes to the Hub in one commit.

    Attributes:
        dataset_name (`str`, *optional*): of the training data, for the card.
        reward_model_name (`str`, *optional*): where a policy's rewards come from, for the card.
        reward_component (`str`, *optional*): the one component of the mixture that the policy was trained for.
    """

    dataset_name: str | None = None
    reward_model_name: str | None = None
    reward_component: str | None = None
    _warned_of_checkpoints = False

    # -- the record and the card --------------------------------------------------------------------------------------

    def _record_facts(self) -> tuple[str, dict[str, Any]]:
        """Stage of the run record that this trainer fills, and its fields."""
        from ...models.base import base_model

        model = self.accelerator.unwrap_model(self.model)
        policy = getattr(self, "policy_model", model)
        base = base_model(policy).config.name_or_path or None
        return "policy", policy_facts(self, Path(self.args.output_dir).resolve().name, base)

    def write_run_record(self, dataset_name: str | None = None) -> RunRecord:
        """Add what is known of this run to `run_record.json` in the output folder (main process only).

        Args:
            dataset_name (`str`, *optional*): of the training data; defaults to `self.dataset_name`.

        Returns:
            [`~trl_maxmin.run_record.RunRecord`]
        """
        folder = self.args.output_dir
        stage, facts = self._record_facts()
        record = RunRecord.load(folder) if _file_path(folder).exists() else RunRecord()
        record.seed, record.versions = self.args.seed, RunRecord.installed_versions()
        name = dataset_name or self.dataset_name
        facts["dataset"] = {**(facts.get("dataset") or {}), **({"name": recorded(name)} if name else {})}
        # Curves of this run replace those of an earlier one in the same folder.
        getattr(record, stage).pop("curves", None)
        record.update(stage, **facts).save(folder)
        return record

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        license: str | None = None,
        base_model: str | None = None,
        language: str | list[str] | None = None,
    ) -> None:
        """Write `run_record.json` and the card made from it into the output folder.

        What goes wrong here is logged and not raised: a card must not cost a training run.

        Args:
            model_name (`str`, *optional*): not used, the card is named after its repository.
            dataset_name (`str`, *optional*): of the training data.
            tags (`str` or `list[str]`, *optional*): more tags.
            license (`str`, *optional*), language (`str` or `list[str]`, *optional*): for the card. Those of the card
                that is there are kept, and so is what was written above and below its marks.
            base_model (`str`, *optional*): Hub id of the base, where the trainer only knows a path.
        """
        if not self.is_world_process_zero():
            return
        try:
            record = self.write_run_record(dataset_name)
            self._write_card(str(self._render_card(record, tags, license, base_model, language)))
        except Exception as error:
            # Broad on purpose: whatever it is, the weights matter more.
            logger.warning(f"The model card was not written ({type(error).__name__}: {error}). Training goes on.")

    def _write_card(self, card: str) -> None:
        """The card into the output folder, with what the one that is there says beyond the record."""
        from ...hub.card_keeping import is_edited, keep

        path = Path(self.args.output_dir, "README.md")
        earlier = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
        if earlier is not None and is_edited(earlier):
            aside = path.with_name("README.edited.md")
            os.replace(path, aside)
            logger.warning(
                f"{path} was changed between its marks, where it is made from the run record. The changed file is now "
                f"{aside}; write above or below the marks, and it will be kept."
            )
        path.write_text(keep(card, earlier), encoding="utf-8")

    def _render_card(
        self,
        record: RunRecord,
        tags: str | list[str] | None,
        license: str | None,
        base_model: str | None,
        language: str | list[str] | None,
    ) -> Any:
        from ...hub.cards import CardContext, mixture_card, policy_card

        tags = [tags] if isinstance(tags, str) else list(tags or [])
        repo_id = self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).resolve().name
        context = CardContext(repo_id, license=license, base_model=base_model, tags=tags, language=language)
        if self._is_mixture():
            return mixture_card(record, context)
        peft = Path(self.args.output_dir, "adapter_config.json").is_file()
        return policy_card(record, context, peft=peft)

    def _is_mixture(self) -> bool:
        return hasattr(self, "em_state")

    # -- pushes -------------------------------------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As in transformers; an error says what happened and what to do."""
        from ...hub.faults import ask

        # transformers 5.17 knows no `private` here, and is not called with one.
        options = {} if private is None else {"private": private}
        ask("Creating the repository of the run", lambda: super(HubPushMixin, self).init_hf_repo(token, **options))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model and put it on the Hub with its card, in one commit.

        Args:
            commit_message (`str`, *optional*), token (`str`, *optional*), revision (`str`, *optional*): as in
                transformers.
            blocking (`bool`): `False` returns a `Future`.
            private (`bool`, *optional*): of a new repository; defaults to `args.hub_private_repo`. An existing public
                one is then refused.
            **kwargs: `dataset_name`, `tags`, `license`, `language`, `base_model` for the card; see
                [`~HubPushMixin.create_model_card`]. `value_head=True` publishes PPO's critic too.

        Returns:
            [`~trl_maxmin.hub.Published`], or a `Future` of it; `None` on other processes than the main one.

        Raises:
            HubError: the Hub refused or was not reached. The model is in the output folder; the message says how to
                continue.
            ValueError: an adapter whose base is not on the Hub (give `base_model`), or no critic to publish.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        kwargs.pop("model_name", None)
        value_head = kwargs.pop("value_head", False)
        self.create_model_card(**kwargs)
        self._finish_current_push()
        token = token if token is not None else self.args.hub_token
        repo_id = self._repo_id(token)
        private = private if private is not None else self.args.hub_private_repo
        plan = self._hub_plan(self.args.output_dir, repo_id, private, kwargs, value_head)
        revision = revision if revision is not None else self.args.hub_revision

        def push() -> Any:
            from ...hub.push import publish

            command = f"trl-maxmin push {self.args.output_dir} --repo_id {repo_id} --exact"
            command += " --private" * bool(private) + " --value_head true" * bool(value_head)
            message = f"{command} (the model is saved in {self.args.output_dir})"
            return publish([plan], token=token, revision=revision, commit_message=commit_message, command=message)[0]

        return push() if blocking else HfApi().run_as_future(push)

    def _repo_id(self, token: str | None) -> str:
        """Full id of the repository of this run."""
        from ...hub.faults import ask

        name = self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).resolve().name
        if "/" not in name:
            name = f"{ask('Asking whose token this is', lambda: HfApi(token=token).whoami())['name']}/{name}"
        self.hub_model_id = name
        return name

    def _hub_plan(
        self,
        folder: str | os.PathLike[str],
        repo_id: str,
        private: bool | None,
        card: Mapping[str, Any] = MappingProxyType({}),
        value_head: bool = False,
    ) -> Any:
        from ...hub.contents import FIGURE, plain_file
        from ...hub.plan import PushOptions, plan_mixture, plan_policy

        given = {name: card[name] for name in ("license", "language", "base_model") if card.get(name)}
        options = PushOptions(private, value_head=value_head, **given)
        record = RunRecord.load(self.args.output_dir) if _file_path(self.args.output_dir).exists() else RunRecord()
        tags = [card["tags"]] if isinstance(card.get("tags"), str) else list(card.get("tags") or [])
        if self._is_mixture():
            return plan_mixture(folder, repo_id, record, options, tags=tags)
        name = record.policy.get("name") or Path(self.args.output_dir).resolve().name
        figure = plain_file(Path(self.args.output_dir), FIGURE)
        return plan_policy(folder, repo_id, name, record, options, tags=tags, figure=figure)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the model of a checkpoint in the background; what goes wrong is logged, and training goes on."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            if not self._warned_of_checkpoints:
                logger.warning(
                    f"hub_strategy={self.args.hub_strategy.value!r} would upload optimizer states, which are pickles, "
                    "and who is assigned to which component. Only the model is pushed; checkpoints stay in "
                    f"{self.args.output_dir}."
                )
            self._warned_of_checkpoints = True
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.create_model_card()
        try:
            job = self._push_job(Path(checkpoint_folder))
        except (ValueError, OSError) as error:
            logger.warning(f"{checkpoint_folder} was not pushed: {error} Training goes on.")
            return
        if busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])

    def _push_job(self, checkpoint: Path) -> Future:
        from ...hub.contents import mixture_files, model_files
        from ...hub.push import publish

        # Rotation may delete the checkpoint while it is being uploaded: the files get a second name.
        staging = Path(self.args.output_dir, PUSH_FOLDER, checkpoint.name)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        for name, source in (mixture_files if self._is_mixture() else model_files)(checkpoint).items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, staging / name)
            except OSError:
                shutil.copy2(source, staging / name)
        plan = self._hub_plan(staging, self._repo_id(self.args.hub_token), self.args.hub_private_repo)
        message = f"Training in progress, step {self.state.global_step}"

        def push() -> None:
            try:
                publish([plan], token=self.args.hub_token, revision=self.args.hub_revision, commit_message=message)
            except (ValueError, OSError) as error:
                logger.warning(f"{checkpoint} was not pushed: {error} It is on disk; training goes on.")
            finally:
                shutil.rmtree(staging, ignore_errors=True)

        return HfApi().run_as_future(push)
