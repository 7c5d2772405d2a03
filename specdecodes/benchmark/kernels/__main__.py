"""``python -m specdecodes.benchmark.kernels``."""

import sys

from specdecodes.benchmark.kernels.command import main

if __name__ == "__main__":
    sys.exit(main())
