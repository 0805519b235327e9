"""The names in file systems by which others find the service, as the supervisor looks after them.

With each tick the shell looks whether they are still there, and makes anew what it can (CheckFiles
in wire/jobs.py).  What it cannot is said once and reported until it is back.  Of sockets that were
gone there is one line for all of them, however many: a removed run directory takes each.
"""

from collections import Counter
from collections.abc import Mapping

from pegaflow.actors.runtime.contract import Effect, Note, Send
from pegaflow.wire.control import BindAgain
from pegaflow.wire.jobs import Done
from pegaflow.wire.values import Address

from .children import Kid


class Names:
    """What of them is lost."""

    def __init__(
        self, own: Address, folder: str, kids: Mapping[Address, Kid], counts: Counter[str]
    ) -> None:
        self.faults: tuple[str, ...] = ()  # as of the last look
        self._own = own
        self._folder = folder  # of all sockets
        self._kids = kids
        self._counts = counts
        self._were_lost = False  # sockets, at the last look

    def looked(self, done: Done, now: int) -> list[Effect]:
        """What a look has found."""
        faults = tuple(done.note.splitlines())
        effects: list[Effect] = []
        for fault in faults:
            if fault not in self.faults:
                self._counts["files_lost"] += 1
                effects.append(Note("files_lost", (("why", fault),), "error"))
        if self.faults and not faults:
            effects.append(Note("files_back"))
        self.faults = faults
        return effects + self._sockets(set(done.values))

    def _sockets(self, lost: set[int]) -> list[Effect]:
        kids = [k.address for k in self._kids.values() if k.endpoint]
        told = [address for address in kids if address.incarnation in lost]
        found = [self._own, *told] if self._own.incarnation in lost else told
        effects: list[Effect] = [Send(address, BindAgain()) for address in told]
        if found and not self._were_lost:
            of = ", ".join(map(str, found))
            facts = (("folder", self._folder), ("of", of))
            effects.append(Note("socket_bound_again", facts, "warning"))
        self._were_lost = bool(found)
        return effects
