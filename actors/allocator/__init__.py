"""The allocator: which page of the pool is whose."""
