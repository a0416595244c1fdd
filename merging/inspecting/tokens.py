"""The tokens whose rows of an embedding or head the experts changed most, and where they conflict most."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from merging.anatomy import locate
from merging.errors import MergingError
from merging.inspecting.one_tensor import Stop, find_tensor, read_blocks
from merging.inspecting.part_sums import PartSums, joined, sums_along
from merging.plan import Plan
from merging.tokenizing.vocabulary import Token, Vocabulary

MOST_MARKED = 64
"""Special and chat-template tokens that are always reported."""


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Some tokens and the sums over their rows, in one order."""

    tokens: tuple[Token, ...]
    sums: PartSums


@dataclass(frozen=True, eq=False)
class TokenChanges:
    """What the experts did to the rows of an embedding or head.

    `changed`: for each expert the tokens it changed most, by ‖δ_t‖, rows that are not finite first. `conflicting`: those
    with the largest mass conflict, less 1/√n where n elements are shared, so that a row with hardly any does not lead by
    accident. `marked`: special and chat-template tokens by id. `changed_rows` int64 [experts] counts rows with any change,
    `shared_rows` those that at least two experts changed, `damaged_rows` those that are not finite somewhere.
    """

    name: str
    rows: int
    experts: tuple[str, ...]
    changed: tuple[TokenRows, ...]
    conflicting: TokenRows
    marked: TokenRows
    changed_rows: torch.Tensor
    shared_rows: int
    damaged_rows: int


def token_changes(
    plan: Plan,
    name: str,
    vocabulary: Vocabulary,
    top: int = 20,
    *,
    device: str = "auto",
    stop: Stop | None = None,
) -> TokenChanges:
    """Read an embedding or head in blocks of rows; memory holds one block and the `top` tokens of each ranking.

    Raises:
        MergingError: the plan has no such tensor, or its rows are no tokens.
        Stopped: `stop` said so.
    """
    tensor = find_tensor(plan, name)
    if locate(name).kind not in {"embedding", "head"} or len(tensor.info.shape) != 2:
        raise MergingError(
            f"'{name}': its rows are no tokens; choose the embedding or the head, a matrix with one row a token."
        )
    changed = [_Best(max(1, top)) for _ in tensor.experts]
    conflicting, marked = _Best(max(1, top)), _Best(MOST_MARKED)
    wanted = torch.tensor(vocabulary.marked, dtype=torch.int64)
    changed_rows = torch.zeros(len(tensor.experts), dtype=torch.int64)
    shared_rows = damaged_rows = 0
    for piece in read_blocks(plan, tensor, device=device, stop=stop):
        sums = sums_along(piece, (0,))[0]
        ids = torch.arange(piece.start, piece.start + len(sums))
        for best, scores in zip(changed, _by_change(sums), strict=True):
            best.add(ids, scores, sums)
        conflicting.add(ids, sums.mass_conflict() - sums.covered.double().rsqrt(), sums)
        marked.add(ids, torch.isin(ids, wanted).double().where(torch.isin(ids, wanted), torch.nan), sums)
        changed_rows += ((sums.nonzero > 0) | (sums.broken > 0)).sum(1)
        shared_rows += int((sums.covered > 0).sum())
        damaged_rows += int(sums.damaged.sum())
    return TokenChanges(
        name=name,
        rows=tensor.info.rows,
        experts=tensor.models,
        changed=tuple(best.rows(vocabulary) for best in changed),
        conflicting=conflicting.rows(vocabulary),
        marked=marked.rows(vocabulary),
        changed_rows=changed_rows,
        shared_rows=shared_rows,
        damaged_rows=damaged_rows,
    )


def _by_change(sums: PartSums) -> torch.Tensor:
    """[experts, n] by which rows are ranked: Σδ², infinite where the row is broken, NaN where it is unchanged."""
    scores = sums.change.where(sums.nonzero > 0, torch.nan)
    return scores.where(sums.broken == 0, torch.inf)


class _Best:
    """The tokens with the largest scores of those seen, of equal ones the first; NaN never counts."""

    def __init__(self, most: int):
        self.most = most
        self.ids = torch.zeros(0, dtype=torch.int64)
        self.scores = torch.zeros(0, dtype=torch.float64)
        self.sums: PartSums | None = None

    def add(self, ids: torch.Tensor, scores: torch.Tensor, sums: PartSums) -> None:
        """Show some more tokens, with ids above those seen."""
        least = -torch.inf if len(self.ids) < self.most else float(self.scores[-1])
        fresh = (~scores.isnan() & (scores > least)).nonzero().flatten()
        if self.sums is not None and not len(fresh):
            return
        known = [sums.take(fresh)] if self.sums is None else [self.sums, sums.take(fresh)]
        self.ids, self.scores = torch.cat([self.ids, ids[fresh]]), torch.cat([self.scores, scores[fresh]])
        order = self.scores.sort(descending=True, stable=True).indices[: self.most]
        self.ids, self.scores, self.sums = self.ids[order], self.scores[order], joined(known).take(order)

    def rows(self, vocabulary: Vocabulary) -> TokenRows:
        assert self.sums is not None
        return TokenRows(tuple(vocabulary.token(number) for number in self.ids.tolist()), self.sums)
