"""The session: one engine's process, which moves its bytes."""
