"""A cached folder that is either whole or not there, however the program that built it ended.

The recipe, which fits any folder that is slow to make and read by many:

1. build in a work folder on the same filesystem, under a file lock;
2. flush every file to disk, then write a manifest of their sizes and digests, last;
3. rename the finished folder into place, which is one step: readers see all of it or nothing.

A reader needs no lock and never writes, so a read-only cache works as well as one's own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from paged_engine.errors import ModelNotFoundError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT_VERSION = 1  # raise it when what is built, or how it is laid out, changes
_SMALL_FILE_BYTES = 16_000_000  # hashing this much at every load costs hundredths of a second


@dataclass(frozen=True)
class Progress:
    """Progress on stderr: bars on a terminal, plain lines elsewhere, silence if not shown."""

    shown: bool = True

    def line(self, text: str) -> None:
        """Print one line."""
        if self.shown:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, what: str, total_bytes: int) -> Iterator[Callable[[int], object]]:
        """A bar of ``total_bytes``; call what it yields with each number of bytes done."""
        terminal = sys.stderr.isatty()
        if not terminal:
            self.line(f"{what} ({total_bytes / 1e6:.0f} MB)")
        hidden = not (self.shown and terminal)
        with tqdm(desc=what, total=total_bytes, unit="B", unit_scale=True, disable=hidden) as bar:
            yield bar.update


def cache_folder() -> Path:
    """The folder this package caches in: ``$PAGED_ENGINE_CACHE``, else the user's own cache."""
    if chosen := os.environ.get("PAGED_ENGINE_CACHE"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        parent = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        parent = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or "")
        if not parent.is_absolute():  # the XDG specification says to ignore a relative one
            parent = Path.home() / ".cache"
    return parent / "paged_engine"


def shared_cache_folders() -> list[Path]:
    """The read-only caches of ``$PAGED_ENGINE_SHARED_CACHE``, which is separated like ``$PATH``."""
    listed = os.environ.get("PAGED_ENGINE_SHARED_CACHE", "").split(os.pathsep)
    return [Path(folder).expanduser().absolute() for folder in listed if folder]


def sha256_of(path: Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def problem_with(folder: Path, *, verify: bool = False) -> str | None:
    """What keeps ``folder`` from being whole, or None.

    Sizes are checked always, and so are the digests of small files.  Those of large files
    take about a second for each GB, and are checked only with ``verify``.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        if manifest["format"] != FORMAT_VERSION:
            return f"it has format {manifest['format']}, expected {FORMAT_VERSION}"
        for name, expected in manifest["files"].items():
            size = (folder / name).stat().st_size
            if size != expected["size"]:
                return f"{name} has {size:,} bytes, expected {expected['size']:,}"
            if verify or size < _SMALL_FILE_BYTES:
                digest = sha256_of(folder / name)
                if digest != expected["sha256"]:
                    return f"{name} has sha256 {digest}, expected {expected['sha256']}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"it cannot be read: {error}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {MANIFEST} cannot be understood: {error!r}"
    return None


def cached_folder(
    name: str,
    build: Callable[[Path, Path], None],
    *,
    needed_bytes: int,
    progress: Progress,
    verify: bool = False,
) -> Path:
    """The folder ``name`` of a shared cache or of our own, built there if none has it whole.

    ``build(work, folder)`` fills ``folder`` and may leave what it likes in ``work``;
    ``needed_bytes`` is the disk space that it takes at most.

    Raises:
        ModelNotFoundError: ``build`` raised it, or the cache cannot be written.
    """
    damage = ""
    for candidate in (*shared_cache_folders(), cache_folder()):
        folder = candidate / name
        if os.path.exists(folder):
            problem = problem_with(folder, verify=verify)
            if problem is None:
                _remove_leftovers(candidate, name)
                return folder
            damage = f"The cached {folder} is damaged: {problem}. "
            logger.warning("%sLooking for another copy, or making a new one.", damage)
    root = cache_folder()
    try:
        return _build_under_lock(root, name, build, needed_bytes, progress, verify)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{damage}{error}") from error
    except OSError as error:
        raise ModelNotFoundError(
            f"{damage}Could not build {name} in the cache folder {root}: {error}. Expected a "
            f"writable folder with {needed_bytes / 1e6:.0f} MB free. Make it so, or set "
            "PAGED_ENGINE_CACHE to another folder."
        ) from error


def _build_under_lock(
    root: Path,
    name: str,
    build: Callable[[Path, Path], None],
    needed_bytes: int,
    progress: Progress,
    verify: bool,
) -> Path:
    folder = root / name
    root.mkdir(parents=True, exist_ok=True)
    with _locked(_lock_path(root, name), progress):
        if os.path.exists(folder) and problem_with(folder, verify=verify) is None:
            return folder  # built by another process while this one waited for the lock
        _remove_work_folders(root, name)
        free = shutil.disk_usage(root).free
        if free < needed_bytes:
            raise OSError(f"only {free / 1e6:.0f} MB are free there")
        work = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".partial", dir=root))
        try:
            new = work / "new"
            new.mkdir()
            build(work, new)
            _seal(new)
            if os.path.exists(folder):
                os.rename(folder, work / "damaged")  # a folder cannot be renamed over another
            os.rename(new, folder)
            _flush(root)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def _work_folders(root: Path, name: str) -> list[Path]:
    return list(root.glob(f".{name}.*.partial"))


def _remove_work_folders(root: Path, name: str) -> None:
    """Remove what killed runs left; for the holder of the lock, as only it has a work folder."""
    for left in _work_folders(root, name):
        shutil.rmtree(left, ignore_errors=True)


def _remove_leftovers(root: Path, name: str) -> None:
    """The same for a reader: only if there are any, nobody is building, and it may write."""
    if _work_folders(root, name):
        with suppress(OSError), FileLock(_lock_path(root, name), timeout=0):
            _remove_work_folders(root, name)


def _lock_path(root: Path, name: str) -> Path:
    return root / f".{name}.lock"


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock at ``path``; the system lets go of it however this process ends."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.line("Waiting for another process, which is preparing the model already ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _seal(folder: Path) -> None:
    """Flush every file of ``folder`` to disk, then describe them in its manifest."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _flush(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    manifest = json.dumps({"format": FORMAT_VERSION, "files": files}, indent=2)
    (folder / MANIFEST).write_text(manifest + "\n", "utf-8")
    _flush(folder / MANIFEST)
    _flush(folder)


def _flush(path: Path) -> None:
    """Wait until ``path`` is on disk, so that a power cut cannot undo it after the rename."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder, and writes its entries through by itself
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
