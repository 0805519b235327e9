"""Swaps that the checker of types must find, one for each kind of identity.  Nothing here runs.

mypy in strict mode complains of an `ignore` that it does not need, so the lane `static` fails when
it takes one of these for right.
"""

from pegaflow.core.blocks.claims import ClaimTable
from pegaflow.core.blocks.leases import LeaseTable
from pegaflow.core.blocks.table import PrefixIndex
from pegaflow.core.grants import Grants
from pegaflow.core.pool.finder import Finder, Run
from pegaflow.core.pool.fingerprints import fingerprints
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.hazards import HazardReader
from pegaflow.core.pool.ledger import Ledger
from pegaflow.wire.allocator import PagesHeld, Reserved
from pegaflow.wire.control import OpenSession
from pegaflow.wire.identities import (
    NO_NAMESPACE,
    ClaimId,
    EngineNamespace,
    GrantId,
    Incarnation,
    Key,
    LeaseId,
    Namespace,
    PageId,
    Stamp,
)
from pegaflow.wire.index import Find, LeasesHeld, Release, Seal, Touched
from pegaflow.wire.status import Status
from pegaflow.wire.values import SESSION, Address


def incarnations(lease: LeaseId) -> None:
    Address(SESSION, lease)  # type: ignore[arg-type]


def leases(table: LeaseTable, claim: ClaimId, incarnation: Incarnation) -> None:
    Release(claim)  # type: ignore[arg-type]
    table.release("holder", incarnation)  # type: ignore[arg-type]


def claims(table: ClaimTable, lease: LeaseId, leases: tuple[LeaseId, ...]) -> None:
    table.end("holder", lease)  # type: ignore[arg-type]
    LeasesHeld(lease, leases, lease, ())  # type: ignore[arg-type]


def grants(book: Grants[GrantId, Reserved], lease: LeaseId) -> None:
    PagesHeld(lease, ())  # type: ignore[arg-type]
    book.get("holder", lease)  # type: ignore[arg-type]


def pages_and_stamps(pages: tuple[PageId, ...], stamps: tuple[Stamp, ...], claim: ClaimId) -> None:
    Reserved(Status.OK, GrantId(1), stamps, ())  # type: ignore[arg-type]
    Reserved(Status.OK, GrantId(1), (), pages)  # type: ignore[arg-type]
    Seal(claim, NO_NAMESPACE, 1, 1, shards=1, keys=(), parents=(), pages=stamps, stamps=())  # type: ignore[arg-type]
    Seal(claim, NO_NAMESPACE, 1, 1, shards=1, keys=(), parents=(), pages=(), stamps=pages)  # type: ignore[arg-type]


def pages(ledger: Ledger, geometry: Geometry, stamp: Stamp, offset: int) -> None:
    ledger.read(stamp)  # type: ignore[arg-type]
    geometry.offset(offset, 4096)  # type: ignore[arg-type]


def what_is_found(finder: Finder, hazards: HazardReader, run: Run) -> None:
    finder.sealed(run.stamps, run.stamps)  # type: ignore[arg-type]
    finder.sealed(run.pages, run.pages)  # type: ignore[arg-type]
    hazards.named(run.stamps, run.stamps)  # type: ignore[arg-type]
    hazards.named(run.pages, run.pages)  # type: ignore[arg-type]
    Touched(run.stamps)  # type: ignore[arg-type]
    fingerprints(Key(b""), ())  # type: ignore[arg-type]


def keys_and_namespaces(blocks: PrefixIndex, namespace: Namespace, key: Key) -> None:
    Find(key, ())  # type: ignore[arg-type]
    Find(namespace, (namespace,))  # type: ignore[arg-type]
    blocks.get(key, key)  # type: ignore[arg-type]
    blocks.get(namespace, namespace)  # type: ignore[arg-type]


def an_engines_own_namespace_and_ours(own: EngineNamespace, ours: Namespace) -> None:
    Find(own, ())  # type: ignore[arg-type]
    OpenSession("engine", b"", 1, 1, namespace=ours)  # type: ignore[arg-type]


def numbers(count: int) -> None:
    Stamp(count)
    Release(count)  # type: ignore[arg-type]
