"""The flusher, for the tests of the tier protocol."""

from pegaflow.wire.envelope import Envelope
from pegaflow.wire.flusher import Fetch, Fetched, Flush
from pegaflow.wire.identities import Key
from pegaflow.wire.index import Seal
from pegaflow.wire.status import Status
from tests.actors.index.sides import Asked
from tests.actors.index.test_index import KEYS, ROOT
from tests.actors.rig import Rig, pick, said
from tests.actors.tier import FLUSHER_6, TIER, fetched_seal, flushed, in_log


class Flusher:
    """Says what the flusher says."""

    process = FLUSHER_6

    def begin(self, rig: Rig) -> None:
        rig.tell(FLUSHER_6, TIER)

    def store(self, rig: Rig, keys: tuple[Key, ...]) -> None:
        in_log(rig, keys)

    def take(self, rig: Rig, sent: list[Envelope]) -> tuple[Key, ...]:
        flush = said(sent, Flush, FLUSHER_6)
        flushed(rig, flush)
        return tuple(flush.keys)

    def asked(self, sent: list[Envelope]) -> Asked | None:
        for question in pick(sent, Fetch, FLUSHER_6):
            assert isinstance(question.message, Fetch)
            return Asked(question, question.message.number, tuple(question.message.keys))
        return None

    def seal(self, asked: Asked, keys: tuple[Key, ...], first_page: int) -> Seal:
        fetch = asked.question.message
        assert isinstance(fetch, Fetch)
        parents = tuple(KEYS[KEYS.index(key) - 1] if key != KEYS[0] else ROOT for key in keys)
        quoted = Fetch(fetch.number, fetch.namespace, keys, parents, engine=fetch.engine)
        return fetched_seal(quoted, first_page)

    def end(self, rig: Rig, asked: Asked) -> list[Envelope]:
        return rig.answer(asked.question, Fetched(Status.OK, tuple(range(len(asked.keys)))))


SIDE = Flusher()
