"""`python -m paged_engine` is `paged-engine`."""

import sys

from paged_engine.cli import main

if __name__ == "__main__":
    sys.exit(main())
