"""Places at which this engine's requests have resumed, or have left what is needed for that. Pure.

Where the client cannot look into the cache by itself (another host, another pid namespace), nobody
says where else than at the end of a prefix a request can resume: only a question about one place
can be asked. These places are worth one, and those at regular distances, where windows are kept
come what may.
"""

from collections.abc import Callable

from pegaflow.wire.identities import Key
from pegaflow.wire.units import Count

PLACES_ASKED: Count = 3
"""So many places at most are asked for beside the end of a prefix: a question takes a fraction of a
millisecond, and what was left at a place may be evicted."""

PLACES_MAX: Count = 32_768
"""Some 5 MB of names; of requests that leave three places each, the last ten thousand."""


class Places:
    """See the module.

    Args:
        regular: so many places apart something is kept.
        surely: it is kept there come what may; else by chance, and nothing else is worth less.
        most: so many are remembered.
    """

    def __init__(self, regular: int, *, surely: bool, most: int = PLACES_MAX) -> None:
        self._regular, self._surely, self._most = regular, surely, most
        self._names: dict[Key, None] = {}  # of all tokens up to a place; the oldest first

    def note(self, name: Key) -> None:
        """Remember the place up to which the tokens have this name."""
        self._names.pop(name, None)
        self._names[name] = None
        if len(self._names) > self._most:
            del self._names[next(iter(self._names))]

    def before(self, name: Callable[[int], Key], end: int, low: int) -> int:
        """One of them before one place and behind another, the largest; 0: there is none.

        Args:
            name: of all tokens of a request up to a place.
        """
        behind = range(end - 1, low, -1)
        known = next((place for place in behind if name(place) in self._names), 0)
        regular = (end - 1) // self._regular * self._regular
        if regular not in behind or (known and not self._surely):
            return known
        return max(known, regular)
