"""The command line: `paged-engine generate "The sky is blue because"`.

Results go to stdout, everything else to stderr, so that the output can be piped.  What needs
torch is imported only when it is used: `--help` answers at once.  Each command is a file of this
folder, with a function `add_to` that describes it and a function `run` that does it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

import paged_engine
from paged_engine.cli import bench, chat, generate, models, trace
from paged_engine.cli.terminal import fail
from paged_engine.errors import PagedEngineError

FINE, FAILED, INTERRUPTED = 0, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; None: those of the process.

    Returns:
        The exit code: 0; 1 after an error of ours or of the system (one line on stderr); 2 after
        wrong usage; 130 after Ctrl-C.  A reader who closes the pipe has what it wanted: that is 0.
    """
    _open_closed_streams()
    code = _guarded(lambda: _run(argv))
    flushed = _guarded(_flush)
    return code or flushed


def _run(argv: Sequence[str] | None) -> int:
    try:
        options = parser().parse_args(argv)
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except SystemExit as leaving:  # argparse has answered --help, or refused what was asked
        return leaving.code if isinstance(leaving.code, int) else FAILED


def _guarded(work: Callable[[], int]) -> int:
    """What `work` returns, or the exit code for what it raised, after a line that says it."""
    try:
        return work()
    except BrokenPipeError:
        _discard_stdout()
        return FINE
    except PagedEngineError as error:
        fail(str(error))
    except OSError as error:
        if error.filename is None:  # it can only be a stream of ours
            _discard_stdout()
        fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        fail(
            f"out of memory; lower --num-blocks or --max-num-seqs, or take a smaller model "
            f"({str(error) or type(error).__name__})"
        )
    except KeyboardInterrupt:
        print(file=sys.stderr)
        fail("interrupted")
        return INTERRUPTED
    return FAILED


def _flush() -> int:
    sys.stdout.flush()
    return FINE


def _discard_stdout() -> None:
    """What is still to be written cannot be: Python would complain once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed_streams() -> None:
    """Python has None for a stream that the caller closed; an empty one does as well."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _is_out_of_memory(error: Exception) -> bool:
    """Torch has a class of its own for CUDA, and none for the CPU."""
    said = str(error)
    return isinstance(error, MemoryError) or "out of memory" in said or "allocate memory" in said


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    whole = argparse.ArgumentParser(
        prog="paged-engine",
        description="A small LLM inference engine, written to be read.",
        epilog="paged-engine COMMAND --help tells the options of a command.",
        allow_abbrev=False,
    )
    whole.add_argument(
        "--version", action="version", version=f"paged-engine {paged_engine.__version__}"
    )
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    for command in (generate, chat, bench, trace, models):
        command.add_to(commands)
    return whole
