"""The language of PegaFlow: who says what to whom.

    client     → supervisor   OpenSession → SessionAt | Refused, Inspect → Report     control.py
    gateway    → supervisor   Inspect → Report
    child      → supervisor   Hello, Beat, Bye
    supervisor → child        Welcome, Neighbour, Gone, BindAgain, LogTo, Drain
    supervisor → session      Serve → Serving, Warm
    session    → supervisor   Warmed, UsesGpu
    supervisor → index, allocator   Members
    client     → session      Attach → Attached | Prove | Refused, Proven             session.py
    client     → session      Lookup → Found, Load → Pages | Loaded, Copied → Confirmed, Release
    client     → session      Borrow → Lent, Took, Looked
    client     → session      Save → Saved, Keep, Drop, Skip, Commit
    client     → session      Leave → Left, Ping → Pong
    session    → client       CopyBatch, BatchCopied
    session    → index        Find → Held, Claim → Claimed, Seal → Sealed             index.py
    session    → index        Release, EndClaim, LeasesHeld, Held, Claiming, Corrupt
    session    → index        HazardFile → HazardsNoted, Touched
    index      → session      LeasesLost, Pinned
    session    → allocator    Reserve → Reserved, Return, PagesHeld                   allocator.py
    allocator  → index        Pressure → Freed, Fence
    index      → allocator    Freed, Fenced
    flusher    → index        Manifest → Noted, Tier, Forget, Flushed                 flusher.py
    flusher    → index        Seal → Sealed, Held, LeasesHeld, Corrupt, WriteAll → Written
    index      → flusher      Fetch → Fetched, Flush, LeasesLost
    flusher    → allocator    Reserve → Reserved, Return, PagesHeld
    peer       → peer         Meet, Met, Follow, Have, Ping, Pong                     peer.py
    peer       → peer         Enter → Entered, Borrow → Lent, GiveBack → Returned
    index      → peer         Holding, Fetch → Fetched
    peer       → index        Around, Elsewhere, Find → Held, Seal → Sealed
    peer       → allocator    Reserve → Reserved, Return, PagesHeld

What stands behind an arrow is the answer.  Each conversation file says what its messages mean, in
which order they are said, and what each side does when the other dies.  message.py declares,
encodes and checks; envelope.py puts sender, receiver, question and deadline around a message;
links.py has the numbers that both ends of a link keep to; values.py, identities.py, layout.py,
gpu.py, status.py and units.py are the nouns; jobs.py, diskjobs.py, gpujobs.py and peerjobs.py are
what an actor asks of its own device, and never cross a socket.  Block bytes never travel in a
message.  This package is pure: no clock, socket, file or thread.
"""
