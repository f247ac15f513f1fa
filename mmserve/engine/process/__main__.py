"""The engine's process; started by ``mmserve.engine.process.link`` only."""

import sys

from mmserve.engine.process.child import main

if __name__ == "__main__":
    main(int(sys.argv[1]))
