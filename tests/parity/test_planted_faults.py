"""The parity check sees each of the faults that engines of this kind have had.

A fault is planted in the package, a small crowd is served, and the check must say no.  The probe
is left out, so that the check itself is what is tried; what the probe would have said is in the
second column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from paged_engine.attention import cpu, interface, reference, sdpa
from paged_engine.batch import Batch
from paged_engine.errors import UnsupportedModelError
from paged_engine.kv_cache import PagedKVCache
from paged_engine.models import TINY_FAMILIES, transformers_runner
from tests.helpers.parity import Observed, ParityError, assert_parity, prompt_of, tiny_truth

Plant = Callable[[pytest.MonkeyPatch], object]
pytestmark = pytest.mark.mutation

PROMPTS = [prompt_of(length, 3) for length in (26, 7, 19, 14, 3)]


def serve(family: str, attention: str, *, probe: bool, n: int = 1) -> None:
    """A crowd with chunks, shared prefixes, preemptions, recycled blocks and an abort."""
    config = EngineConfig(
        block_size=4, num_blocks=16, max_num_batched_tokens=18, max_num_seqs=4, probe=probe
    )
    truth = tiny_truth(family)
    observed = Observed(ContinuousEngine(truth.model, config=config, attention=attention))
    params = SamplingParams(max_tokens=10, n=n)
    doomed = observed.engine.add_request(PROMPTS[0], params)
    observed.step()
    observed.engine.abort(doomed)  # in the midst of its prompt, and of a block
    names = [observed.engine.add_request(prompt, params) for prompt in PROMPTS]
    observed.run()
    names += [observed.engine.add_request(PROMPTS[2], params)]
    observed.run()
    assert_parity(observed, truth, dict.fromkeys(names, params))
    if n > 1:
        assert observed.count("copied") > 0
    assert observed.count("preempted") > 0 and observed.count("hit") > 0


# ------------------------------------------------------------------ the faults


def patch_attention(patch: pytest.MonkeyPatch, change: Callable[..., Any]) -> None:
    """`change(q, k, v, options)` before the backend gets them."""
    original = transformers_runner.TransformersRunner.forward

    def forward(self: Any, batch: Batch, cache: PagedKVCache) -> torch.Tensor:
        attend = self.attend

        def changed(q: Any, k: Any, v: Any, *args: Any, **options: Any) -> Any:
            return attend(*change(q, k, v, options), *args, **options)

        self.attend = changed
        try:
            return original(self, batch, cache)
        finally:
            self.attend = attend

    patch.setattr(transformers_runner.TransformersRunner, "forward", forward)


def patch_batch(patch: pytest.MonkeyPatch, change: Callable[[Batch], object]) -> None:
    original = transformers_runner.TransformersRunner.forward

    def forward(self: Any, batch: Batch, cache: PagedKVCache) -> torch.Tensor:
        change(batch)
        return original(self, batch, cache)

    patch.setattr(transformers_runner.TransformersRunner, "forward", forward)


def option(name: str, change: Callable[[Any], Any]) -> Plant:
    def changed(q: Any, k: Any, v: Any, options: dict[str, Any]) -> tuple[Any, Any, Any]:
        if options[name] is not None:
            options[name] = change(options[name])
        return q, k, v

    return lambda patch: patch_attention(patch, changed)


def positions_in_the_batch(batch: Batch) -> None:
    batch.positions = torch.arange(batch.num_tokens)


def positions_one_late(batch: Batch) -> None:
    batch.positions = batch.positions + 1


def positions_from_the_chunk(batch: Batch) -> None:
    batch.positions = torch.cat([torch.arange(n) for n in batch.query_lens])


def model_positions(change: Callable[[torch.Tensor], torch.Tensor]) -> Plant:
    """Only the model gets other positions, the mask the right ones."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        original = transformers_runner.TransformersRunner.forward

        def forward(self: Any, batch: Batch, cache: PagedKVCache) -> torch.Tensor:
            def replace(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
                return args, kwargs | {"position_ids": change(kwargs["position_ids"])}

            hook = self.model.register_forward_pre_hook(replace, with_kwargs=True)
            try:
                return original(self, batch, cache)
            finally:
                hook.remove()

        patch.setattr(transformers_runner.TransformersRunner, "forward", forward)

    return plant


def forget_the_prompt(patch: pytest.MonkeyPatch) -> None:
    """Decoding sees nothing of what came before this step."""

    def only_this_step(batch: Batch) -> None:
        starts = [
            length - query
            for length, query in zip(batch.context_lens, batch.query_lens, strict=True)
        ]
        batch.memo["fresh from"] = starts

    patch_batch(patch, only_this_step)
    original = PagedKVCache.write

    def write(self: PagedKVCache, layer: int, k: Any, v: Any, slots: Any) -> None:
        self.k[layer].zero_()
        self.v[layer].zero_()
        original(self, layer, k, v, slots)

    patch.setattr(PagedKVCache, "write", write)


def write_to_other_slots(change: Callable[[torch.Tensor], torch.Tensor]) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        original = PagedKVCache.write

        def write(self: PagedKVCache, layer: int, k: Any, v: Any, slots: torch.Tensor) -> None:
            original(self, layer, k, v, change(slots) % (self.num_blocks * self.block_size))

        patch.setattr(PagedKVCache, "write", write)

    return plant


def mask_by_block(patch: pytest.MonkeyPatch) -> None:
    """Whatever lies in the last block is seen, to its end: a stale tail once it is recycled."""

    def visible(query: torch.Tensor, key: torch.Tensor, window: int | None) -> torch.Tensor:
        mask = key // 4 <= query // 4
        return mask if window is None else mask & (key > query - window)

    patch.setattr(sdpa, "visible", visible)
    patch.setattr(reference, "visible", visible)


def mask_nothing_ahead(patch: pytest.MonkeyPatch) -> None:
    """A query also sees the token behind it."""
    original = interface.visible

    def visible(query: torch.Tensor, key: torch.Tensor, window: int | None) -> torch.Tensor:
        return original(query + 1, key, None if window is None else window + 1)

    patch.setattr(sdpa, "visible", visible)
    patch.setattr(reference, "visible", visible)


def heads_in_the_wrong_order(patch: pytest.MonkeyPatch) -> None:
    """Query head h reads KV head h % kv_heads, as if groups were interleaved."""

    def changed(q: Any, k: Any, v: Any, options: Any) -> tuple[Any, Any, Any]:
        num_heads, num_kv_heads = q.shape[1], k.shape[1]
        order = torch.arange(num_heads).view(-1, num_kv_heads).T.flatten()
        return q[:, order], k, v

    patch_attention(patch, changed)


def kv_of_the_previous_layer(patch: pytest.MonkeyPatch) -> None:
    gather = PagedKVCache.gather

    def gather_previous(self: Any, layer: int, table: Any, number: int) -> Any:
        return gather(self, max(0, layer - 1), table, number)

    patch.setattr(PagedKVCache, "gather", gather_previous)
    for backend in (sdpa.SdpaAttention, cpu.CpuAttention):
        original: Any = backend.__call__

        def call(
            self: Any,
            q: Any,
            k: Any,
            v: Any,
            layer: int,
            *args: Any,
            of: Any = original,
            **options: Any,
        ) -> Any:
            return of(self, q, k, v, max(0, layer - 1), *args, **options)

        patch.setattr(backend, "__call__", call)


def copy_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PagedKVCache, "copy_blocks", lambda self, pairs: None)


def swap_k_and_v(patch: pytest.MonkeyPatch) -> None:
    original = PagedKVCache.write
    patch.setattr(
        PagedKVCache, "write", lambda self, layer, k, v, s: original(self, layer, v, k, s)
    )


def reverse_a_long_table(batch: Batch) -> None:
    """Where a request has three blocks or more, two of them change places."""
    for s, length in enumerate(batch.context_lens):
        if length > 8:
            batch.block_tables[s, :2] = batch.block_tables[s, :2].flip(0)


def publish_too_early(patch: pytest.MonkeyPatch) -> None:
    """A block is found by its content one token before that token is computed."""
    from paged_engine.block_pool import BlockPool

    original = BlockPool.publish

    def publish(self: Any, table: Sequence[int], tokens: Sequence[int], computed: int) -> None:
        original(self, table, tokens, min(len(tokens), len(table) * self.block_size))

    patch.setattr(BlockPool, "publish", publish)


def logits_of_the_token_before(batch: Batch) -> None:
    batch.last_indices = (batch.last_indices - 1).clamp(min=0)


@dataclass(frozen=True)
class Fault:
    plant: Plant
    families: tuple[str, ...]
    probe_sees: bool = True  # a reader's model with this fault is refused at construction
    n: int = 1
    in_python: bool = (
        False  # in the masks of the backends that have them; C++ has faults of its own
    )
    # (tests/unit/test_cpu_attention.py)

    @property
    def backends(self) -> tuple[str, ...]:
        """Those that it reaches."""
        return ("sdpa", "reference") if self.in_python else ("cpu", "sdpa", "reference")


ALL = tuple(TINY_FAMILIES)
GROUPED = tuple(f for f in ALL if f not in ("gpt2", "opt"))
WINDOWED = ("mistral", "gemma2", "gemma3_text")

FAULTS: dict[str, Fault] = {
    "every position zero": Fault(model_positions(lambda p: p * 0), ALL),
    "positions one too late": Fault(
        # rope is relative: only learnt positions notice
        model_positions(lambda p: p + 1),
        ("gpt2", "opt"),
    ),
    "positions counted through the batch": Fault(
        lambda patch: patch_batch(patch, positions_in_the_batch), ALL
    ),
    "positions that begin anew with each chunk": Fault(
        lambda patch: patch_batch(patch, positions_from_the_chunk), ALL
    ),
    "the mask one position too late": Fault(
        lambda patch: patch_batch(patch, positions_one_late), ALL, in_python=True
    ),
    "the KV of the prompt lost": Fault(forget_the_prompt, ALL),
    "the window ignored": Fault(option("window", lambda w: None), WINDOWED),
    "the window one too wide": Fault(option("window", lambda w: w + 1), WINDOWED),
    "the window one too narrow": Fault(option("window", lambda w: w - 1), WINDOWED),
    "the soft cap dropped": Fault(option("soft_cap", lambda c: None), ("gemma2",)),
    "the soft cap doubled": Fault(option("soft_cap", lambda c: 2 * c), ("gemma2",)),
    "the scale lost": Fault(
        # OPT scales its queries itself and asks for a scale of one
        option("scale", lambda s: 1.0),
        tuple(f for f in ALL if f != "opt"),
    ),
    "the mask by block, so that a stale tail is seen": Fault(mask_by_block, ALL, in_python=True),
    "the next token seen": Fault(mask_nothing_ahead, ALL, in_python=True),
    "slots one too high": Fault(write_to_other_slots(lambda s: s + 1), ALL),
    "slots one too low": Fault(write_to_other_slots(lambda s: s - 1), ALL),
    "query heads with the wrong KV head": Fault(heads_in_the_wrong_order, GROUPED),
    "the KV of the previous layer": Fault(kv_of_the_previous_layer, ALL),
    "K and V swapped": Fault(swap_k_and_v, ALL),
    "blocks read in the wrong order": Fault(
        lambda patch: patch_batch(patch, reverse_a_long_table), ("gpt2", "llama"), n=1
    ),
    "copy on write skipped": Fault(copy_nothing, ALL, probe_sees=False, n=3),
    "blocks published before they are computed": Fault(
        publish_too_early, ("llama", "gemma2"), probe_sees=False
    ),
    "the logits of the token before": Fault(
        lambda patch: patch_batch(patch, logits_of_the_token_before), ALL
    ),
}
CASES = [
    pytest.param(
        fault,
        family,
        attention,
        id=f"{name}-{family}-{attention}",
        marks=[] if family in fault.families[:1] else pytest.mark.slow,
    )
    for name, fault in FAULTS.items()
    for family in fault.families
    for attention in fault.backends
]


@pytest.mark.parametrize("attention", ["cpu", "sdpa", "reference"])
@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("n", [1, 3])
def test_without_a_fault_the_same_crowd_passes(family: str, attention: str, n: int) -> None:
    serve(family, attention, probe=True, n=n)


@pytest.mark.parametrize(("fault", "family", "attention"), CASES)
def test_the_parity_check_sees_the_fault(
    fault: Fault, family: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_truth(family)  # the truth is told before the fault is planted
    fault.plant(monkeypatch)
    with pytest.raises(ParityError):
        serve(family, attention, probe=False, n=fault.n)


@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, attention) for name, fault in FAULTS.items() for attention in fault.backends],
)
def test_the_probe_refuses_what_it_can_see(
    name: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = FAULTS[name]
    truth = tiny_truth(fault.families[0])
    fault.plant(monkeypatch)
    config = EngineConfig(block_size=4, num_blocks=16)
    if not fault.probe_sees:
        ContinuousEngine(truth.model, config=config, attention=attention)
        return
    with pytest.raises(UnsupportedModelError, match="other logits packed and paged than alone"):
        ContinuousEngine(truth.model, config=config, attention=attention)
