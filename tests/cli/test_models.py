"""`paged-engine models`: the list, and trying one model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paged_engine.cli import main, models
from paged_engine.models.cache import MANIFEST
from paged_engine.models.default_model import DEFAULT_MODEL_NAME
from tests.cli.cli_helpers import run

Streams = pytest.CaptureFixture[str]
WHY = "it attends over the whole prompt at once, which no cache of blocks can give it " * 2
FAMILIES = {
    "transformers": "5.1.2",
    "families": [
        {"family": "llama", "outcome": "identical", "reason": ""},
        {"family": "bloom", "outcome": "refused", "reason": WHY.strip()},
        {"family": "qwen3", "outcome": "identical", "reason": ""},
        {"family": "blt", "outcome": "not built", "reason": "it needs a patcher"},
    ],
}


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the list, in the place of the package's, and an empty cache."""
    monkeypatch.setattr(models.resources, "files", lambda package: tmp_path)
    monkeypatch.setenv("PAGED_ENGINE_CACHE", str(tmp_path / "cache"))
    for name in ("PAGED_ENGINE_SHARED_CACHE", "PAGED_ENGINE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / models.FAMILIES
    file.write_text(json.dumps(FAMILIES), encoding="utf-8")
    return file


def test_the_served_families_and_the_default_model(listed: Path, capsys: Streams) -> None:
    assert main(["models"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Default model: SmolLM2-135M-Instruct, not here yet; the first use fetches 93 MB",
        "",
        "Served: 2 families of transformers 5.1.2",
        "  llama  qwen3",
        "",
        "Refused: 1 families (paged-engine models --refused gives the reasons)",
        "Not tried: 1 families, of which no small model could be made",
        "paged-engine models --check NAME tries any model",
    ]


def test_where_the_default_model_is_and_what_stands_for_it(
    listed: Path, monkeypatch: pytest.MonkeyPatch, capsys: Streams
) -> None:
    folder = listed.parent / "cache" / DEFAULT_MODEL_NAME
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(3_000_000))
    (folder / MANIFEST).write_text(json.dumps({"format": 1, "files": {}}), encoding="utf-8")
    monkeypatch.setenv("PAGED_ENGINE_MODEL", "mine")
    assert main(["models"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == (
        f"Default model: SmolLM2-135M-Instruct, in {folder} (3 MB); $PAGED_ENGINE_MODEL says mine "
        f"instead"
    )


def test_the_refused_families_and_why(
    listed: Path, monkeypatch: pytest.MonkeyPatch, capsys: Streams
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["models", "--refused"]) == 0
    first, *reason = capsys.readouterr().out.splitlines()
    assert first == "bloom" and len(reason) > 1
    assert all(line.startswith("    ") and len(line) <= 60 for line in reason)
    assert " ".join(line.strip() for line in reason) == WHY.strip()


def test_the_same_as_json(listed: Path, capsys: Streams) -> None:
    assert main(["models", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["families"] == FAMILIES["families"] and told["transformers"] == "5.1.2"
    assert told["default_model"]["name"] == DEFAULT_MODEL_NAME
    assert told["default_model"]["folder"] is None
    assert main(["models", "--json", "--refused"]) == 0
    (refused,) = json.loads(capsys.readouterr().out)["families"]
    assert refused["family"] == "bloom"


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "has no list of families"), ("{", "is damaged"), ('{"families": []}', "is damaged")],
)
def test_a_list_that_is_missing_or_damaged_is_said(
    content: str | None, said: str, listed: Path, capsys: Streams
) -> None:
    listed.unlink() if content is None else listed.write_text(content)
    assert main(["models"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and said in err


def test_the_list_of_the_package_is_there() -> None:
    served, refused = run("models"), run("models", "--refused", "--json")
    assert (served.returncode, served.stderr) == (0, "") and " llama " in served.stdout
    families = json.loads(refused.stdout)["families"]
    assert families and all(family["reason"] for family in families)


def test_one_is_served_and_mps_is_the_cpu() -> None:
    done = run("models", "--check", "tiny", "--device", "mps")
    assert (done.returncode, done.stdout) == (0, "tiny: served\n")
    assert done.stderr == "device 'mps' is not proved to give the right tokens; using the CPU\n"


@pytest.fixture
def refused_folder(tmp_path: Path) -> Path:
    """A model whose attention does not go through transformers' registry."""
    from transformers import AutoModelForCausalLM, BloomConfig

    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    return tmp_path


def test_one_is_refused_with_the_reason(refused_folder: Path, capsys: Streams) -> None:
    name = str(refused_folder)
    check: Any = ["models", "--device", "cpu", "--no-progress", "--check"]
    assert main([*check, name]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{name}: refused: ") and (out.count("\n"), err) == (1, "")
    assert main([*check, "--model", name, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == name and told["served"] is False and told["reason"] in out
    assert main([*check, "no/such/model"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "is not there" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--refused", "--check", "tiny"], "not allowed with argument --refused"),
        (["--model", "tiny"], "--model is the one to --check: give both"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], said: str) -> None:
    done = run("models", *arguments)
    assert (done.returncode, done.stdout) == (2, "") and said in done.stderr
