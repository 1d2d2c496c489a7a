"""Write the site; `python run.py site` calls this."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from paged_engine.errors import PagedEngineError
from paged_engine.lessons.site.export import export_site, lines_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Export, and say what was made; 1 where that could not be."""
    parser = argparse.ArgumentParser(
        prog="python -m paged_engine.lessons.site",
        description="Write the series as a site of static pages.",
    )
    parser.add_argument("--root", type=Path, default=Path(), help="the repository (default: here)")
    parser.add_argument("--to", type=Path, default=Path("site"), help="the folder to write")
    parser.add_argument("--execute", action="store_true", help="run every notebook anew")
    options = parser.parse_args(arguments)
    try:
        report = export_site(options.root.resolve(), options.to, options.execute)
    except PagedEngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in lines_of(report, options.to):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
