"""`paged-engine chat`: talk with a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from paged_engine.cli.arguments import (
    add_command,
    add_engine_arguments,
    add_sampling_arguments,
    sampling_params,
)
from paged_engine.cli.loading import load_engine
from paged_engine.cli.prompts import only_text
from paged_engine.cli.terminal import fail, note
from paged_engine.errors import InvalidRequestError

if TYPE_CHECKING:
    from paged_engine.cli.conversation import Conversation

_MAX_TOKENS = 512
_HELP = """\
/help         this list
/reset        forget what was said
/system TEXT  what the model is told before everything else; without TEXT: nothing
/quit         leave, as Ctrl-D does
Ctrl-C        stop the answer; where there is none, leave"""


def add_to(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "chat",
        help="talk with a model",
        description="Talk with a model. The answers are streamed to stdout, everything else goes "
        "to stderr. Without a terminal each line of stdin is a message.",
        epilog="In the conversation, /help tells what else there is.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--system", metavar="TEXT", help="what the model is told before everything else"
    )
    add_sampling_arguments(parser, _MAX_TOKENS)
    add_engine_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Talk until the user leaves or stdin ends."""
    params = sampling_params(options)
    engine = load_engine(options, record_events=False)

    from paged_engine.cli.conversation import Conversation

    conversation = Conversation(engine, params, options.system)
    is_terminal = sys.stdin.isatty()
    if is_terminal and not options.no_progress:
        note("/help tells what there is beside talking; Ctrl-D leaves")
    for line in _typed() if is_terminal else _piped():
        if line.startswith("/"):
            if line.split()[0] == "/quit":
                break
            _obey(line, conversation)
        elif line.strip():
            answer(line.strip(), conversation, is_terminal, options.verbose)
    return 0


def answer(message: str, conversation: Conversation, is_terminal: bool, verbose: bool) -> None:
    """Print the answer as it comes.

    On a terminal Ctrl-C ends only the answer, and a message that cannot be taken is not the last.
    """
    pieces = conversation.ask(message)
    try:
        with closing(pieces):
            for piece in pieces:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if not is_terminal:
            raise
        print(flush=True)
        note("stopped; what was said so far stays in the conversation")
        return
    except InvalidRequestError as error:
        if not is_terminal:
            raise
        fail(str(error))
        return
    print(flush=True)
    output = conversation.last
    assert output is not None
    if output.finish_reason == "error":
        fail(f"the answer was cut short: {output.completions[0].stop_reason or 'no numbers'}")
    if verbose:
        note(
            f"{len(output.prompt_token_ids)} prompt tokens, {output.num_cached_tokens} of them "
            f"cached; {len(output.token_ids)} new ones in {output.timing.e2e or 0:.2f} s"
        )


def _obey(line: str, conversation: Conversation) -> None:
    """Do what a line with a slash says."""
    command, _, text = line.partition(" ")
    match command.strip():
        case "/help":
            print(_HELP, file=sys.stderr)
        case "/reset":
            conversation.turns.clear()
            note("forgot what was said")
        case "/system":
            conversation.system = text.strip() or None
            note("the system message is set" if conversation.system else "no system message")
        case unknown:
            note(f"no command {unknown}; /help lists them, and a space before / makes it a message")


def _typed() -> Iterator[str]:
    """Lines from the terminal, with a prompt that never gets into a pipe."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 - lets input() edit lines and remember them
    while True:
        try:
            if sys.stdout.isatty():
                yield input("> ")
                continue
        except EOFError:
            print()
            return
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            print(file=sys.stderr)
            return
        yield line


def _piped() -> Iterator[str]:
    while True:
        with only_text("stdin"):
            line = sys.stdin.readline()
        if not line:
            return
        yield line
