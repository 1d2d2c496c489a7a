"""How the repository is kept: rooms and who may enter them, sizes, and nothing of one machine."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PACKAGE = REPO / "paged_engine"
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))

# Ground floor first: a room (a module or a folder) imports only from rooms that stand before it.
ROOMS = [
    *["errors", "interrupts", "config", "request", "events", "replay", "block_pool"],
    *["protocols", "waiting_queue", "scheduler"],
    *["kv_cache", "batch", "kernels", "attention", "models", "sampler"],
    # The engine and its helpers
    *[
        "recorder",
        "console",
        "detokenizer",
        "outputs",
        "prompts",
        "engine_core",
        "intake",
        "engine",
    ],
    *["metrics", "visualizer", "benchmark", "simulator", "serving", "lessons", "environment"],
]
# The package's front door, its command and `python -m paged_engine` stand above all rooms.
FRONT = ["__init__", "__main__", "cli"]
# These work where torch is not installed ...
TORCH_FREE = [
    *["errors", "interrupts", "config", "request", "events", "replay", "block_pool"],
    *["protocols", "waiting_queue", "scheduler"],
    *["recorder", "console", "metrics", "visualizer", "simulator"],
]
# ... and these with nothing but Python.
PURE = [room for room in TORCH_FREE if room not in ("visualizer", "simulator")]
TORCH_LIKE = {"torch", "transformers", "safetensors", "triton", "accelerate"}
THIRD_PARTY = TORCH_LIKE | {
    "numpy",
    "gguf",
    "filelock",
    "tqdm",
    "anywidget",
    "ipywidgets",
    "psutil",
}
METRICS_MAY_READ = {"events", "replay", "request", "errors"}

MEGABYTE = 1_000_000
SOURCE = {".py", ".js", ".css", ".cpp", ".cu", ".h"}
LONGEST_FILE = 400


def room_of(path: Path) -> str:
    """The room that a file of the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def files_of(room: str) -> list[Path]:
    """The Python files of a room; none where it is not built yet."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if room_of(path) == room]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a file imports, at the top or inside a function alike."""
    package = path.relative_to(REPO).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def rooms_entered(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room for each import from our own package ("" for its front door)."""
    for line, name in imported(path):
        parts = name.split(".")
        if parts[0] == "paged_engine" and parts[1:] != ["__version__"]:
            built = len(parts) > 1 and files_of(parts[1])
            yield line, parts[1] if built else ""


@cache
def kept_files() -> list[Path]:
    """What git keeps or would keep at the next commit; everything where this is no checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        return [path for path in REPO.rglob("*") if path.is_file() and ".venv" not in path.parts]
    names = sorted(set(filter(None, listed.stdout.split("\0"))))
    return [REPO / name for name in names if (REPO / name).is_file()]


# Rooms -----------------------------------------------------------------------------------------


def test_every_file_of_the_package_has_a_room() -> None:
    """A new module is given its place in ROOMS, and its line in the architecture page."""
    found = {room_of(path) for path in PACKAGE.rglob("*.py")}
    assert found <= {*ROOMS, *FRONT}, f"no place in ROOMS for {found - {*ROOMS, *FRONT}}"
    assert {"config", "request", "events", "block_pool", "scheduler"} <= found


def test_the_architecture_page_has_the_rooms_in_their_order() -> None:
    """And a star at those that work without torch."""
    page = (REPO / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`( \*)? \|", page, re.MULTILINE)
    built = [room for room in ROOMS if files_of(room)]
    assert [room for room, _ in rows] == built
    assert [room for room, star in rows if star] == [room for room in built if room in TORCH_FREE]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_below(room: str) -> None:
    """And never through the front door, which opens onto every floor."""
    below = {*ROOMS[: ROOMS.index(room) + 1]}
    for path in files_of(room):
        for line, entered in rooms_entered(path):
            place = f"{path.relative_to(REPO)}:{line}"
            assert entered, f"{place} imports from the front door, or from no module: name a room"
            assert entered in below, f"{place} imports {entered}, which stands above {room}"


@pytest.mark.parametrize("room", TORCH_FREE)
def test_a_torch_free_room_names_no_torch(room: str) -> None:
    """Not even inside a function; and it enters only rooms that are torch-free themselves."""
    forbidden = THIRD_PARTY if room in PURE else TORCH_LIKE
    for path in files_of(room):
        for line, name in imported(path):
            assert name.split(".")[0] not in forbidden, f"{path.name}:{line} imports {name}"
        for line, entered in rooms_entered(path):
            assert entered in TORCH_FREE, f"{path.name}:{line} enters {entered}, which needs torch"


def test_metrics_read_events_and_nothing_of_the_engine() -> None:
    """A metric is a reduction over events: it must not know how they came about."""
    for path in files_of("metrics"):
        for line, entered in rooms_entered(path):
            allowed = METRICS_MAY_READ | {"metrics"}
            assert entered in allowed, f"{path.name}:{line} imports {entered}"


BLOCKER = """
import importlib, sys
blocked, room = set(sys.argv[2].split(",")), sys.argv[1]
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} was imported, and this room must work without it")
sys.meta_path.insert(0, Blocker())
importlib.import_module("paged_engine." + room)
assert not blocked & set(sys.modules)
"""


@pytest.mark.parametrize("room", TORCH_FREE)
def test_a_torch_free_room_imports_without_torch(room: str) -> None:
    """In a fresh interpreter to which torch and its kind are not there."""
    if not files_of(room):
        pytest.skip(f"{room} is not built yet")
    blocked = ",".join(sorted(THIRD_PARTY if room in PURE else TORCH_LIKE))
    command = [sys.executable, "-c", BLOCKER, room, blocked]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_blocker_blocks() -> None:
    """The test above can fail: a room that needs torch does not pass it."""
    command = [sys.executable, "-c", BLOCKER, "kv_cache", "torch"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "torch was imported" in done.stderr


# Sizes -----------------------------------------------------------------------------------------


def test_no_file_of_the_package_is_too_long_to_read() -> None:
    """A file that one cannot take in at a sitting is two files."""
    lengths = {
        path.relative_to(REPO).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*")
        if path.suffix in SOURCE
    }
    assert lengths
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_the_repository_stays_small_enough_to_clone() -> None:
    """No file over 5 MB, 55 MB in all, and git's own store (which keeps every version) likewise."""
    sizes = {path.relative_to(REPO).as_posix(): path.stat().st_size for path in kept_files()}
    assert {name: size for name, size in sizes.items() if size > 5 * MEGABYTE} == {}
    assert sum(sizes.values()) < 55 * MEGABYTE
    counted = subprocess.run(
        ["git", "count-objects", "-v"], cwd=REPO, capture_output=True, text=True, check=False
    )
    kilobytes = dict(re.findall(r"^(size|size-pack): (\d+)$", counted.stdout, re.MULTILINE))
    assert sum(map(int, kilobytes.values())) * 1024 < 55 * MEGABYTE


# Nothing of one machine ------------------------------------------------------------------------

# Somebody's home folder, on Linux, macOS and Windows.
HOME = re.compile(r"(?<![\w.])/(?:root|home/\w+|Users/\w+)/[\w.]|\b[A-Z]:\\{1,2}Users\\{1,2}\w")
# In what a notebook printed, any folder that only the author's machine has.
IN_OUTPUT = re.compile(HOME.pattern + r"|(?<![\w.])/(?:tmp|work|opt|var/folders|private)/\w")


def text_of(path: Path) -> str:
    """A file's text; empty for a picture or another file that holds none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def test_no_file_names_a_home_folder() -> None:
    """Paths are relative to the repository, or they are wrong on every machine but one."""
    for path in kept_files():
        if path != Path(__file__).resolve():
            found = HOME.search(text_of(path))
            where = path.relative_to(REPO)
            assert not found, f"{where} has a path of one machine: {found and found.group()}"


@pytest.mark.parametrize(
    "text", ["in /home/ann/engine", '"/root/.cache"', "C:\\\\Users\\\\ann", "/Users/ann/x"]
)
def test_the_search_for_home_folders_finds_them(text: str) -> None:
    """And leaves addresses on the web alone."""
    assert HOME.search(text)
    assert not HOME.search("https://example.org/home/page/1 and https://x.org/Users/ann/x")


def notebook_outputs(path: Path) -> Iterator[tuple[int, dict[str, object], list[str]]]:
    """Each output of a notebook, with the number of its cell and the cell's tags."""
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        for output in cell.get("outputs", []):
            yield number, output, cell.get("metadata", {}).get("tags", [])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_outputs_show_no_error_and_no_machine(notebook: Path) -> None:
    """An error is shown only where the cell says that it raises one."""
    for number, output, tags in notebook_outputs(notebook):
        place = f"{notebook.name}, cell {number}"
        if output["output_type"] == "error":
            assert "raises-exception" in tags, f"{place} ended in an error"
            continue
        found = IN_OUTPUT.search(json.dumps(output))
        assert not found, f"{place} printed a path of one machine: {found and found.group()}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_code_cell_of_a_notebook_was_run(notebook: Path) -> None:
    """nbval takes outputs without an execution count for a fault, and so would a reader."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code" and "".join(cell["source"]).strip():
            assert cell["execution_count"], f"{notebook.name}, cell {number} was not run"
