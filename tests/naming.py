"""What names a thing, from plain numbers and bytes: as_leases(7, 8)."""

from pegaflow.wire.identities import ClaimId, EngineNamespace, Key, LeaseId, PageId, Stamp

MODEL = EngineNamespace(bytes(16))


def as_leases(*numbers: int) -> tuple[LeaseId, ...]:
    return tuple(map(LeaseId, numbers))


def as_claims(*numbers: int) -> tuple[ClaimId, ...]:
    return tuple(map(ClaimId, numbers))


def as_stamps(*numbers: int) -> tuple[Stamp, ...]:
    return tuple(map(Stamp, numbers))


def as_pages(*numbers: int) -> tuple[PageId, ...]:
    return tuple(map(PageId, numbers))


def as_keys(*keys: bytes) -> tuple[Key, ...]:
    return tuple(map(Key, keys))
