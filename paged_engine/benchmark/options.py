"""The benchmark's options: what they are, and which of them go together.  No torch is needed."""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

from paged_engine.benchmark.processes.engines import FAMILIES
from paged_engine.benchmark.processes.engines import PEERS as PROCESSES
from paged_engine.benchmark.scaling_plan import ROUNDS as SCALING_ROUNDS
from paged_engine.benchmark.scaling_plan import SERIES, check_scaling
from paged_engine.benchmark.workloads import UNIFORM_OUTPUTS, UNIFORM_PROMPTS, WORKLOADS
from paged_engine.config import EngineConfig
from paged_engine.errors import InvalidConfigError

TINY = "tiny"
PEERS = ("naive", "static", "generate_batch")
AT_ONCE_PEERS = "naive,static"  # what is compared unless told otherwise
ALL = "all"
PEER_ROUNDS = 3
FIGURES = (".png", ".svg", ".pdf")
DESCRIPTION = (
    "Serve a workload with paged_engine, measure throughput and latency, and serve it with "
    "transformers in the same run. The table goes to stdout, progress to stderr."
)
EPILOG = "workloads:\n" + "\n".join(f"  {n:<15}{w.summary}" for n, w in WORKLOADS.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the benchmark's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = DESCRIPTION
    parser.epilog = EPILOG

    what = parser.add_argument_group("what to serve")
    what.add_argument(
        "--workload", choices=WORKLOADS, default="standard", help="see below (default: standard)"
    )
    what.add_argument("--requests", type=int, metavar="N", help="how many (default: as below)")
    what.add_argument("--seed", type=int, default=0, metavar="N", help="of lengths and arrivals")
    what.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="shorten longer requests to this, prompt and output together",
    )
    for name, lengths in (("prompt", UNIFORM_PROMPTS), ("output", UNIFORM_OUTPUTS)):
        what.add_argument(
            f"--{name}-lengths",
            type=int,
            nargs=2,
            metavar=("LOW", "HIGH"),
            help=f"of the workload uniform (default: {lengths[0]} {lengths[1]})",
        )

    when = parser.add_argument_group("when requests come (default: all at once)")
    when.add_argument(
        "--rate", type=float, metavar="R", help="at random, so many a second (an open loop)"
    )
    when.add_argument(
        "--clients",
        type=int,
        metavar="N",
        help="from so many clients, each of which waits for its answer (a closed loop)",
    )

    engine = parser.add_argument_group("the engine")
    engine.add_argument(
        "--model",
        metavar="NAME",
        help="a model folder, a name on the hub, or tiny for a small random one (default: "
        "$PAGED_ENGINE_MODEL, or SmolLM2-135M-Instruct)",
    )
    engine.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda", "mps"],
        default="auto",
        help="default: cuda if there is one, else cpu; mps is not proved to work, and becomes cpu",
    )
    engine.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "auto"],
        default="float32",
        help="of the weights (default: float32)",
    )
    engine.add_argument("--threads", type=int, metavar="N", help="that torch computes with")
    engine.add_argument(
        "--concurrency",
        "--max-num-seqs",
        type=int,
        metavar="N",
        help="requests in a batch (default: 32)",
    )
    engine.add_argument(
        "--budget",
        "--max-num-batched-tokens",
        type=int,
        metavar="N",
        help="tokens a step (default: 512)",
    )
    engine.add_argument(
        "--max-model-len", type=int, metavar="N", help="positions a request may have"
    )
    engine.add_argument("--block-size", type=int, metavar="N", help="default: 16")
    engine.add_argument("--num-blocks", type=int, metavar="N", help="KV blocks in the pool")
    engine.add_argument(
        "--prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="share the blocks of equal beginnings (default: on)",
    )

    how = parser.add_argument_group("what to measure")
    how.add_argument("--rounds", type=int, metavar="N", help="default: 1")
    how.add_argument(
        "--compare",
        metavar="LIST",
        help=f"some of {','.join(PEERS)}, or none (default: {AT_ONCE_PEERS} if all comes at once)",
    )
    how.add_argument(
        "--peers",
        nargs="?",
        const=ALL,
        metavar="LIST",
        help=f"compare side by side instead, on the CPU, each in a process of its own: some of "
        f"{','.join(PROCESSES)}, or {ALL} of them (which is meant where no list is given); prefix "
        f"caching is off in all, and --rounds is {PEER_ROUNDS} by default",
    )
    how.add_argument(
        "--peer-python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help=f"the interpreter that {', '.join(FAMILIES)} is installed for (default: this one)",
    )
    how.add_argument(
        "--peer-limit",
        type=float,
        default=1800.0,
        metavar="S",
        help="seconds that a peer may take to start, or for a round (default: 1800)",
    )
    how.add_argument(
        "--scaling",
        nargs="?",
        const=ALL,
        metavar="LIST",
        help=f"measure single steps instead, beside what the machine can do at best: some of "
        f"{','.join(SERIES)}, or {ALL} (which is meant where no list is given); --concurrency is "
        f"the largest batch, --max-model-len the most positions, --requests the longest line, and "
        f"--rounds is {SCALING_ROUNDS} by default",
    )
    how.add_argument(
        "--figures", type=Path, metavar="DIR", help="draw what --scaling found into this folder"
    )
    how.add_argument(
        "--static-batch",
        type=int,
        metavar="N",
        help="prompts in a static batch (default: as many as --concurrency)",
    )
    how.add_argument(
        "--ttft", type=float, default=2.0, metavar="S", help="target in seconds (default: 2)"
    )
    how.add_argument(
        "--tpot", type=float, default=0.2, metavar="S", help="target in seconds (default: 0.2)"
    )
    how.add_argument("--no-progress", action="store_true", help="say nothing on stderr")
    how.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    how.add_argument(
        "--figure", type=Path, metavar="FILE", help=f"draw it: {', '.join(FIGURES)} by its ending"
    )


def engine_config(options: argparse.Namespace) -> EngineConfig:
    """The engine's limits.

    Raises:
        InvalidConfigError: One of them is wrong.
    """
    limits = {
        "max_num_seqs": options.concurrency,
        "max_num_batched_tokens": options.budget,
        "max_model_len": options.max_model_len,
        "block_size": options.block_size,
        "num_blocks": options.num_blocks,
    }
    chosen = {name: value for name, value in limits.items() if value is not None}
    return EngineConfig.from_options(enable_prefix_caching=options.prefix_caching, **chosen)


def checked_peers(options: argparse.Namespace) -> list[str]:
    """The peers to compare with, when all options are in order; sets how many rounds there are.

    Raises:
        InvalidConfigError: They are not.
    """
    if options.rounds is None:
        several = PEER_ROUNDS if options.peers is not None else SCALING_ROUNDS
        options.rounds = 1 if options.peers is None and options.scaling is None else several
    for name in ("requests", "clients", "threads", "rounds", "static_batch"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InvalidConfigError(f"{_flag(name)} is {value}; expected at least 1")
    if options.max_tokens is not None and options.max_tokens < 2:
        raise InvalidConfigError(
            f"--max-tokens is {options.max_tokens}; expected at least 2, one token of prompt and "
            f"one of output"
        )
    for name in ("rate", "ttft", "tpot", "peer_limit"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise InvalidConfigError(f"{_flag(name)} is {value}; expected a number above 0")
    if options.rate is not None and options.clients is not None:
        raise InvalidConfigError(
            "--rate is an open loop and --clients a closed one; give one of them"
        )
    for name in ("prompt_lengths", "output_lengths"):
        _check_lengths(name, getattr(options, name), options.workload)
    for name in ("json", "figure"):
        _check_file(name, getattr(options, name))
    if options.figure is not None and options.figure.suffix not in FIGURES:
        raise InvalidConfigError(
            f"--figure is {options.figure}; expected a name that ends in {' or '.join(FIGURES)}"
        )
    if options.figure is not None and importlib.util.find_spec("matplotlib") is None:
        raise InvalidConfigError(
            "--figure needs matplotlib, which is not installed; install it (pip install "
            "matplotlib) or leave --figure out"
        )
    check_scaling(options)
    if options.peer_python and options.peers is None:
        raise InvalidConfigError("--peer-python is for --peers; give both or neither")
    if options.scaling is not None:
        return []
    peers = _peers(options) if options.peers is None else _processes(options)
    if options.static_batch is not None and "static" not in peers:
        flag = "compare" if options.peers is None else "peers"
        raise InvalidConfigError(f"--static-batch is for --{flag} static; give both or neither")
    return peers


def _processes(options: argparse.Namespace) -> list[str]:
    """Those of `--peers`, each of which has a process of its own."""
    for name in ("compare", "rate", "clients", "figure"):
        if getattr(options, name) is not None:
            raise InvalidConfigError(
                f"--peers compares engines that were given all requests at once, and {_flag(name)} "
                f"is for the engine in this process; give one of them"
            )
    if options.device not in ("auto", "cpu") or options.dtype not in ("float32", "bfloat16"):
        raise InvalidConfigError(
            f"--device is {options.device} and --dtype {options.dtype}; with --peers expected cpu, "
            f"and float32 or bfloat16"
        )
    if options.model == TINY:
        raise InvalidConfigError("--model is tiny; with --peers expected a folder with a model")
    if not Path("/proc/self/smaps").is_file():
        raise InvalidConfigError("--peers reads memory from /proc, as Linux has it; use --compare")
    for given in options.peer_python:
        family, _, path = given.partition("=")
        if family not in FAMILIES or not path:
            raise InvalidConfigError(
                f"--peer-python is {given}; expected NAME=PATH with one of {', '.join(FAMILIES)}"
            )
        if not Path(path).is_file():
            raise InvalidConfigError(f"--peer-python is {given}, and there is no file {path}")
    if options.peers == ALL:  # one that has this precision by itself is there without, too
        return [name for name, engine in PROCESSES.items() if engine.dtype != options.dtype]
    return _chosen("peers", options.peers, tuple(PROCESSES), ALL)


def _chosen(flag: str, asked: str, known: Sequence[str], word: str) -> list[str]:
    """The names of a list."""
    names = list(known) if asked == ALL else asked.split(",")
    if unknown := [name for name in names if name not in known]:
        raise InvalidConfigError(
            f"--{flag} has {unknown[0]!r}; expected some of {','.join(known)}, or {word}"
        )
    if len(set(names)) < len(names):
        raise InvalidConfigError(f"--{flag} is {asked}; expected each name once")
    return names


def _peers(options: argparse.Namespace) -> list[str]:
    is_at_once = options.rate is None and options.clients is None
    asked = (
        (AT_ONCE_PEERS if is_at_once else "none") if options.compare is None else options.compare
    )
    peers = [] if asked == "none" else _chosen("compare", asked, PEERS, "none")
    if peers and not is_at_once:
        raise InvalidConfigError(
            "--compare takes the time of work that is there at once; leave out --rate and "
            "--clients, or give --compare none"
        )
    return peers


def _check_lengths(name: str, lengths: list[int] | None, workload: str) -> None:
    if lengths is None:
        return
    if workload != "uniform":
        raise InvalidConfigError(
            f"{_flag(name)} is for the workload uniform, and this is {workload}"
        )
    if not 1 <= lengths[0] <= lengths[1]:
        raise InvalidConfigError(
            f"{_flag(name)} is {lengths[0]} {lengths[1]}; expected the lower of at least 1 first"
        )


def _check_file(name: str, path: Path | None) -> None:
    if path is None:
        return
    if path.is_dir():
        raise InvalidConfigError(f"--{name} is {path}, which is a folder; expected a file")
    if not path.absolute().parent.is_dir():
        raise InvalidConfigError(f"--{name} is {path}, and there is no folder {path.parent}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
