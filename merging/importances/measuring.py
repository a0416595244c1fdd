"""All that is measured on one expert: its importance, its losses, and how well the one foretells the other."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import get_args

import torch

from merging.errors import MergingError, did_you_mean
from merging.importances.agreement import (
    CHANGE,
    SHUFFLED,
    SIZE,
    ExpertAgreement,
    Tables,
    correlate,
    orders,
    removal_counts,
)
from merging.importances.artefact import At, How
from merging.importances.attribution import (
    BLOCK_ELEMENTS,
    Elements,
    MovedModel,
    carried,
    gradient_sums,
    losses,
)
from merging.importances.calibration import Task
from merging.partitions import Granularity, Partitions

SAMPLE = 64
"""Heads or rows that are measured exactly where nobody says how many."""
REPEATS = 3
"""Random orders that a removal curve averages."""
STATES: dict[str, tuple[tuple[float, float], ...]] = {
    "base": ((0.0, 1.0),),
    "expert": ((1.0, 1.0),),
    "midpoint": ((0.5, 1.0),),
    "trapezoid": ((0.0, 0.5), (1.0, 0.5)),
}
"""Where gradients are taken, as shares of the way from base to expert, and the weight of each."""


@dataclass(frozen=True)
class Measurement:
    """What to measure.

    `at`: where gradients are taken (not used by `exact`). `elementwise`: Σ|δᵢgᵢ| in place of |Σ δᵢgᵢ|. `elements`: keep
    δᵢgᵢ of every element too. `samples`: examples an expert. `sample`: how many partitions the exact form and the
    agreement report measure; None takes all, but for heads and rows `SAMPLE` of them. `agreement`: add that report.
    """

    how: How = "gradient"
    partition: Granularity = "module"
    at: At = "base"
    elementwise: bool = False
    elements: bool = False
    samples: int = 16
    sample: int | None = None
    seed: int = 0
    agreement: bool = False

    def __post_init__(self) -> None:
        for name, known in (("how", How), ("partition", Granularity), ("at", At)):
            value, words = getattr(self, name), get_args(known)
            if value not in words:
                close = did_you_mean(str(value), words)
                raise MergingError(f"{name} '{value}': unknown. Use {', '.join(words)}.{close}")
        for name in ("samples", "sample"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise MergingError(f"{name}: {value!r} is not possible; give a whole number from 1 up.")
        if self.how == "exact" and (self.elementwise or self.elements):
            raise MergingError(
                "how 'exact' puts back whole partitions; elementwise and elements need how 'gradient'."
            )

    @property
    def score(self) -> str:
        """The predictor that the agreement report judges."""
        return f"Σ|δg| at {self.at}" if self.elementwise else f"gradient at {self.at}"


@dataclass(frozen=True)
class Step:
    """How far the measurement of one expert is."""

    stage: str
    done: int
    total: int

    @property
    def share(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 1.0


@dataclass(frozen=True)
class Measured:
    """The result for one expert: float64 [P] as in `Importance`, losses as mean NLL of an answer token."""

    signed: torch.Tensor
    change: torch.Tensor
    base_loss: float
    expert_loss: float
    elements: Elements | None
    agreement: ExpertAgreement | None


class ExpertMeasures:
    """Measures one expert whose model is in memory; between two steps nothing is half done."""

    def __init__(self, name: str, moved: MovedModel, task: Task, partitions: Partitions, wanted: Measurement):
        self.name, self.moved, self.task = name, moved, task
        self.partitions, self.wanted = partitions, wanted
        self.tokens = task.weights
        self.inside = (~partitions.outside).nonzero().flatten()
        self.done, self.total = 0, self._work()
        self.clean = torch.zeros(0)
        self._rises: dict[int, torch.Tensor] = {}

    def run(self) -> Iterator[Step | Measured]:
        """Steps, and the result at the end.

        Raises:
            MergingError: a loss is not finite.
        """
        change = yield from self._squares()
        self.moved.move(0)
        base = losses(self.moved, self.task)
        yield self._step("loss of the base")
        self.moved.move(1)
        self.clean = losses(self.moved, self.task)
        yield self._step("loss of the expert")
        elements = None
        if self.wanted.how == "exact":
            signed = yield from self._exact_scores()
        else:
            signed, elements = yield from self._gradient_scores()
        report = None
        if self.wanted.agreement:
            report = yield from self._agreement(signed, change)
        ends = [float(sums.sum() / self.tokens.sum()) for sums in (base, self.clean)]
        kept = elements if self.wanted.elements else None
        yield Measured(signed, change, ends[0], ends[1], kept, report)

    def _work(self) -> int:
        """Steps there will be."""
        gradients = len(STATES[self.wanted.at]) * len(self.task.batches)
        work = len(self.partitions.index) + 2
        work += len(self._exact_sample()) if self.wanted.how == "exact" else gradients
        if self.wanted.agreement:
            work += len(self._sample()) * (self.wanted.how != "exact")
            work += 2 * 3 * len(self.tokens)
            work += len(removal_counts(len(self.inside))) * (2 + REPEATS)
        return work

    def _step(self, stage: str) -> Step:
        self.done += 1
        return Step(stage, self.done, self.total)

    def _squares(self) -> Generator[Step, None, torch.Tensor]:
        """‖δ_P‖² of every partition."""
        totals = torch.zeros(len(self.partitions), dtype=torch.float64, device=self.moved.device)
        for name in carried(self.moved.base):
            for start, stop in self.moved.base.tensors[name].row_blocks(BLOCK_ELEMENTS):
                change = self.moved.change(name, start, stop)
                self.partitions.add(totals, name, change.double().square(), start)
            yield self._step("reading")
        return totals.cpu()

    def _sample(self) -> torch.Tensor:
        """The inside partitions that the agreement report measures exactly, ascending."""
        count = self.wanted.sample
        if count is None and self.wanted.partition in {"head", "row"}:
            count = SAMPLE
        if count is None or count >= len(self.inside):
            return self.inside
        generator = torch.Generator().manual_seed(self.wanted.seed)
        return self.inside[torch.randperm(len(self.inside), generator=generator)[:count]].sort().values

    def _exact_sample(self) -> torch.Tensor:
        """What the exact form measures: everything, norms and embeddings too, or a sample of the inside."""
        whole = self.wanted.sample is None and self.wanted.partition not in {"head", "row"}
        return torch.arange(len(self.partitions)) if whole else self._sample()

    def _exact_scores(self) -> Generator[Step, None, torch.Tensor]:
        numbers = self._exact_sample()
        table = yield from self._exact(numbers)
        signed = torch.full((len(self.partitions),), torch.nan, dtype=torch.float64)
        signed[numbers] = -table.sum(0) / self.tokens.sum()
        return signed

    def _exact(self, numbers: torch.Tensor) -> Generator[Step, None, torch.Tensor]:
        """[examples, numbers]: the rise of each example's summed loss when a partition is put back."""
        self.moved.move(1)
        for number in numbers.tolist():
            if number not in self._rises:
                with self.moved.put_back(self.partitions, torch.tensor([number])):
                    self._rises[number] = losses(self.moved, self.task) - self.clean
                yield self._step("exact intervention")
        return torch.stack([self._rises[number] for number in numbers.tolist()], 1)

    def _gradient_scores(self) -> Generator[Step, None, tuple[torch.Tensor, Elements | None]]:
        """Signed scores; per-element products are kept where they are asked for or needed."""
        keep = self.wanted.elements or self.wanted.elementwise
        elements = Elements(carried(self.moved.base)) if keep else None
        signed = torch.zeros(len(self.partitions), dtype=torch.float64)
        for share, weight in STATES[self.wanted.at]:
            self.moved.move(share)
            factor = weight / float(self.tokens.sum())
            store = None if elements is None else (elements, factor)
            for sums in gradient_sums(self.moved, self.partitions, self.task, self.task.batches, store):
                signed += factor * sums
                yield self._step(f"gradients at {self.wanted.at}")
        if self.wanted.elementwise and elements is not None:
            signed.zero_()
            for name, info in elements.tensors.items():
                for start, stop in info.row_blocks(BLOCK_ELEMENTS):
                    self.partitions.add(signed, name, elements.read(name, start, stop).abs(), start)
        if not bool(signed.isfinite().all()):
            raise MergingError(f"importance: gradients of {self.name} are not finite. Use an intact model.")
        return signed, elements

    def _agreement(
        self, signed: torch.Tensor, change: torch.Tensor
    ) -> Generator[Step, None, ExpertAgreement]:
        numbers = self._sample()
        rises = yield from self._exact(numbers)
        gradients = yield from self._gradient_tables(self.task, numbers, "gradient")
        shuffled = yield from self._gradient_tables(self.task.shuffled(self.wanted.seed), numbers, SHUFFLED)
        fixed = {CHANGE: change[numbers], SIZE: self.partitions.sizes[numbers].double()}
        if self.wanted.elementwise:
            fixed[self.wanted.score] = signed[numbers]
        tables = Tables(rises, gradients | shuffled, fixed, self.tokens)
        found, ahead = correlate(tables, self.wanted.seed, self.wanted.score)
        scores = {"exact" if self.wanted.how == "exact" else self.wanted.score: signed.abs(), CHANGE: change}
        counts, curves = yield from self._curves(scores)
        everyone = torch.arange(len(self.tokens))
        names = [correlation.predictor for correlation in found]
        by_name = {correlation.predictor: correlation.spearman for correlation in found}
        mine, null = by_name[self.wanted.score], by_name[CHANGE]
        return ExpertAgreement(
            expert=self.name,
            keys=tuple(self.partitions[number].key for number in numbers.tolist()),
            exact=tuple(tables.scores(None, everyone).tolist()),
            predictions={name: tuple(tables.scores(name, everyone).tolist()) for name in names},
            correlations=found,
            counts=counts,
            curves=curves,
            ahead=ahead,
            recommended=mine is not None and null is not None and mine > null,
        )

    def _gradient_tables(
        self, task: Task, numbers: torch.Tensor, word: str
    ) -> Generator[Step, None, dict[str, torch.Tensor]]:
        """Predictor -> [examples, numbers], the products of δ with the gradient of each example's summed loss."""
        names = {name for number in numbers.tolist() for name in self.partitions[number].tensors}
        tables = {}
        for share in (0.0, 0.5, 1.0):
            self.moved.move(share)
            rows = []
            singles = [[example] for example in range(len(self.tokens))]
            for sums in gradient_sums(self.moved, self.partitions, task, singles, names=names):
                rows.append(sums[numbers])
                yield self._step(f"{word}, example by example")
            tables[share] = torch.stack(rows)
        return {
            f"{word} at {at}": sum((weight * tables[share] for share, weight in states), torch.zeros(()))
            for at, states in STATES.items()
        }

    def _curves(
        self, scores: dict[str, torch.Tensor]
    ) -> Generator[Step, None, tuple[tuple[int, ...], dict[str, tuple[float, ...]]]]:
        """Loss of the expert with its top partitions put back, for each score and at random."""
        measured = torch.stack([values.isfinite() for values in scores.values()]).all(0)
        candidates = self.inside[measured[self.inside]]
        counts = removal_counts(len(candidates))
        self.moved.move(1)
        curves = {}
        for name, found in orders(scores, candidates, self.wanted.seed, REPEATS).items():
            heights = torch.zeros(len(counts), dtype=torch.float64)
            for order in found:
                for place, count in enumerate(counts):
                    with self.moved.put_back(self.partitions, order[:count]):
                        heights[place] += losses(self.moved, self.task).sum() / self.tokens.sum() / len(found)
                    yield self._step(f"removal curve by {name}")
            curves[name] = tuple(heights.tolist())
        return counts, curves
