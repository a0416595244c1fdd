"""APL: drop ratios and merge weights from the importance of each partition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from merging import ops
from merging.cuts import Keys, magnitudes
from merging.methods.base import Group, Method, Number, Scope, Survey, parameter, register
from merging.methods.combine import LAMBDA
from merging.methods.sparse import SEED, Seed, survivors
from merging.partition_cut import Labels, PartitionCut, partition_cut
from merging.partitions import Partitions
from merging.pieces import Explained, Piece

MOST_DROPPED = 0.99
REACH = 2.0
"""The shift of the drop ratios is looked for between −2 and 2."""
HALVINGS = 60

KeptShare = Annotated[float, Field(ge=0.01, le=1, strict=True)]
Temperature = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]


@dataclass(frozen=True)
class Known:
    """Drop ratio and weight of every partition, float64 [experts, P] each; for one part of the model also its cut."""

    partitions: Partitions
    drop: torch.Tensor
    weight: torch.Tensor
    cut: PartitionCut | None = None


@register
class Apl(Method):
    """Activated parameter locating: partitions that matter more to an expert's task lose less and weigh more.

    A reconstruction: the paper's full text was not available to us and no code is public; what is written here follows
    its abstract and public digests. Norms, embeddings and output head are merged at the global density and weight 1,
    unless `include` says otherwise.

    Source: Activated Parameter Locating via Causal Intervention, 2408.09485.
    """

    name: ClassVar[str] = "apl"
    title: ClassVar[str] = "APL"
    when_to_use: ClassVar[str] = (
        "You have a few examples of each expert's task: keeps what matters there, by measured importance."
    )
    paper: ClassVar[str] = "https://arxiv.org/abs/2408.09485"
    group: ClassVar[str] = "importance"
    caveat: ClassVar[str] = (
        "A reconstruction: the paper's full text was not available to us and no code is public. It needs an importance "
        "file, measured on a few examples of each expert's task."
    )
    scans: ClassVar[int] = 5
    needs_importance: ClassVar[bool] = True

    weight: Number | tuple[Number, ...] = parameter(
        1.0,
        "w",
        "How strongly this expert counts beside the others, on top of the weights its partitions get from their importance.",
        per_model=True,
    )
    density: KeptShare | tuple[KeptShare, ...] = parameter(
        0.8,
        "1 − p",
        "Share of this expert's change that is kept on average; important partitions keep more, the others less.",
        per_model=True,
    )
    lambda_: Number = parameter(1.0, "λ", LAMBDA, alias="lambda")
    tau1: Annotated[float, Field(ge=0, le=1, strict=True)] = parameter(
        0.1,
        "τ1",
        "How far importance moves a partition's drop ratio from the average at most; 0 drops the same share everywhere.",
        rare=True,
    )
    tau2: Temperature = parameter(
        1.0,
        "τ2",
        "How evenly a partition is shared: the smaller, the more of it goes to the expert that needs it most.",
        rare=True,
    )
    drop: Literal["random", "magnitude", "taylor"] = parameter(
        "random",
        "",
        "What is dropped inside a partition: any by chance, the rest scaled up (random), the smallest changes "
        "(magnitude), or those that matter least, which needs scores of single elements (taylor).",
    )
    elect: bool = parameter(
        False,
        "",
        "Elect a direction for every element as TIES does, leave out who disagrees, and add up the rest.",
    )
    include: bool = parameter(
        False,
        "",
        "Let importance decide over norms, embeddings and the output head too; off merges them evenly.",
        rare=True,
    )
    seed: Seed = parameter(0, "", SEED)

    @property
    def ranked_within(self) -> Scope:
        return "model"

    @property
    def needs_saliency(self) -> bool:
        return self.drop == "taylor"

    def survey(self, group: Group) -> Survey:
        """No scan: ratios and weights follow from the importance file."""
        assert group.scores is not None
        partitions, values = group.scores.partitions, group.scores.values
        inside = torch.ones_like(partitions.outside) if self.include else ~partitions.outside
        densities = self.for_experts("density", group.experts)
        dropped = torch.tensor([1 - density for density in densities], dtype=torch.float64)
        drop = dropped[:, None].repeat(1, len(partitions))
        weight = torch.ones_like(drop)
        if inside.any():
            weight[:, inside] = partition_weights(relative_importance(values[:, inside]), self.tau2)
            for expert, density in enumerate(densities):
                drop[expert, inside] = drop_ratios(
                    values[expert, inside], partitions.sizes[inside], 1 - density, self.tau1
                )
        return Known(partitions, drop, weight)
        yield

    def part_of(self, tensor: str, known: Known) -> str | None:
        numbers = known.partitions.index[tensor].flatten()[:1].tolist()
        if self.drop == "random" or not numbers:
            return None
        return "\n".join(known.partitions[numbers[0]].tensors)

    def refine(self, part: Group, known: Known) -> Survey:
        """The exact cut of every partition among some tensors: round((1 − r_P)·n_P) elements stay, be it none."""
        index = {name: known.partitions.index[name] for name in part.shapes}
        numbers = torch.cat([values.flatten() for values in index.values()]).unique()
        labels = Labels({name: torch.searchsorted(numbers, i) for name, i in index.items()}, len(numbers))
        kept = ((1 - known.drop[:, numbers]) * known.partitions.sizes[numbers]).round().long()
        keys: Keys = saliencies if self.drop == "taylor" else magnitudes
        cut = yield from partition_cut(labels, kept, keys)
        return Known(known.partitions, known.drop, known.weight, cut)

    def coefficients(self, piece: Piece, known: Known) -> torch.Tensor:
        return self.explain(piece, known).coefficients

    def explain(self, piece: Piece, known: Known) -> Explained:
        """Votes are what is left of the changes times all their weights; a weight of 0 has none and is dropped."""
        place = ops.broadcast_rows(known.partitions.index[piece.name], piece.start, piece.stop)
        shape = (piece.experts, *[1] * (piece.deltas.ndim - 1 - place.ndim), *place.shape)
        if known.cut is None:
            factors = survivors(piece, (1 - known.drop[:, place]).view(shape), self.seed, "expected")
        else:
            factors = ops.factor(known.cut.keep(piece))
        weight = known.weight[:, place].view(shape).to(torch.float32).to(piece.deltas.device)
        factors = factors * (weight * ops.per_expert(piece.weight, weight))
        if not self.elect:
            return Explained(factors, factors)
        votes = factors * piece.deltas
        return Explained(factors * ops.agreement(votes, ops.elect_sign(votes, "total", 1.0)), factors)


def saliencies(piece: Piece) -> torch.Tensor:
    """The keys that rank by |δ·g|."""
    assert piece.saliency is not None
    return ops.magnitude_bits(piece.saliency)


def drop_ratios(importance: torch.Tensor, sizes: torch.Tensor, p: float, tau1: float) -> torch.Tensor:
    """r_P = clip(p − τ1·z_P + c, 0, 0.99) with c such that Σ n_P·r_P / Σ n_P = p; float64 [P].

    z_P is the importance's distance from its size-weighted mean, scaled so that the farthest is at ±1.
    """
    sizes = sizes.double()
    mean = (importance * sizes).sum() / sizes.sum()
    farthest = (importance - mean).abs().max()
    if p <= 0 or farthest == 0:
        return torch.full_like(sizes, max(p, 0.0))
    ratios = p - tau1 * (importance - mean) / farthest
    low, high = -REACH, REACH
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        share = (sizes * (ratios + middle).clamp(0, MOST_DROPPED)).sum() / sizes.sum()
        low, high = (middle, high) if share < p else (low, middle)
    return (ratios + high).clamp(0, MOST_DROPPED)


def relative_importance(importance: torch.Tensor) -> torch.Tensor:
    """π_tP: the share of each partition in its expert's total, equal shares where that is 0; [experts, P]."""
    total = importance.sum(1, keepdim=True)
    return torch.where(total > 0, importance / total, 1 / importance.shape[1])


def partition_weights(relative: torch.Tensor, tau2: float) -> torch.Tensor:
    """w_tP = T·softmax_t(π_tP/τ2): [experts, P] -> the same, with mean 1 over the experts."""
    return len(relative) * (relative / tau2).softmax(0)
