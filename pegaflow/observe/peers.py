"""What is shown of the link to other hosts: its metrics, and how it is in one line."""

from __future__ import annotations

from collections.abc import Callable

from pegaflow.wire.values import PEER

from .shown import Shown
from .view import View


def _total(*names: str) -> Callable[[View], float]:
    return lambda view: view.total(PEER, *names)


def _gauge(name: str) -> Callable[[View], float]:
    return lambda view: view.gauge(PEER, name)


PEER_METRICS = (
    Shown(
        "pegaflow_rdma_fetch_total",
        PEER,
        "Fetches of blocks from other hosts that have ended: success if every block came, else "
        "failure.  The name is the original's, whatever the transport.",
        lambda v: iter(v.labelled(PEER, "rdma_fetch").items()),
        labels=("status",),
    ),
    Shown(
        "pegaflow_rdma_fetch_bytes_total",
        PEER,
        "Bytes of blocks read from other hosts.",
        _total("rdma_fetch_bytes"),
    ),
    Shown(
        "pegaflow_transfer_served_blocks_total",
        PEER,
        "Blocks lent to other hosts, to be read by them.",
        _total("peer_blocks_lent"),
    ),
    Shown(
        "pegaflow_transfer_lock_active",
        PEER,
        "Loans to other hosts that stand.",
        _gauge("peer_loans"),
    ),
    Shown(
        "pegaflow_transfer_lock_timeouts_total",
        PEER,
        "Loans that were ended because their reader had not named them in time, or was silent.",
        _total("peer_loans_expired"),
    ),
    Shown(
        "pegaflow_peers",
        PEER,
        "Hosts that are named in --peers, and those of them that answer.",
        lambda v: iter(
            [
                (("configured",), v.gauge(PEER, "peers_configured")),
                (("up",), v.gauge(PEER, "peers_up")),
            ]
        ),
        labels=("state",),
    ),
)


def peers_line(view: View) -> str:
    """How the link to other hosts is; empty if there is none, or it has not been started yet."""
    if not any(process.address.name == PEER for process in view.processes):
        return ""
    up, configured = (int(view.gauge(PEER, f"peers_{name}")) for name in ("up", "configured"))
    lent = int(view.gauge(PEER, "peer_loans"))
    return f"peers: {up} of {configured} answer; {lent} loans to others"
