"""`paged-engine models`: which models can be served, and why others cannot."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import textwrap
from importlib import resources
from pathlib import Path
from typing import Any

from paged_engine.cli.arguments import add_command, add_engine_arguments
from paged_engine.cli.loading import load_engine
from paged_engine.cli.terminal import CommandError
from paged_engine.errors import UnsupportedModelError

SERVED, REFUSED = "identical", "refused"
FAMILIES = "families.json"  # in paged_engine/models, written by the tests that try them all


def add_to(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "models",
        help="tell which models can be served",
        description="List the model families of transformers that give the same tokens as its "
        "generate, or try one model.",
    )
    parser.set_defaults(run=run)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--refused", action="store_true", help="list the refused families, with the reasons"
    )
    what.add_argument(
        "--check",
        nargs="?",
        const="",
        metavar="NAME",
        help="load this model (or that of --model) and try it: exit code 0 if it is served",
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    add_engine_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """List, or try one; 1 if that is refused."""
    if options.check is not None:
        return _check(options)
    if options.model is not None:
        options.refuse("--model is the one to --check: give both")
    listed = load_families()
    if options.json:
        families = listed["families"]
        if options.refused:
            families = [f for f in families if f["outcome"] == REFUSED]
        print(json.dumps({"default_model": _default_model(), **listed, "families": families}))
    elif options.refused:
        _print_refused(listed)
    else:
        _print_served(listed)
    return 0


def load_families() -> dict[str, Any]:
    """What `families.json` holds: `transformers`, its version, and the list `families`.

    Raises:
        CommandError: It is missing or damaged.
    """
    file = resources.files("paged_engine.models") / FAMILIES
    try:
        listed: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        _ = listed["transformers"], [(f["family"], f["outcome"]) for f in listed["families"]]
    except FileNotFoundError as error:
        raise CommandError(
            f"this installation has no list of families (paged_engine/models/{FAMILIES}); install "
            f"it again, or try one model: paged-engine models --check NAME"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(
            f"the list of families (paged_engine/models/{FAMILIES}) is damaged ({error!r}); "
            f"install paged_engine again"
        ) from error
    return listed


def _print_served(listed: dict[str, Any]) -> None:
    served = [f["family"] for f in listed["families"] if f["outcome"] == SERVED]
    num_refused = sum(f["outcome"] == REFUSED for f in listed["families"])
    num_others = len(listed["families"]) - len(served) - num_refused
    print(f"Default model: {_about_default(_default_model())}\n")
    print(f"Served: {len(served)} families of transformers {listed['transformers']}")
    print(_wrapped("  ".join(served), "  "))
    print(f"\nRefused: {num_refused} families (paged-engine models --refused gives the reasons)")
    if num_others:
        print(f"Not tried: {num_others} families, of which no small model could be made")
    print("paged-engine models --check NAME tries any model")


def _print_refused(listed: dict[str, Any]) -> None:
    for family in listed["families"]:
        if family["outcome"] == REFUSED:
            print(f"{family['family']}\n{_wrapped(family['reason'], '    ')}")


def _wrapped(text: str, indent: str) -> str:
    width = min(100, shutil.get_terminal_size().columns)
    return textwrap.fill(
        text,
        width=width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _default_model() -> dict[str, Any]:
    """Its name, the folder it is cached in (None: not yet), and the bytes it has or will fetch."""
    from paged_engine.models.cache import cache_folder, problem_with, shared_cache_folders
    from paged_engine.models.default_model import DEFAULT_MODEL_NAME, DEFAULT_SOURCE

    candidates = [root / DEFAULT_MODEL_NAME for root in (*shared_cache_folders(), cache_folder())]
    folder = next((folder for folder in candidates if problem_with(folder) is None), None)
    num_bytes = DEFAULT_SOURCE.download_bytes if folder is None else _size_of(folder)
    return {
        "name": DEFAULT_MODEL_NAME,
        "folder": None if folder is None else str(folder),
        "num_bytes": num_bytes,
        "instead": os.environ.get("PAGED_ENGINE_MODEL") or None,
    }


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _about_default(model: dict[str, Any]) -> str:
    megabytes = f"{model['num_bytes'] / 1e6:.0f} MB"
    where = f"in {model['folder']} ({megabytes})"
    if model["folder"] is None:
        where = f"not here yet; the first use fetches {megabytes}"
    instead = model["instead"] and f"; $PAGED_ENGINE_MODEL says {model['instead']} instead"
    return f"{model['name']}, {where}{instead or ''}"


def _check(options: argparse.Namespace) -> int:
    """Build an engine, which tries the model as it does before serving."""
    name = options.check or options.model
    reason = None
    try:
        load_engine(options, name=name, record_events=False)
    except UnsupportedModelError as error:
        reason = " ".join(str(error).split())
    name = name or _default_model()["instead"] or _default_model()["name"]
    if options.json:
        print(json.dumps({"model": name, "served": reason is None, "reason": reason}))
    else:
        print(f"{name}: {'served' if reason is None else f'refused: {reason}'}")
    return 0 if reason is None else 1
