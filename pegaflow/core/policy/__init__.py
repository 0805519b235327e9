"""Which blocks go first."""
