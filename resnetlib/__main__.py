"""`python -m resnetlib` runs the command line."""

from .cli import main

main(prog_name="resnetlib")
