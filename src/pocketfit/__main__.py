"""`python -m pocketfit` is the command line."""

from pocketfit.cli import main

main(prog_name="pocketfit")
