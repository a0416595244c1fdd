"""Few examples of an expert's task, and the loss over their answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from merging.errors import MergingError
from merging.inference import LoadedModel
from merging.judging.suites import Item, Suite, item_lines

BATCH_TOKENS = 4096
"""Tokens of one batch, padding included."""
IGNORED = -100


class Task(Protocol):
    """A loss over examples: ℓ = Σ sums / Σ weights, so that both may be added up in any grouping."""

    @property
    def weights(self) -> torch.Tensor:
        """Float64 [examples]: the answer's tokens."""
        ...

    @property
    def batches(self) -> Sequence[Sequence[int]]:
        """Groups of examples that fit the memory together."""
        ...

    def sums(self, model: Any, chosen: Sequence[int]) -> torch.Tensor:
        """The summed loss of each chosen example, differentiable."""
        ...

    def shuffled(self, seed: int) -> Task:
        """The same prompts with each other's answers."""
        ...


@dataclass(frozen=True)
class Calibration:
    """Examples that importance is measured on, and where each was read (for messages)."""

    name: str
    items: tuple[Item, ...]
    places: tuple[str, ...]

    @classmethod
    def of(cls, data: str | Path | Suite, samples: int) -> Calibration:
        """At most `samples` examples, evenly spaced over the file or suite: number i of n is item ⌊i·items/n⌋.

        Raises:
            MergingError: the file cannot be read, is empty, or a line is no object with prompt and answer.
        """
        if isinstance(data, Suite):
            suite, places = data, [f"{data.name}, item {number}" for number in range(1, len(data) + 1)]
        else:
            suite, places = Suite.load(data), _line_places(Path(data))
        if not suite.items:
            raise MergingError(
                f"calibration {suite.name}: holds no examples. Give prompts and answers of the task."
            )
        count = min(samples, len(suite))
        chosen = [number * len(suite) // count for number in range(count)]
        for number in chosen:
            if not suite.items[number].answer:
                raise MergingError(f"{places[number]}: its answer is empty, so there is no loss to measure.")
        items = tuple(suite.items[number] for number in chosen)
        return cls(suite.name, items, tuple(places[number] for number in chosen))

    @property
    def fingerprint(self) -> str:
        """A hash of the examples in their order."""
        digest = hashlib.blake2b(digest_size=16)
        for item in self.items:
            for text in (item.prompt, item.answer):
                data = text.encode("utf-8", "surrogatepass")
                digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()


def _line_places(file: Path) -> list[str]:
    return [f"{file}, line {number}" for number in item_lines(file.read_text(encoding="utf-8"))]


class AnswerTask:
    """The mean negative log-likelihood of the answers' tokens given their prompts, as a `Task`.

    A prompt is put into the model's chat template and masked; the token that ends the reply belongs to the answer.
    """

    def __init__(self, sequences: Sequence[tuple[list[int], list[int]]], pad: int, context: int | None):
        self.sequences = list(sequences)
        self.pad, self.context = pad, context

    @classmethod
    def of(cls, calibration: Calibration, model: LoadedModel) -> AnswerTask:
        """Tokenised for one model.

        Raises:
            MergingError: an example is longer than the model can read; its line is named.
        """
        sequences = []
        for item, place in zip(calibration.items, calibration.places, strict=True):
            prompt = model.prompt_ids([{"role": "user", "content": item.prompt}])
            answer = model.tokenizer(item.answer, add_special_tokens=False)["input_ids"] + _end(model)
            if not prompt or not answer:
                raise MergingError(f"{place}: the tokenizer makes no tokens of its prompt or of its answer.")
            if model.context is not None and len(prompt) + len(answer) > model.context:
                raise MergingError(
                    f"{place}: prompt and answer have {len(prompt) + len(answer)} tokens, and {model.path.name} reads at "
                    f"most {model.context}. Shorten the example or leave it out."
                )
            sequences.append((list(prompt), list(answer)))
        return cls(sequences, model.pad_id, model.context)

    def shuffled(self, seed: int) -> AnswerTask:
        """The same prompts with each other's answers: no example keeps its own where there are two or more.

        Where prompt and foreign answer exceed the context, the beginning of the prompt is cut off.
        """
        order = torch.randperm(len(self.sequences), generator=torch.Generator().manual_seed(seed)).tolist()
        following = dict(zip(order, [*order[1:], order[0]], strict=True))
        mixed = []
        for number, (prompt, _) in enumerate(self.sequences):
            answer = self.sequences[following[number]][1]
            mixed.append((prompt[max(0, len(prompt) + len(answer) - (self.context or 1 << 62)) :], answer))
        return AnswerTask(mixed, self.pad, self.context)

    @property
    def weights(self) -> torch.Tensor:
        return torch.tensor([len(answer) for _, answer in self.sequences], dtype=torch.float64)

    @property
    def batches(self) -> list[list[int]]:
        """Examples in groups of at most `BATCH_TOKENS` padded tokens, similar lengths together."""
        lengths = [len(prompt) + len(answer) for prompt, answer in self.sequences]
        groups: list[list[int]] = []
        for number in sorted(range(len(lengths)), key=lambda number: lengths[number]):
            if not groups or (len(groups[-1]) + 1) * lengths[number] > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(number)
        return groups

    def sums(self, model: Any, chosen: Sequence[int]) -> torch.Tensor:
        ids, mask, labels = (values.to(model.device) for values in self._padded(chosen))
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        wanted = labels[:, 1:]
        kept = wanted != IGNORED
        losses = torch.nn.functional.cross_entropy(logits[kept].float(), wanted[kept], reduction="none")
        examples = torch.arange(len(chosen), device=losses.device).repeat_interleave(kept.sum(1))
        return torch.zeros(len(chosen), device=losses.device).index_add(0, examples, losses)

    def _padded(self, chosen: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, attention mask and labels (prompt and padding ignored), padded on the right."""
        rows = [self.sequences[number] for number in chosen]
        width = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids = torch.full((len(rows), width), self.pad)
        mask = torch.zeros((len(rows), width), dtype=torch.int64)
        labels = torch.full((len(rows), width), IGNORED)
        for row, (prompt, answer) in enumerate(rows):
            end = len(prompt) + len(answer)
            ids[row, :end] = torch.tensor(prompt + answer)
            mask[row, :end] = 1
            labels[row, len(prompt) : end] = torch.tensor(answer)
        return ids, mask, labels


def _end(model: LoadedModel) -> list[int]:
    """The token that ends a reply: the tokenizer's own, if the model knows several."""
    ends = model.end_ids
    return [model.tokenizer.eos_token_id] if model.tokenizer.eos_token_id in ends else ends[:1]
