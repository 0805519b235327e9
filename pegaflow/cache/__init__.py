"""The cache as data structures: pure, single-threaded, no messages, no clocks.

geometry      page ids and offsets of the pool
ledger        the record of every sealed page, in shared memory
slab          which pages are free, granted or left in place
prefix_index  from block keys to pages
eviction      which blocks go first
leases        which blocks may not go
claims        which blocks somebody is about to save
"""
