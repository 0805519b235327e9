"""Blocks become visible: the one place where that happens.  See wire/index.py, Seal.

A session publishes what it has claimed, the process of a tier what it was asked to fetch.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from pegaflow.actors.runtime.contract import Effect, On, Part, Reply, Sender, on
from pegaflow.core.blocks.columns import Pages
from pegaflow.core.blocks.table import Fresh, Looked
from pegaflow.core.pool.columns import (
    Places,
    among,
    are_pages,
    chained,
    column,
    first_of,
    led_by,
    repeats,
    said,
    signed,
)
from pegaflow.core.pool.ledger import MAX_SHARDS, NAMESPACE_BYTES, PAYLOAD_BYTES_MAX
from pegaflow.wire.identities import NO_CLAIM, Key, PageId
from pegaflow.wire.index import Seal, Sealed
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.status import Status
from pegaflow.wire.values import SESSION, Address

from .claims import Claims
from .lookup import Lookup
from .residency import New, Residency
from .tiers import Tier, Tiers


class _Published(NamedTuple):
    """What of a Seal is published now, and what was before."""

    places: Places  # of its blocks
    first: Pages  # first pages of these
    known: int  # blocks that are here under other pages
    chained: bool  # they are one chain, and all new
    before: PageId | None  # if they are: first page of the block before them, if it is here


class Publishing(Part):
    """Judges each block of a Seal."""

    def __init__(
        self,
        address: Address,
        *,
        residency: Residency,
        claims: Claims,
        tiers: Tiers,
        lookup: Lookup,
        counts: Counter[str],
    ) -> None:
        self._first_seal = address.incarnation << 40  # of this life; the next one's are later
        self._residency, self._claims = residency, claims
        self._tiers, self._lookup, self._counts = tiers, lookup, counts
        self._seals = 0  # given in this life

    def handlers(self) -> Iterable[On]:
        """Whoever fills pages."""
        return (on(Seal, self._on_seal, SESSION, *self._tiers.actors),)

    def _on_seal(self, sender: Sender, msg: Seal, now: int) -> list[Effect]:
        if not self._makes_sense(msg):
            self._counts["seals_malformed"] += 1
            return [Reply(sender, Sealed(Status.BAD_REQUEST, ()))]
        tier = self._tiers.served_by(sender.address.name)
        places, first, known, chained_, before = self._publish(sender.address, tier, msg, now)
        status = Status.OK if len(places) + known == len(msg.keys) else Status.STALE_CLAIM
        named = said(places) if len(places) else ()
        effects: list[Effect] = [Reply(sender, Sealed(status, named, known))]
        if not len(places):
            return effects
        here = self._residency
        blocks = here.blocks.handles.all_of(first) if self._lookup.awaited else []
        if tier is None:
            self._counts["blocks_sealed"] += len(places)
            if chained_:
                here.make_young(msg.page_size, first, before)
            else:
                self._make_young(msg, places, first)
            return effects + self._lookup.arrived(blocks, now) + self._tiers.write(now)
        here.policy.make_young(msg.page_size, first)
        effects += self._lookup.arrived(blocks, now)
        unawaited = np.flatnonzero(~here.blocks.handles.leased(first))
        if len(unawaited):  # of the others the end of the lease makes the whole chain young
            self._make_young(msg, places[unawaited], first[unawaited])
        return effects + self._tiers.write(now)

    def _make_young(self, msg: Seal, places: Places, first: Pages) -> None:
        """Those at these places are the youngest now, each chain of them with what it goes on
        from.

        Args:
            first: their first pages.
        """
        keys, parents = _at(places, msg.keys), _at(places, msg.parents)
        starts = [0]
        if not chained(keys, parents):
            starts += [at for at in range(1, len(keys)) if parents[at] != keys[at - 1]]
        here, heads = self._residency, [parents[start] for start in starts]
        before = here.blocks.known(msg.namespace, heads)
        before[[not any(parent) for parent in heads]] = -1
        here.make_pieces_young(msg.page_size, first, starts, before)

    def _makes_sense(self, msg: Seal) -> bool:
        """Whether the lists fit each other, and the numbers the ledger's records and the pool.
        Blocks of one namespace are cut alike: whoever loads them knows one page size."""
        count, size = len(msg.keys), msg.page_size
        other = self._residency.blocks.cut(msg.namespace)
        if other is not None and (other.page_size, other.shards) != (size, msg.shards):
            return False
        pages = column(msg.pages)
        return (
            len(msg.parents) == count
            and 0 < msg.shards <= MAX_SHARDS
            and len(pages) == len(msg.stamps) == count * msg.shards
            and not repeats(pages)
            and len(msg.namespace) == NAMESPACE_BYTES
            and 0 < msg.payload_bytes <= min(size, PAYLOAD_BYTES_MAX)
            and size == -(-msg.payload_bytes // PAGE_ALIGN) * PAGE_ALIGN
            and len(msg.checksums) in (0, len(pages))
            and len(msg.depths) in (0, count)
            and are_pages(self._residency.geometry, pages, size)
        )

    def _publish(self, holder: Address, tier: Tier | None, msg: Seal, now: int) -> _Published:
        """Publish what the claim still covers."""
        here, shards, count = self._residency, msg.shards, len(msg.keys)
        pages = signed(msg.pages).reshape(-1, shards)
        void = here.ledger.void_among(pages.reshape(-1))
        lead, looked = self._look(msg)
        resident = looked.first
        new = found = np.arange(count)
        known = 0
        fresh = not np.count_nonzero(resident >= 0) and np.count_nonzero(void) == len(void)
        if not (fresh and not repeats(looked.names) and self._owns_all(holder, tier, msg)):
            owned = self._owned(holder, tier, msg)
            every = [bool(row.all()) for row in void.reshape(-1, shards)]
            new, found, known = self._judge(msg, owned, every, resident, tier=tier)
        whole = len(new) == count
        if len(new):
            rows = slice(None) if whole else new
            names, taken = looked.names[rows], None
            if looked.taken:
                taken = here.blocks.are_taken(names)
            blocks = Fresh(
                namespace=msg.namespace,
                keys=_at(new, msg.keys),
                names=names,
                pages=pages[rows],
                page_size=msg.page_size,
            )
            if not whole:
                lead = None
            described = self._described(msg, blocks, new, rows, lead=lead)
            if len(msg.depths):
                depths = signed(msg.depths)[rows]
                if tier is None:
                    depths = _placed(blocks, described, depths)
                described = described._replace(depths=depths)
            here.seal(blocks, described, now, taken)
        if tier is not None:
            self._counts["blocks_fetched"] += len(new)
        else:
            self._counts["bytes_sealed"] += len(new) * shards * msg.payload_bytes
            if self._tiers.mind:
                self._tiers.offer(here.blocks.handles.all_of(pages[new, 0]))
        first = pages[:, 0]
        if not whole:
            first = np.where(resident < 0, first, resident)[found]
        before = PageId(lead) if lead is not None and lead >= 0 else None
        return _Published(found, first, known, chained=whole and lead is not None, before=before)

    def _look(self, msg: Seal) -> tuple[int | None, Looked]:
        """Search for the keys, and for the block that they go on from.

        Returns:
            Its first page, -1: it is not here, None: they are not one chain; and what was found of
            the keys.
        """
        blocks = self._residency.blocks
        if not msg.keys or not chained(msg.keys, msg.parents):
            return None, blocks.look(msg.namespace, msg.keys)
        parent = first_of(msg.parents)
        if not any(parent):
            return -1, blocks.look(msg.namespace, msg.keys)
        first, names, taken = blocks.look(msg.namespace, led_by(parent, msg.keys))
        return int(first[0]), Looked(first[1:], names[1:], taken)

    def _owns_all(self, holder: Address, tier: Tier | None, msg: Seal) -> bool:
        """Whether the holder may publish all of these."""
        if tier is None and msg.claim == NO_CLAIM:
            return True
        if tier is None:
            return self._claims.table.owns_all(holder, msg.claim, msg.namespace, msg.keys)
        return all(self._owned(holder, tier, msg))

    def _owned(self, holder: Address, tier: Tier | None, msg: Seal) -> list[bool]:
        """Which of these the holder may publish: what nobody else has meanwhile, without a
        claim."""
        if tier is None and msg.claim == NO_CLAIM:
            return [True] * len(msg.keys)
        if tier is None:
            return self._claims.table.owns(holder, msg.claim, msg.namespace, msg.keys)
        return [tier.owns(msg.claim, msg.namespace, key) for key in msg.keys]

    def _judge(
        self,
        msg: Seal,
        owned: list[bool],
        void: list[bool],
        resident: Pages,
        *,
        tier: Tier | None,
    ) -> tuple[Places, Places, int]:
        """Block by block.

        Args:
            owned: by the claim.
            void: whether its pages are.
            resident: first page of the block that has its key, -1: there is none.

        Returns:
            Places of the blocks that are published now, and of all that are; and how many others
            are here under other pages.
        """
        new: list[int] = []
        found: list[int] = []
        known = 0
        met: set[Key] = set()
        for at, key in enumerate(msg.keys):
            if resident[at] >= 0:
                block = self._residency.blocks.handles.of(PageId(int(resident[at])))
                if block.stamps == msg.stamps[at * msg.shards : (at + 1) * msg.shards]:
                    found.append(at)
                else:
                    known += 1
            elif key in met:
                known += 1
            elif not owned[at]:
                self._counts["seals_stale" if tier is None else "fetches_stale"] += 1
            elif not void[at]:
                self._counts["seals_malformed"] += 1
            else:
                new.append(at)
                found.append(at)
                met.add(key)
        return np.array(new, np.int64), np.array(found, np.int64), known

    def _described(
        self, msg: Seal, blocks: Fresh, new: Places, rows: slice | Places, *, lead: int | None
    ) -> New:
        """What the Seal says of the blocks at these places.

        Args:
            lead: first page of the block before them, -1: it is not here; None: they are not one
                chain, as far as is known.
        """
        stamps, sums = column(msg.stamps), np.zeros(len(msg.stamps), np.uint64)
        if len(msg.checksums):
            sums = column(msg.checksums)
        if lead is None:
            parents, depths = self._chained(blocks, _at(new, msg.parents))
        else:
            parents, depths = self._one_chain(blocks, msg.parents, lead)
        seal = self._first_seal + self._seals + 1
        self._seals += len(new)
        return New(
            payload_bytes=msg.payload_bytes,
            stamps=stamps.reshape(-1, msg.shards)[rows].reshape(-1),
            checksums=sums.reshape(-1, msg.shards)[rows].reshape(-1),
            seals=np.arange(seal, seal + len(new), dtype=np.uint64),
            depths=depths,
            parents=parents,
        )

    def _one_chain(self, blocks: Fresh, parents: Sequence[Key], lead: int) -> tuple[Pages, Pages]:
        """`_chained`, of blocks that go on each from the one before it, the first from `lead`."""
        here, first = self._residency, blocks.pages[:, 0]
        if lead < 0:
            here.blocks.chains.await_parent(
                PageId(int(first[0])), blocks.namespace, first_of(parents)
            )
        depth = 0 if lead < 0 else here.depth(PageId(lead)) + 1
        return np.concatenate(([lead], first[:-1])), np.arange(depth, depth + len(first))

    def _chained(self, blocks: Fresh, parents: Sequence[Key]) -> tuple[Pages, Pages]:
        """What new blocks go on from.

        Args:
            parents: keys of the blocks before them.

        Returns:
            First pages of those, -1 where they are not here; and the depths of the new blocks.
        """
        here, first = self._residency, blocks.pages[:, 0]
        places = {key: at for at, key in enumerate(blocks.keys)}
        before = here.blocks.known(blocks.namespace, parents)
        depths = np.zeros(len(first), np.int64)
        for at, parent in enumerate(parents):
            place = places.get(parent)
            if place is not None:
                before[at] = first[place]
            if place is not None and place < at:
                depths[at] = depths[place] + 1
            elif place is None and before[at] >= 0:
                depths[at] = here.depth(PageId(int(before[at]))) + 1
            elif before[at] < 0:
                here.blocks.chains.await_parent(PageId(int(first[at])), blocks.namespace, parent)
        return before, depths


def _at(places: Places, keys: Sequence[Key]) -> Sequence[Key]:
    """The keys at these places, all of them if there are as many."""
    return keys if len(places) == len(keys) else tuple([keys[at] for at in places.tolist()])


def _placed(blocks: Fresh, described: New, places: Pages) -> Pages:
    """Depths as far as they are known, and else as far from these as they are said to be: of pieces
    of one chain some may be here before those that they go on from, and after a restart nobody
    knows more of their order.

    Args:
        places: of the blocks, in what a session has been told to save.
    """
    before = described.parents
    known = (before >= 0) & ~among(before, blocks.pages[:, 0])
    at = int(known.argmax())
    return places + (described.depths[at] - places[at]) if known[at] else places
