"""`python -m paged_engine.benchmark`: the benchmark without the command line around it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from paged_engine.benchmark.command import add_arguments, run
from paged_engine.errors import PagedEngineError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Returns:
        The exit code: 0, or 1 after an error of ours (one line on stderr), or 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m paged_engine.benchmark")
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except PagedEngineError as error:
        print(f"bench: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbench: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
