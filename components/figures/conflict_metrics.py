"""The maps on whether the experts' changes fight: their words and their numbers."""

from __future__ import annotations

from components.figures.words import Metric
from merging.inspecting.changes import Conflict, TensorStatistics

_COVERED = "Only weights that at least two experts changed count; hover over a cell for their share. "


def mean_cosine(statistics: TensorStatistics) -> float | None:
    """Mean cosine over the pairs that have one."""
    values = [statistics.cosine(pair) for pair in range(len(statistics.dot))]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _cosine(statistics: TensorStatistics, pair: int) -> float | None:
    return statistics.cosine(pair)


def _opposite_chance(signs: Conflict) -> float:
    return 0.5


CONFLICT_METRICS = (
    Metric(
        key="conflict",
        label="Opposite signs",
        title="Where the experts pull the same weights in opposite directions",
        note="Share of weights with opposite signs, among those that both experts changed. "
        "0.5 = what unrelated experts would show.",
        hover="of the weights that both changed are pulled in opposite directions (0.5 by chance)",
        explanation="For each pair of experts, look at the weights that both of them changed, and count how often "
        "one raised what the other lowered. Unrelated experts disagree on half of them, so 0.5 is the chance level: "
        "blue cells agree more than chance (averaging keeps what they share), red cells fight more than chance "
        "(averaging cancels them; TIES elects one sign and drops the other).",
        over="pairs",
        scale="chance",
        signs=True,
        value=lambda signs, pair: signs.opposite_share(pair),
        overall=lambda signs: signs.opposite_share(),
        chance=_opposite_chance,
    ),
    Metric(
        key="split",
        label="Not unanimous",
        title="Where the experts are not unanimous on the direction",
        note="Share of weights that some experts raised and others lowered, among those that at least two changed. "
        "Colours: above (red) or below (blue) what random signs would show in that cell.",
        hover="of the weights that two or more changed are pulled both ways",
        explanation="Three experts with random signs are unanimous on one weight in four, two experts on one in two: "
        "the chance level depends on how many experts changed a weight, so each cell has its own, 1 − 2^(1−k) averaged over "
        "its weights that k experts changed. The number is the measured share; the colour says how far it is from that "
        "chance level. " + _COVERED,
        over="all",
        scale="own chance",
        signs=True,
        value=lambda signs, _: signs.split_share(),
        chance=lambda signs: signs.split_chance(),
    ),
    Metric(
        key="mass",
        label="Mass conflict",
        title="How much of the change cancels when all experts are added",
        note="1 − Σ|Σδ| / ΣΣ|δ| over the weights that at least two changed: 0 = nothing cancels. "
        "Colours: above (red) or below (blue) the same sizes under random signs.",
        hover="of all change here cancels when the experts are added",
        explanation="Opposite signs on tiny changes do no harm. This number weighs each weight by the size of its changes: "
        "it is the part of all change (the sum of sizes) that disappears when the experts' changes are added up. 0 means "
        "that nothing cancels. Its chance level is measured: the same sizes with signs drawn at random (with a fixed seed). "
        + _COVERED,
        over="all",
        scale="own chance",
        signs=True,
        value=lambda signs, _: signs.mass(),
        chance=lambda signs: signs.mass_chance(),
    ),
    Metric(
        key="coverage",
        label="Coverage",
        title="How many weights two or more experts changed",
        note="Share of all weights that at least two experts changed: only there can they fight.",
        hover="of these weights were changed by at least two experts",
        explanation="A conflict needs two changes of the same weight. Fine-tunes stored in bfloat16 leave up to nine weights "
        "in ten as they were, and trimming leaves only the largest changes, so the experts may hardly meet. Where "
        "coverage is low, the other conflict maps speak of few weights.",
        over="all",
        scale="share",
        signs=True,
        value=lambda signs, _: signs.coverage,
    ),
    Metric(
        key="cosine",
        label="Cosine",
        title="Whether two experts changed a matrix in the same direction",
        note="Cosine between the two changes: 1 = the same direction, 0 = unrelated, −1 = opposite.",
        hover="cosine between the two changes (0 for unrelated experts)",
        explanation="Each expert's change of a matrix is one long vector. The cosine of two such vectors says "
        "whether they point the same way. Unlike the share of opposite signs it counts large changes more than small ones. "
        "Near 0 the experts do not interfere and can simply be added; far above 0 they learnt the same thing, and "
        "adding them counts it twice.",
        over="pairs",
        scale="signed",
        value=_cosine,
        overall=mean_cosine,
    ),
    Metric(
        key="block_cosine",
        label="Cosine by block",
        title="Whether two experts changed a block in the same direction",
        note="Cosine between the two changes of a whole block: 1 = the same direction, 0 = unrelated, −1 = opposite.",
        hover="cosine between the two changes of this block (0 for unrelated experts)",
        explanation="As the cosine by module, with all matrices of a block taken as one long vector: large matrices and "
        "large changes count most. Each column is a pair of experts. The table of pairs above the maps holds the cosine over "
        "the whole model.",
        over="blocks",
        scale="signed",
        value=_cosine,
        overall=mean_cosine,
    ),
)
