"""The session's side of a staged save: its bounce file, and the copy from there into the pool."""

from pegaflow.device.memory import Bytes, SharedFile


class Bounce:
    """A file of equal slots that the client writes and the session reads.

    It is unlinked with the session's process by whoever finds it: its name holds the incarnation.
    """

    def __init__(self, path: str, slots: int, page_size: int) -> None:
        self.file = SharedFile.create(path, slots * page_size)
        self.page_size = page_size
        self._bytes = self.file.array()

    def reserve(self) -> str:
        """Make all slots really there; '' or the reason why not."""
        return self.file.reserve(0, self.file.length)

    def fill(
        self, pool: Bytes, slots: tuple[int, ...], offsets: tuple[int, ...], length: int
    ) -> None:
        """Copy slot i to pool offset i, `length` bytes each."""
        for slot, offset in zip(slots, offsets, strict=True):
            start = slot * self.page_size
            pool[offset : offset + length] = self._bytes[start : start + length]
