"""`python -m minivit` is the `minivit` command."""

import sys

from minivit.cli import main

if __name__ == "__main__":
    sys.exit(main())
