"""The gateway: what HTTP sees of the service."""
