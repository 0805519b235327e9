"""`python -m pegaflow`: the command line."""

from pegaflow.cli import main

main()
