"""The cache as data structures: pure, single-threaded, no messages, no clocks.

pool      page ids and offsets; the record of every sealed page; which pages are free or granted
blocks    from keys to pages; which blocks may not go; who is about to save which
policy    which blocks go first
segments  the log of the SSD tier: its codec, and what is in it
directory who else has what: the blocks of other hosts, for the peer link
"""
