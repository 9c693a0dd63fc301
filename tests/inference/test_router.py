# SPDX-License-Identifier: Apache-2.0
"""Who is routed where, by hand; and adapters that are switched on one base against the same adapters loaded alone."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tests.conftest import build_word_tokenizer
from trl_maxmin.inference import PolicyRouter
from trl_maxmin.inference.router import thresholds_from
from trl_maxmin.models import MixtureRewardModel
from trl_maxmin.models.outputs import AnnotatorPosterior


PAIR = ("model", "tokenizer")


class Mixture:
    """Of known posteriors: evidence of so many nats for the first component."""

    component_names = ["brief", "warm"]
    described_components = [0, 1]

    def __init__(self, nats, shares=(0.5, 0.5)):
        self.nats, self.mixing_weights = nats, torch.tensor(shares, dtype=torch.float64)

    def assign(self, preferences, annotator_column, batch_size):
        logits = torch.tensor([[nats, 0.0] for nats in self.nats], dtype=torch.float64) + self.mixing_weights.log()
        counts = torch.tensor([2] * len(self.nats))
        return AnnotatorPosterior(tuple(range(len(self.nats))), logits.softmax(-1), counts)


def router(mixture, **options):
    return PolicyRouter(mixture, {"brief": PAIR, "warm": PAIR}, PAIR, **options)


def test_who_is_sure_enough_gets_their_own_policy():
    # sigmoid(2) = 0.88, sigmoid(1) = 0.73.
    routes = router(Mixture([2.0, 1.0, 0.0, -1.0, -2.0])).route(None)
    assert [route.component for route in routes] == ["brief", None, None, None, "warm"]
    assert [round(route.probability, 3) for route in routes] == [0.881, 0.731, 0.5, 0.731, 0.881]
    assert [route.best for route in routes][:2] == ["brief", "brief"] and routes[0].num_pairs == 2
    routes = router(Mixture([2.0, 1.0]), threshold={"brief": 0.7}).route(None)
    assert [route.component for route in routes] == ["brief", "brief"]
    assert router(Mixture([9.0]), min_pairs=3).route(None)[0].component is None


def test_a_majority_does_not_take_those_of_whom_nothing_is_known():
    # The shares alone say 0.9; choices that say nothing must not be read as a wish for the majority's policy.
    routes = router(Mixture([0.0, 2.0, -2.0, -5.0], shares=(0.9, 0.1))).route(None)
    assert [route.component for route in routes] == [None, "brief", None, "warm"]
    # Equal shares: 0.88; the prior against the minority: 0.1 e^2 / (0.9 + 0.1 e^2) = 0.45.
    assert routes[1].probability == pytest.approx(0.8808, abs=1e-4)
    assert routes[2].best == "brief" and routes[2].probability == pytest.approx(0.1192, abs=1e-4)
    nobody = router(Mixture([], shares=(0.9, 0.1))).route_one([])
    assert nobody.component is None and nobody.num_pairs == 0


def test_a_component_without_a_policy_gets_that_for_all():
    routes = PolicyRouter(Mixture([9.0, -9.0]), {"warm": PAIR}, PAIR).route(None)
    assert [route.component for route in routes] == [None, "warm"]


def entry(**by_group):
    return {"by_group": {group: {"utility": {"mean": value}} for group, value in by_group.items()}}


def test_thresholds_from_what_was_measured():
    results = {
        "policies": {
            "maxmin": entry(brief=1.0, warm=1.0),
            "b": entry(brief=2.0, warm=-2.0),  # gains 1, and 3 are lost: 3 / 4
            "w": entry(brief=0.5, warm=1.5),  # gains 0.5, and 0.5 are lost: 1 / 2
        }
    }
    assert thresholds_from(results, {"brief": "b", "warm": "w"}, "maxmin") == {"brief": 0.75, "warm": 0.5}
    with pytest.raises(ValueError, match="no policy 'c'; it has maxmin, b, w"):
        thresholds_from(results, {"brief": "c"}, "maxmin")
    with pytest.raises(ValueError, match="did not measure the utility of 'kind'; groups: brief, warm"):
        thresholds_from(results, {"kind": "b"}, "maxmin")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": {"brief": -0.1}}, "threshold is -0.1"),
        ({"threshold": {"kind": 0.5}}, "no component 'kind'"),
        ({"min_pairs": 0}, "min_pairs is 0"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        router(Mixture([]), **options)
    with pytest.raises(ValueError, match="no component 'kind'"):
        PolicyRouter(Mixture([]), {"kind": PAIR}, PAIR)
    with pytest.raises(ValueError, match="there is no folder ./nowhere"):
        PolicyRouter(Mixture([]), {"brief": "./nowhere"}, PAIR)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, two adapters on it, and a whole model of another kind."""
    folder, tokenizer = tmp_path_factory.mktemp("router"), build_word_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(folder / "base")
    GPT2LMHeadModel(config).save_pretrained(folder / "whole")
    for name in ("base", "whole"):
        tokenizer.save_pretrained(folder / name)
    for name in ("brief", "warm"):
        base = AutoModelForCausalLM.from_pretrained(folder / "base")
        adapted = get_peft_model(base, LoraConfig(r=2, init_lora_weights=False, fan_in_fan_out=True))
        adapted.save_pretrained(folder / name)
    return folder


def logits(model):
    return model.eval()(torch.tensor([[5, 6, 7]])).logits


@pytest.mark.parametrize("fallback", ["base", "whole"])
def test_adapters_share_a_base_and_are_switched(folders, fallback):
    found = PolicyRouter(
        Mixture([]),
        {name: str(folders / name) for name in ("brief", "warm")},
        str(folders / fallback),
        device="cpu",
    )
    expected = {None: logits(AutoModelForCausalLM.from_pretrained(folders / fallback))}
    for name in ("brief", "warm"):
        alone = AutoModelForCausalLM.from_pretrained(folders / "base")
        expected[name] = logits(PeftModel.from_pretrained(alone, str(folders / name)))
    assert (expected["brief"] - expected["warm"]).abs().max() > 0.01
    for component in ("brief", None, "warm", "brief", "warm", None):
        model, tokenizer = found.policy(component)
        torch.testing.assert_close(logits(model), expected[component])
        assert tokenizer.eos_token == "<eos>" and not model.training
    models = {id(found.policy(component)[0]) for component in ("brief", "warm", None)}
    assert len(models) == (1 if fallback == "base" else 2), "one copy of the base"
    with pytest.raises(ValueError, match="no policy of 'kind'; there are brief, warm"):
        found.policy("kind")


def test_a_real_mixture_routes_by_choices(folders):
    """Heads that like one word each: who chooses it twice is theirs."""
    torch.manual_seed(0)
    mixture = MixtureRewardModel.from_base(str(folders / "base"), 2, component_names=["brief", "warm"])
    mixture.eval().config.mixing_weights = [0.8, 0.2]
    with torch.no_grad():
        head = mixture.components[0].score.weight
        good, bad = (
            mixture.features(torch.tensor([mixture.processing_class(f"film {word} <eos>").input_ids]))[0, 0]
            for word in ("good", "bad")
        )
        direction = (good - bad) / (good - bad).square().sum()
        head[0], head[1] = 2 * direction, -2 * direction
    found = PolicyRouter(mixture, {"brief": PAIR, "warm": PAIR}, PAIR)
    rows = [{"prompt": "film", "chosen": "good", "rejected": "bad"}] * 2
    turned = [{"prompt": "film", "chosen": "bad", "rejected": "good"}] * 2
    data = [{**row, "annotator_id": who} for who, own in (("ann", rows), ("bob", turned)) for row in own]
    routes = found.route(Dataset.from_list(data))
    assert [(r.annotator_id, r.component, r.num_pairs) for r in routes] == [("ann", "brief", 2), ("bob", "warm", 2)]
    # Two pairs of 2 log-odds each say 4 nats; for the minority the shares take log 4 away.
    assert routes[0].probability == pytest.approx(torch.tensor(4.0).sigmoid().item(), abs=1e-3)
    assert routes[1].probability == pytest.approx(
        (torch.tensor(4.0) - torch.tensor(4.0).log()).sigmoid().item(), abs=1e-3
    )
    assert found.route_one(rows).component == "brief"
