"""`paged-engine bench`: measure the engine; what and how is `paged_engine.benchmark`'s affair."""

from __future__ import annotations

from typing import Any

from paged_engine.benchmark import command
from paged_engine.cli.arguments import add_command


def add_to(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(commands, "bench", help="measure throughput and latency")
    parser.set_defaults(run=command.run)
    command.add_arguments(parser)
