"""Ranks whose blocks differ in size: their pages do not."""

from dataclasses import replace

from pegaflow.wire.identities import NO_KEY, ClaimId
from pegaflow.wire.index import Claim, Claimed
from pegaflow.wire.jobs import BounceOpened, FillPages, OpenBounce, SumPages
from pegaflow.wire.session import Attached, CopyBatch, Keep, Save
from tests.actors.rig import ALLOC, CLIENT_7, CLIENT_8, PAGE, WELCOME, one, said
from tests.actors.sessions import ATTACH, KEYS, LAYOUT, grant, serving

SMALL = replace(LAYOUT, layers=(replace(LAYOUT.layers[0], segment_bytes=PAGE // 4),))


def test_a_small_block_fills_a_part_of_its_page_and_is_summed_with_the_rest() -> None:
    rig, _ = serving(welcome=replace(WELCOME, verify=True))
    slots = []
    for number, (client, layout) in enumerate([(CLIENT_7, SMALL), (CLIENT_8, LAYOUT)]):
        rig.ask(client, replace(ATTACH, rank=number, world=2, layout=layout))
        attached = said(rig.done(OpenBounce, BounceOpened("bounce", ())), Attached, client)
        slots.append(attached.page_size)
    assert slots == [PAGE // 4, PAGE]
    rig.tell(ALLOC, grant(1, 8))
    claim = one(rig.ask(CLIENT_7, Save(1, 0, KEYS[:2], NO_KEY, order=1)), Claim)
    take = said(rig.answer(claim, Claimed(ClaimId(1), (0, 1))), CopyBatch, CLIENT_7)
    rig.tell(CLIENT_7, Keep(1, take.batch))
    (fill,) = rig.wanted(FillPages)
    assert (fill.payload_bytes, fill.page_size) == (PAGE // 4, PAGE // 4)
    rig.done(FillPages)
    assert rig.wanted(SumPages)[0].payload_bytes == PAGE
