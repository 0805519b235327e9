"""What `pegaflow status` prints for people: a table of processes, then a line for each subject.

It is made for a terminal of 80 columns.  What is short has a column that never wraps; an engine's
id stands last in its row, with room for a UUID, and a longer one goes on in the next line.  A line
below the table is never broken by us: a path in it can be copied and searched for.  An id is what
an engine says it is, so it is shown as it is and never read as rich's markup.
"""

import mmap

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pegaflow.service import sizes
from pegaflow.wire.control import KindState, Report
from pegaflow.wire.values import ALLOCATOR, INDEX, SESSION, SUPERVISOR

from .peers import peers_line
from .ssd import ssd_line
from .view import View

COLUMNS = ("process", "pid", "state", "seat")


def show(report: Report, console: Console | None = None) -> None:
    """Print a report for people.

    Args:
        console: None: stdout.
    """
    console = console or Console()
    view = View(report, report.at)
    console.print(_processes(report))
    for line in _lines(view, report):
        console.print(Text(line), soft_wrap=True)


def _processes(report: Report) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, no_wrap=True)
    table.add_column("engine", overflow="fold")
    for row in report.processes:
        seat = next((c.value for c in row.counters if c.name == "engine_seat"), None)
        short = (row.address, row.pid, row.state, "-" if seat is None else seat)
        table.add_row(*map(str, short), Text(row.engine or "-"))
    return table


def _lines(view: View, report: Report) -> list[str]:
    asked, hit = view.blocks_asked, view.blocks_hit
    used = view.gauge(ALLOCATOR, "pool_sealed_bytes", "pool_held_bytes")
    rate = f"hit rate {100 * hit / asked:.1f} % of {asked:.0f} blocks" if asked else "nothing asked"
    engines = sum(bool(row.engine) for row in report.processes)
    waiting = view.gauge(SUPERVISOR, "opens_waiting")
    lines = [
        f"pool: {sizes.show(report.pool_bytes)}, {sizes.show(int(used))} in use",
        f"pool file: {report.pool_path or 'none yet'}{_pages(view)}",
        f"cache: {view.gauge(INDEX, 'blocks_resident'):.0f} blocks, {rate}",
        f"engines: {engines}" + (f", {waiting:.0f} waiting" if waiting else ""),
        ssd_line(view),
        peers_line(view),
        *view.remarks(SESSION),
        f"http: {_http(view, report)}",
        _restarts(report),
    ]
    for kind in report.kinds:
        if kind.state != KindState.OK:
            rest = max(0, kind.retry_at_ns - report.at) / 1e9
            lines.append(f"{kind.name} is {kind.state}: it is tried again in {rest:.1f} s")
    return [line for line in lines if line]


def _pages(view: View) -> str:
    """How large they are, if they are not as everybody's."""
    page_bytes = int(view.gauge(SUPERVISOR, "pool_page_bytes"))
    return f", in pages of {sizes.show(page_bytes)}" if page_bytes > mmap.PAGESIZE else ""


def _restarts(report: Report) -> str:
    """Which kinds of processes had to be replaced, and how often."""
    often = [f"{kind.name} {kind.restarts}" for kind in report.kinds if kind.restarts]
    return f"restarts: {', '.join(often)}" if often else ""


def _http(view: View, report: Report) -> str:
    """Where HTTP is answered, or why it is not."""
    if not report.http_addr:
        return "no HTTP (--http-addr none)"
    port = view.gauge("gateway", "http_port")
    if not port:
        return f"no HTTP at {report.http_addr} yet: see http_unavailable in the log"
    return f"http://{report.http_addr.rpartition(':')[0]}:{port:.0f}/metrics"
