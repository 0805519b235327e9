"""The peer process, for the tests of the tier protocol."""

from pegaflow.core.pool.fingerprints import fingerprints
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.flusher import Fetch, Fetched
from pegaflow.wire.identities import Incarnation, Key
from pegaflow.wire.index import Seal
from pegaflow.wire.peer import NONE, Around, Cut, Elsewhere
from pegaflow.wire.status import Status
from pegaflow.wire.values import PEER, Address
from tests.actors.index.sides import Asked
from tests.actors.index.test_index import KEYS, NS, ROOT
from tests.actors.rig import PAGE, Rig, pick
from tests.actors.tier import fetched_seal

PEER_6 = Address(PEER, Incarnation(16))


class Peers:
    """Says what a peer process says that knows one other host."""

    process = PEER_6

    def begin(self, rig: Rig) -> None:
        rig.tell(PEER_6, Around(100, 1))

    def store(self, rig: Rig, keys: tuple[Key, ...]) -> None:
        names, (first, last) = tuple(fingerprints(NS, keys).tolist()), NONE
        cuts = (Cut(NS, PAGE, 1),)
        rig.tell(PEER_6, Elsewhere(0, first, last, cuts, added=names, removed=()))

    def take(self, rig: Rig, sent: list[Envelope]) -> tuple[Key, ...]:
        return ()  # nothing is written to other hosts

    def asked(self, sent: list[Envelope]) -> Asked | None:
        for question in pick(sent, Fetch, PEER_6):
            assert isinstance(question.message, Fetch)
            return Asked(question, question.message.number, tuple(question.message.keys))
        return None

    def seal(self, asked: Asked, keys: tuple[Key, ...], first_page: int) -> Seal:
        fetch = asked.question.message
        assert isinstance(fetch, Fetch)
        parents = tuple(KEYS[KEYS.index(key) - 1] if key != KEYS[0] else ROOT for key in keys)
        quoted = Fetch(fetch.number, fetch.namespace, keys, parents, engine=fetch.engine)
        return fetched_seal(quoted, first_page, depths=())

    def end(self, rig: Rig, asked: Asked) -> list[Envelope]:
        names, (first, last) = tuple(fingerprints(NS, asked.keys).tolist()), NONE
        rig.tell(PEER_6, Elsewhere(0, first, last, (), added=(), removed=names))
        return rig.answer(asked.question, Fetched(Status.OK, tuple(range(len(asked.keys)))))


SIDE = Peers()
