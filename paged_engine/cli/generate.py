"""`paged-engine generate`: continue texts."""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from paged_engine.cli.arguments import (
    add_command,
    add_engine_arguments,
    add_sampling_arguments,
    sampling_params,
)
from paged_engine.cli.loading import load_engine
from paged_engine.cli.prompts import add_prompt_arguments, read_prompts
from paged_engine.cli.terminal import CommandError, RequestBar, fail, follow_events
from paged_engine.errors import InvalidRequestError

if TYPE_CHECKING:
    from paged_engine.engine import ContinuousEngine
    from paged_engine.request import Completion, RequestOutput, SamplingParams

_TITLE_WIDTH = 60
_CUT_SHORT = ("error", "ignored")

Show = Callable[[str, "RequestOutput"], None]


def add_to(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "generate",
        help="continue texts",
        description="Continue a text, which is streamed, or several, which are served in one "
        "continuous batch. The text goes to stdout, everything else to stderr.",
        epilog="The first use of the default model fetches about 93 MB.",
    )
    parser.set_defaults(run=run)
    add_prompt_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--no-stream", action="store_true", help="print a text when it is complete")
    output.add_argument(
        "--json",
        action="store_true",
        help="one line of JSON a sample: text, token ids, why it ended, times in seconds",
    )
    output.add_argument(
        "--logprobs",
        type=int,
        metavar="K",
        help="with --json: the log-probability of each token, and the K most likely beside it",
    )
    add_sampling_arguments(parser)
    parser.add_argument("--n", type=int, metavar="N", help="samples of each prompt (default: 1)")
    add_engine_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Serve the prompts; 1 if one of them was cut short."""
    if options.logprobs is not None and not options.json:
        options.refuse("--logprobs are only in --json: give both")
    prompts = read_prompts(options)
    if not prompts:
        options.refuse("no prompt: give a text, - for stdin, or --file")
    params = sampling_params(options)  # wrong values are named before a model is loaded
    engine = load_engine(options, record_events=options.verbose)
    if options.verbose:
        follow_events(engine)
    is_one = len(prompts) == 1 and params.n == 1
    if is_one and not (options.json or options.no_stream):
        return _check(_stream(engine, prompts[0], params))
    show = _show_json if options.json else _show_text if is_one else _Titled()
    return _serve(engine, prompts, params, show, RequestBar(len(prompts), options))


def _stream(engine: ContinuousEngine, prompt: str, params: SamplingParams) -> RequestOutput:
    """Print the text as it comes."""
    for output in engine.stream(prompt, params):
        print(output.completions[0].new_text, end="", flush=True)
    print(flush=True)
    return output


def _serve(
    engine: ContinuousEngine,
    prompts: list[str],
    params: SamplingParams,
    show: Show,
    bar: RequestBar,
) -> int:
    """All of them in one batch; each is shown when it and those before it are complete."""
    line = deque(zip(add_prompts(engine, prompts, params), prompts, strict=True))
    final: dict[str, RequestOutput] = {}
    code = 0
    with bar:
        while line:
            outputs = engine.step()
            bar.update(outputs)
            final |= {output.request_id: output for output in outputs if output.finished}
            while line and line[0][0] in final:
                name, prompt = line.popleft()
                with bar.out_of_the_way():
                    show(prompt, final[name])
                    code = max(code, _check(final.pop(name)))
    return code


def add_prompts(engine: ContinuousEngine, prompts: list[str], params: SamplingParams) -> list[str]:
    """Put all in line, and return their ids.

    Raises:
        InvalidRequestError: One could never be served; with several, it says which.
    """
    names = []
    for number, prompt in enumerate(prompts, 1):
        try:
            names.append(engine.add_request(prompt, params))
        except InvalidRequestError as error:
            if len(prompts) == 1:
                raise
            raise CommandError(f"prompt {number} ({_title(prompt)}): {error}") from error
    return names


def _check(output: RequestOutput) -> int:
    """0, or 1 after a line for each sample that did not come to its end."""
    code = 0
    for completion in output.completions:
        if completion.finish_reason in _CUT_SHORT:
            why = completion.stop_reason or "the model's output is not numbers"
            fail(f"{output.request_id} was cut short ({completion.finish_reason}): {why}")
            code = 1
    return code


def _show_text(prompt: str, output: RequestOutput) -> None:
    print(output.text, flush=True)


class _Titled:
    """Texts below their titles, as `head` shows several files."""

    def __init__(self) -> None:
        self._gap = ""

    def __call__(self, prompt: str, output: RequestOutput) -> None:
        num_samples = len(output.completions)
        for completion in output.completions:
            which = f", sample {completion.index + 1} of {num_samples}" if num_samples > 1 else ""
            print(f"{self._gap}==> {output.request_id}{which}: {_title(prompt)} <==")
            print(completion.text, flush=True)
            self._gap = "\n"


def _title(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= _TITLE_WIDTH else line[: _TITLE_WIDTH - 3] + "..."


def _show_json(prompt: str, output: RequestOutput) -> None:
    for completion in output.completions:
        print(json.dumps(_as_json(prompt, output, completion)), flush=True)


def _as_json(prompt: str, output: RequestOutput, completion: Completion) -> dict[str, Any]:
    """One sample, flat, so that `jq .text` gives its text."""
    timing = output.timing
    started = timing.first_scheduled
    values: dict[str, Any] = {
        "request_id": output.request_id,
        "sample": completion.index,
        "prompt": prompt,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "num_prompt_tokens": len(output.prompt_token_ids),
        "num_cached_tokens": output.num_cached_tokens,
        "queue_time": None if started is None else started - timing.arrival,
        "ttft": timing.ttft,
        "e2e": timing.e2e,
    }
    if completion.logprobs is not None:
        values["logprobs"] = [
            {"token_id": chosen.token_id, "logprob": chosen.logprob, "top": chosen.top}
            for chosen in completion.logprobs
        ]
    return values
