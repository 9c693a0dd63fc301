# SPDX-License-Identifier: Apache-2.0
"""MaxMin on TRL's GRPO and RLOO: what is scored, what is refused; the mixture on TRL's own trainers."""

import copy
from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2ForSequenceClassification
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.conftest import build_word_tokenizer
from tests.trainer.ppo_helpers import PROMPTS, gpt2, sevens
from tests.trainer.trl_helpers import (
    CONFIG_OF,
    build_trl_trainer,
    history,
    mixture_of,
    nines,
)
from trl_maxmin import MaxMinGRPOConfig, MaxMinPPOTrainer, MaxMinRLOOConfig


@dataclass
class GRPOOnCPU(MaxMinGRPOConfig):
    use_cpu: bool = True


@dataclass
class RLOOOnCPU(MaxMinRLOOConfig):
    use_cpu: bool = True


OnCPU = {MaxMinGRPOConfig: GRPOOnCPU, MaxMinRLOOConfig: RLOOOnCPU}
CHAT = "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' ' }}{% endfor %}"
CHAT += "{% if add_generation_prompt %}assistant : {% endif %}"


class TestWhatIsScored:
    def test_the_components_of_a_mixture_share_one_forward(self, trl_make, word_tokenizer):
        trainer = trl_make(reward_funcs=mixture_of(word_tokenizer, 3), utility="raw")
        shared = trainer.reward_funcs[0].__closure__
        functions = next(cell.cell_contents for cell in shared if hasattr(cell.cell_contents, "num_forwards"))
        trainer.train()
        assert functions.num_forwards == 2, "one for each of two rollouts, though three components were asked"
        assert trainer.reward_func_names == ["component_0", "component_1", "component_2"]

    def test_a_component_without_people_is_not_served(self, trl_make, word_tokenizer):
        mixture = mixture_of(word_tokenizer, 3)
        mixture.config.component_annotators = [4, 0, 8]
        with pytest.warns(UserWarning, match="component_1 of the mixture describes no annotator"):
            trainer = trl_make(reward_funcs=mixture)
        trainer.train()
        assert trainer.reward_func_names == ["component_0", "component_2"]
        assert trainer.reference_statistics.component_names == ["component_0", "component_2"]

    def test_the_score_is_that_of_the_mixture_and_of_ppo(self, trl_make, word_tokenizer, trl_class, tmp_path):
        mixture, seen = mixture_of(word_tokenizer), []

        class Spy(trl_class):
            def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
                rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
                seen.append((prompts, completions, completion_ids_list, rewards))
                return rewards

        trl_make(Spy, reward_funcs=mixture, utility="raw", max_completion_length=12, max_steps=4).train()
        special = set(word_tokenizer.all_special_ids) - {word_tokenizer.eos_token_id}
        kinds = set()
        for prompts, completions, ids_list, rewards in seen:
            # A text cannot say that a special token was sampled; those replies are left to the ids.
            rows = [i for i, ids in enumerate(ids_list) if not special & set(ids)]
            finished = [ids_list[i][-1] == word_tokenizer.eos_token_id for i in rows]
            kinds |= set(finished)
            by_text = mixture.score([prompts[i] for i in rows], [completions[i] for i in rows], finished=finished)
            torch.testing.assert_close(rewards[rows], by_text, atol=1e-5, rtol=1e-4)
        assert kinds == {True, False}

    def test_another_tokenizer(self, trl_make, trl_class):
        foreign = build_word_tokenizer(reverse=True)
        mixture, seen = mixture_of(foreign), []

        class Spy(trl_class):
            def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
                rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
                finished = [ids[-1] == 2 for ids in completion_ids_list]
                seen.append((rewards, mixture.score(prompts, completions, finished=finished)))
                return rewards

        trl_make(Spy, reward_funcs=mixture, utility="raw").train()
        for rewards, expected in seen:
            torch.testing.assert_close(rewards, expected)

    def test_plain_reward_models_are_groups_and_read_the_stop_token(self, trl_make, word_tokenizer, trl_class):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=40, n_layer=1, n_head=2, n_embd=16, n_positions=32, num_labels=1, pad_token_id=2
        )
        model, seen = GPT2ForSequenceClassification(config).eval(), []

        class Spy(trl_class):
            def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
                rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
                for prompt, ids, reward in zip(prompts, completion_ids_list, rewards[:, 0], strict=True):
                    whole = torch.tensor([word_tokenizer(prompt)["input_ids"] + ids])
                    hidden = model.transformer(whole).last_hidden_state[:, -1]
                    seen.append((reward.item(), model.score(hidden).item()))
                return rewards

        trl_make(Spy, reward_funcs=[(model, word_tokenizer), sevens], utility="raw").train()
        given, by_hand = zip(*seen, strict=True)
        assert given == pytest.approx(by_hand, abs=1e-5)
        trainer = trl_make(
            reward_funcs=[model, sevens], reward_processing_classes=[word_tokenizer, None], utility="raw"
        )
        assert trainer.reward_func_names == ["reward", "sevens"]

    def test_a_folder_is_loaded(self, trl_make, word_tokenizer, tmp_path):
        mixture_of(word_tokenizer).save_pretrained(tmp_path / "mixture")
        trainer = trl_make(reward_funcs=str(tmp_path / "mixture"), max_steps=1)
        trainer.train()
        assert trainer.component_names == ["component_0", "component_1"]

    def test_conversations(self, trl_make, word_tokenizer):
        word_tokenizer.chat_template = CHAT
        mixture = mixture_of(word_tokenizer)
        rows = [[{"role": "user", "content": prompt}] for prompt in PROMPTS * 4]
        trainer = trl_make(reward_funcs=mixture, train_dataset=Dataset.from_dict({"prompt": rows}))
        trainer.train()
        assert len(history(trainer, "maxmin/worst_utility")) == 2
        assert len(trainer.reference_statistics.prompt_keys) == len(PROMPTS)

    def test_asynchronous_functions_stay_the_hosts(self, trl_make):
        async def slow(completion_ids, trainer_state, **kwargs):
            assert trainer_state is not None
            return sevens(completion_ids)

        trainer = trl_make(reward_funcs=[slow, nines])
        trainer.train()
        assert len(history(trainer, "maxmin/utility/slow")) == 2

    def test_the_mixture_is_not_trained(self, trl_make, word_tokenizer):
        mixture = mixture_of(word_tokenizer)
        before = copy.deepcopy(mixture.state_dict())
        trl_make(reward_funcs=mixture).train()
        assert all(torch.equal(tensor, before[name]) for name, tensor in mixture.state_dict().items())


class TestRefusals:
    def test_no_rewards(self, trl_make):
        for nothing in (None, []):
            with pytest.raises(ValueError, match="`reward_funcs` is empty"):
                trl_make(reward_funcs=nothing)

    def test_arguments_of_the_host(self, trl_base, trl_class, tmp_path):
        with pytest.raises(TypeError, match=f"needs a {CONFIG_OF[trl_class].__name__}"):
            trl_class(
                model=str(trl_base), reward_funcs=sevens, args=GRPOConfig(str(tmp_path), report_to=[], use_cpu=True)
            )

    def test_default_arguments(self, trl_base, trl_class, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        # TRL's own default is bfloat16 on a GPU.
        monkeypatch.setattr(trl_class, "_config_class", OnCPU[CONFIG_OF[trl_class]])
        rows = Dataset.from_dict({"prompt": PROMPTS})
        trainer = trl_class(model=str(trl_base), reward_funcs=[sevens, nines], train_dataset=rows)
        assert trainer.args.output_dir == f"base-{trainer._name}" and trainer.args.beta > 0

    def test_before_a_model_is_loaded(self, trl_class, tmp_path):
        args = CONFIG_OF[trl_class](str(tmp_path), welfare_floor=0.6, report_to=[], use_cpu=True)
        with pytest.raises(ValueError, match=r"0\.6.*at most 0\.5"):
            trl_class(model="no/such-model", reward_funcs=[sevens, nines], args=args)

    def test_what_is_no_reward(self, trl_make, word_tokenizer):
        with pytest.raises(TypeError, match="cannot score replies"):
            trl_make(reward_funcs=[sevens, 3])
        with pytest.raises(ValueError, match="2 `reward_processing_classes` for 1 rewards"):
            trl_make(reward_funcs=sevens, reward_processing_classes=[None, None])
        with pytest.raises(ValueError, match="a mixture names its components itself"):
            trl_make(reward_funcs={"all": mixture_of(word_tokenizer)})

    def test_fixed_weights(self, trl_class, tmp_path):
        with pytest.raises(ValueError, match="decides the weights by `welfare`"):
            CONFIG_OF[trl_class](str(tmp_path), reward_weights=[1.0, 2.0], report_to=[], use_cpu=True)

    def test_statistics_of_other_components(self, trl_make):
        first = trl_make()
        first.calibrate()
        with pytest.raises(ValueError, match="calibrate again on these rewards"):
            trl_make(reward_funcs=[nines, sevens], reference_statistics=first.reference_statistics).calibrate()


class TestConfigs:
    def test_defaults_that_differ_from_trl(self, tmp_path):
        config = MaxMinGRPOConfig(str(tmp_path), report_to=[], use_cpu=True)
        assert config.beta > 0 and config.scale_rewards == "none"
        assert config.multi_objective_aggregation == "sum_then_normalize"
        assert MaxMinRLOOConfig(str(tmp_path), report_to=[], use_cpu=True).beta > 0

    def test_normalize_then_sum_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="'normalize_then_sum', which standardises.*'sum_then_normalize'"):
            MaxMinGRPOConfig(
                str(tmp_path), multi_objective_aggregation="normalize_then_sum", report_to=[], use_cpu=True
            )

    @pytest.mark.parametrize("value", ["group", "batch", True])
    def test_scaling_is_doubtful(self, tmp_path, value):
        with pytest.warns(UserWarning, match="undoes the calibration"):
            MaxMinGRPOConfig(str(tmp_path), scale_rewards=value, report_to=[], use_cpu=True)

    @pytest.mark.parametrize("config", [MaxMinGRPOConfig, MaxMinRLOOConfig])
    def test_no_kl_is_doubtful(self, tmp_path, config):
        with pytest.warns(UserWarning, match="`beta` is 0"):
            config(str(tmp_path), beta=0.0, report_to=[], use_cpu=True)


@pytest.mark.seam
@pytest.mark.parametrize(("host", "config"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_mixture_given_to_trls_own_trainer_raises_the_remedy(
    host, config, loaded, trl_base, word_tokenizer, tmp_path
):
    """Never column 0: the forward runs, and reading `.logits` from it raises."""
    mixture = mixture_of(word_tokenizer)
    if loaded:
        mixture.save_pretrained(tmp_path / "mixture")
        mixture = type(mixture).from_pretrained(tmp_path / "mixture")
    trainer = build_trl_trainer(
        host, trl_base, word_tokenizer, tmp_path / "run", config_class=config, reward_funcs=[mixture],
        reward_processing_classes=None if loaded else [word_tokenizer],
    )  # fmt: skip
    with pytest.raises(AttributeError, match=r"no `\.logits`.*reward_functions\(\).*MaxMin trainer"):
        trainer.train()


@pytest.mark.parametrize(("host", "config"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_trls_own_trainers_take_the_callables(host, config, trl_base, word_tokenizer, tmp_path):
    mixture = mixture_of(word_tokenizer)
    trainer = build_trl_trainer(
        host, trl_base, word_tokenizer, tmp_path / "run", config_class=config, reward_funcs=mixture.reward_functions(),
        reward_weights=[0.3, 0.7],
    )  # fmt: skip
    trainer.train()
    assert len(history(trainer, "rewards/component_1/mean")) == 2


def test_ppo_takes_a_dict_by_group(word_tokenizer, tmp_path):
    from tests.trainer.ppo_helpers import build_ppo_trainer
    from trl_maxmin import MaxMinPPOConfig

    trainer = build_ppo_trainer(
        tmp_path, word_tokenizer, MaxMinPPOTrainer, MaxMinPPOConfig, model=gpt2(),
        reward_model={"seven": sevens, "nine": nines}, max_steps=1,
    )  # fmt: skip
    trainer.train()
    assert trainer.component_names == ["seven", "nine"]
    before = trainer.reference_statistics
    trainer.calibrate(refresh=True)
    assert trainer.reference_statistics.completions == before.completions
