"""Options that several commands take, and what they are to the engine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from paged_engine.request import DEFAULT_MAX_TOKENS

if TYPE_CHECKING:
    from paged_engine.request import SamplingParams

TINY = "tiny"

# Options that bear the names of the fields they set; one that was not given is None.
_CONFIG = (
    "block_size",
    "num_blocks",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "enable_prefix_caching",
)
_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "max_tokens",
    "stop",
    "ignore_eos",
    "n",
    "logprobs",
)


def add_command(
    commands: Any,
    name: str,
    *,
    help: str,
    description: str | None = None,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    """A command's parser, which the command can also use to refuse what was asked."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=epilog,
        allow_abbrev=False,  # a script's abbreviation would break with the next option
    )
    parser.set_defaults(refuse=parser.error)
    return parser


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, where it runs, and the limits of the engine."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        metavar="NAME",
        help="a model folder or a name on the hub (default: $PAGED_ENGINE_MODEL, or "
        f"SmolLM2-135M-Instruct); '{TINY}' is a model of random numbers, made on the spot to "
        "try commands out",
    )
    model.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda", "mps"],
        default="auto",
        help="default: cuda if there is one, else cpu; mps is not proved to work, and becomes cpu",
    )
    model.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "auto"],
        default="float32",
        help="of the weights (default: float32)",
    )
    limits = parser.add_argument_group("blocks and batch")
    limits.add_argument(
        "--block-size", type=int, metavar="N", help="tokens a KV block holds (default: 16)"
    )
    limits.add_argument(
        "--num-blocks",
        type=int,
        metavar="N",
        help="KV blocks in the pool (default: what a share of the free memory pays for)",
    )
    limits.add_argument(
        "--max-num-seqs", type=int, metavar="N", help="requests in one batch (default: 32)"
    )
    limits.add_argument(
        "--max-num-batched-tokens",
        type=int,
        metavar="N",
        help="tokens computed in one step (default: 512)",
    )
    limits.add_argument(
        "--max-model-len",
        type=int,
        metavar="N",
        help="tokens of a request, prompt and output (default: what the model was made for)",
    )
    limits.add_argument(
        "--no-prefix-caching",
        dest="enable_prefix_caching",
        action="store_const",
        const=False,
        help="compute every prompt anew, though another began with the same tokens",
    )
    said = parser.add_argument_group("what is said on stderr")
    said.add_argument("--verbose", action="store_true", help="what happens")
    said.add_argument("--no-progress", action="store_true", help="nothing about progress")


def add_sampling_arguments(
    parser: argparse.ArgumentParser, max_tokens: int = DEFAULT_MAX_TOKENS
) -> None:
    """How tokens are chosen, and when a request ends."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--max-tokens",
        type=int,
        default=max_tokens,
        metavar="N",
        help=f"at most so many (default: {max_tokens})",
    )
    group.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="0, the default, takes the most likely token",
    )
    group.add_argument("--top-k", type=int, metavar="K", help="of the K most likely tokens")
    group.add_argument(
        "--top-p", type=float, metavar="P", help="of the most likely, until they sum to P"
    )
    group.add_argument(
        "--min-p",
        type=float,
        metavar="P",
        help="of those at least P times as likely as the most likely",
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="divides the logits of tokens seen before (default: 1)",
    )
    group.add_argument(
        "--presence-penalty",
        type=float,
        metavar="X",
        help="taken off the logits of tokens in the output (default: 0)",
    )
    group.add_argument(
        "--frequency-penalty",
        type=float,
        metavar="X",
        help="the same, for each time (default: 0)",
    )
    group.add_argument("--seed", type=int, metavar="N", help="repeats a random draw")
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="ends the output, which does not include it; may be given again",
    )
    group.add_argument(
        "--ignore-eos",
        action="store_true",
        default=None,
        help="go on after the end-of-sequence token",
    )


def engine_config(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of :class:`EngineConfig` that were given.

    Without `--seed` every run draws anew: the engine's own seed, which would repeat it, is not
    set.
    """
    return {"seed": None, **_given(options, _CONFIG)}


def sampling_params(options: argparse.Namespace) -> SamplingParams:
    """What was asked for.

    Raises:
        InvalidRequestError: A value is out of range.
    """
    from paged_engine.request import SamplingParams

    return SamplingParams(**_given(options, _SAMPLING))


def _given(options: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    values = {name: getattr(options, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}
