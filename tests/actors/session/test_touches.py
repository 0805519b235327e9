"""What was used without the index is told to it before what is published after the use."""

from pegaflow.wire.control import BEAT_NS
from pegaflow.wire.identities import NO_KEY, ClaimId
from pegaflow.wire.index import Claim, Claimed, Seal, Touched
from pegaflow.wire.jobs import FillPages
from pegaflow.wire.session import Copied, CopyBatch, Found, Keep, Load, Lookup, Pages, Save
from tests.actors.rig import CLIENT_7, IDX, one, pick, said
from tests.actors.sessions import KEYS, attached, grant
from tests.actors.shared import Shared

from .test_hazards import note_late


def test_a_use_is_told_before_what_is_published_after_it() -> None:
    shared = Shared()
    rig, actor, reserve = attached(shared)
    note_late(rig)
    rig.answer(reserve, grant(1, 4))
    shared.seal(actor, KEYS[:3], (5, 6, 7))
    found = said(rig.ask(CLIENT_7, Lookup(KEYS[:3])), Found)
    pages = said(rig.ask(CLIENT_7, Load(found.lease, 0, 0, 3)), Pages)
    rig.ask(CLIENT_7, Copied(pages.copy, True))
    claim = one(rig.ask(CLIENT_7, Save(7, 0, KEYS[3:4], NO_KEY)), Claim, IDX)
    batch = said(rig.answer(claim, Claimed(ClaimId(1), (0,))), CopyBatch).batch
    rig.tell(CLIENT_7, Keep(7, batch))
    told = [e.message for e in rig.done(FillPages) if e.receiver == IDX]
    assert [type(msg) for msg in told] == [Touched, Seal], "or the use would look younger"
    assert not pick(rig.wait(BEAT_NS), Touched)
