"""The log of the SSD tier, as data."""
