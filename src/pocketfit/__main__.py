"""`python -m pocketfit` is the command line."""

import os
import sys

# Python has put the current directory in front of its import path. It may be anybody's: what lies there must not stand
# in for a package (core/user_code.py says when code of the current directory is imported). Started with -P there is no
# such entry; what the user's own PYTHONPATH names stays, and so does the directory that this package was found in.
_here, _ours = os.path.realpath(os.curdir), os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
if not sys.flags.safe_path and sys.path and os.path.realpath(sys.path[0] or os.curdir) == _here != _ours:
    del sys.path[0]

from pocketfit.cli import main

main(prog_name="pocketfit")
