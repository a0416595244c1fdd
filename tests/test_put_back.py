"""One block of a model put back to another's: against models with that block written into their state dict."""

from __future__ import annotations

import threading

import pytest
import torch

from merging import MergingError
from merging.answering import put_back
from merging.answering.batched import interruptible
from merging.answering.put_back import EVERYTHING, NOTHING, PutBack
from merging.heartbeats import Stopped
from merging.inference import LoadedModel
from tests.conftest import edit_config, save_llama, tune

PROMPT, ANSWER = [5, 6, 7], [8, 9, 10, 11]
PARTS = ("embeddings", "block 0", "block 1", "block 2", "final norm + head")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("put_back")
    save_llama(root / "base")
    tune(root / "base", root / "merged", seed=1, scale=0.1)
    return root


@pytest.fixture
def models(folders) -> tuple[LoadedModel, LoadedModel]:
    return LoadedModel.load(folders / "merged"), LoadedModel.load(folders / "base")


def likelihood(module) -> float:
    with torch.no_grad():
        logs = module(torch.tensor([PROMPT + ANSWER])).logits[0].double().log_softmax(-1)
    return sum(float(logs[len(PROMPT) + number - 1, id]) for number, id in enumerate(ANSWER))


def belongs(name: str, part: str) -> bool:
    if part.startswith("block"):
        return f".layers.{part.split()[1]}." in name
    return ("embed" in name) if part == "embeddings" else name in ("model.norm.weight", "lm_head.weight")


def test_every_part_is_a_plain_forward_pass_with_that_part_replaced(models, folders):
    merged, base = models
    found = {one.part: one for one in PutBack(merged, base, PROMPT, ANSWER).run()}
    assert tuple(found) == (NOTHING, *PARTS, EVERYTHING)
    before = likelihood(merged.model)
    assert found[NOTHING].log_likelihood == pytest.approx(before, abs=1e-5)
    for part in PARTS:
        made = LoadedModel.load(folders / "merged").model
        state = made.state_dict()
        made.load_state_dict(
            {name: base.model.state_dict()[name] if belongs(name, part) else state[name] for name in state}
        )
        assert found[part].log_likelihood == pytest.approx(likelihood(made), abs=1e-5)
        assert found[part].change == pytest.approx(likelihood(made) - before, abs=2e-5)
        assert found[part].change != 0
    assert found[NOTHING].change == 0


def test_everything_put_back_is_the_donor_to_the_last_bit(models):
    merged, base = models
    *_, last = PutBack(merged, base, PROMPT, ANSWER).run()
    donor = next(PutBack(base, merged, PROMPT, ANSWER).run())
    assert last.log_likelihood == donor.log_likelihood


def test_a_model_put_back_to_itself_does_not_change(models):
    merged, _ = models
    assert {one.change for one in PutBack(merged, merged, PROMPT, ANSWER).run()} == {0.0}


def test_others_ask_the_same_model_meanwhile_and_notice_nothing(models):
    merged, base = models
    tensors = dict(merged.model.named_parameters())
    before = likelihood(merged.model)
    running, beside = (PutBack(merged, donor, PROMPT, ANSWER).run() for donor in (base, merged))
    alone = list(PutBack(merged, base, PROMPT, ANSWER).run())
    together = []
    for one, other in zip(running, beside, strict=True):
        together.append(one)
        assert other.change == 0
        assert likelihood(merged.model) == before
        assert all(tensors[name] is now for name, now in merged.model.named_parameters())
    assert together == alone


def test_what_stops_another_visitor_does_not_stop_it(models):
    merged, base = models
    with interruptible(merged, lambda: True):
        swap = PutBack(merged, base, PROMPT, ANSWER)
        assert len(list(swap.run())) == len(PARTS) + 2


def test_a_model_asked_in_the_middle_of_a_pass_is_whole(models):
    """The middle of a forward pass with a part put back is where an exchange in the model itself would show."""
    merged, base = models
    before, seen = likelihood(merged.model), []
    swap = PutBack(merged, base, PROMPT, ANSWER)
    swap._copy.model.layers[1].register_forward_pre_hook(lambda *_: seen.append(likelihood(merged.model)))
    list(swap.run())
    assert seen == [before] * (len(PARTS) + 2)


def test_a_stop_ends_it_at_the_next_module_and_leaves_the_model_alone(models):
    merged, base = models
    before, stop = likelihood(merged.model), threading.Event()
    swap = PutBack(merged, base, PROMPT, ANSWER, stop)
    running = swap.run()
    next(running)
    swap._copy.model.layers[1].register_forward_pre_hook(lambda *_: stop.set())
    with pytest.raises(Stopped):
        next(running)
    assert likelihood(merged.model) == before
    assert likelihood(swap.merged.model) == before
    stop.clear()
    assert {name: id(weight) for name, weight in swap._copy.named_parameters()} == {
        name: id(weight) for name, weight in merged.model.named_parameters()
    }


def test_no_weight_is_copied(models):
    merged, base = models
    swap = PutBack(merged, base, PROMPT, ANSWER)
    own = {weight.data_ptr() for weight in merged.model.parameters()}
    assert {weight.data_ptr() for weight in swap._copy.parameters()} == own
    with swap._put_back(["model.layers.1.mlp.up_proj.weight"]):
        assert swap._copy.model.layers[1].mlp.up_proj.weight is base.model.model.layers[1].mlp.up_proj.weight


@pytest.mark.parametrize("tied", ["merged", "donor", "both"])
def test_a_tied_head_goes_with_its_embedding(tied, tmp_path):
    base = save_llama(tmp_path / "base", tied=tied in ("donor", "both"))
    other = save_llama(tmp_path / "merged", seed=1, tied=tied in ("merged", "both"))
    merged, donor = LoadedModel.load(other), LoadedModel.load(base)
    swap = PutBack(merged, donor, PROMPT, ANSWER)
    assert (swap.parts[0], swap.parts[-1]) == (
        ("embeddings", "final norm + head")
        if tied == "donor"
        else ("embeddings + tied head", "final norm")
    )  # fmt: skip
    *_, last = swap.run()
    assert last.log_likelihood == next(PutBack(donor, merged, PROMPT, ANSWER).run()).log_likelihood
    assert (merged.model.lm_head.weight is merged.model.model.embed_tokens.weight) == (tied != "donor")


def test_another_architecture_finds_its_parts():
    names = ("transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight", "transformer.h.10.ln_1.bias")
    names += ("transformer.h.2.ln_1.bias", "transformer.ln_f.weight", "lm_head.weight", "adapter.scale")
    parts = put_back._parts({name: torch.zeros(1) for name in names})
    assert list(parts) == [
        "embeddings", "block 0", "block 2", "block 10", "final norm + head", "other tensors"
    ]  # fmt: skip


def test_donors_of_another_shape_are_refused(models, tmp_path):
    merged, _ = models
    wide = LoadedModel.load(save_llama(tmp_path / "wide", intermediate_size=64))
    with pytest.raises(MergingError, match=r"gate_proj.weight' is 48×32 in one and 64×32 in the other"):
        PutBack(merged, wide, PROMPT, ANSWER)
    short = LoadedModel.load(save_llama(tmp_path / "short", num_hidden_layers=2))
    with pytest.raises(MergingError, match=r"layers\.2\..* in one and missing in the other"):
        PutBack(merged, short, PROMPT, ANSWER)


def test_answers_that_cannot_be_measured_are_refused(models, tmp_path):
    merged, base = models
    with pytest.raises(MergingError, match="answer has no tokens"):
        next(PutBack(merged, base, PROMPT, []).run())
    with pytest.raises(MergingError, match="have 65 tokens, and a model here reads at most 64"):
        next(PutBack(merged, base, PROMPT, [4] * 62).run())
    folder = save_llama(tmp_path / "endless")
    edit_config(folder, max_position_embeddings=128)
    assert len(list(PutBack(LoadedModel.load(folder), base, PROMPT, [4] * 62).run())) == len(PARTS) + 2
