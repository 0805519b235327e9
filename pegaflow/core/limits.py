"""Every limit and default that more than one part needs, each with its reason.

A limit that only one file uses stays in that file.  This module imports nothing, so every floor
above the wire may use it.
"""

from pegaflow.wire.units import Bytes, Count, Share

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

EXTENT_SIZE: Bytes = 32 * MIB
"""Large enough that hundreds of pages fit and a grant is rare, small enough that a pool on a laptop
still has dozens of them to share between page sizes."""

SPARES: Count = 2
"""One engine may register while the spare of the last one is still starting (0.3 s)."""

COPY_THREADS: Count = 2
"""One core copies at a third to a half of what a memory controller can do; more threads than two
would take cores from the engine for little."""

MAX_PINNED: Share = 0.5
"""Part of the pool that one engine's leases may keep from eviction: the prompts that it loads at a
time fit into it wherever they fit twice, and the other half is there for everybody's saves."""

HTTP_ADDR = "127.0.0.1:9091"
"""The original's port, so that its users' scrapers find it; on loopback only: nobody is asked for a
password."""

OPEN_FILES: Count = 65536
"""An engine costs about ten descriptors per process that talks to it; this serves hundreds."""
