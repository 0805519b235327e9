"""Blocks, and who may use, save or keep them."""
