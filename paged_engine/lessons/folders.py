"""Folders that a command writes whole: its own may be replaced, anybody else's stay."""

from __future__ import annotations

import shutil
from pathlib import Path

from paged_engine.errors import PagedEngineError

MARK = ".made_by_paged_engine"  # says which command wrote the folder


def ready_folder(folder: Path, kind: str, replace: bool = True) -> None:
    """Make an empty folder, and mark it.

    Args:
        folder: Where; its parents are made too.
        kind: What is written there: only a folder of the same kind is emptied.
        replace: Whether one may be emptied at all.

    Raises:
        PagedEngineError: It is a file, or holds what may not be removed.
    """
    mark = folder / MARK
    if folder.exists() and not folder.is_dir():
        raise PagedEngineError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        ours = mark.is_file() and mark.read_text(encoding="utf-8").strip() == kind
        if not ours:
            raise PagedEngineError(
                f"{folder} holds things that this command did not write: name a new folder, or "
                "empty it yourself"
            )
        if not replace:
            raise PagedEngineError(
                f"{folder} is there already, and somebody may have worked in it: name another "
                "folder, or say --force to write it anew"
            )
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(f"{kind}\n", encoding="utf-8")
