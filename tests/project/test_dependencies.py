"""pyproject.toml, constraints.txt and environment.yml say the same, and the installed agrees."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

REPO = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENVIRONMENT_TEXT = (REPO / "environment.yml").read_text(encoding="utf-8")
ENVIRONMENT = yaml.safe_load(ENVIRONMENT_TEXT)

# torch's CUDA build brings these along on Linux; constraints.txt leaves them to torch on purpose.
CUDA = re.compile(r"^(nvidia-|cuda-|triton$)")


def direct() -> dict[str, Requirement]:
    """Every requirement that pyproject.toml states, extras included."""
    lines = list(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        lines += extra
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def constraints() -> dict[str, Requirement]:
    """Every line of constraints.txt that is not a comment."""
    lines = (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    by_name = {canonicalize_name(requirement.name): requirement for requirement in found}
    assert len(by_name) == len(found), "constraints.txt names a package twice"
    return by_name


def pip_lines() -> list[str]:
    """What environment.yml hands to pip."""
    return next(entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict))


def pin(requirement: Requirement) -> str:
    """The version of a line `name==version`."""
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is not pinned with =="
    return specifier.version


def test_each_constraint_is_one_public_version() -> None:
    """No ranges, no wildcards, no local builds like +cpu, no addresses, no paths, no extras."""
    for requirement in constraints().values():
        assert re.fullmatch(r"[0-9][0-9A-Za-z.]*", pin(requirement)), requirement
        assert not requirement.url and not requirement.extras, requirement
    text = (REPO / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text
    options = [line for line in text.splitlines() if line.startswith("-")]
    assert options == [], "an option such as --find-links or --index-url belongs in no constraints"


def test_torch_stays_open_to_every_build() -> None:
    """The CPU and the CUDA build both meet the pin, on any platform, and CUDA's parts are free."""
    torch = constraints()["torch"]
    assert torch.marker is None
    for build in ("", "+cpu", "+cu130"):
        assert torch.specifier.contains(pin(torch) + build)
    assert [name for name in constraints() if CUDA.match(name)] == []


@pytest.mark.parametrize("name", sorted(direct()))
def test_direct_dependency_is_pinned_within_its_range(name: str) -> None:
    """What was tested lies in what is promised, and the promise has a lower end."""
    requirement = direct()[name]
    assert name in constraints(), f"{name} is in pyproject.toml but not in constraints.txt"
    version = pin(constraints()[name])
    assert requirement.specifier.contains(version), f"{requirement} excludes the tested {version}"
    assert any(specifier.operator == ">=" for specifier in requirement.specifier), requirement


def test_environment_lists_just_what_pyproject_lists() -> None:
    """The same names with the same ranges, the constraints, and the package itself."""
    lines = pip_lines()
    options = [line for line in lines if line.startswith("-")]
    assert options == ["-c constraints.txt", "-e ."]
    listed = [Requirement(line) for line in lines if not line.startswith("-")]
    stated = {name: requirement.specifier for name, requirement in direct().items()}
    assert {canonicalize_name(r.name): r.specifier for r in listed} == stated


def test_environment_has_a_python_that_the_package_accepts() -> None:
    """And pip, without which the rest of the file would do nothing."""
    entries = {
        entry.split()[0]: entry for entry in ENVIRONMENT["dependencies"] if isinstance(entry, str)
    }
    assert set(entries) == {"python", "pip"}
    offered = SpecifierSet(entries["python"].split(maxsplit=1)[1])
    wanted = SpecifierSet(PROJECT["requires-python"])
    versions = [f"3.{minor}.0" for minor in range(8, 20)]
    accepted = list(offered.filter(versions))
    assert accepted and all(wanted.contains(version) for version in accepted)
    classified = {line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if ":: 3." in line}
    assert {version.removesuffix(".0") for version in accepted} == classified


def test_each_dependency_says_what_it_is_for() -> None:
    """Each line of environment.yml that brings something has its purpose behind it."""
    for line in ENVIRONMENT_TEXT.split("dependencies:")[1].splitlines():
        entry = line.strip()
        if entry.startswith("- ") and entry not in ("- pip:", "- -e ."):
            assert re.search(r"\S  # \S", entry), f"no purpose behind: {entry}"


def test_what_is_installed_is_what_was_tested() -> None:
    """Every direct dependency has its pinned version; a build suffix such as +cpu may follow."""
    differing = []
    for name in direct():
        installed = importlib.metadata.version(name).split("+")[0]
        if installed != pin(constraints()[name]):
            differing.append(f"{name} {installed}, tested {pin(constraints()[name])}")
    assert not differing, "run: python run.py setup --fresh (" + "; ".join(differing) + ")"


def test_constraints_pin_all_that_is_pulled_in() -> None:
    """Walk from the direct dependencies through what each one requires on this platform."""
    pinned = constraints()
    waiting = [(name, requirement.extras) for name, requirement in direct().items()]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        if CUDA.match(name) or (name, *sorted(extras)) in seen:
            continue
        seen.add((name, *sorted(extras)))
        assert name in pinned, f"{name} gets installed but constraints.txt does not pin it"
        marker = pinned[name].marker
        assert marker is None or marker.evaluate(), f"the marker of {name} excludes this platform"
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            contexts = [{"extra": extra} for extra in ("", *extras)]
            if requirement.marker and not any(map(requirement.marker.evaluate, contexts)):
                continue
            waiting.append((canonicalize_name(requirement.name), requirement.extras))
    assert len(seen) > len(direct())


def test_this_python_is_supported() -> None:
    """The tests themselves run under a Python that the package claims."""
    running = ".".join(map(str, sys.version_info[:3]))
    assert SpecifierSet(PROJECT["requires-python"]).contains(running)
