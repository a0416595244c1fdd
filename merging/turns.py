"""Who waits for something that one can have at a time: one of every owner in turn."""

from __future__ import annotations

from collections import Counter


class Turns:
    """Things that wait, in the order they will be taken: nobody waits for all that another asked for."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}
        self._served: dict[str, int] = {}
        self._taken = 0

    def __contains__(self, id: str) -> bool:
        return id in self._owners

    def __len__(self) -> int:
        return len(self._owners)

    def add(self, id: str, owner: str) -> None:
        """One more thing waits."""
        self._owners[id] = owner

    def remove(self, id: str) -> None:
        """It waits no longer."""
        del self._owners[id]

    def take(self) -> str:
        """The next one, which waits no longer."""
        id = self._order()[0]
        owner = self._owners.pop(id)
        self._taken += 1
        waiting = set(self._owners.values())
        self._served = {one: when for one, when in self._served.items() if one in waiting} | {
            owner: self._taken
        }
        return id

    def before(self, id: str) -> int:
        """How many are taken before it, as things are now."""
        return self._order().index(id)

    def _order(self) -> list[str]:
        """The first of every owner, those first who had nothing for longest; then the second of every owner, and so on."""
        own: Counter[str] = Counter()
        places = {}
        for id, owner in self._owners.items():
            places[id] = own[owner], self._served.get(owner, 0)
            own[owner] += 1
        return sorted(self._owners, key=places.__getitem__)
