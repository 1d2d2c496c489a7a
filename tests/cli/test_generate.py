"""`paged-engine generate`, as a user runs it."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from paged_engine import ContinuousEngine, EngineConfig, RequestOutput, SamplingParams
from paged_engine.cli import generate, main
from tests.cli.cli_helpers import Terminal, interrupted, on_posix, reader_gone, run, start
from tests.helpers.fakes import ByteTokenizer, OracleModel


def served(folder: Path, prompts: Any, **params: Any) -> list[RequestOutput]:
    engine = ContinuousEngine.from_pretrained(str(folder), device="cpu", num_blocks=64)
    return engine.generate(prompts, SamplingParams(**params))


def expected(folder: Path, prompt: str, max_tokens: int) -> str:
    return served(folder, prompt, max_tokens=max_tokens)[0].text


Streams = pytest.CaptureFixture[str]


def test_text_goes_to_stdout_and_nothing_else(model_folder: Path) -> None:
    done = run("generate", "hello", "--model", str(model_folder), "--max-tokens", "12")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == expected(model_folder, "hello", 12) + "\n"


def test_without_streaming_it_is_the_same_text(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Streams
) -> None:
    monkeypatch.setenv("PAGED_ENGINE_MODEL", str(model_folder))
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    assert main(["generate", "-", "--no-stream", "--max-tokens", "12", "--no-progress"]) == 0
    assert capsys.readouterr() == (expected(model_folder, "hello\n", 12) + "\n", "")


def test_several_prompts_are_one_batch_and_come_in_order(
    model_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("third\n\n  \nfourth\n", encoding="utf-8")
    done = run(
        *["generate", "first", "second, which is longer", "--file", str(file), "--json"],
        *["--model", str(model_folder), "--max-tokens", "9", "--logprobs", "2", "--verbose"],
    )
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    prompts = ["first", "second, which is longer", "third", "fourth"]
    assert [line["prompt"] for line in lines] == prompts
    for line, output in zip(
        lines, served(model_folder, prompts, max_tokens=9, logprobs=2), strict=True
    ):
        assert line["text"] == output.text
        assert line["token_ids"] == list(output.token_ids)
        assert line["finish_reason"] == "length"
        assert 0 <= line["queue_time"] <= line["ttft"] <= line["e2e"]
        assert [entry["token_id"] for entry in line["logprobs"]] == line["token_ids"]
        assert all(len(entry["top"]) == 2 for entry in line["logprobs"])
    assert "[Prefill] batch of 4," in done.stderr


def test_a_text_is_shown_as_soon_as_it_and_those_before_it_are_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = OracleModel(vocab_size=128)
    engine = ContinuousEngine(model, ByteTokenizer(), EngineConfig(num_blocks=20))
    monkeypatch.setattr(generate, "load_engine", lambda *_, **__: engine)
    texts = {p: bytes(model.continuation([ord(p)], 30)).decode() for p in "abcdefgh"}
    stop = max(map(chr, range(33, 127)), key=lambda c: len({t.find(c) for t in texts.values()}))
    ends = {text.find(stop): prompt for prompt, text in texts.items() if stop in text}
    first, second, third = (ends[at] for at in sorted(ends)[:3])  # in the order of their ends
    line = [second, first, third]
    shown: list[tuple[str, int]] = []
    monkeypatch.setattr(
        generate,
        "_show_json",
        lambda prompt, output: shown.append((prompt, len(engine.core.samples))),
    )
    main(["generate", *line, "--json", "--stop", stop, "--max-tokens", "30"])
    assert shown == [(line[0], 1), (line[1], 1), (line[2], 0)]


def test_texts_have_titles_where_there_are_several(model_folder: Path, capsys: Streams) -> None:
    arguments = ["generate", "one", "t\nw" + "o" * 90, "--n", "2", "--max-tokens", "5"]
    sampling = ["--temperature", "1", "--seed", "3"]
    assert main([*arguments, *sampling, "--model", str(model_folder)]) == 0
    first, second = served(
        model_folder,
        ["one", "t\nw" + "o" * 90],
        n=2,
        max_tokens=5,
        temperature=1,
        seed=3,
    )
    titles = [
        "==> request-0, sample 1 of 2: one <==",
        "==> request-0, sample 2 of 2: one <==",
        "==> request-1, sample 1 of 2: t w" + "o" * 54 + "... <==",
        "==> request-1, sample 2 of 2: t w" + "o" * 54 + "... <==",
    ]
    texts = [c.text for output in (first, second) for c in output.completions]
    blocks = [f"{title}\n{text}\n" for title, text in zip(titles, texts, strict=True)]
    assert capsys.readouterr().out == "\n".join(blocks)


def test_every_option_reaches_the_engine(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Streams
) -> None:
    seen: dict[str, Any] = {}

    def stop(engine: ContinuousEngine, prompt: str, params: SamplingParams) -> RequestOutput:
        seen.update(config=engine.config, params=params)
        return engine.generate("a", SamplingParams(max_tokens=1))[0]

    monkeypatch.setattr(generate, "_stream", stop)
    options = "--block-size 4 --num-blocks 9 --max-num-seqs 2 --max-num-batched-tokens 7"
    options += " --max-model-len 30 --no-prefix-caching --temperature 0.5 --top-k 3 --top-p 0.9"
    options += " --min-p 0.1 --repetition-penalty 1.1 --presence-penalty 0.2"
    options += " --frequency-penalty 0.3 --seed 4 --max-tokens 6 --stop x --stop yz --ignore-eos"
    assert main(["generate", "a", "--model", str(model_folder), *options.split()]) == 0
    assert seen["config"] == EngineConfig(
        block_size=4,
        num_blocks=9,
        max_num_seqs=2,
        max_num_batched_tokens=7,
        max_model_len=30,
        enable_prefix_caching=False,
        seed=None,
        record_events=False,
    )
    assert seen["params"] == SamplingParams(
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        seed=4,
        max_tokens=6,
        stop=("x", "yz"),
        ignore_eos=True,
    )


def test_verbose_speaks_on_stderr(model_folder: Path, capsys: Streams) -> None:
    arguments = ["generate", "hello", "--model", str(model_folder), "--max-tokens", "12"]
    assert main([*arguments, "--verbose", "--block-size", "4", "--num-blocks", "9"]) == 0
    out, err = capsys.readouterr()
    assert out == expected(model_folder, "hello", 12) + "\n"
    assert f"paged-engine: loading {model_folder} ...\n" in err
    assert "[Alloc] request-0: blocks 0 1\n" in err  # 5 tokens in blocks of 4
    assert "[Finish] request-0: length" in err


def test_a_seed_repeats_a_draw_and_without_one_it_is_another(
    model_folder: Path, capsys: Streams
) -> None:
    def text(*more: str) -> str:
        hot = ["--max-tokens", "8", "--temperature", "2", "--model", str(model_folder)]
        assert main(["generate", "hi", *hot, *more]) == 0
        return capsys.readouterr().out

    assert text("--seed", "1") == text("--seed", "1") != text("--seed", "2")
    assert text() != text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hello", "--model", "no/such/folder"], "is not there"),
        (["hello", "--model", "."], "holds no config.json"),
        (["hello", "--temperature", "-1"], "temperature is -1.0; expected"),
        (["hello", "--max-tokens", "0"], "max_tokens is 0; expected"),
        (["hello", "--block-size", "0"], "block_size is 0; expected"),
        (["--file", "no/such/file"], "no/such/file: No such file or directory"),
        (["--file", "."], ".: Is a directory"),
        (["--file", "picture"], "picture is not utf-8 text (invalid start byte at byte 2)"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "picture").write_bytes(b"ab\xff")
    done = run("generate", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("paged-engine: ") and said in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no prompt"),
        (["--file", os.devnull], "no prompt"),
        (["-", "-"], "- was given twice"),
        (["-", "--file", "-"], "- was given twice"),
        (["a", "--logprobs", "2"], "--logprobs are only in --json"),
        (["a", "--max-tokens", "many"], "argument --max-tokens: invalid int value: 'many'"),
        (["a", "--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["a", "--temp", "1"], "unrecognized arguments: --temp 1"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], said: str) -> None:
    done = run("generate", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: paged-engine") and said in done.stderr


def test_a_device_that_is_not_there_is_an_error(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Streams
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["generate", "a", "--model", str(model_folder), "--device", "cuda"]) == 1
    assert "torch finds no CUDA device" in capsys.readouterr().err


def test_what_does_not_fit_is_refused_by_name(model_folder: Path, capsys: Streams) -> None:
    small = ["--model", str(model_folder), "--num-blocks", "3", "--max-tokens", "30"]
    assert main(["generate", "hello", *small, "--block-size", "8"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and "the request needs 35 tokens" in err
    assert main(["generate", "a", "b" * 40, *small]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"prompt 2 ({'b' * 40}): the request needs 70 tokens" in err


def test_a_request_that_was_cut_short_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: Streams
) -> None:
    model = OracleModel(vocab_size=256)
    model.nan_after = {ord("!")}
    config = EngineConfig(num_blocks=20)
    engine = ContinuousEngine(model, ByteTokenizer(), config)  # type: ignore[arg-type]
    monkeypatch.setattr(generate, "load_engine", lambda *_, **__: engine)
    for prompts in (["bad!"], ["good", "bad!", "good"]):
        assert main(["generate", *prompts, "--max-tokens", "3", "--json"]) == 1
        out, err = capsys.readouterr()
        reasons = [json.loads(line)["finish_reason"] for line in out.splitlines()]
        assert reasons == ["error" if p == "bad!" else "length" for p in prompts]
        assert err.count("\n") == 1 and "was cut short (error)" in err


def test_out_of_memory_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: Streams) -> None:
    import torch

    raised: list[Exception] = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried")]

    def load(*_: Any, **__: Any) -> Any:
        raise raised.pop()

    monkeypatch.setattr(generate, "load_engine", load)
    while raised:
        assert main(["generate", "a"]) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1) and "lower --num-blocks" in err
    raised.append(RuntimeError("a fault of ours"))  # is not hidden
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main(["generate", "a"])


def test_the_model_of_random_numbers_needs_no_download(
    monkeypatch: pytest.MonkeyPatch, capsys: Streams
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    options = ["--model", "tiny", "--device", "cpu", "--max-tokens", "4", "--no-progress"]
    assert main(["generate", "--file", "-", "--json", *options]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["prompt"], len(line["token_ids"])) for line in lines] == [("one", 4), ("two", 4)]


def slow(model_folder: Path) -> list[str]:
    """A generation that takes minutes."""
    return ["generate", "hello", "--model", str(model_folder), "--max-tokens", "15000"]


@on_posix
def test_text_comes_at_once_and_ctrl_c_ends_it_with_130(model_folder: Path) -> None:
    process = start(*slow(model_folder))
    assert process.stdout is not None
    assert 0 < len(os.read(process.stdout.fileno(), 65_536)) < 500  # and no full buffer
    assert process.poll() is None
    code, said = interrupted(process)
    assert (code, said.strip()) == (130, "paged-engine: interrupted")


@on_posix
def test_a_closed_pipe_ends_it_quietly(model_folder: Path) -> None:
    process = start(*slow(model_folder))
    assert process.stdout is not None and process.stdout.read(5)
    assert reader_gone(process) == (0, "")


@on_posix
def test_on_a_terminal_there_is_a_bar_beside_the_results(model_folder: Path) -> None:
    options = ["--model", str(model_folder), "--max-tokens", "300"]
    terminal = Terminal("generate", "a", "b", "--json", *options)
    terminal.until("paged-engine: loading ")
    terminal.until("0/2 [")
    terminal.until(" tokens]")
    code, rest = terminal.end()
    assert code == 0
    lines = [json.loads(line) for line in re.findall(r"(\{.*\})\r\n", rest)]
    assert [line["prompt"] for line in lines] == ["a", "b"]
