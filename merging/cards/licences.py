"""What the licences of a merge's parents ask of it, and where they are at odds, in plain sentences.

The table knows the identifiers of the Hub (SPDX's where there is one). It is no legal advice, and says so where it is
shown: it names what a reader has to look at.

Source: huggingface.co/docs/hub/repositories-licenses, and the licences themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import Any

from merging.cards.front_matter import front_matter, words_in

_HUB = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma
"""
ON_THE_HUB = frozenset(_HUB.split())
"""The identifiers that the Hub accepts in a card, without `unknown` and `other`."""
UNSTATED = "unknown"
"""Stands beside the licences of a model that is made of several, of which one states none."""
SAYS_NOTHING = frozenset({UNSTATED, "other"})
OF_THE_PARENTS = "licences-of-the-parents"
"""What a merge's own card calls its licence where those of its parents differ."""


@dataclass(frozen=True)
class Term:
    """Something that some licences ask: `licences` as globs, and what it means for a merge, after "its licence"."""

    licences: tuple[str, ...]
    asks: str

    def holds(self, licence: str) -> bool:
        return any(fnmatchcase(_id(licence), glob) for glob in self.licences)


NON_COMMERCIAL = Term(
    ("*-nc-*", "*noncommercial*", "*non-commercial*", "*research*", "apple-amlr", "deepfloyd-if-license"),
    "forbids commercial use, which then goes for the merge too",
)
NO_DERIVATIVES = Term(
    ("*-nd-*",), "forbids sharing changed versions, and a merge is one: do not publish it without leave"
)
SHARE_ALIKE = Term(
    (
        "*-sa-*",
        "gpl*",
        "agpl*",
        "lgpl*",
        "osl-*",
        "eupl-*",
        "mpl-*",
        "epl-*",
        "odbl",
        "gfdl",
        "cdla-sharing-*",
    ),
    "asks that what is made from it is shared under the same licence",
)
LLAMA = "its use policy, its notice and a copy of its licence go with the merge"
TERMS = (
    NON_COMMERCIAL,
    NO_DERIVATIVES,
    SHARE_ALIKE,
    Term(("llama2*",), f"asks that {LLAMA}"),
    Term(
        ("llama3*", "llama4*", "llama-3*", "llama-4*"),
        f"asks that the merge's name begins with Llama, that its page says “Built with Llama”, and that {LLAMA}",
    ),
    Term(("gemma*",), "asks that Gemma's terms and its list of forbidden uses go with the merge"),
    Term(("*rail*",), "forbids certain uses and asks that this list goes with the merge"),
)
"""What licences ask that a permissive one does not; `licence_notes` says it in this order."""
ADDS_LIMITS = (NON_COMMERCIAL, NO_DERIVATIVES, *TERMS[3:])
"""Terms that a share-alike licence does not let anyone add."""


@dataclass(frozen=True)
class Licensed:
    """A parent, or a parent's parent, and the licences that its card states; none where it states none."""

    name: str
    licences: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[str, ...]:
        return tuple(one for one in self.licences if _id(one) not in SAYS_NOTHING)

    @property
    def is_stated(self) -> bool:
        """Whether all that it is made of states one."""
        return bool(self.known) and self.known == self.licences


def licences_in(folder: Path) -> tuple[str, ...]:
    """The licences that a folder's README states; by name where it says that they are other than the Hub's."""
    return stated(front_matter(folder))


def stated(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The licences in a README's facts."""
    found = words_in(facts, "license")
    named = words_in(facts, "license_name")
    return named if named and found in ((), ("other",)) else found


def licence_notes(parents: Sequence[Licensed]) -> list[str]:
    """What is to be thought of before a merge of these is shared: a sentence for each term and licence, and for each
    conflict between them."""
    by_licence: dict[str, list[str]] = {}
    for parent in parents:
        for licence in parent.known:
            known = _id(licence) if _id(licence) in ON_THE_HUB else licence
            by_licence.setdefault(known, []).append(parent.name)
    return list(dict.fromkeys([*_terms(by_licence), *_unstated(parents), *_conflicts(parents, by_licence)]))


def asked_by(licences: Iterable[str]) -> list[str]:
    """What the licences of one model ask of a merge, for its own card."""
    return [
        f"Its licence, {licence}, {term.asks}."
        for licence in licences
        for term in TERMS
        if term.holds(licence)
    ]


def licence_of_merge(parents: Sequence[Licensed]) -> dict[str, str]:
    """The licence in a merge's own card: that of all parents where it is one and the same; nothing where one of them
    states none, for then nobody may grant one."""
    if not parents or not all(parent.is_stated for parent in parents):
        return {}
    licences = {_id(licence) for parent in parents for licence in parent.known}
    only = licences.pop() if len(licences) == 1 else OF_THE_PARENTS
    return {"license": only} if only in ON_THE_HUB else {"license": "other", "license_name": only}


def _terms(by_licence: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for term in TERMS:
        for licence, names in by_licence.items():
            if term.holds(licence):
                yield f"licence of {_listed(names)} ({licence}): {term.asks}."
    for licence, names in by_licence.items():
        if _id(licence) not in ON_THE_HUB and not any(term.holds(licence) for term in TERMS):
            yield f"licence of {_listed(names)} ({licence}): is none of the usual ones; read what it asks of a merge."


def _unstated(parents: Sequence[Licensed]) -> Iterator[str]:
    silent = list(dict.fromkeys(parent.name for parent in parents if not parent.is_stated))
    if silent:
        yield (
            f"licence of {_listed(silent)}: not stated. Without one, only those who made a model may share what is made from "
            "it; ask them before you publish the merge."
        )


def _conflicts(parents: Sequence[Licensed], by_licence: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for one, other in combinations(by_licence, 2):
        both = f"{_listed(by_licence[one])} ({one}) and {_listed(by_licence[other])} ({other})"
        alike = SHARE_ALIKE.holds(one), SHARE_ALIKE.holds(other)
        if all(alike):
            yield f"licences of {both}: each asks for itself as the merge's licence; it may be impossible to keep both."
        elif any(alike) and any(term.holds(other if alike[0] else one) for term in ADDS_LIMITS):
            yield (
                f"licences of {both}: one sets limits, and the other lets nobody add any; it may be impossible to keep both."
            )
    if len(by_licence) > 1:
        each = "; ".join(f"{_listed(names)} {licence}" for licence, names in by_licence.items())
        yield f"licences differ: {each}. The merge has to keep to all of them."


def _listed(names: Sequence[str]) -> str:
    few = list(dict.fromkeys(names))
    return ", ".join(few[:-1]) + (" and " if len(few) > 1 else "") + few[-1]


def _id(licence: str) -> str:
    """As the Hub writes identifiers: small letters, no spaces."""
    return "-".join(licence.lower().split())
