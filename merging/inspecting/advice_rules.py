"""The rules of `advice`: each looks at the facts and says something only where it applies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median

from merging.anatomy import Block, block_name, block_words
from merging.checkpoint import Checkpoint
from merging.folders.header import DTYPE_WORDS
from merging.inspecting.advice_facts import MOST_NAMED, Advice, Facts
from merging.inspecting.changes import Conflict, TensorStatistics
from merging.inspecting.kinship import ORTHOGONAL, PARALLEL
from merging.inspecting.relations import FAR, UNRELATED
from merging.inspecting.sums import total

MOST = 0.5
"""A share above which it is most."""
LARGER = 2.0
"""A change so many times as long as the others' makes up most of a plain sum."""
OUTLIER = 6.0
"""Deviations from the median, in robust standard deviations, from which a block is an outlier."""
FEWEST_BLOCKS = 5
"""Fewer blocks have no usual value."""
NORMAL = 1.4826
"""Median absolute deviation × this = standard deviation, for normally distributed values."""
FIGHTING = 0.55
"""A share of opposite signs that is well above the 0.5 of unrelated experts."""
DEVIATIONS = 5.0
"""A share counts as above chance from so many standard deviations of fair coins."""
SAME_SIZE = 0.9
"""A share of the changed weights in one half-octave of |δ| that leaves next to nothing to rank by."""
ALL_KEPT = 0.99
"""A trim that keeps such a share of the changed weights has no effect."""
LOST = 0.1
"""A share of the merged weights lost in the cast that is worth a word."""
HEAVY = 0.1
"""A share of an expert's δ² in a tied embedding that is worth a word."""


def _idle(facts: Facts) -> Iterator[Advice]:
    for expert, name in enumerate(facts.names):
        if not facts.whole.nonzero[expert]:
            yield Advice(
                f"{name} equals the base, so it adds nothing. Is it the right model?",
                f"0 of {facts.whole.elements:,} weights differ",
                "warning",
            )


def _same_model(facts: Facts) -> Iterator[Advice]:
    for a, b in facts.twins:
        yield Advice(
            f"{facts.names[a]} and {facts.names[b]} are the same model, so its change counts twice. Remove one of them.",
            f"{facts.whole.nonzero[a]:,} changed weights, the same in both",
            "warning",
        )


def _foreign(facts: Facts) -> Iterator[Advice]:
    cosines = list(facts.cosines())
    for expert in facts.active:
        change = facts.whole.relative_change(expert)
        others = [abs(cosine) for a, b, cosine in cosines if expert in (a, b)]
        if change is not None and change >= FAR and all(cosine < UNRELATED for cosine in others):
            related = f", largest |cosine| with another change {max(others):.2f}" if others else ""
            yield Advice(
                f"{facts.names[expert]} is so far from this base that it was tuned from another one, or very hard: check "
                "its base, or leave it out.",
                f"its change is {change:.0%} of the base's length (fine-tunes: mostly below 10 %){related}",
                "warning",
            )


def _untouched(facts: Facts) -> Iterator[Advice]:
    tensors = facts.report.tensors
    for expert in facts.active:
        share = sum(not t.nonzero[expert] for t in tensors.values()) / len(tensors)
        weights = 1 - (facts.whole.changed_share(expert) or 0)
        name = facts.names[expert]
        if share > MOST:
            yield Advice(
                f"{name} left most tensors as they are: only the others can be merged, and a density that is set for each "
                "tensor means something else there.",
                f"{share:.0%} of {len(tensors)} tensors unchanged",
                "note",
            )
        elif weights > MOST:
            yield Advice(
                f"{name} left most weights exactly as they are, as steps too small for bfloat16 do: experts meet in few "
                "weights, and a density above the changed share drops nothing.",
                f"{weights:.0%} of the weights unchanged",
                "note",
            )


def _outliers(facts: Facts) -> Iterator[Advice]:
    report = facts.report
    blocks: dict[Block, list[TensorStatistics]] = {}
    for name, place in report.places(everything=True).items():
        if place.block is not None and not any(report.tensors[name].broken):
            blocks.setdefault(place.block, []).append(report.tensors[name])
    sums = {block: total(found) for block, found in blocks.items()}
    for expert in facts.active:
        changes = {b: c for b, s in sums.items() if (c := s.relative_change(expert)) is not None}
        if len(changes) < FEWEST_BLOCKS:
            continue
        usual = median(changes.values())
        spread = max(NORMAL * median(abs(change - usual) for change in changes.values()), 0.05 * usual)
        odd = [block for block, change in changes.items() if change > usual + OUTLIER * spread]
        if odd and len(odd) <= len(changes) / 4:
            worst = max(odd, key=changes.__getitem__)
            yield Advice(
                f"{facts.names[expert]} changed {_blocks(odd)} far more than its others: look there first; a lower weight or "
                "density for such a block is an override in the recipe.",
                f"relative change {changes[worst]:.3g} in {block_name(worst)}, usually {usual:.3g}",
                "note",
            )


def _angles(facts: Facts) -> Iterator[Advice]:
    found = list(facts.cosines())
    for a, b, cosine in found:
        if cosine >= PARALLEL:
            yield Advice(
                f"{facts.names[a]} and {facts.names[b]} learnt nearly the same change, and adding them counts it twice: "
                f"average them, or lower λ to about {1 / (1 + cosine):.2g}.",
                f"cosine of their changes {cosine:.2f}",
                "note",
            )
    if found and all(abs(cosine) < ORTHOGONAL for _, _, cosine in found) and not facts.twins:
        yield Advice(
            "The experts' changes are nearly orthogonal: a plain sum (task arithmetic) keeps almost all of each, so try it "
            "before a method that drops changes.",
            f"largest |cosine| of two changes {max(abs(cosine) for _, _, cosine in found):.2f}",
            "note",
        )


def _dominant(facts: Facts) -> Iterator[Advice]:
    if len(facts.active) < 2:
        return
    lengths = {expert: facts.whole.change[expert] ** 0.5 for expert in facts.active}
    largest = max(lengths, key=lengths.__getitem__)
    others = median(length for expert, length in lengths.items() if expert != largest)
    if lengths[largest] >= LARGER * others:
        yield Advice(
            f"{facts.names[largest]} changed far more than the other experts and will dominate a merge; a weight of "
            f"{others / lengths[largest]:.2g} beside 1 for the others makes its change as long as theirs.",
            f"its change is {lengths[largest] / others:.1f} times as long as the others' (median)",
            "note",
        )


def _conflict(facts: Facts) -> Iterator[Advice]:
    signs = facts.whole.signs
    for number, (a, b) in enumerate(facts.report.pairs):
        share = signs.opposite_share(number)
        if share is not None and _above_chance(share, signs.shared[number]):
            yield Advice(
                f"{facts.names[a]} and {facts.names[b]} pull the same weights in opposite directions more often than chance: "
                "a sum cancels what they learnt. Try an election of signs (TIES), or lower the weight of one of them.",
                f"opposite signs in {share:.1%} of the weights both changed (unrelated experts: 50 %)",
                "warning",
            )
    fights = sorted(_fights(facts), reverse=True)
    if (
        fights
        and signs.opposite_share() is not None
        and not _above_chance(signs.opposite_share() or 0, 1 << 60)
    ):
        share, where = fights[0]
        yield Advice(
            "The experts fight in some modules though not over the whole model: a lower weight there, or an election of "
            "signs (TIES), touches only these.",
            f"opposite signs in {share:.1%} of the weights two experts changed in {where} (unrelated experts: 50 %)"
            + (f", and above {FIGHTING:.0%} in {len(fights) - 1} more" if len(fights) > 1 else ""),
            "note",
        )


def _fights(facts: Facts) -> Iterator[tuple[float, str]]:
    for (block, kind), cell in facts.report.cells().items():
        signs: Conflict = cell.signs
        share = signs.opposite_share()
        if share is not None and _above_chance(share, sum(signs.shared)):
            yield share, kind if block is None else f"{block_name(block)} {kind}"


def _above_chance(share: float, count: int) -> bool:
    return share > FIGHTING and share - 0.5 > DEVIATIONS * 0.5 / max(1, count) ** 0.5


def _ties(facts: Facts) -> Iterator[Advice]:
    trim, whole = facts.report.trim, facts.whole
    for expert in facts.active:
        name, changed = facts.names[expert], whole.nonzero[expert]
        counts = whole.histogram[expert]
        if trim is not None:
            both = [
                (t.kept[expert], facts.report.tensors[n].nonzero[expert]) for n, t in trim.tensors.items()
            ]
            kept = sum(min(pair) for pair in both)
            if trim.density < 1 and kept >= ALL_KEPT * sum(count for _, count in both):
                yield Advice(
                    f"A density of {trim.density:g} has no effect on {name}: it changed so few weights that all are kept. "
                    "Choose a density below its changed share.",
                    f"{whole.changed_share(expert):.1%} of its weights changed, {kept / changed:.1%} of them kept",
                    "note",
                )
                continue
        if whole.mass[expert] >= whole.largest[expert] * changed * (1 - 1e-6):
            text, evidence = "all of", f"|δ| = {whole.largest[expert]:.3g} in all {changed:,} changed weights"
        elif max(counts) >= SAME_SIZE * sum(counts):
            share = max(counts) / sum(counts)
            text, evidence = (
                "nearly all of",
                f"|δ| within a factor of √2 in {share:.0%} of the changed weights",
            )
        else:
            continue
        yield Advice(
            f"{text.capitalize()} {name}'s changes have one size, so a density by magnitude chooses among ties: by position, "
            "not by what matters. Prefer a random one (DARE), or density 1.",
            evidence,
            "note",
        )


def _rounding(facts: Facts) -> Iterator[Advice]:
    preview = facts.report.preview
    if preview is None:
        return
    by_word: dict[str, list[str]] = {}
    for name in preview.tensors:
        stored = preview.dtypes.get(name, "")
        by_word.setdefault(DTYPE_WORDS.get(stored, stored), []).append(name)
    for word, names in by_word.items():
        fate = total(preview.tensors[name] for name in names)
        share = fate.lost_share(word) if word in fate.casts else None
        if word == "float32" or share is None or share < LOST:
            continue
        energy = fate.lost_energy(word) or 0
        yield Advice(
            f"Saving as {word} rounds many of the merged changes away; out_dtype: float32 keeps them, at the price of a "
            "larger file.",
            f"{share:.0%} of the changed weights and {energy:.1%} of the merged change (Δ²) are lost in {word}, "
            f"{fate.lost_share('float32') or 0:.0%} of the weights in float32",
            "warning" if energy > LOST else "note",
        )


def _tied_head(facts: Facts) -> Iterator[Advice]:
    if (
        facts.plan is None
        or not isinstance(facts.plan.reference, Checkpoint)
        or not facts.plan.reference.tied
    ):
        return
    places = facts.report.places(everything=True)
    embeddings = [
        t for n, t in facts.report.tensors.items() if places[n].role == "embedding" and not any(t.broken)
    ]
    for expert in facts.active:
        share = sum(t.change[expert] for t in embeddings) / facts.whole.change[expert]
        if share > HEAVY:
            yield Advice(
                f"{facts.names[expert]} changed the embedding much, which is also the output head here (tied): trimming or "
                "weighting it changes what goes in and what comes out at once.",
                f"{share:.0%} of its change (δ²) is in the tied embedding",
                "note",
            )


def _blocks(numbers: Sequence[Block]) -> str:
    more = f" and {len(numbers) - MOST_NAMED} more" if len(numbers) > MOST_NAMED else ""
    return f"{block_words(numbers[:MOST_NAMED])}{more}"


RULES: tuple[Callable[[Facts], Iterator[Advice]], ...] = (
    _idle,
    _same_model,
    _foreign,
    _conflict,
    _dominant,
    _angles,
    _untouched,
    _outliers,
    _ties,
    _rounding,
    _tied_head,
)
