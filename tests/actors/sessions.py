"""A session that serves an attached client, in a rig, and what it shares with an index."""

from pegaflow.actors.session.actor import Session
from pegaflow.wire.allocator import Reserve, Reserved
from pegaflow.wire.control import Neighbour, Serve, Serving, Welcome
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import EngineNamespace, GrantId, Key, Stamp
from pegaflow.wire.index import HazardFile, HazardsNoted
from pegaflow.wire.jobs import BounceOpened, OpenBounce
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.session import Attach, Attached
from pegaflow.wire.status import Status
from tests.naming import as_pages

from .rig import (
    ALLOC,
    BOSS,
    CLIENT_7,
    HELLO,
    IDX,
    PAGE,
    SESSION_4,
    WELCOME,
    Rig,
    one,
    said,
)
from .shared import Shared

SERVE = Serve("engine", bytes(16), 4242, 99, namespace=EngineNamespace(bytes(16)))
LAYOUT = Layout(64, (LayerLayout(0, 0, PAGE, PAGE),), "bfloat16")
ATTACH = Attach(4242, 99, 0, 1, layout=LAYOUT, region_bytes=(64 * PAGE,))
KEYS = tuple(Key(bytes([n]) * 32) for n in range(1, 9))


def spare(shared: Shared | None = None, welcome: Welcome = WELCOME) -> tuple[Rig, Session]:
    """A session without an engine, its neighbours dialled."""
    shared = shared or Shared()
    actor = Session(
        SESSION_4, BOSS, HELLO, open_hazards=shared.open_hazards, open_finder=shared.open_finder
    )
    rig = Rig(actor)
    rig.start()
    rig.tell(BOSS, welcome)
    rig.tell(BOSS, Neighbour(ALLOC, "ipc://a", 1))
    rig.tell(BOSS, Neighbour(IDX, "ipc://i", 2))
    return rig, actor


def serving(shared: Shared | None = None, welcome: Welcome = WELCOME) -> tuple[Rig, Session]:
    """A session with an engine that has attached nothing yet."""
    rig, actor = spare(shared, welcome)
    said(rig.ask(BOSS, SERVE), Serving, BOSS)
    return rig, actor


def attached(
    shared: Shared | None = None, welcome: Welcome = WELCOME
) -> tuple[Rig, Session, Envelope]:
    """A session with an attached engine, and its unanswered Reserve.  No index has noted its
    hazards."""
    rig, actor = serving(shared, welcome)
    assert rig.ask(CLIENT_7, ATTACH) == []
    sent = rig.done(OpenBounce, BounceOpened("bounce", ()))
    assert said(sent, Attached, CLIENT_7).page_size == PAGE
    return rig, actor, one(sent, Reserve, ALLOC)


def reading(
    shared: Shared, blocks: int = 4, welcome: Welcome = WELCOME, sums: tuple[int, ...] = ()
) -> tuple[Rig, Session]:
    """A session whose hazards are noted, with the first KEYS in pages 0, 1 and so on."""
    rig, actor = serving(shared, welcome)
    rig.ask(CLIENT_7, ATTACH)
    note(rig, rig.done(OpenBounce, BounceOpened("bounce", ())))
    shared.seal(actor, KEYS[:blocks], tuple(range(blocks)), sums)
    return rig, actor


def note(rig: Rig, sent: list[Envelope]) -> None:
    """The index notes the hazard file."""
    told = one(sent, HazardFile)
    assert isinstance(told.message, HazardFile) and told.message.file == (7, 8)
    assert rig.answer(told, HazardsNoted(Status.OK)) == []


def grant(number: int, count: int) -> Reserved:
    """Grant `number`: that many pages, which nobody had before."""
    pages = tuple(range(8 * number - 8, 8 * number - 8 + count))
    return Reserved(
        Status.OK, GrantId(number), as_pages(*pages), tuple(Stamp(1000 + p) for p in pages)
    )
