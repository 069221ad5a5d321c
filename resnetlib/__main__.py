"""`python -m resnetlib` is `resnetlib`."""

from .cli import main

main(prog_name="resnetlib")
