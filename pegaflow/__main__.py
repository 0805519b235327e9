"""`python -m pegaflow`: the command line."""

from pegaflow.service.entry import pegaflow

pegaflow()
