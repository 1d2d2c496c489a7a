"""The command line: `paged-engine generate "The sky is blue because"`.

Text goes to stdout as it comes, everything else to stderr, so that the output can be piped.  What
needs torch is imported only when it is used: `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import paged_engine
from paged_engine.errors import PagedEngineError

if TYPE_CHECKING:
    from paged_engine.engine import ContinuousEngine
    from paged_engine.events import Event
    from paged_engine.request import SamplingParams

FAILED, INTERRUPTED = 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; None: those of the process.

    Returns:
        The exit code: 0, or 1 after an error of ours (one line on stderr), or 130 after Ctrl-C.
        Wrong usage leaves through SystemExit with code 2, as with any argparse program.
    """
    options = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        code = run(options)
        sys.stdout.flush()
    except PagedEngineError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # The reader has what it wanted.  Python would complain once more when it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\npaged-engine: interrupted", file=sys.stderr)
        return INTERRUPTED
    return code


def _generate(options: argparse.Namespace) -> int:
    params = _params(options)  # wrong values are named before a model is loaded
    engine = _engine(options)
    new_text = (
        output.completions[0].new_text for output in engine.stream(_prompt(options), params)
    )
    if options.no_stream:
        print("".join(new_text))
        return 0
    for text in new_text:
        print(text, end="", flush=True)
    print()
    return 0


def _prompt(options: argparse.Namespace) -> str:
    return sys.stdin.read() if options.prompt == "-" else str(options.prompt)


def _params(options: argparse.Namespace) -> SamplingParams:
    from paged_engine.request import SamplingParams

    return SamplingParams(
        temperature=options.temperature, seed=options.seed, max_tokens=options.max_tokens
    )


def _engine(options: argparse.Namespace) -> ContinuousEngine:
    from paged_engine.config import EngineConfig

    limits = {"block_size": options.block_size, "num_blocks": options.num_blocks}
    chosen = {name: value for name, value in limits.items() if value is not None}
    EngineConfig.from_options(**chosen)

    from paged_engine.engine import ContinuousEngine

    engine = ContinuousEngine.from_pretrained(
        options.model,
        device=options.device,
        dtype=options.dtype,
        progress=sys.stderr.isatty() or options.verbose,
        record_events=options.verbose,
        **chosen,
    )
    if options.verbose:
        engine.log.subscribe(_to_stderr())
    return engine


def _to_stderr() -> Callable[[Event], None]:
    """A listener that prints what happens beside the text and not into it."""
    from contextlib import redirect_stdout

    from paged_engine.console import event_printer

    printer = event_printer()

    def listen(event: Event) -> None:
        with redirect_stdout(sys.stderr):
            printer(event)

    return listen


def _fail(message: str) -> int:
    print(f"paged-engine: {' '.join(message.split())}", file=sys.stderr)
    return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paged-engine", description="A small LLM inference engine, written to be read."
    )
    parser.add_argument(
        "--version", action="version", version=f"paged-engine {paged_engine.__version__}"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    generate = commands.add_parser(
        "generate",
        help="continue a text",
        description="Continue a text. The text goes to stdout, everything else to stderr.",
        epilog="The first use of the default model fetches about 93 MB.",
    )
    generate.set_defaults(run=_generate)
    generate.add_argument("prompt", help="the text to continue; - reads it from stdin")
    generate.add_argument(
        "--model",
        metavar="NAME",
        help="a model folder or a name on the hub (default: $PAGED_ENGINE_MODEL, or "
        "SmolLM2-135M-Instruct)",
    )
    generate.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    generate.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "auto"],
        default="float32",
        help="of the weights (default: float32)",
    )
    generate.add_argument(
        "--max-tokens", type=int, default=128, metavar="N", help="at most so many (default: 128)"
    )
    generate.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0, the default, takes the most likely token",
    )
    generate.add_argument("--seed", type=int, metavar="N", help="repeats a random draw")
    generate.add_argument(
        "--block-size", type=int, metavar="N", help="tokens a KV block holds (default: 16)"
    )
    generate.add_argument("--num-blocks", type=int, metavar="N", help="KV blocks in the pool")
    generate.add_argument("--verbose", action="store_true", help="say what happens, on stderr")
    generate.add_argument(
        "--no-stream", action="store_true", help="print the text when it is complete"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
