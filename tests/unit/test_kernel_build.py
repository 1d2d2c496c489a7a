"""Compiling on first use: once, by one, and with the reason where it cannot be done."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from paged_engine import attention
from paged_engine.attention import CpuAttention, SdpaAttention, get_backend
from paged_engine.errors import KernelsUnavailableError
from paged_engine.kernels import build
from paged_engine.kernels.library import Kernels, processor_capability
from paged_engine.models import tiny

REPO = Path(__file__).resolve().parents[2]
COUNTING = """#!/bin/sh
echo run >> {log}
exec {compiler} "$@"
"""

OLD = """#!/bin/sh
case "$*" in *bf16*|*amx*) echo "error: unrecognized command-line option" >&2; exit 1;; esac
exec {compiler} "$@"
"""


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that counts its runs, and an empty cache.  Returns the file with a line a run."""
    log, script = tmp_path / "log", tmp_path / "counting"
    script.write_text(COUNTING.format(log=log, compiler=build.find_compiler()))
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("PAGED_ENGINE_CACHE", str(tmp_path / "cache"))
    log.touch()
    return log


def runs(log: Path) -> int:
    return len(log.read_text().splitlines())


def test_it_is_compiled_once_and_says_so(
    compiler: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = build.library("DEFAULT")
    assert path.exists() and runs(compiler) == 1
    assert "compiling its CPU kernels, once" in capsys.readouterr().err
    assert build.library("DEFAULT") == path and runs(compiler) == 1
    assert capsys.readouterr().err == ""
    assert {p.name for p in path.parent.iterdir()} <= {"kernels.so", "kernels.lock"}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flag is for such processors")
@pytest.mark.parametrize("capability", ["AVX512_BF16", "AMX"])
def test_a_compiler_older_than_the_processor_leaves_out_what_is_newer(
    capability: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = tmp_path / "old"
    script.write_text(OLD.format(compiler=build.find_compiler()))
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("PAGED_ENGINE_CACHE", str(tmp_path / "cache"))
    path = build.library(capability)
    assert Kernels(path).ways == ["floats", "widened_pairs"]
    capsys.readouterr()
    assert build.library(capability) == path and capsys.readouterr().err == ""  # it is kept
    monkeypatch.delenv("CXX")
    assert "dots" in Kernels(build.library(capability)).ways


@pytest.mark.skipif("CXX" in os.environ, reason="another compiler may be older")
def test_of_all_that_this_processor_has_the_kernels_make_use() -> None:
    """They are compiled without, where a compiler complains: it must not be about our mistakes."""
    here = processor_capability()
    newer = {"AMX": ["dots", "matrices"], "AVX512_BF16": ["dots"]}.get(here, [])
    assert Kernels(build.library(here)).ways == ["floats", "widened_pairs", *newer]


@pytest.mark.parametrize(
    ("known", "features", "capability"),
    [
        ("AVX512", {"avx512_bf16": True}, "AVX512_BF16"),
        ("AVX512", {"avx512_bf16": True, "amx_tile": True, "amx_bf16": True}, "AMX"),
        ("AVX512", {"avx512_bf16": True, "amx_tile": True, "amx_bf16": False}, "AVX512_BF16"),
        ("AVX512", {"avx512_bf16": False}, "AVX512"),
        ("AVX512", None, "AVX512"),  # as in older torch
        ("AVX2", {"avx512_bf16": True}, "AVX2"),  # ATEN_CPU_CAPABILITY asks for less
        ("SVE256", {}, "DEFAULT"),
    ],
)
def test_what_a_processor_can_do(
    known: str, features: dict[str, bool] | None, capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: known)
    if features is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert processor_capability() == capability


def test_of_several_at_once_one_compiles(compiler: Path) -> None:
    code = "from paged_engine.kernels.build import library; print(library('DEFAULT'))"
    with ThreadPoolExecutor(3) as pool:
        done = list(
            pool.map(
                lambda _: subprocess.run(
                    [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True
                ),
                range(3),
            )
        )
    assert [process.returncode for process in done] == [0, 0, 0], done
    assert len({process.stdout for process in done}) == 1
    assert runs(compiler) == 1


def test_other_sources_and_flags_are_another_library(
    compiler: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = build._key(["c++", "-O3"])
    assert build._key(["c++", "-O2"]) != first
    copy = tmp_path / "sources"
    copy.mkdir()
    for path in build.SOURCES.glob("*.[ch]*"):
        (copy / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(build, "SOURCES", copy)
    assert build._key(["c++", "-O3"]) == first
    (copy / "vectors.h").write_text("// changed")
    assert build._key(["c++", "-O3"]) != first


def test_without_a_compiler_the_reason_and_the_remedy_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(KernelsUnavailableError, match="no C\\+\\+ compiler on PATH.*install one"):
        build.library("DEFAULT")
    attention.load_kernels.cache_clear()
    attention._kernels_are_here.cache_clear()
    try:
        model = tiny()
        assert isinstance(get_backend(None, model), SdpaAttention)
        assert isinstance(get_backend(None, model), SdpaAttention)
        said = capsys.readouterr().err.splitlines()
        assert (
            len(said) == 1 and "attention is torch's, which is slower: there is no C++" in said[0]
        )
        with pytest.raises(KernelsUnavailableError):
            get_backend("cpu")
    finally:
        attention.load_kernels.cache_clear()
        attention._kernels_are_here.cache_clear()


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'x.cpp:1: error: no such thing as int' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("PAGED_ENGINE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(KernelsUnavailableError, match="error: no such thing as int"):
        build.library("DEFAULT")
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_cache_that_is_no_folder_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("PAGED_ENGINE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(KernelsUnavailableError, match="set PAGED_ENGINE_CACHE to one that can"):
        build.library("DEFAULT")


def test_the_kernels_are_here_where_ci_runs() -> None:
    """There they must be compiled, or all speed would be lost unseen."""
    if not os.environ.get("CI"):
        pytest.skip("only CI demands a compiler")
    assert isinstance(get_backend(None, tiny()), CpuAttention)
    assert tiny().dtype == torch.float32
