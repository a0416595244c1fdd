"""Models brought to one vocabulary before they are merged: a view of each, and the plan of the output's tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from merging.checkpoint import Checkpoint, TensorSource, read_json
from merging.errors import CheckpointError
from merging.recipe import Recipe, TokenizerBlock
from merging.references import is_hub_id
from merging.sources import Member, Part, open_model
from merging.tokenizing.heads import head_kind, stand_ins
from merging.tokenizing.row_maps import Owner, RowCounts, RowMap, row_count, vocabulary_tensors
from merging.tokenizing.special_tokens import Special, differences, lost_marks
from merging.tokenizing.tokenizer_plan import TOKENIZER, TokenizerPlan
from merging.tokenizing.union import tokens_of, union, union_problem
from merging.tokenizing.view import Lender, Rows, View


@dataclass(frozen=True)
class Arranged:
    """The recipe's models with the output's vocabulary, and what becomes of the tokenizer (None: no model files)."""

    base: TensorSource | None
    parts: tuple[Part, ...]
    tokens: TokenizerPlan | None = None
    changed: bool = False
    """Whether some model's rows are rearranged, or it gets a head."""


def arrange(
    recipe: Recipe, base: TensorSource | None, parts: Sequence[Part], problems: list[str], warnings: list[str]
) -> Arranged:
    """Bring the models of a recipe to one vocabulary and to equal heads; what cannot be done is noted in `problems`."""
    unchanged = Arranged(base, tuple(parts))
    reference = base or (parts[0].reference.source if parts else None)
    members = [member for part in parts for member in part.members]
    if not isinstance(reference, Checkpoint) or not all(isinstance(m.source, Checkpoint) for m in members):
        return unchanged
    try:
        return _Arrangement(recipe, base, tuple(parts), reference, problems, warnings).arranged()
    except CheckpointError as error:
        problems.append(str(error))
        return unchanged


@dataclass
class _Arrangement:
    recipe: Recipe
    base: TensorSource | None
    parts: tuple[Part, ...]
    reference: Checkpoint
    problems: list[str]
    warnings: list[str]
    _rows: dict[int, dict[str, Rows]] = field(default_factory=dict)
    """What is rearranged: per model, by its identity, the rows of its tensors."""

    @cached_property
    def models(self) -> dict[str, Checkpoint]:
        """Every model once, by its name in the recipe, the base first."""
        found: dict[str, Checkpoint] = {}
        if self.base is not None:
            found[self.recipe.base_model or self.reference.label] = self.reference
        for part in self.parts:
            for member in part.members:
                if isinstance(member.source, Checkpoint) and not any(
                    member.source is source for source in found.values()
                ):
                    found[member.entry.model] = member.source
        return found

    @cached_property
    def block(self) -> TokenizerBlock | None:
        """What the recipe asks of the tokenizer, in mergekit's longer form."""
        short = self.recipe.tokenizer_source
        return TokenizerBlock(source=short) if short is not None else self.recipe.tokenizer

    @cached_property
    def known(self) -> dict[str, Special]:
        """The models with their vocabularies; one without a tokenizer is taken to have the reference's."""
        own = {name: source.vocabulary for name, source in self.models.items()}
        ours = self.reference.vocabulary
        for name, vocabulary in own.items():
            if vocabulary is None and ours is not None and self.block is not None:
                self.warnings.append(
                    f"{name}: has no tokenizer.json, so its tokens are taken to be those of {self.reference.label}."
                )
        return {
            name: Special(name, source, ours if own[name] is None else own[name])
            for name, source in self.models.items()
        }

    def arranged(self) -> Arranged:
        if self.recipe.tokenizer_source is not None and self.recipe.tokenizer is not None:
            self.problems.append(
                "tokenizer and tokenizer_source: a recipe has one of them; remove tokenizer_source."
            )
        plan = self._tokenizer()
        views: dict[int, TensorSource] = {}
        for source in self.models.values():
            rows, names = self._rows.get(id(source), {}), self.stand_ins.get(id(source), {})
            if rows or names:
                views[id(source)] = View(Lender(source, names), rows)

        def seen(member: Member) -> Member:
            return replace(member, source=views.get(id(member.source), member.source))

        parts = tuple(
            replace(part, base=seen(part.base) if part.base else None, experts=tuple(map(seen, part.experts)))
            for part in self.parts
        )
        decided = {"special_tokens": self.recipe.special_tokens, "chat_template": self.recipe.chat_template}
        if "missing" in plan.heads.values() and "own" not in plan.heads.values():
            lacking = next(name for name, kind in plan.heads.items() if kind == "missing")
            self.warnings.append(
                f"{lacking}: its config.json promises an output head of its own, but its files hold none; the result uses the "
                "embedding as its head."
            )
        for difference in plan.differences:
            self.warnings += [] if decided[difference.key] is not None else difference.warnings
        return Arranged(views.get(id(self.base), self.base), parts, plan, changed=bool(views))

    @cached_property
    def stand_ins(self) -> dict[int, dict[str, str]]:
        """What each model without a head calls the embedding that stands for it: the head is made of the last slice's models,
        and the embedding of the first's, which cannot stand for it if they have heads of their own."""
        first, last = ([source for _, source in self._of(part)] for part in (self.parts[0], self.parts[-1]))
        return stand_ins(last, first)

    def _of(self, part: Part) -> list[tuple[str, Checkpoint]]:
        """The models of a part by name, its base first."""
        sources = [member.source for member in part.members]
        return [(name, model) for name, model in self.models.items() if any(model is one for one in sources)]

    def _tokenizer(self) -> TokenizerPlan:
        reference = next(one for one in self.known.values() if one.source is self.reference)
        giver, content = self._giver(reference)
        special = giver
        if self.recipe.special_tokens is not None:
            special = self._named("special_tokens", self.recipe.special_tokens) or giver
        vocabulary = giver.vocabulary if content is None else tokens_of(content)
        if vocabulary is not None and (lost := special.missing(vocabulary)):
            self.problems.append(
                f"special_tokens: {special.name} has {lost[0]!r}, which the output's tokenizer lacks; set tokenizer_source: "
                f"union or {special.name}."
            )
        plan = TokenizerPlan(
            reference=reference,
            giver=giver,
            special=special,
            source=self.block.source if self.block else None,
            vocabulary=vocabulary,
            rows=_embedding_rows(self.reference),
            added=tuple(token for token in vocabulary or () if token not in (giver.vocabulary or ())),
            heads={name: kind for name, one in self.models.items() if (kind := head_kind(one)) is not None},
            content=content,
        )
        if self.block is not None and vocabulary is not None:
            plan = self._with_rows(plan, vocabulary, self.block)
        template, chosen = self._template(plan)
        return replace(
            plan, template=template, differences=differences(list(self.known.values()), plan.special, chosen)
        )

    def _giver(self, reference: Special) -> tuple[Special, dict[str, Any] | None]:
        """The model whose tokenizer the output gets, and the content of a tokenizer.json that goes beyond it."""
        block = self.block
        if block is None:
            return reference, None
        giver: Special | None = reference
        if block.source not in {"base", "union"}:
            giver = self._named("tokenizer_source", block.source)
        if giver is None:
            return reference, None
        if giver.source.vocabulary is None:
            self.problems.append(
                f"tokenizer_source: {giver.name} has no tokenizer.json; add it, or name another model."
            )
            return giver, None
        others = [one for one in self.known.values() if block.source == "union" and one is not giver]
        try:
            return giver, self._beyond(giver, others, list(block.tokens))
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, RecursionError):
            self.problems.append(
                "tokenizer_source: a tokenizer.json of these models is malformed; copy it from its model again, or choose "
                "tokenizer_source: base."
            )
            return giver, None

    def _beyond(
        self, giver: Special, others: Sequence[Special], more: Sequence[str]
    ) -> dict[str, Any] | None:
        """The giver's tokenizer.json with the tokens of others and single ones; None where it has them all."""
        own = giver.vocabulary or {}
        differing = [one for one in others if one.source.vocabulary is not None and one.vocabulary != own]
        if not differing and all(token in own for token in more):
            return None
        content = read_json(giver.source.tokenizer_folder / TOKENIZER)
        contents = []
        for other in differing:
            theirs = read_json(other.source.tokenizer_folder / TOKENIZER)
            if problem := union_problem(content, theirs):
                self.problems.append(
                    f"{other.name}: {problem}. Choose tokenizer_source: base, or one of the models."
                )
                return None
            contents.append(theirs)
        return union(content, contents, more)

    def _with_rows(
        self, plan: TokenizerPlan, vocabulary: Mapping[str, int], block: TokenizerBlock
    ) -> TokenizerPlan:
        """The rows of embedding and head, and how every model gets them."""
        giver = Owner(plan.giver.name, plan.giver.vocabulary or {}, _embedding_rows(plan.giver.source) or 0)
        rows = row_count(max(vocabulary.values(), default=-1) + 1, giver, block.pad_to_multiple_of)
        first, last = self._of(self.parts[0]), self._of(self.parts[-1])
        roles = {"embedding", "head"}
        if len(self.parts) > 1:
            self._map(last, vocabulary, rows, block, roles - {"embedding"})
            roles = roles - {"head"}
        counts = self._map(first, vocabulary, rows, block, roles)
        return replace(plan, rows=rows, counts=counts)

    def _map(
        self,
        models: Sequence[tuple[str, Checkpoint]],
        vocabulary: Mapping[str, int],
        rows: int,
        block: TokenizerBlock,
        roles: set[str],
    ) -> tuple[RowCounts, ...]:
        """Note how the vocabulary tensors of some models are rearranged; what it comes to per model."""
        owners = []
        for name, source in models:
            count = _embedding_rows(source)
            if count is None:
                self.problems.append(
                    f"{name}: has no embedding, so tokenizer_source has nothing to arrange; remove it."
                )
                return ()
            owners.append(Owner(name, self.known[name].vocabulary or {}, count))
        base = next((n for n, (_, source) in enumerate(models) if source is self.base), None)
        found = RowMap(owners, base, vocabulary, rows, block.tokens, block.pad_to_multiple_of is not None)
        if problems := list(found.problems()):
            self.problems += problems
            return ()
        lenders = [Lender(source, self.stand_ins.get(id(source), {})) for _, source in models]
        maps = found.maps(lenders)
        for owner, lender, one in zip(owners, lenders, maps, strict=True):
            names = vocabulary_tensors(lender.source, roles) + (list(lender.names) if "head" in roles else [])
            if not one.changes_nothing(owner.rows):
                self._rows.setdefault(id(lender.source), {}).update(dict.fromkeys(names, one))
        return tuple(found.counts(owner, one) for owner, one in zip(owners, maps, strict=True))

    def _named(self, key: str, name: str) -> Special | None:
        """The model that a key of the recipe names; None, with the problem noted, where there is no such model."""
        if name == "base":
            return next(one for one in self.known.values() if one.source is self.reference)
        if name in self.known:
            return self.known[name]
        try:
            source = open_model(name, self.recipe.locate, base=self.reference)
        except CheckpointError as error:
            if is_hub_id(name.partition("@")[0]):
                self.problems.append(f"{key}: {error}")
                return None
            also = "auto, base, Jinja text, or " if key == "chat_template" else ""
            self.problems.append(
                f"{key}: {name!r} is no model that can be opened; give {also}one of {', '.join(self.known)}."
            )
            return None
        same = (one for one in self.known.values() if one.source.path.resolve() == source.path.resolve())
        return next(same, Special(name, source, source.vocabulary))

    def _template(self, plan: TokenizerPlan) -> tuple[str | None, Special | None]:
        """The chat template that the recipe asks for, and the model it is from; without a wish the tokenizer's."""
        wanted = self.recipe.chat_template
        if wanted is None:
            return None, plan.giver
        if "{" in wanted:
            return wanted, None
        if wanted == "auto":
            templates = [one.source.chat_template for one in self.known.values() if one.source.chat_template]
            most = Counter(templates).most_common(1)
            found = next(
                (one for one in self.known.values() if most and one.source.chat_template == most[0][0]), None
            )
        else:
            found = self._named("chat_template", wanted)
        if found is not None and found.source.chat_template is None:
            self.problems.append(f"chat_template: {found.name} has none; name a model that has one.")
        if found is None:
            return None, plan.giver
        lost = lost_marks(found, plan.vocabulary)
        if lost:
            self.warnings.append(
                f"chat_template: it writes {lost!r}, which the output's tokenizer does not have as a token; set "
                "tokenizer_source: union."
            )
        return found.source.chat_template, found


def _embedding_rows(source: Checkpoint) -> int | None:
    name = source.embedding
    return None if name is None else source.tensors[name].rows
