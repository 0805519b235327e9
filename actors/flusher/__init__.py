"""The flusher: the SSD tier's process."""
