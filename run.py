#!/usr/bin/env python3
"""Set paged_engine up and start it, on a machine that has only Python and git.

    python run.py lab       set up, then open JupyterLab on the first notebook
    python run.py test      set up, then run every check (--quick: the short lane)
    python run.py bench     set up, then measure the engine beside transformers
    python run.py setup     set up, nothing more (--from DIR: from a bundle, without a network)
    python run.py fetch     download all that a set-up needs into a bundle
    python run.py site      set up, then write the series as a site of static pages
    python run.py student   set up, then write the notebooks without their solutions

Only the standard library is used, and everything goes into one environment: the active conda or
virtual environment, or else `.venv` beside this file. A stamp in that environment says what was
installed, so the second time takes no time. Every foreseeable trouble ends in one line that says
what to do about it.
"""

import sys

OLDEST = (3, 11)

# This stands before everything else and uses old syntax only, so that an old Python reads this far.
if sys.version_info < OLDEST:
    sys.exit(
        "run.py: paged_engine needs Python 3.11 or newer, and this is Python %d.%d: "
        "install 3.12 (python.org, your package manager or conda), then run: python3.12 run.py %s"
        % (sys.version_info[0], sys.version_info[1], " ".join(sys.argv[1:]) or "lab")
    )

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

REPO = Path(__file__).resolve().parent
NOTEBOOKS = REPO / "notebooks"
KERNELS = REPO / "paged_engine" / "kernels"
FIRST_NOTEBOOK = "notebooks/00_start_here.ipynb"
CONSTRAINTS = REPO / "constraints.txt"
EXTRAS = "notebooks,test"
STAMP = ".paged_engine_setup.json"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
BUNDLE = "bundle.json"  # in a bundle: what it holds and for whom
MODEL_SOURCE = REPO / "paged_engine" / "models" / "default_model.py"
LANES = ("lint", "types", "model", "browser", "kernels", "tests", "notebooks")
COMPILERS = ("c++", "g++", "clang++")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

# What pip writes when it cannot reach an index, on the platforms that we know of.
OFFLINE_SIGNS = (
    "NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ReadTimeoutError",
    "ProxyError", "Failed to establish a new connection", "Temporary failure in name resolution",
    "getaddrinfo failed", "nodename nor servname", "Network is unreachable", "No route to host",
    "Connection refused", "Max retries exceeded", "Read timed out", "Connection reset",
)  # fmt: skip


class Problem(Exception):
    """Something the user can mend. Its message is one line: what is wrong and what to do."""


def say(text: str) -> None:
    """Print one line of our own at once, so that it keeps its place among the output of others."""
    print(f"[run.py] {text}", flush=True)


# Which environment -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Environment:
    """Where we install: its folder, its interpreter, and whether it is ours to make anew."""

    prefix: Path
    python: Path
    ours: bool

    @property
    def stamp(self) -> Path:
        """The file that says what was installed here, written when all of it was."""
        return self.prefix / STAMP


@dataclass(frozen=True)
class Facts:
    """What an interpreter says about itself."""

    version: tuple[int, ...]
    pip: bool
    torch: bool


def interpreter(prefix: Path) -> Path:
    """The Python of a virtual or conda environment."""
    if os.name == "posix":
        return prefix / "bin" / "python"
    in_venv = prefix / "Scripts" / "python.exe"
    return in_venv if in_venv.exists() else prefix / "python.exe"


def is_conda_base(prefix: Path) -> bool:
    """Conda's base holds conda itself; installing there can break conda."""
    return (prefix / "condabin").is_dir() or (
        os.environ.get("CONDA_PREFIX") == str(prefix)
        and os.environ.get("CONDA_DEFAULT_ENV") == "base"
    )


def choose_environment() -> Environment:
    """The active environment, else `.venv` in the repository (which need not exist yet)."""
    own = REPO / ".venv"
    active = [
        sys.prefix if sys.prefix != sys.base_prefix else None,
        os.environ.get("VIRTUAL_ENV"),
        os.environ.get("CONDA_PREFIX"),
    ]
    for folder in active:
        if not folder or not interpreter(Path(folder)).exists():
            continue
        prefix = Path(folder)
        if prefix.resolve() == own.resolve():
            break
        if is_conda_base(prefix):
            say("conda's base environment stays as it is: using .venv in this folder instead")
            continue
        return Environment(prefix, interpreter(prefix), ours=False)
    return Environment(own, interpreter(own), ours=True)


def examine(python: Path) -> Facts | None:
    """Ask an interpreter what it has; None where it does not run (as in a half-made `.venv`)."""
    question = (
        "import sys, json, importlib.util as u;"
        "has = [u.find_spec(name) is not None for name in ('pip', 'torch')];"
        "print(json.dumps([sys.version_info[:3], *has]))"
    )
    with contextlib.suppress(OSError, ValueError):
        answer = subprocess.run([python, "-c", question], capture_output=True, text=True, cwd=REPO)
        if answer.returncode == 0:
            version, pip, torch = json.loads(answer.stdout)
            return Facts(tuple(version), pip, torch)
    return None


# Setting up --------------------------------------------------------------------------------------


def fingerprint(version: tuple[int, ...]) -> str:
    """Of everything that decides what gets installed, and where the package lies."""
    parts = [(REPO / "pyproject.toml").read_bytes(), CONSTRAINTS.read_bytes()]
    parts += [text.encode() for text in (EXTRAS, str(REPO), str(version))]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def read_stamp(environment: Environment) -> dict[str, Any]:
    """What the last set-up left: nothing, {"state": "unfinished"}, or the finished record."""
    try:
        stamp = json.loads(environment.stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(environment: Environment, stamp: dict[str, Any]) -> None:
    """Replace the stamp as a whole: a reader sees the old one or the new one."""
    fresh = environment.stamp.with_suffix(".tmp")
    fresh.write_text(json.dumps(stamp), encoding="utf-8")
    fresh.replace(environment.stamp)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[IO[str]]:
    """Hold the set-up of this folder. The system lets go of the lock when its holder dies."""
    with open(REPO / ".setup.lock", "a+", encoding="utf-8") as lock:
        announced = False
        while not try_lock(lock):
            if not announced:
                say("another set-up of this folder is running: waiting until it is through")
                announced = True
            time.sleep(0.5)
        yield lock


def try_lock(lock: IO[str]) -> bool:
    """Take the lock if it is free. Where a file system knows no locks, go on without."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def is_set_up(environment: Environment, facts: Facts | None, cpu: bool) -> bool:
    """Whether the stamp says that just this was installed, to its end."""
    stamp = read_stamp(environment)
    return (
        facts is not None
        and stamp.get("state") == fingerprint(facts.version)
        and (bool(stamp.get("cpu")) or not cpu)
    )


def set_up(cpu: bool = False, fresh: bool = False, bundle: Path | None = None) -> Environment:
    """Make the environment ready, doing only what is still to be done."""
    environment = choose_environment()
    facts = examine(environment.python)
    if not fresh and is_set_up(environment, facts, cpu):
        return environment
    with one_at_a_time() as lock:
        facts = examine(environment.python)  # again: somebody else may just have done it
        if not fresh and is_set_up(environment, facts, cpu):
            return environment
        install(environment, facts, cpu, fresh, lock, bundle)
    return environment


def install(
    environment: Environment,
    facts: Facts | None,
    cpu: bool,
    fresh: bool,
    lock: IO[str],
    bundle: Path | None = None,
) -> None:
    """Make `.venv` where it is wanted and let pip install everything; the stamp comes last."""
    started = time.monotonic()
    if bundle is not None:
        open_bundle(bundle, facts.version if facts else sys.version_info[:3])
    stamp = read_stamp(environment)
    # A package whose files were half copied counts as installed for pip. So what was interrupted is
    # not mended but made again: our own folder as a whole, a foreign one package by package.
    unfinished = stamp.get("state") == "unfinished"
    if environment.ours and (facts is None or not facts.pip or not stamp or unfinished or fresh):
        make_venv(environment)
        facts = examine(environment.python)
    if facts is None:
        raise Problem(f"{environment.python} does not run: remove its environment and try again")
    if facts.version < OLDEST:
        raise Problem(
            f"the active environment {environment.prefix} has Python {dotted(facts.version)}, and "
            "3.11 is needed: deactivate it, or activate one with Python 3.11 to 3.13"
        )
    refuse_intel_mac(facts)
    if bundle is None:
        announce(environment, facts, cpu)
    else:
        say(f"setting up in {environment.prefix} from {bundle}, without a network")
    ensure_pip(environment, facts)
    write_stamp(environment, {"state": "unfinished"})
    again = ["--force-reinstall"] if not environment.ours and (unfinished or fresh) else []
    if bundle is not None:
        again += ["--no-index", "--find-links", str(bundle / "wheels")]
        cpu = bool(read_manifest(bundle).get("cpu"))
    elif cpu:
        install_cpu_torch(environment, lock)
    pip_install(environment, lock, *again, "-c", str(CONSTRAINTS), "-e", f"{REPO}[{EXTRAS}]")
    write_stamp(environment, {"state": fingerprint(facts.version), "cpu": cpu})
    say(f"set up in {time.monotonic() - started:.0f} s; the next time takes none")


def dotted(version: tuple[int, ...]) -> str:
    """(3, 11, 7) as 3.11.7."""
    return ".".join(map(str, version))


def make_venv(environment: Environment) -> None:
    """Make `.venv` anew from the Python that runs this file."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if any(importlib.util.find_spec(name) is None for name in ("venv", "ensurepip")):
        raise Problem(
            f"this Python cannot make an environment with pip (venv or ensurepip is missing): on "
            f"Debian and Ubuntu run: sudo apt install python{python}-venv, then this command again"
        )
    say(f"making {environment.prefix} with Python {dotted(sys.version_info[:3])}")
    try:
        if environment.prefix.is_symlink() or environment.prefix.is_file():
            environment.prefix.unlink()
        elif environment.prefix.exists():
            shutil.rmtree(environment.prefix)
    except OSError as error:
        raise Problem(
            f"cannot remove the unfinished {environment.prefix} ({error.strerror}): close what "
            "runs from it (JupyterLab, a terminal), delete it, then run this command again"
        ) from error
    # The base interpreter, because we may be running inside the very folder that was just removed.
    base = getattr(sys, "_base_executable", None) or sys.executable
    made = subprocess.run(
        [base, "-m", "venv", str(environment.prefix)], capture_output=True, text=True, cwd=REPO
    )
    if made.returncode != 0:
        said = (made.stdout + made.stderr).strip().splitlines() or ["it said nothing"]
        raise Problem(
            f"making {environment.prefix} failed ({said[-1].strip()}): see that the folder can be "
            f"written and Python {python} is complete (Debian, Ubuntu: python{python}-venv)"
        )


def ensure_pip(environment: Environment, facts: Facts) -> None:
    """Environments made by uv or with --without-pip have no pip; most can give themselves one."""
    if facts.pip:
        return
    command = [str(environment.python), "-m", "ensurepip", "--default-pip"]
    if subprocess.run(command, capture_output=True, cwd=REPO).returncode != 0:
        raise Problem(
            f"the active environment {environment.prefix} has no pip: install it (conda install "
            "pip, or uv pip install pip), or deactivate it and run this command again"
        )


def refuse_intel_mac(facts: Facts) -> None:
    """No torch since 2.2 comes for macOS on Intel; one that is there already is the user's care."""
    if (platform.system(), platform.machine()) == ("Darwin", "x86_64") and not facts.torch:
        raise Problem(
            "torch no longer comes for macOS on Intel: use Apple silicon (with an arm64 Python, "
            "if this is one under Rosetta), Linux, Windows or Google Colab"
        )


def has_nvidia_card() -> bool:
    """Whether a driver is to be seen; asking torch would need torch."""
    signs = ("/proc/driver/nvidia", "/dev/nvidia0", "/dev/dxg")
    return any(os.path.exists(sign) for sign in signs) or shutil.which("nvidia-smi") is not None


def announce(environment: Environment, facts: Facts, cpu: bool) -> None:
    """Say where things go and how much will come, before it comes."""
    say(f"setting up in {environment.prefix}, with Python {dotted(facts.version)}")
    if facts.torch:
        say("downloads what is missing of about 210 MB (torch is already here)")
        return
    linux = platform.system() == "Linux"
    torch = "3 GB for torch with CUDA" if linux and not cpu else "200 MB for torch"
    say(f"downloads about {torch}, and 210 MB for the rest; pip's cache is used where it can be")
    if linux and not cpu and not has_nvidia_card():
        say(
            "no NVIDIA card seen: to take the CPU build of torch (200 MB, not 3 GB), press Ctrl-C "
            "and run: python run.py setup --cpu"
        )


def install_cpu_torch(environment: Environment, lock: IO[str]) -> None:
    """Take the tested torch without CUDA from PyTorch's own index; only Linux has the choice."""
    if platform.system() != "Linux":
        say("--cpu changes nothing here: only Linux gets torch with CUDA from PyPI")
        return
    lines = CONSTRAINTS.read_text(encoding="utf-8").split()
    torch = next(word for word in lines if word.startswith("torch=="))
    # Its dependencies follow with everything else, under the constraints.
    pip_install(environment, lock, "--no-deps", "--index-url", CPU_INDEX, f"{torch}+cpu")


def pip_install(environment: Environment, lock: IO[str], *arguments: str) -> None:
    """Have pip install something, and turn its failure into one line."""
    run_pip(environment.python, lock, "install", *arguments)


def run_pip(python: Path, lock: IO[str], task: str, *arguments: str) -> None:
    """Run pip, show what it says, and turn its failure into one line."""
    command = [str(python), "-m", "pip", task, "--no-input", "--disable-pip-version-check"]
    if not sys.stdout.isatty():
        command += ["--progress-bar", "off"]
    variables = dict(os.environ)
    if "--no-index" in arguments:  # nor may what it starts, to build the package, look anywhere
        wheels = arguments[arguments.index("--find-links") + 1]
        variables = {name: v for name, v in variables.items() if not name.startswith("PIP_")}
        variables.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=wheels, PIP_CONFIG_FILE=os.devnull)
    process = subprocess.Popen(
        [*command, *arguments],
        cwd=REPO,
        env=variables,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # pip inherits the lock: killed as we may be, nobody starts over while it still writes.
        pass_fds=[lock.fileno()] if os.name == "posix" else (),
    )
    assert process.stderr is not None
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            sys.stderr.write(line)
            sys.stderr.flush()
        code = process.wait()
    except KeyboardInterrupt:
        # Ctrl-C in a terminal reaches pip too: let it put its files away.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)
        process.terminate()  # for an interruption that reached only us
        process.wait()
        raise
    if code != 0 and "--no-index" in arguments and "No space left" not in "".join(said):
        raise Problem(
            "pip could not install from the bundle, for the reason it gives above: make the "
            "bundle again with python run.py fetch, on a machine and with a Python like these"
        )
    if code != 0:
        raise Problem(explain_pip_failure("".join(said), code))


# A bundle for machines without a network --------------------------------------------------------


def fetch(to: Path, cpu: bool) -> int:
    """Download into a folder all that a set-up on a machine like this one needs, and the model."""
    manifest = to / BUNDLE
    if to.is_file():
        raise Problem(f"{to} is a file: name a folder for the bundle")
    if to.is_dir() and any(to.iterdir()) and not manifest.exists():
        raise Problem(f"{to} holds other things: name a new folder for the bundle, or empty it")
    python = pip_for_downloads()
    facts = examine(python)
    if facts is None:
        raise Problem(f"{python} does not run")
    refuse_intel_mac(facts)
    cpu = cpu and platform.system() == "Linux"
    size = "3 GB" if platform.system() == "Linux" and not cpu else "200 MB"
    say(f"downloads into {to}: about {size} for torch, 210 MB for the rest, 93 MB for the model")
    about: dict[str, Any] = {
        "cpu": cpu,
        "python": dotted(facts.version[:2]),
        "platform": platform_name(),
    }
    about["wanted"] = wanted_hash()
    if manifest.exists() and read_manifest(to).get("wanted") != about["wanted"]:
        shutil.rmtree(to / "wheels", ignore_errors=True)  # of other versions
    wheels, model = to / "wheels", to / "model"
    wheels.mkdir(parents=True, exist_ok=True)
    model.mkdir(exist_ok=True)
    manifest.write_text(json.dumps({"state": "unfinished", **about}), encoding="utf-8")
    only = ["--only-binary=:all:", "-c", str(CONSTRAINTS)]
    with one_at_a_time() as lock:
        if cpu:
            torch = next(w for w in CONSTRAINTS.read_text("utf-8").split() if w[:7] == "torch==")
            where = ["--no-deps", "--index-url", CPU_INDEX]
            run_pip(python, lock, "download", "-d", str(wheels), *where, f"{torch}+cpu")
            # so that what is there is met, and no other build of it comes
            only += ["--find-links", str(wheels)]
        run_pip(python, lock, "download", "-d", str(wheels), *only, *requirements())
        name = model_requirement()
        run_pip(python, lock, "download", "-d", str(model), "--no-deps", *only[:1], name)
    files = sorted(path for folder in (wheels, model) for path in folder.iterdir())
    sums = {path.relative_to(to).as_posix(): sha256_of(path) for path in files}
    done = {"state": "finished", **about, "files": sums}
    manifest.write_text(json.dumps(done, indent=1), encoding="utf-8")
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    say(
        f"{len(files)} files, {megabytes:.0f} MB. On a machine without a network, with this folder:"
    )
    say(f"python run.py setup --from {to.name}")
    return 0


def pip_for_downloads() -> Path:
    """An interpreter with pip, of the version for which one wants the files."""
    chosen = choose_environment()
    facts = examine(chosen.python)
    if facts is not None and facts.pip:
        return chosen.python
    base = Path(getattr(sys, "_base_executable", None) or sys.executable)
    facts = examine(base)
    if facts is None or not facts.pip:
        raise Problem(f"{base} has no pip to download with: run python run.py setup first")
    return base


def requirements() -> list[str]:
    """What pyproject.toml asks for, with our extras and what builds the package."""
    import tomllib

    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"].get("optional-dependencies", {})
    asked = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    # hatchling wants this one where a package is installed as it lies
    return [*asked, *(line for extra in EXTRAS.split(",") for line in extras[extra]), "editables"]


def wanted_hash() -> str:
    """Of all that decides which files a bundle holds."""
    text = json.dumps([requirements(), CONSTRAINTS.read_text(encoding="utf-8")])
    return hashlib.sha256(text.encode()).hexdigest()


def model_requirement() -> str:
    """The package that carries the default model, as the code that unpacks it names it."""
    text = MODEL_SOURCE.read_text(encoding="utf-8")
    found = re.search(r'package="([^"]+)",\s*version="([^"]+)"', text)
    if found is None:
        raise Problem(f"{MODEL_SOURCE} names no package with the model")
    return f"{found[1]}=={found[2]}"


def platform_name() -> str:
    """Linux x86_64, say: wheels for one serve no other."""
    return f"{platform.system()} {platform.machine()}"


def sha256_of(path: Path) -> str:
    """Of a file, by and by: torch's wheel is larger than some memories."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(bundle: Path) -> dict[str, Any]:
    """What a bundle says of itself."""
    try:
        manifest = json.loads((bundle / BUNDLE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = None
    if not isinstance(manifest, dict) or "state" not in manifest:
        raise Problem(
            f"{bundle} is no bundle: make one where there is a network, with "
            "python run.py fetch --to DIR, and copy it here"
        )
    return manifest


def open_bundle(bundle: Path, version: tuple[int, ...]) -> None:
    """See that a bundle is whole and fits this machine, before anything is changed."""
    manifest = read_manifest(bundle)
    if manifest["state"] != "finished":
        raise Problem(f"{bundle} was not downloaded to its end: run python run.py fetch again")
    here = (dotted(version[:2]), platform_name())
    made_for = (manifest["python"], manifest["platform"])
    if here != made_for:
        raise Problem(
            f"{bundle} is for Python {made_for[0]} on {made_for[1]}, and this is Python {here[0]} "
            f"on {here[1]}: make one with that Python on a machine like this"
        )
    if manifest["wanted"] != wanted_hash():
        raise Problem(
            f"{bundle} was made for another version of this repository: run python run.py fetch "
            "again where there is a network, with the version that you have here"
        )
    say(f"checking the {len(manifest['files'])} files of {bundle}")
    for name, expected in manifest["files"].items():
        path = bundle / name
        if not path.is_file() or sha256_of(path) != expected:
            state = "damaged" if path.is_file() else "missing"
            raise Problem(f"{path} is {state}: copy the bundle again")


def explain_pip_failure(said: str, code: int) -> str:
    """One line for what went wrong, from what pip wrote to its standard error."""
    if any(sign in said for sign in OFFLINE_SIGNS):
        return (
            "no network: pip could not reach the package index. Connect (behind a proxy: set "
            "HTTPS_PROXY), then run the same command again"
        )
    if "No space left on device" in said:
        return "the disk is full: set-up needs 3 GB, with CUDA 9 GB; make room and run this again"
    if "No matching distribution found" in said:
        wanted = said.rsplit("No matching distribution found for", 1)[1].split("\n")[0].strip()
        doubt = "check the network; if it works, " if "(from versions: none)" in said else ""
        return (
            f"pip has no {wanted} for Python {platform.python_version()} on {platform.system()} "
            f"{platform.machine()}: {doubt}use a 64-bit Python 3.11, 3.12 or 3.13"
        )
    return f"pip ended with exit code {code}, for the reason it gives above; then run this again"


# Starting things ---------------------------------------------------------------------------------


def activated(environment: Environment) -> dict[str, str]:
    """Our variables as if the environment were switched on: its programs come first."""
    variables = dict(os.environ)
    folder = str(environment.python.parent)
    variables["PATH"] = os.pathsep.join([folder, variables.get("PATH", "")])
    if (environment.prefix / "pyvenv.cfg").exists():
        variables["VIRTUAL_ENV"] = str(environment.prefix)
    return variables


def wait_for(command: Sequence[str | Path], variables: dict[str, str]) -> int:
    """Run a command to its own end. Ctrl-C reaches it too, and it decides; then we stop as well."""
    process = subprocess.Popen(command, cwd=REPO, env=variables)
    interrupted = False
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    return code


def fetch_model(environment: Environment, bundle: Path | None = None) -> int:
    """See that the default model is in the user's cache; return 0 when it is."""
    stamp = read_stamp(environment)
    if os.path.isdir(stamp.get("model", "")):
        return 0
    command = [str(environment.python), "-m", "paged_engine.models.default_model"]
    variables = activated(environment)
    if bundle is not None:
        links = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(bundle / "model")}
        variables.update(links, PIP_CONFIG_FILE=os.devnull, HF_HUB_OFFLINE="1")
    last = ""
    with subprocess.Popen(
        command, cwd=REPO, env=variables, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for last in process.stdout:
            print(last, end="", flush=True)
    if process.returncode == 0 and os.path.isdir(last.strip()):
        # Its last line is the folder: remembered, so that the next start need not ask.
        write_stamp(environment, {**stamp, "model": last.strip()})
    return process.returncode


def install_by_apt(package: str, words: str) -> None:
    """Install a package of Debian's where that may be done: as root, where there is apt-get."""
    apt = shutil.which("apt-get")
    if apt and hasattr(os, "geteuid") and os.geteuid() == 0:
        variables = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        say(words)
        wait_for([apt, "-qq", "update"], variables)
        wait_for([apt, "-qq", "-y", "--no-install-recommends", "install", package], variables)


def compile_kernels(environment: Environment) -> int:
    """Compile the C++ attention now, so that no notebook has to wait for it or speaks of it.

    Without a compiler the engine takes torch's attention, with the reason; where CI is set, that is
    an error.
    """
    sources = b"".join(path.read_bytes() for path in sorted(KERNELS.glob("*.[ch]*")))
    made_from = hashlib.sha256(sources).hexdigest()
    stamp = read_stamp(environment)
    if stamp.get("kernels") == made_from:
        return 0
    if not any(map(shutil.which, COMPILERS)):
        install_by_apt("g++", "kernels: installing Debian's g++, for the attention in C++")
    code = "from paged_engine.kernels.library import load_kernels; load_kernels()"
    done = subprocess.run(
        [environment.python, "-c", code],
        cwd=REPO,
        env=activated(environment),
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        write_stamp(environment, {**stamp, "kernels": made_from})
        return 0
    why = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    say(f"kernels: not compiled, so attention is torch's, which is slower: {why}")
    return 1 if os.environ.get("CI") else 0


def fetch_browser() -> int:
    """Install Chromium for the tests of the live view, where Debian's packages may be installed.

    Without a browser those tests are skipped, with the reason; where CI is set, that is an error.
    """
    if any(map(shutil.which, BROWSERS)):
        return 0
    words = "browser: installing Debian's chromium, about 100 MB, for the tests of the live view"
    install_by_apt("chromium", words)
    if any(map(shutil.which, BROWSERS)):
        return 0
    say("browser: there is no Chromium or Chrome here, so the tests of the live view are skipped")
    return 1 if os.environ.get("CI") else 0


def lab(environment: Environment, passed_on: list[str]) -> int:
    """Open JupyterLab on the first notebook; become it, where the system lets us."""
    if fetch_model(environment) != 0:
        say("the default model is not here yet: notebooks fetch it when needed, or use a tiny one")
    compile_kernels(environment)
    command = [str(environment.python), "-m", "jupyterlab", f"--ServerApp.root_dir={REPO}"]
    # Not as a file to open: so the address that the server prints leads there too.
    command += [f"--LabApp.default_url=/lab/tree/{FIRST_NOTEBOOK}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0 and "--allow-root" not in passed_on:
        say("running as root (a container?): passing --allow-root to JupyterLab")
        command += ["--allow-root"]
    command += passed_on
    say("starting JupyterLab; Ctrl-C here stops it")
    if os.name == "posix":
        # Signals and the exit code are then the server's own.
        os.chdir(REPO)
        os.execve(command[0], command, activated(environment))
    return wait_for(command, activated(environment))


def bench(environment: Environment, passed_on: list[str]) -> int:
    """Measure, with the options after the dashes; by default with the default model."""
    own_model = any(word.split("=")[0] == "--model" for word in passed_on)
    if not own_model and not os.environ.get("PAGED_ENGINE_MODEL"):
        code = fetch_model(environment)
        if code != 0:
            return code  # it said why
    if not passed_on:
        say("32 requests, by the engine and twice by transformers: some minutes on a CPU")
    command = [str(environment.python), "-m", "paged_engine.benchmark", *passed_on]
    return wait_for(command, activated(environment))


def lesson(environment: Environment, name: str, to: Path, *options: str) -> int:
    """Have a module of the lessons write a folder."""
    command = [str(environment.python), "-m", f"paged_engine.lessons.{name}"]
    command += ["--root", str(REPO), "--to", str(to), *options]
    return wait_for(command, activated(environment))


# Testing -----------------------------------------------------------------------------------------


def quick_enough(notebook: Path) -> bool:
    """Whether the short lane runs this notebook: all but those that call themselves slow."""
    metadata = json.loads(notebook.read_text(encoding="utf-8")).get("metadata", {})
    return bool(metadata.get("paged_engine", {}).get("lane") != "slow")


def is_reference() -> bool:
    """Whether the committed outputs come from a platform like this, so that they must be equal."""
    return (platform.system(), platform.machine()) == ("Linux", "x86_64")


def lane_command(name: str, quick: bool, workers: int, passed_on: list[str]) -> list[str]:
    """The command of a lane, without its interpreter; empty when it has nothing to do."""
    if name == "lint":
        return ["-m", "ruff", "check", "."]
    if name == "types":
        return ["-m", "mypy"]
    if name == "tests":
        short = ["-m", "not slow", "--hypothesis-profile=quick"] if quick else []
        spread = ["-n", str(workers), "--dist", "worksteal", "--durations=8"]
        return ["-m", "pytest", *spread, *short, *passed_on]
    notebooks = [
        path.relative_to(REPO).as_posix()
        for path in sorted(NOTEBOOKS.glob("*.ipynb"))
        if not quick or quick_enough(path)
    ]
    if not notebooks:
        return []
    compare = "--nbval" if is_reference() else "--nbval-lax"
    command = ["-m", "pytest", "-n", str(workers), "--dist", "loadfile", "-p", "no:cacheprovider"]
    command += [compare, "--nbval-current-env", "--nbval-cell-timeout=180"]
    return [*command, "--nbval-sanitize-with=tests/project/nbval_sanitize.cfg", *notebooks]


def lane_variables(
    name: str, environment: Environment, workers: int, scratch: str
) -> dict[str, str]:
    """Threads shared out among the workers; notebooks meet no model hub and no user's settings."""
    variables = activated(environment)
    threads = max(1, (os.cpu_count() or 1) // workers)
    variables["OMP_NUM_THREADS"] = str(threads)
    variables.setdefault("TOKENIZERS_PARALLELISM", "false")
    if name == "notebooks":
        variables.update(IPYTHONDIR=scratch, JUPYTER_CONFIG_DIR=scratch, MPLCONFIGDIR=scratch)
        variables["HF_HUB_OFFLINE"] = "1"
        if is_reference():
            variables["CUDA_VISIBLE_DEVICES"] = ""  # the committed outputs were made without a card
    return variables


def test(environment: Environment, quick: bool, only: list[str], passed_on: list[str]) -> int:
    """Run the lanes one after the other, each to its end, and say which of them held."""
    workers = min(4, os.cpu_count() or 1)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in only or LANES:
            started = time.monotonic()
            if name == "model":
                say("model: fetching the default model if it is not here yet")
                code = fetch_model(environment)
            elif name == "browser":
                code = fetch_browser()
            elif name == "kernels":
                code = compile_kernels(environment)
            else:
                command = lane_command(name, quick, workers, passed_on)
                if not command:
                    say(f"{name}: nothing to run")
                    continue
                say(f"{name}: python {' '.join(command)}")
                variables = lane_variables(name, environment, workers, scratch)
                code = wait_for([environment.python, *command], variables)
            outcome = "ok" if code == 0 else f"FAILED (exit code {code})"
            results.append((name, code, time.monotonic() - started, outcome))
    print()
    for name, _, seconds, outcome in results:
        say(f"{name:<10} {seconds:6.1f} s  {outcome}")
    failed = [name for name, code, _, _ in results if code != 0]
    say(f"failed: {', '.join(failed)}" if failed else "every lane held")
    return 1 if failed else 0


# The command line --------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """argparse, with one hint more."""

    def error(self, message: str) -> NoReturn:
        """Say what was wrong and how to pass options on, in one line each; exit with 2."""
        if "unrecognized arguments" in message:
            message += " (options for what is started go after a --; see --help)"
        super().error(message)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own options, and what follows `--` for the program that we start."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    own, passed_on = arguments[:cut], arguments[cut + 1 :]
    parser = Parser(
        prog="python run.py",
        description="Set paged_engine up and start it. Uses the active conda or virtual "
        "environment, else makes .venv in this folder.",
        epilog="Download: about 210 MB, and torch: 200 MB, or 3 GB on Linux with CUDA; the "
        "notebooks' model is 93 MB. On Linux without an NVIDIA card, begin with: "
        "python run.py setup --cpu",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    shared = Parser(add_help=False)
    shared.add_argument(
        "--cpu", action="store_true", help="on Linux: take torch's CPU build, 200 MB and not 3 GB"
    )
    shared.add_argument(
        "--fresh", action="store_true", help="set up anew, whatever is installed already"
    )
    commands.add_parser(
        "lab",
        parents=[shared],
        help="set up, then open JupyterLab on the first notebook",
        usage="python run.py lab [-h] [--cpu] [--fresh] [-- JUPYTERLAB_ARGS]",
        epilog="example: python run.py lab -- --no-browser --port 9999",
    )
    testing = commands.add_parser(
        "test",
        parents=[shared],
        help="set up, then run every check",
        usage="python run.py test [-h] [--cpu] [--fresh] [--quick] [--only LANE] [-- PYTEST_ARGS]",
        epilog="example: python run.py test --quick --only tests -- -k scheduler",
    )
    testing.add_argument(
        "--quick", action="store_true", help="the short lane: no slow tests, no slow notebooks"
    )
    testing.add_argument(
        "--only",
        action="append",
        choices=LANES,
        metavar="LANE",
        default=[],
        help=f"run this lane only (may be repeated): {', '.join(LANES)}",
    )
    commands.add_parser(
        "bench",
        parents=[shared],
        help="set up, then measure the engine beside transformers",
        usage="python run.py bench [-h] [--cpu] [--fresh] [-- BENCHMARK_ARGS]",
        epilog="Without arguments: 32 requests of the default model, once by the engine and twice "
        "by transformers, which takes some minutes on a CPU. Example: python run.py bench -- "
        "--workload chat --rate 2 --figure run.png (all of them: python run.py bench -- --help)",
    )
    setting_up = commands.add_parser("setup", parents=[shared], help="set up, nothing more")
    setting_up.add_argument(
        "--from",
        dest="bundle",
        type=Path,
        metavar="DIR",
        help="from a bundle that fetch made, without a network; the model comes from it too",
    )
    fetching = commands.add_parser(
        "fetch",
        help="download all that a set-up needs into a folder, for machines without a network",
        epilog="The bundle is for this platform and this Python. Copy it, with this repository, to "
        "each machine; there run: python run.py setup --from DIR",
    )
    fetching.add_argument("--to", type=Path, default=Path("bundle"), metavar="DIR")
    fetching.add_argument("--cpu", action="store_true", help="on Linux: with torch's CPU build")
    writing = commands.add_parser(
        "site",
        parents=[shared],
        help="set up, then write the series as a site of static pages, for any host",
        epilog="Where a live view stands in a notebook, the page has a replay of its run.",
    )
    writing.add_argument("--to", type=Path, default=REPO / "site", metavar="DIR")
    writing.add_argument(
        "--execute", action="store_true", help="run every notebook anew: minutes on a CPU"
    )
    for_class = commands.add_parser(
        "student", parents=[shared], help="set up, then write the notebooks without solutions"
    )
    for_class.add_argument("--to", type=Path, default=REPO / "student", metavar="DIR")
    for_class.add_argument(
        "--force", action="store_true", help="write the folder anew, with what was worked in it"
    )
    for_class.add_argument("--no-outputs", action="store_true", help="clear every cell's output")
    options = parser.parse_args(own)
    if passed_on and options.command not in ("lab", "test", "bench"):
        parser.error(f"{options.command} passes nothing on, so nothing may follow --")
    return options, passed_on


def set_up_from(bundle: Path, fresh: bool) -> int:
    """Set up without a network, the model too, so that nothing is missing later."""
    read_manifest(bundle)  # also where all is set up already: a wrong folder is told
    environment = set_up(fresh=fresh, bundle=bundle)
    if fetch_model(environment, bundle) != 0:
        return 1  # it said why
    say(f"ready in {environment.prefix}: python run.py lab opens the notebooks")
    return 0


def main(arguments: list[str]) -> int:
    """Do what the command line asks; a Problem becomes one line and exit code 1."""
    options, passed_on = parse(arguments)
    try:
        if options.command == "fetch":
            return fetch(options.to.resolve(), options.cpu)
        if options.command == "setup" and options.bundle:
            return set_up_from(options.bundle.resolve(), options.fresh)
        environment = set_up(cpu=options.cpu, fresh=options.fresh)
        if options.command == "site":
            anew = ["--execute"] if options.execute else []
            return lesson(environment, "site", options.to.resolve(), *anew)
        if options.command == "student":
            wanted = {"--force": options.force, "--no-outputs": options.no_outputs}
            how = [name for name, is_wanted in wanted.items() if is_wanted]
            return lesson(environment, "student", options.to.resolve(), *how)
        if options.command == "lab":
            return lab(environment, passed_on)
        if options.command == "test":
            return test(environment, options.quick, options.only, passed_on)
        if options.command == "bench":
            return bench(environment, passed_on)
        say(f"ready in {environment.prefix}: python run.py lab opens the notebooks")
        return 0
    except Problem as problem:
        print(f"run.py: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nrun.py: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
