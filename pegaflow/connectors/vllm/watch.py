"""Whether this worker still computes with what its memory was registered under, and under which
name it goes on if not. Pure, but for the weights that it looks at.

vLLM tells a connector to forget its cache (`reset_cache`) when weights change, and also when an
engine sleeps or is paused and nothing changes; and weights change without a word (an RPC that loads
new ones). So nobody's word is taken: the weights are looked at. The conversation:

    scheduler → worker   StepOrders.look   "look again": after each reset, and whenever work begins
                                           in an engine that was idle
    worker → scheduler   SavesDone         which look is answered, the worker's epoch, whether it is
                                           stale; a worker of which nothing is new says nothing
    worker → service     Attach            the layout's name says what is computed with: see `name`

Nothing changed: the worker answers, and that is all. The session, its hits and every save stay, and
no step is waited for.

Something changed: the worker takes the next *epoch* by itself, in the step in which it sees it. Its
loads of that step bring KV of other weights and are reported failed; what it saves waits until it
has joined the session of the new epoch, which the scheduler opens when it hears of it. The name
decides who shares: weights that are the ones that were loaded from the files again have the name
they had; any others are in no file that can be compared, and their name is this epoch's alone.

vLLM's own prefix cache may still hold blocks of the old weights. What is computed on top of them
belongs to no weights. The scheduler says with a look whether that cache was empty (`clean`). Where
it was not, or where a change is seen in the middle of work, the worker is *stale*: it neither loads
nor saves until a look is clean.

Each step has a glance at a few places of the weights, too. It is enough to see an update that was
put under running requests (stale, then); it costs microseconds.

Where the weights cannot be read, a reset is taken for a change.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Readable(Protocol):
    """What is used of `live.Weights`."""

    digest: bytes
    common: bytes

    @property
    def known(self) -> bool:
        """Whether the weights can be read."""

    @property
    def original(self) -> bool:
        """Whether they are the ones that were loaded."""

    def look(self) -> bool:
        """Whether all places are as they were at the last look."""

    def glance(self) -> bool:
        """Whether the next few places are."""


@dataclass(frozen=True, slots=True)
class Look:
    """The scheduler's wish that the weights be looked at. Travels with every step."""

    number: int = 0  # grows with each wish
    reset: bool = False  # there was a reset since the last look that was answered
    clean: bool = False  # vLLM's own cache was empty, and no work was done since


class Seen(Enum):
    """What a step may do."""

    SAME = "the weights are what they were"
    MOVED = "other weights, another epoch: loads of this step fail"
    STALE = "other weights than those of blocks that vLLM still holds"


@dataclass(slots=True)
class Watch:
    """See the module."""

    memory: str  # digest of the model's configuration in memory
    private: str  # why identity is not established; '' if it is
    weights: Readable
    generation: Callable[[int], bytes]  # a number that only this epoch of this start has
    whole: bool = False  # what is registered is the same with any number of tensor parallel ranks
    epoch: int = 0
    looked: int = 0  # number of the last look
    stale: bool = False

    def see(self, look: Look, epoch: int) -> Seen:
        """A step begins: look at the weights, or at a few places of them.

        Args:
            look: the scheduler's newest wish; one that was fulfilled is not again.
            epoch: the scheduler's.
        """
        moved = epoch > self.epoch
        if moved:
            self.epoch = epoch  # another rank has seen a change
        fresh = look.number > self.looked
        self.looked = max(self.looked, look.number)
        same = self._same(fresh, look.reset)
        clean = fresh and look.clean
        if not same or self.stale:
            self.stale = not clean
            if not self.stale:
                self.epoch += 1
                moved = True
        if self.stale:
            return Seen.STALE
        return Seen.MOVED if moved else Seen.SAME

    def _same(self, fresh: bool, reset: bool) -> bool:
        if not self.weights.known:
            return not (fresh and reset)
        if fresh:
            return self.weights.look()
        if self.weights.glance():
            return True
        self.weights.look()
        return False

    def name(self) -> str:
        """What the registered memory is called, beside its layout."""
        read = self.weights.known
        digest = self.weights.common if self.whole else self.weights.digest
        said = f"model={self.memory or '-'} weights={digest.hex() if read else '-'}"
        established = not self.private and (self.weights.original if read else self.epoch == 0)
        return said if established else f"{said} of {self.generation(self.epoch).hex()}"
