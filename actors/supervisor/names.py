"""The names in file systems by which others find the service, as the supervisor looks after them.

With each tick the shell looks whether they are still there, and makes anew what it can (CheckFiles
in wire/jobs.py).  What it cannot is said once and reported until it is back.  Of sockets that were
gone there is one line for all of them, however many: a removed run directory takes each.  It is
said with the next look, of those that are still there: a process that ends takes its socket along.
"""

from collections import Counter

from pegaflow.actors.runtime.contract import Do, Effect, Note, Part, Send
from pegaflow.wire.control import BindAgain, LogLevel
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.jobs import CheckFiles, FilesChecked
from pegaflow.wire.values import Address

from .children import Children
from .stage import Lifecycle


class Names(Part):
    """The names by which others find the service, and what of them is lost."""

    def __init__(
        self,
        own: Address,
        children: Children,
        lifecycle: Lifecycle,
        *,
        run_dir: str,
        counts: Counter[str],
    ) -> None:
        self.faults: tuple[str, ...] = ()  # as of the last look
        self._own = own
        self._children = children
        self._lifecycle = lifecycle
        self._run_dir = run_dir  # the folder of all sockets
        self._counts = counts
        self._lost: list[Address] = []  # whose sockets were gone at the last look
        self._said = False  # that they had been, at the last look

    def beat(self, now: int) -> list[Effect]:
        """Look at them."""
        return [] if self._lifecycle.stopping else [Do(CheckFiles(), self._looked)]

    def _looked(self, found: FilesChecked, now: int) -> list[Effect]:
        """What a look has found."""
        faults = found.faults
        effects: list[Effect] = []
        for fault in faults:
            if fault not in self.faults:
                self._counts["files_lost"] += 1
                effects.append(Note("files_lost", (("why", fault),), LogLevel.ERROR))
        if self.faults and not faults:
            effects.append(Note("files_back"))
        self.faults = faults
        return effects + self._sockets(set(found.unbound))

    def _sockets(self, lost: set[Incarnation]) -> list[Effect]:
        children = [child.address for child in self._children.heard_of()]
        effects: list[Effect] = []
        there = [address for address in self._lost if address in (self._own, *children)]
        if there and not self._said:
            of = ", ".join(map(str, there))
            facts = (("folder", self._run_dir), ("of", of))
            effects.append(Note("socket_bound_again", facts, LogLevel.WARNING))
        self._said = bool(there)
        told = [address for address in children if address.incarnation in lost]
        self._lost = [self._own, *told] if self._own.incarnation in lost else told
        return effects + [Send(address, BindAgain()) for address in told]
