"""A save of several chains, and what becomes of it when the blocks of some are gone."""

from pegaflow.client.effects import CopyOut
from pegaflow.client.results import Chain, SaveDone
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import NO_KEY
from pegaflow.wire.session import CopyBatch, Drop, Keep, Save, Saved, Skip
from pegaflow.wire.status import Status

from .test_machine import BLOCKS, KEYS, Client, ready


def chains(c: Client, lasting: dict[int, int]) -> tuple[int, Envelope]:
    """A save of three chains, of one block each; of each order, how many looks it stays valid."""

    def one_of(place: int, order: int) -> Chain:
        looks = iter([True] * lasting[order] + [False])
        parent = KEYS[0] if place == 1 else NO_KEY
        keys, blocks = KEYS[place : place + 1], BLOCKS[place : place + 1]
        return Chain(keys, blocks, order=order, parent=parent, valid=looks.__next__)

    made = [one_of(place, order) for place, order in enumerate(lasting)]
    ticket, effects = c.m.operations.save(made, c.at(), commits=True)
    c.do(effects)
    return ticket, c.question(Save)


def test_several_chains_are_one_save() -> None:
    c = ready()
    ticket, question = chains(c, {7: 2, 8: 2, 9: 2})
    msg = question.message
    assert isinstance(msg, Save) and (msg.keys, msg.order, msg.parent) == (KEYS, 7, NO_KEY)
    root = bytes(len(KEYS[0]))
    assert (msg.starts, msg.orders, msg.parents) == ((1, 2), (8, 9), (KEYS[0], root))
    c.tell(CopyBatch(ticket, 1, (2, 0, 1), (7, 3, 4)))
    assert c.others == [CopyOut(ticket, 1, (12, 10, 11), (7, 3, 4), deadline=question.deadline)]
    c.do(c.m.operations.copied_out(ticket, 1, True, c.now))
    assert c.look() == [Keep(ticket, 1)]
    c.answer(question, Saved(Status.NO_SPACE, 1, 1, (2,)))
    assert c.done == [SaveDone(ticket, Status.NO_SPACE, 1, 1, lost=(2,))]


def test_a_chain_whose_blocks_are_gone_is_skipped_before_the_others_are_kept() -> None:
    c = ready()
    ticket, _ = chains(c, {7: 3, 8: 1, 9: 0})
    c.tell(CopyBatch(ticket, 1, (0, 1, 2), (0, 1, 2)))
    assert c.look() == [Skip(9)] and len(c.others) == 1
    c.do(c.m.operations.copied_out(ticket, 1, True, c.now))
    assert c.look() == [Skip(8), Keep(ticket, 1)]
    c.do(c.m.operations.copied_out(ticket, 2, True, c.now))
    assert c.look() == [Keep(ticket, 2)], "each is skipped once"
    c.do(c.m.operations.copied_out(ticket, 3, True, c.now))
    assert c.look() == [Drop(ticket)], "nothing is left"
