"""Prompts as a shell hands them over: as arguments, on stdin, in a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from paged_engine.cli.terminal import CommandError


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """Any number of prompts."""
    parser.add_argument(
        "prompts", nargs="*", metavar="PROMPT", help="a text to continue; - is all of stdin"
    )
    parser.add_argument(
        "--file", metavar="FILE", help="more prompts, one a line; - reads the lines from stdin"
    )


def read_prompts(options: argparse.Namespace) -> list[str]:
    """The prompts in order, those of the file last; lines without a word are no prompts.

    Raises:
        CommandError: The file is no text.
        OSError: It cannot be read.
    """
    if [*options.prompts, options.file].count("-") > 1:
        options.refuse("- was given twice, and stdin can be read only once")
    prompts = [_stdin() if prompt == "-" else prompt for prompt in options.prompts]
    if options.file == "-":
        prompts += _lines(_stdin())
    elif options.file is not None:
        with (
            only_text(options.file),
            open(options.file, encoding="utf-8-sig") as file,
        ):
            prompts += _lines(file.read())
    return prompts


@contextmanager
def only_text(name: str) -> Iterator[None]:
    """Reading `name` inside says it in a line if that is no text."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise CommandError(
            f"{name} is not {error.encoding} text ({error.reason} at byte {error.start}); save it "
            f"as UTF-8"
        ) from error


def _stdin() -> str:
    with only_text("stdin"):
        return sys.stdin.read()


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]
