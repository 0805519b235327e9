"""Names by which others find the service: what the supervisor says and does when they are gone."""

from dataclasses import replace

from pegaflow.actors.gateway.actor import Gateway
from pegaflow.actors.runtime.contract import Rebind
from pegaflow.actors.supervisor.ticks import TICK_NS
from pegaflow.observe import metrics
from pegaflow.wire.control import BindAgain, Inspect, Report, Welcome
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.values import FRONT_DESK, INDEX, SESSION
from tests.actors.group import OPENED, Group
from tests.actors.rig import BOSS, CLIENT_7, HELLO, IDX, Rig, pick, said

GONE = "/run/pegaflow: already running, pid 7"


def look(group: Group) -> list[Envelope]:
    group.now += TICK_NS
    return group.wake() + group.settle()


def report(group: Group) -> Report:
    return said(group.ask(CLIENT_7, Inspect(), to=FRONT_DESK), Report)


def test_a_fault_is_said_once_and_reported_for_as_long_as_it_is_there() -> None:
    group = Group()
    group.faults = [GONE]
    for _ in range(5):
        look(group)
    assert [n.event for n in group.notes].count("files_lost") == 1
    assert report(group).faults == (GONE,)
    assert metrics.readiness(report(group), group.now)["reasons"] == [GONE]
    group.faults = []
    look(group)
    assert report(group).faults == () and metrics.readiness(report(group), group.now)["ready"]
    assert [n.event for n in group.notes].count("files_back") == 1
    group.faults = [GONE]
    look(group)
    assert group.count("files_lost") == 2


def test_a_child_without_its_socket_is_told_until_it_has_one() -> None:
    group = Group()
    index, spare = group.now_living(INDEX), group.now_living(SESSION)
    group.lost = (index.incarnation,)
    for _ in range(2):
        sent = look(group)
        assert [e.receiver for e in pick(sent, BindAgain)] == [index]
    group.lost = (spare.incarnation, Incarnation(4242))
    assert [e.receiver for e in pick(look(group), BindAgain)] == [spare]


def test_sockets_that_are_gone_are_one_line_for_all_of_them() -> None:
    group = Group()
    index, spare = group.now_living(INDEX), group.now_living(SESSION)
    own = BOSS.incarnation
    # All are gone; the children have bound theirs by the next look, which sees others there.
    for lost in ((own, index.incarnation, spare.incarnation), (index.incarnation,), (), ()):
        group.lost = lost
        look(group)
    (note,) = (n for n in group.notes if n.event == "socket_bound_again")
    assert dict(note.facts)["of"] == f"{BOSS}, {index}, {spare}" and note.level == "warning"
    for lost in ((own,), ()):
        group.lost = lost
        look(group)
    assert [n.event for n in group.notes].count("socket_bound_again") == 2


def test_a_child_that_ends_takes_its_socket_along() -> None:
    group = Group()
    spare = group.now_living(SESSION)
    group.lost = (spare.incarnation,)
    look(group)
    group.exit(spare)
    group.lost = ()
    look(group)
    assert "socket_bound_again" not in [n.event for n in group.notes]


def test_a_child_that_has_no_socket_yet_has_lost_none() -> None:
    group = Group()
    group.lost = (Incarnation(4242),)
    look(group)
    assert "socket_bound_again" not in [n.event for n in group.notes]


def test_a_child_binds_again_when_it_is_told() -> None:
    rig = Rig(Gateway(IDX, BOSS, HELLO))
    rig.start()
    rig.tell(BOSS, BindAgain())
    assert rig.links == [Rebind()]


def test_welcome_says_which_files_are_meant() -> None:
    group = Group()
    sent = group.exit(group.now_living(SESSION))
    assert said(sent, Welcome).pool_file == ()
    group = Group(opened=replace(OPENED, pool_file=(1, 2), ledger_file=(3, 4)))
    sent = group.exit(group.now_living(SESSION))
    welcome = said(sent, Welcome)
    assert (welcome.pool_file, welcome.ledger_file) == ((1, 2), (3, 4))
