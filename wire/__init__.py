"""The language of PegaFlow: who says what to whom.

    client     ─ OpenSession, Inspect ─────────────────────→ supervisor      control.py
    gateway    ─ Inspect ──────────────────────────────────→ supervisor
    child      ─ Hello, Beat, Bye ─────────────────────────→ supervisor
    supervisor ─ Welcome, Neighbour, Gone, Drain ──────────→ child
    client     ─ Attach, Lookup, Load, Save, ... ──────────→ session         session.py
    session    ─ Find, Claim, Seal, Release, LeasesHeld ───→ index           index.py
    session    ─ Reserve, Return, PagesHeld ───────────────→ allocator       allocator.py
    allocator  ─ Pressure ─────────────────────────────────→ index
    index      ─ Freed, Fenced ────────────────────────────→ allocator
    flusher    ─ Tier, Manifest, Forget, Flushed, Seal ────→ index           flusher.py
    index      ─ Flush, Fetch ─────────────────────────────→ flusher
    flusher    ─ Reserve, Return, PagesHeld ───────────────→ allocator

Each conversation file says what its messages mean, in which order they are said, and what each side
does when the other dies.  message.py declares, encodes and checks; envelope.py puts sender,
receiver, question and deadline around a message; values.py, identities.py, layout.py and status.py
are the nouns.  Block bytes never travel in a message.  This package is pure: no clock, socket, file
or thread.
"""
