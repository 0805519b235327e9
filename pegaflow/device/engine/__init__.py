"""How the bytes of an engine are reached."""
