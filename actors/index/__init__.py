"""The index: which block is where, who may use it, who may publish it."""
