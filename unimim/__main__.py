"""`python -m unimim`, and `torchrun -m unimim train ...` for several machines."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
