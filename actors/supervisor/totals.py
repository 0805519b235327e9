"""Counters summed over lives, so that a process that is replaced takes none of them back."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from pegaflow.core.series import VALUE_MAX
from pegaflow.wire import control

from .children import Kid

NAMES_MAX = 2048
"""Counters of one kind of child: ours have some hundred, with the buckets of their histograms."""


class Tally:
    """What the dead have counted; with what the living have counted it is the sum."""

    def __init__(self) -> None:
        self._dead: defaultdict[str, Counter[str]] = defaultdict(Counter)  # kind -> counter -> sum

    def bury(self, kid: Kid) -> None:
        """A life is over: its last counters stay in the sums."""
        _add(self._dead[kid.address.name], kid)

    def sums(self, name: str, kids: Iterable[Kid]) -> tuple[control.Counter, ...]:
        """Of one kind: over the dead and over those of these children that are of this kind."""
        total = self._dead[name].copy()
        for kid in kids:
            if kid.address.name == name:
                _add(total, kid)
        return control.listed(total)


def _add(total: Counter[str], kid: Kid) -> None:
    for counter in kid.counters:
        if counter.name in total or len(total) < NAMES_MAX:
            total[counter.name] = min(total[counter.name] + counter.value, VALUE_MAX)
