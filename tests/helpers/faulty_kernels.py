"""The C++ kernels, compiled for other processors, or from a source with one fault in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paged_engine.kernels import build
from paged_engine.kernels.library import Kernels, processor_capability


def kernels_for(capability: str) -> Kernels:
    """The kernels compiled for a set of instructions; the test is skipped where there is none."""
    skip_without(capability)
    return Kernels(build.library(capability))


def skip_without(capability: str) -> None:
    """Skip the test where the processor has not these instructions."""
    from_most = list(build.INSTRUCTIONS)
    if from_most.index(capability) < from_most.index(processor_capability()):
        pytest.skip(f"this processor has no {capability}")


def faulty_kernels(
    file: str,
    right: str,
    wrong: str,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    capability: str = "DEFAULT",
) -> Kernels:
    """Compile in `folder`, with `right` replaced by `wrong` in that file.

    By default for any processor.
    """
    skip_without(capability)
    copy = folder / "kernels"
    copy.mkdir()
    for path in build.SOURCES.glob("*.[ch]*"):
        text = path.read_text()
        if path.name == file:
            assert right in text, f"the source has no {right!r} any more"
            text = text.replace(right, wrong)
        (copy / path.name).write_text(text)
    monkeypatch.setattr(build, "SOURCES", copy)
    monkeypatch.setenv("PAGED_ENGINE_CACHE", str(folder / "cache"))
    flags = os.environ.get("CXXFLAGS", "")
    monkeypatch.setenv("CXXFLAGS", f"{flags} -O0")  # compiled in a third of the time
    return Kernels(build.library(capability))
