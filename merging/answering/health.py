"""Whether a merged model is sound: its weights, its output head, its logits, and its replies to a few prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from merging.answering.abilities import why_silent
from merging.answering.batched import greedy_replies, interruptible, log_probabilities
from merging.checkpoint import INDEX, Checkpoint, TensorSource
from merging.errors import CheckpointError
from merging.folders.header import TensorInfo
from merging.folders.small_files import read_json
from merging.heartbeats import Stopped
from merging.inference import TOKENIZER_FILES, LoadedModel
from merging.layout import Input
from merging.plan import Plan
from merging.tensor_plan import TensorPlan

PROMPTS = (
    "Say hello.",
    "2 + 2 =",
    "What is the capital of France?",
    "Name a colour.",
    "Is fire hot?",
    "Spell the word cat.",
    "What is the plural of dog?",
    "Write one short sentence about the sea.",
)
NEW_TOKENS = 48
FEWEST_GOOD = 4
"""Replies that must come to an end, and replies that must not repeat themselves."""
PERIOD, REPEATED = 4, 24
"""A reply repeats itself if so many tokens at its end go round in a circle of at most `PERIOD`."""
FACTOR = 6.0
"""How far the size of a tensor's weights may lie outside its parents': merges of the demo at their best stay within 1.3, a
task vector thirty times too large is at 17."""
CHUNK, SAMPLED = 1 << 24, 1 << 20
"""Elements of a tensor that are in memory at once, and those of each parent that its size is taken from."""
MOST_ON_CPU = 600_000_000
"""Parameters of a model that is asked on a CPU: more would take minutes."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: `sentence` says what was found."""

    name: str
    ok: bool
    sentence: str


@dataclass(frozen=True)
class Health:
    """All that was looked at."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return all(check.ok for check in self.checks)

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each thing that is wrong."""
        return tuple(check.sentence for check in self.checks if not check.ok)

    def as_json(self) -> dict[str, Any]:
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}


def check_health(
    folder: str | Path,
    *,
    plan: Plan | None = None,
    device: str = "cpu",
    stopped: Callable[[], bool] | None = None,
) -> Health:
    """Look at a model folder: every weight, then, where it can be asked on this device, logits and replies.

    Args:
        plan: of the merge that wrote it, for the norms of its parents and the manners of its first expert.
        stopped: once true, it ends within a second, or as soon as the model is loaded.

    Raises:
        MergingError: the folder holds no model.
        Stopped: because `stopped` said so.
    """
    checkpoint = Checkpoint.open(folder)
    checks = [*_weights(checkpoint, plan, stopped or (lambda: False)), *_head(checkpoint)]
    if reason := _unasked(checkpoint, device):
        return Health((*checks, Check("replies", True, reason)))
    try:
        model = LoadedModel.load(checkpoint.folder, device=device)
    except CheckpointError as error:
        return Health((*checks, Check("loading", False, str(error))))
    with interruptible(model, stopped):
        found = list(_answers(model))
    excused = [check.ok or _in_the_family(check, plan, device, stopped) for check in found]
    said = " Its first expert is no different."
    checks += [
        check if check.ok or not same else Check(check.name, True, check.sentence + said)
        for check, same in zip(found, excused, strict=True)
    ]
    return Health(tuple(checks))


def health_after_merge(
    folder: Path, plan: Plan, *, device: str = "cpu", stopped: Callable[[], bool] | None = None
) -> Health:
    """`check_health` of what was just merged. A check that cannot be made says so and is no problem of the merge."""
    try:
        return check_health(folder, plan=plan, device=device, stopped=stopped)
    except Stopped:
        raise
    except Exception as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        return Health((Check("check", True, f"The health check could not be made: {first}"),))


def _weights(checkpoint: Checkpoint, plan: Plan | None, stopped: Callable[[], bool]) -> Iterator[Check]:
    """Whether all weights are finite, and of a size like their parents'; one tensor is in memory at a time."""
    tensors = plan.tensors if plan else ()
    inputs = {one.info.name: (one.reference, *one.inputs) for one in tensors}
    asked = {one.info.name for one in tensors if _scaled(one)}
    broken: list[tuple[str, str]] = []
    odd: list[tuple[str, str]] = []
    for name, tensor in checkpoint.tensors.items():
        if not tensor.torch_dtype.is_floating_point:
            continue
        norm = 0.0
        rows = max(1, CHUNK // max(1, tensor.row_elements))
        for start in range(0, tensor.rows, rows):
            if stopped():
                raise Stopped
            norm = math.hypot(norm, _norm(checkpoint.read(name, start, start + rows)))
        if not math.isfinite(norm):
            broken.append((name, "holds values that are not finite"))
        elif name not in asked and (reason := _odd(checkpoint, tensor, norm, inputs.get(name, ()))):
            odd.append((name, reason))
    count = len(checkpoint.tensors)
    yield _listed("weights", broken, f"All weights of {count} tensors are finite.")
    yield _listed(
        "norms", odd, "All tensors are as large as their parents'." if plan else "No matrix is all zeros."
    )


def _scaled(tensor: TensorPlan) -> bool:
    """Whether the recipe itself sets its size, such as 0 for what an added block gives to the others."""
    method = tensor.method
    if method is None or "scale" not in method.parameters():
        return False
    return any(factor != 1 for factor in method.for_experts("scale", len(tensor.experts)))


def _norm(values: torch.Tensor) -> float:
    """The Euclidean norm; not finite if, and only if, a value is not."""
    norm = float(torch.linalg.vector_norm(values.to(torch.float32)))
    if math.isfinite(norm) or not bool(values.to(torch.float32).isfinite().all()):
        return norm
    return float(torch.linalg.vector_norm(values.to(torch.float64)))


def _odd(checkpoint: Checkpoint, tensor: TensorInfo, norm: float, inputs: Sequence[Input]) -> str:
    """What is odd about the size of a tensor, in words; nothing where it is not."""
    parents = [
        _size(one.source, one.name, tensor) for one in inputs if one.info and one.info.shape == tensor.shape
    ]
    if not parents:
        return "is all zeros" if norm == 0 and len(tensor.shape) > 1 and tensor.elements else ""
    own = _size(checkpoint, tensor.name, tensor)
    if own > FACTOR * max(parents):
        often = f"{own / max(parents):.0f} times" if max(parents) else "more than nothing:"
        return f"is {often} the size of its largest parent"
    if own < min(parents) / FACTOR:
        return f"has {own / min(parents):.2g} of the size of its smallest parent" if own else "is all zeros"
    return ""


def _size(source: TensorSource, name: str, tensor: TensorInfo) -> float:
    """The norm of a tensor, or of evenly spaced rows of a large one."""
    count = min(tensor.rows, max(1, SAMPLED // max(1, tensor.row_elements)))
    if count == tensor.rows:
        return _norm(source.read(name))
    rows = (number * tensor.rows // count for number in range(count))
    return math.hypot(*(_norm(source.read(name, row, row + 1)) for row in rows))


def _listed(name: str, found: Sequence[tuple[str, str]], fine: str) -> Check:
    if not found:
        return Check(name, True, fine)
    (first, reason), *others = found
    more = f" (and {len(others):,} more tensors)" if others else ""
    return Check(name, False, f"{first}{more}: {reason}.")


def _head(checkpoint: Checkpoint) -> Iterator[Check]:
    """Whether a head that the config ties to the embedding, but that is stored all the same, equals it."""
    if not checkpoint.tied:
        return
    stored, embedding = _stored_head(checkpoint), checkpoint.embedding
    if stored is None or stored.head is None or embedding is None:
        yield Check("head", True, "The output head is tied to the embedding, as config.json says.")
        return
    head = stored.head
    rows = max(1, CHUNK // max(1, checkpoint.tensors[embedding].row_elements))
    same = checkpoint.tensors[embedding].shape == stored.tensors[head].shape and all(
        torch.equal(stored.read(head, start, start + rows), checkpoint.read(embedding, start, start + rows))
        for start in range(0, checkpoint.tensors[embedding].rows, rows)
    )
    yield Check(
        "head",
        same,
        "The output head is tied to the embedding, as config.json says."
        if same
        else f"config.json ties the output head to the embedding, but {head} holds other values; which of them counts depends on the program.",
    )


def _stored_head(checkpoint: Checkpoint) -> Checkpoint | None:
    """The file that holds a head of its own, without the config that hides it."""
    names = {"model.safetensors"}
    if (checkpoint.folder / INDEX).is_file():
        names = set(read_json(checkpoint.folder / INDEX)["weight_map"].values())
    for name in sorted(names):
        alone = Checkpoint.open(checkpoint.folder / name)
        if alone.head is not None:
            return alone
    return None


def _unasked(checkpoint: Checkpoint, device: str) -> str:
    """Why a model is not asked anything; empty where it is."""
    only = "so only its weights were looked at."
    if checkpoint.architecture is None:
        return f"The model's config.json names no class that runs it, {only}"
    if reason := why_silent(checkpoint.config):
        return reason
    if not any(next(checkpoint.tokenizer_folder.glob(name), None) for name in TOKENIZER_FILES):
        return f"The model has no tokenizer, {only}"
    if device == "cpu" and checkpoint.parameters > MOST_ON_CPU:
        return f"The model is too large to be asked on a CPU in seconds, {only}"
    return ""


def _answers(model: LoadedModel) -> Iterator[Check]:
    """Logits and replies to the built-in prompts."""
    prompts = [model.prompt_ids([{"role": "user", "content": text}]) for text in PROMPTS]
    room = NEW_TOKENS if model.context is None else min(NEW_TOKENS, model.context - max(map(len, prompts)))
    if room < PERIOD or min(map(len, prompts)) < 2:
        yield Check("replies", True, "The model reads too little to be asked anything.")
        return
    likelihoods = log_probabilities(model, [(ids, 1) for ids in prompts], len(prompts))
    finite = all(bool(values.isfinite().all()) for _, values in likelihoods)
    yield Check("logits", finite, "The logits are finite." if finite else "Its logits are not finite.")
    if not finite:
        return
    replies = greedy_replies(model, prompts, room)
    circling = [ids for ids in replies if _circles(ids)]
    yield Check(
        "repetition",
        len(replies) - len(circling) >= FEWEST_GOOD,
        f"{len(circling)} of {len(replies)} replies repeat the same few tokens without end"
        + (f", such as {_quoted(model, circling[0])}." if circling else "."),
    )
    if not model.end_ids or not model.tokenizer.chat_template:
        yield Check("end", True, "The model has no chat template, so its replies need not end.")
        return
    endless = [ids for ids in replies if ids[-1] not in model.end_ids]
    yield Check(
        "end",
        len(replies) - len(endless) >= FEWEST_GOOD,
        f"{len(endless)} of {len(replies)} replies do not end within {room} tokens"
        + (f", such as {_quoted(model, endless[0])}." if endless else "."),
    )


def _circles(ids: Sequence[int]) -> bool:
    """Whether the last tokens are a few that come again and again."""
    tail = list(ids[-REPEATED:])
    return len(tail) == REPEATED and any(tail[period:] == tail[:-period] for period in range(1, PERIOD + 1))


def _quoted(model: LoadedModel, ids: Sequence[int]) -> str:
    return repr(model.tokenizer.decode(ids, skip_special_tokens=True)[:40])


def _in_the_family(check: Check, plan: Plan | None, device: str, stopped: Callable[[], bool] | None) -> bool:
    """Whether the first expert replies in the same way: then it is no fault of the merge."""
    expert = plan.experts[0] if plan and plan.experts else None
    if check.name not in {"repetition", "end"} or not isinstance(expert, Checkpoint):
        return False
    if _unasked(expert, device):
        return False
    model = LoadedModel.of_checkpoint(expert.origin, device)
    with interruptible(model, stopped):
        return any(other.name == check.name and not other.ok for other in _answers(model))
