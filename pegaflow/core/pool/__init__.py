"""The pool and its ledger, as data."""
