"""The closed set of outcomes.

Every expected outcome of a question is one of these values; nothing else crosses a wire as an
outcome.  Zero is success.  The numbers are frozen: a number is never reused for another meaning,
and a peer of a newer minor version may send one that we do not know, which decodes as UNKNOWN.
"""

import enum


class Status(enum.IntEnum):
    """What became of a question.  `words` says it to a person."""

    OK = 0
    UNKNOWN = 1  # a status of a newer protocol minor
    EXPIRED = 2  # no answer within the deadline
    PEER_GONE = 3  # the process that should have answered died
    NOT_ATTACHED = 4  # the engine has not registered its memory with this session yet
    NO_SUCH_LEASE = 5  # never granted here, already consumed, released or lost
    NO_SPACE = 6  # every page that could be freed is leased or reserved
    TOO_LARGE = 7  # can never fit, whatever is evicted
    DROPPED = 8  # the engine took its blocks back before they were copied
    STALE_CLAIM = 9  # the claim ended or expired before the seal arrived
    BAD_REQUEST = 10  # the message is well-formed but asks for something impossible
    BAD_LAYOUT = 11  # the registered layout overlaps or overruns its regions
    PROTOCOL = 12  # the two sides speak different major versions
    DUPLICATE = 13  # another living engine uses this engine id
    BUSY = 14  # a limit on outstanding work was reached
    DRAINING = 15  # the service is stopping
    NOT_READY = 16  # the service is starting
    COPY_FAILED = 17  # the bytes could not be moved
    DISCONNECTED = 18  # the client has no session at present
    SUPERSEDED = 19  # another generation of this engine is in service
    CORRUPT = 20  # the bytes in the pool are not those that were saved
    READ_ONLY = 21  # nothing can be written there
    GONE = 22  # it is not there any more, or something else is in its place
    IN_USE = 23  # another service has it

    @property
    def words(self) -> str:
        """The status in lower-case words."""
        return self.name.lower().replace("_", " ")

    @property
    def label(self) -> str:
        """The status as the label of a metric."""
        return self.name.lower()

    @classmethod
    def _missing_(cls, value: object) -> "Status | None":
        return cls.UNKNOWN if isinstance(value, int) and value >= 0 else None
