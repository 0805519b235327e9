"""What operators are shown: metrics, status, readiness."""
