"""The peer process: blocks of other hosts, read into our pool, and ours, lent to them."""
