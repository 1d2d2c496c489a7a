"""The wheel: built here, installed elsewhere, imported there, and nothing left out of it."""

import configparser
import email
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(*command: str | Path, **options: object) -> str:
    """Run a command; return what it printed; fail with what it complained about."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the backend itself: no network, nothing written into the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=REPO)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the repository that the wheel was installed into."""
    folder = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile"]
    run(*command, "--target", folder, wheel, cwd=folder)
    return folder


def in_wheel(wheel: Path, name: str) -> str:
    """One file of the wheel's metadata folder."""
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [entry for entry in archive.namelist() if entry.endswith(f".dist-info/{name}")]
        return archive.read(path).decode()


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    """Python and data alike (.js, .css, .svg, .json, .cpp ...), and nothing that is not ours."""
    here = {
        path.relative_to(REPO).as_posix()
        for path in (REPO / "paged_engine").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == here


def test_metadata_agrees_with_pyproject(wheel: Path) -> None:
    """Name, version, Python, licence, extras, and the command."""
    metadata = email.message_from_string(in_wheel(wheel, "METADATA"))
    assert metadata["Name"] == PROJECT["name"] == "paged_engine"
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata["License-Expression"] == "MIT"
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert in_wheel(wheel, "licenses/LICENSE").startswith("MIT License")
    commands = configparser.ConfigParser()
    commands.read_string(in_wheel(wheel, "entry_points.txt"))
    assert dict(commands["console_scripts"]) == {"paged-engine": "paged_engine.cli:main"}


def test_installed_elsewhere_it_imports_without_torch(elsewhere: Path) -> None:
    """From the other folder, not from the checkout; and the scheduler's room knows no torch."""
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import paged_engine, paged_engine.scheduler\n"
        "print(paged_engine.__file__)\n"
        "print(paged_engine.__version__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(elsewhere)}
    printed = run(sys.executable, "-c", program, cwd=elsewhere, env=environment)
    file, version = printed.splitlines()
    assert Path(file).resolve().is_relative_to(elsewhere.resolve())
    assert version == PROJECT["version"]


def test_the_command_answers(elsewhere: Path) -> None:
    """`paged-engine --help`, by way of the function that the entry point names."""
    program = "import sys; sys.argv[0] = 'paged-engine'; from paged_engine.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(elsewhere)}
    printed = run(sys.executable, "-c", program, "--help", cwd=elsewhere, env=environment)
    assert "paged-engine" in printed
