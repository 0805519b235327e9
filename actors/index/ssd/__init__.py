"""The SSD tier, as the index has it: what is in the log, what goes there, what comes back."""
