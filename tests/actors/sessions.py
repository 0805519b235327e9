"""A session that serves an attached client, in a rig."""

from pegaflow.actors.session.actor import Session
from pegaflow.wire.allocator import Reserve, Reserved
from pegaflow.wire.control import Neighbour, Serve, Serving
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import GrantId, Key, Stamp
from pegaflow.wire.jobs import BounceOpened, OpenBounce
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.session import Attach, Attached
from pegaflow.wire.status import Status
from tests.naming import as_pages

from .rig import ALLOC, BOSS, CLIENT_7, HELLO, IDX, PAGE, SESSION_4, WELCOME, Rig, one, said

SERVE = Serve("engine", bytes(16), 4242, 99, bytes(16))
LAYOUT = Layout(64, (LayerLayout(0, 0, PAGE, PAGE),), "bfloat16")
ATTACH = Attach(4242, 99, 0, 1, LAYOUT, (64 * PAGE,))
KEYS = tuple(Key(bytes([n]) * 32) for n in range(1, 9))


def spare() -> tuple[Rig, Session]:
    """A session without an engine, its neighbours dialled."""
    actor = Session(SESSION_4, BOSS, HELLO)
    rig = Rig(actor)
    rig.start()
    rig.tell(BOSS, WELCOME)
    rig.tell(BOSS, Neighbour(ALLOC, "ipc://a", 1))
    rig.tell(BOSS, Neighbour(IDX, "ipc://i", 2))
    return rig, actor


def serving() -> tuple[Rig, Session]:
    """A session with an engine that has attached nothing yet."""
    rig, actor = spare()
    said(rig.ask(BOSS, SERVE), Serving, BOSS)
    return rig, actor


def attached() -> tuple[Rig, Session, Envelope]:
    """A session with an attached engine, and its unanswered Reserve."""
    rig, actor = serving()
    assert rig.ask(CLIENT_7, ATTACH) == []
    sent = rig.done(OpenBounce, BounceOpened("bounce", ()))
    assert said(sent, Attached, CLIENT_7).page_size == PAGE
    return rig, actor, one(sent, Reserve, ALLOC)


def grant(number: int, count: int) -> Reserved:
    """Grant `number`: that many pages, which nobody had before."""
    pages = tuple(range(8 * number - 8, 8 * number - 8 + count))
    return Reserved(
        Status.OK, GrantId(number), as_pages(*pages), tuple(Stamp(1000 + p) for p in pages)
    )
