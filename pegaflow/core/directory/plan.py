"""What a peer process is told of the settings, and where other hosts are."""

from dataclasses import dataclass
from typing import NamedTuple


class Place(NamedTuple):
    """Where another host may be."""

    endpoint: str  # tcp://host:port
    key: bytes  # its public key in Z85; empty: there are none

    @property
    def where(self) -> str:
        """Its host, by name or address."""
        return self.endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")


@dataclass(frozen=True, slots=True)
class PeerPlan:
    """Settings of the link to other hosts."""

    peer_listen: str | None  # an IP address and a port; None: no peers
    peers: tuple[str, ...]  # NAME@host:port, or host:port where there are no keys
    peer_keys: str | None  # folder; None: there are none
    insecure_peers: bool

    @property
    def listen(self) -> tuple[str, int]:
        """Address and port."""
        host, _, port = (self.peer_listen or ":0").rpartition(":")
        return host.removeprefix("[").removesuffix("]"), int(port)
