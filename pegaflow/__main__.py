"""`python -m pegaflow`: the command line."""

from pegaflow.entry import pegaflow

pegaflow()
