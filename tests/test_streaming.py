"""Replies arrive token by token, are repeatable, and stop when asked; models stay in memory within a limit."""

from __future__ import annotations

import shutil
import threading
import time

import pytest
import torch

from merging import Checkpoint, MergingError
from merging.answering import model_cache
from merging.answering.drawing import Draw
from merging.answering.model_cache import ModelCache, bytes_to_run, in_rounds
from merging.errors import CheckpointError
from merging.inference import LoadedModel, Sampling, TokenIds, stream
from tests.conftest import edit_config, save_llama

QUESTION = [{"role": "user", "content": "abc"}]


@pytest.fixture(scope="module")
def model(family) -> LoadedModel:
    """A random model: it never ends by itself within its context."""
    loaded = LoadedModel.load(family / "base")
    loaded.model.generation_config.eos_token_id = None
    return loaded


def reply(model, **settings) -> str:
    return "".join(stream(model, QUESTION, Sampling(**settings)))


def test_greedy_equals_transformers(model):
    ids = torch.tensor([model.prompt_ids(QUESTION)])
    whole = model.model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=[1], pad_token_id=0)
    expected = model.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
    assert reply(model, max_new_tokens=20) == expected


def test_the_exact_tokens_are_told(model):
    told = TokenIds()
    text = "".join(stream(model, QUESTION, Sampling(max_new_tokens=20), ids=told))
    ids = torch.tensor([model.prompt_ids(QUESTION)])
    whole = model.model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=[1], pad_token_id=0)
    assert whole[0].tolist() == [*told.prompt, *told.reply]
    assert told.prompt == ids[0].tolist()
    assert text == model.tokenizer.decode(told.reply, skip_special_tokens=True)


def test_one_piece_a_token(model):
    assert len(list(stream(model, QUESTION, Sampling(max_new_tokens=9, temperature=2.0, seed=2)))) <= 9


def test_the_same_seed_gives_the_same_reply_even_side_by_side(model):
    alone = reply(model, temperature=1.5, seed=7, max_new_tokens=30)
    together: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: together.append(reply(model, temperature=1.5, seed=7, max_new_tokens=30))
        )
        for _ in range(3)
    ]
    state = torch.random.get_rng_state()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [alone] * 3
    assert torch.equal(torch.random.get_rng_state(), state)
    assert reply(model, temperature=1.5, seed=8, max_new_tokens=30) != alone


def test_a_tiny_nucleus_or_temperature_is_greedy(model):
    greedy = reply(model, max_new_tokens=20)
    assert reply(model, temperature=2.0, top_p=1e-9, max_new_tokens=20) == greedy
    assert reply(model, temperature=1e-4, max_new_tokens=20) == greedy


def test_draws_follow_the_softmax(model):
    """The share of each first token among many seeds is its probability."""
    ids = torch.tensor([model.prompt_ids(QUESTION)])
    with torch.inference_mode():
        odds = model.model(ids).logits[0, -1].softmax(-1)
    scores = odds.log()[None]
    drawn = torch.tensor(
        [int(Draw(Sampling(temperature=1.0, seed=seed))(ids, scores).argmax()) for seed in range(4000)]
    )
    shares = torch.bincount(drawn, minlength=odds.numel()) / len(drawn)
    assert (shares - odds).abs().max() < 4 * (0.25 / len(drawn)) ** 0.5
    half = scores.softmax(-1).sort(descending=True)
    allowed = {int(i) for i in half.indices[0, : int((half.values[0].cumsum(0) < 0.5).sum()) + 1]}
    nucleus = {
        int(Draw(Sampling(temperature=1.0, top_p=0.5, seed=seed))(ids, scores).argmax())
        for seed in range(500)
    }
    assert nucleus <= allowed


def generating() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "reply"]


def test_stop_ends_the_reply_soon(tmp_path):
    """A context of 4096 tokens would take seconds to fill."""
    endless = LoadedModel.load(save_llama(tmp_path / "endless", max_position_embeddings=4096))
    endless.model.generation_config.eos_token_id = None
    endless.tokenizer.eos_token = None
    stop = threading.Event()
    pieces = stream(endless, QUESTION, Sampling(max_new_tokens=4000), stop)
    for _ in range(5):
        next(pieces)
    begun = time.monotonic()
    stop.set()
    rest = len(list(pieces))
    assert time.monotonic() - begun < 2
    assert rest < 500
    assert not generating()


def test_closing_the_iterator_ends_the_thread(tmp_path):
    endless = LoadedModel.load(save_llama(tmp_path / "endless", max_position_embeddings=4096))
    endless.model.generation_config.eos_token_id = None
    endless.tokenizer.eos_token = None
    pieces = stream(endless, QUESTION, Sampling(max_new_tokens=4000))
    next(pieces)
    assert generating()
    pieces.close()
    assert not generating()


def test_the_context_bounds_the_reply_and_a_full_one_is_explained(model):
    assert model.context == 64
    long = [{"role": "user", "content": "a" * 60}]
    assert len(list(stream(model, long, Sampling(max_new_tokens=50)))) <= 4
    with pytest.raises(MergingError, match="70 tokens and this model reads at most 64"):
        list(stream(model, [{"role": "user", "content": "a" * 70}]))


def ending(model, stop=None, **settings) -> str:
    pieces = stream(model, QUESTION, Sampling(**settings), stop)
    while True:
        try:
            next(pieces)
        except StopIteration as over:
            return over.value


def test_why_a_reply_is_over(model, family):
    assert ending(model, max_new_tokens=5) == "length"
    assert ending(model, max_new_tokens=500) == "context"
    stop = threading.Event()
    stop.set()
    assert ending(model, stop, max_new_tokens=500) == "stopped"
    ended = LoadedModel.load(family / "base")
    told = TokenIds()
    list(stream(ended, QUESTION, Sampling(max_new_tokens=1), ids=told))
    ended.model.generation_config.eos_token_id = told.reply[0]
    assert ending(ended, max_new_tokens=1) == "end"


def test_a_models_own_generation_settings_change_no_reply(model, family):
    own = LoadedModel.load(family / "base")
    settings = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "min_new_tokens": 30, "top_k": 3}
    settings |= {"stop_strings": ["a"], "suppress_tokens": list(range(2, 30)), "max_time": 0.0}
    settings |= {"guidance_scale": 2.0, "encoder_repetition_penalty": 3.0, "prompt_lookup_num_tokens": 3}
    settings |= {"return_dict_in_generate": True}
    for name, value in {**settings, "eos_token_id": None}.items():
        setattr(own.model.generation_config, name, value)
    assert reply(own, max_new_tokens=20) == reply(model, max_new_tokens=20)


def test_a_repetition_penalty_changes_a_greedy_reply(model):
    assert reply(model, max_new_tokens=20, repetition_penalty=2.0) != reply(model, max_new_tokens=20)


def test_an_error_while_generating_reaches_the_reader(family):
    broken = LoadedModel.load(family / "one")
    broken.model.model.layers[0].self_attn.q_proj = None
    with pytest.raises(TypeError):
        list(stream(broken, QUESTION))
    assert not generating()


def test_a_model_is_loaded_once(family):
    cache = ModelCache()
    models: list[LoadedModel] = []
    threads = [threading.Thread(target=lambda: models.append(cache.get(family / "one"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(models) == 4
    assert all(model is models[0] for model in models)
    assert len(cache) == 1


def test_the_least_recently_used_model_goes_first(family):
    size = LoadedModel.load(family / "base").nbytes
    cache = ModelCache(limit=2 * size)
    one, two = cache.get(family / "one"), cache.get(family / "two")
    assert cache.get(family / "one") is one
    cache.get(family / "three")
    assert len(cache) == 2
    assert cache.get(family / "one") is one
    assert cache.get(family / "two") is not two


def test_room_is_made_before_a_model_is_loaded(family, monkeypatch):
    size = LoadedModel.load(family / "base").nbytes
    cache = ModelCache(limit=2 * size - 1)
    kept = []
    load = LoadedModel.load
    monkeypatch.setattr(LoadedModel, "load", lambda *place: kept.append(len(cache)) or load(*place))
    for name in ("one", "two", "three"):
        cache.get(family / name)
    assert kept == [0, 0, 0]


def test_what_models_take_is_known_from_their_headers(bf16_family):
    tensors = Checkpoint.open(bf16_family / "one").tensors
    assert bytes_to_run(tensors, "cpu") == LoadedModel.load(bf16_family / "one").nbytes
    assert 2 * bytes_to_run(tensors, "cuda") == bytes_to_run(tensors, "cpu")


def test_the_room_is_what_is_free_and_taken_already(family, monkeypatch):
    cache = ModelCache()
    monkeypatch.setattr(model_cache, "free_memory", lambda: 1000)
    assert cache.room() == 750
    size = cache.get(family / "one").nbytes
    assert cache.room() == size + 750
    cache.limit = 10
    assert cache.room() == 10
    monkeypatch.setattr(model_cache, "free_memory", lambda: None)
    assert cache.room() == 10


@pytest.mark.parametrize(
    ("sizes", "rounds"),
    [
        ("", []),
        ("a3", [[0]]),
        ("a3 b3 c3", [[0, 1, 2]]),
        ("a5 b5 c1 d4", [[0, 1], [2, 3]]),
        ("a11 b1", [[0], [1]]),
        ("a6 a6 b4 a6", [[0, 1, 2, 3]]),
        ("a6 b6 a6", [[0], [1], [2]]),
    ],
)
def test_models_are_asked_in_rounds_that_fit(sizes, rounds):
    wanted = [(part[0], int(part[1:])) for part in sizes.split()]
    assert in_rounds(wanted, 10) == rounds


def test_a_single_model_larger_than_the_limit_still_answers(family):
    cache = ModelCache(limit=1)
    assert cache.get(family / "one") is cache.get(family / "one")


def test_a_folder_written_anew_is_loaded_anew(family, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(family / "one", folder)
    cache = ModelCache()
    before = cache.get(folder)
    shutil.rmtree(folder)
    shutil.copytree(family / "two", folder)
    assert cache.get(folder) is not before


def test_a_folder_that_cannot_be_run_is_named(family, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        ModelCache().get(tmp_path / "nowhere")
    folder = tmp_path / "odd"
    shutil.copytree(family / "one", folder)
    edit_config(folder, model_type="never-heard-of")
    with pytest.raises(CheckpointError, match="odd"):
        ModelCache().get(folder)
