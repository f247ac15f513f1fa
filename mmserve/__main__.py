"""``python -m mmserve``."""

import sys

from mmserve.cli import main

if __name__ == "__main__":
    sys.exit(main())
