"""The gateway's questions and its address."""

from pegaflow.actors.gateway.actor import INSPECT_NS, INSPECT_WAIT_NS, RETRY_NS, Gateway
from pegaflow.actors.runtime.member import member_of
from pegaflow.wire.control import BEAT_NS, Beat, Drain, Gone, Inspect, Report, Welcome
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.jobs import Listen, Listening, Publish
from pegaflow.wire.status import Status
from pegaflow.wire.values import GATEWAY, Address
from tests.actors.rig import BOSS, EXTENT, HELLO, IDX, Rig, one, pick, said

ME = Address(GATEWAY, Incarnation(9))
AT = "127.0.0.1:9091"
WELCOME = Welcome("", "", 0, EXTENT, run_dir="run", http_addr=AT)
REPORT = Report("", "", 0, EXTENT, started_ns=0, version="0.1", processes=(), http_addr=AT, at=77)


def gateway() -> tuple[Rig, Envelope]:
    """A gateway that was welcomed, and its first question."""
    rig = Rig(Gateway(ME, BOSS, HELLO))
    rig.start()
    return rig, one(rig.tell(BOSS, WELCOME), Inspect, BOSS)


def port(rig: Rig) -> int:
    return rig.host.actor.gauges()["http_port"]


def beaten(rig: Rig, nanoseconds: int) -> list[Envelope]:
    """Let time pass; only what is no Beat."""
    return [e for e in rig.wait(nanoseconds) if not isinstance(e.message, Beat)]


def test_it_listens_where_it_is_told_and_says_where_that_is() -> None:
    rig, _ = gateway()
    assert rig.wanted(Listen) == [Listen(AT)] and port(rig) == 0
    rig.done(Listen, Listening("127.0.0.1:4711", 4711))
    assert port(rig) == 4711
    beaten(rig, 10 * max(RETRY_NS))
    assert rig.wanted(Listen) == []


def test_each_report_is_published_once() -> None:
    rig, question = gateway()
    assert rig.wanted(Publish) == []
    rig.answer(question, REPORT)
    assert rig.wanted(Publish) == [Publish(REPORT)]
    rig.done(Publish)
    assert rig.wanted(Publish) == []


def test_it_asks_about_once_a_second() -> None:
    rig, question = gateway()
    rig.answer(question, REPORT)
    asked = 0
    for _ in range(10):
        for again in beaten(rig, INSPECT_NS):
            assert isinstance(again.message, Inspect)
            asked += 1
            rig.answer(again, REPORT)
    assert 9 <= asked <= 10


def test_a_supervisor_that_does_not_answer_is_asked_one_question_at_a_time() -> None:
    rig, question = gateway()
    assert question.deadline == rig.now + INSPECT_WAIT_NS
    assert beaten(rig, INSPECT_WAIT_NS - 1) == []
    again = one(beaten(rig, BEAT_NS + 1), Inspect)
    assert again.question != question.question
    assert rig.count("reports_missed") == 1
    assert rig.answer(question, REPORT) == [] and rig.wanted(Publish) == []
    rig.answer(again, REPORT)
    assert rig.wanted(Publish) == [Publish(REPORT)]


def test_it_beats_while_nobody_answers() -> None:
    rig, _ = gateway()
    beats = pick(rig.wait(20 * BEAT_NS), Beat, BOSS)
    assert len(beats) == 20


def test_a_busy_address_is_tried_again_ever_less_often() -> None:
    rig, _ = gateway()
    pauses = []
    for _ in range(len(RETRY_NS) + 2):
        before = rig.now
        rig.done(Listen, Status.BUSY, "Address already in use")
        assert rig.wanted(Listen) == [] and port(rig) == 0
        while not rig.wanted(Listen):
            rig.wait(BEAT_NS)
        pauses.append(rig.now - before)
    wanted = [*RETRY_NS, RETRY_NS[-1], RETRY_NS[-1]]
    assert all(w <= p <= w + BEAT_NS for p, w in zip(pauses, wanted, strict=True))
    rig.done(Listen, Listening(AT, 9091))
    assert port(rig) == 9091 and rig.stop is None


def test_a_busy_address_is_one_line_that_says_what_to_do() -> None:
    rig, _ = gateway()
    for _ in range(3):
        rig.done(Listen, Status.BUSY, "Address already in use")
        while not rig.wanted(Listen):
            rig.wait(BEAT_NS)
    (line,) = rig.notes
    facts = dict(line.facts)
    assert line.event == "http_unavailable" and facts["address"] == AT
    assert facts["why"] == "Address already in use" and "--http-addr" in str(facts["advice"])


def test_the_death_of_others_is_none_of_its_business() -> None:
    rig, _ = gateway()
    assert rig.tell(BOSS, Gone(IDX)) == []
    assert rig.stop is None


def test_it_leaves_when_it_is_told() -> None:
    rig, _ = gateway()
    rig.tell(BOSS, Drain())
    assert rig.stop == ""


def test_the_beat_carries_what_the_shell_measures() -> None:
    rig, _ = gateway()
    member_of(rig.host.actor).measured = lambda: {"process_open_fds": 12}
    beat = said(rig.wait(BEAT_NS), Beat)
    gauges = {g.name: g.value for g in beat.gauges}
    assert gauges == {"http_port": 0, "process_open_fds": 12}
