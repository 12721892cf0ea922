"""`python -m mpklab` is the program `mpklab`."""

import sys

from mpklab.cli import main

if __name__ == "__main__":
    sys.exit(main())
