"""The model stays its owner's: usable beside the engine, and by several engines."""

from __future__ import annotations

import pytest

from paged_engine import ContinuousEngine, EngineConfig, SamplingParams
from paged_engine.models import TINY_FAMILIES, tiny
from paged_engine.models.transformers_runner import ATTENTION_NAME, TransformersRunner
from tests.helpers.parity import (
    Observed,
    Tally,
    Truth,
    assert_parity,
    generate,
    prompt_of,
    tiny_truth,
)

PARAMS = SamplingParams(max_tokens=8)
CONFIG = EngineConfig(block_size=4, num_blocks=64, max_num_batched_tokens=16)
PROMPTS = [prompt_of(length, 6) for length in (7, 21, 12)]


def implementations(model: object) -> list[str]:
    runner = TransformersRunner(model, lambda *_, **__: None)  # type: ignore[arg-type]
    return [config._attn_implementation for config in runner._configs]


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_generate_works_between_steps_and_disturbs_none(family: str, tally: Tally) -> None:
    model = tiny(family)
    truth = Truth(model)
    before = implementations(model)
    wanted = generate(model, PROMPTS[1], 8)
    observed = Observed(ContinuousEngine(model, config=CONFIG))
    assert implementations(model) == before
    asked = {observed.engine.add_request(p, PARAMS): PARAMS for p in PROMPTS}

    def between(step: int) -> None:
        assert implementations(model) == before and ATTENTION_NAME not in before
        if step % 3 == 1:
            assert generate(model, PROMPTS[1], 8) == wanted

    observed.run(between)
    assert generate(model, PROMPTS[1], 8) == wanted
    assert_parity(observed, truth, asked, tally)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "mistral", "opt"])
def test_whichever_attention_the_owner_chose_is_there_again_after_a_step(
    family: str, implementation: str, tally: Tally
) -> None:
    model = tiny(family)
    model.set_attn_implementation(implementation)
    observed = Observed(ContinuousEngine(model, config=CONFIG))
    asked = {observed.engine.add_request(p, PARAMS): PARAMS for p in PROMPTS}
    observed.run(lambda _: None)
    assert set(implementations(model)) == {implementation}
    assert_parity(observed, Truth(model), asked, tally)


def test_the_owners_attention_is_back_after_a_step_that_failed() -> None:
    model = tiny()
    fails = False

    def attend(*args: object, **options: object) -> object:
        if fails:
            raise RuntimeError("as planned")
        return engine_attend(*args, **options)

    from paged_engine.attention import reference_attention as engine_attend

    engine = ContinuousEngine(model, config=CONFIG, attention=attend)  # type: ignore[arg-type]
    engine.add_request(PROMPTS[0], PARAMS, request_id="r")
    engine.step()
    fails = True
    with pytest.raises(RuntimeError, match="as planned"):
        engine.step()
    assert set(implementations(model)) == {"sdpa"}
    assert generate(model, PROMPTS[1], 8) == tiny_truth("llama").greedy(PROMPTS[1], 8)
    fails = False
    observed = Observed(engine)
    observed.run()
    assert list(observed.final["r"].token_ids) == tiny_truth("llama").greedy(PROMPTS[0], 8)


@pytest.mark.parametrize("families", [("llama", None), ("llama", "gemma2"), ("gpt2", "opt")])
def test_two_engines_take_turns_on_one_model_or_two(
    families: tuple[str, str | None], tally: Tally
) -> None:
    truths = [tiny_truth(families[0]), tiny_truth(families[1] or families[0])]
    configs = [CONFIG, EngineConfig(block_size=3, num_blocks=40, max_num_batched_tokens=5)]
    both = [
        Observed(ContinuousEngine(truth.model, config=config))
        for truth, config in zip(truths, configs, strict=True)
    ]
    for observed in both:
        for i, prompt in enumerate(PROMPTS):
            observed.engine.add_request(prompt, PARAMS, request_id=f"r{i}")
    while any(observed.engine.has_unfinished for observed in both):
        for observed in both:
            observed.step()
    for observed, truth in zip(both, truths, strict=True):
        assert_parity(observed, truth, {f"r{i}": PARAMS for i in range(3)}, tally)


def test_a_model_in_training_mode_is_served_without_dropout(tally: Tally) -> None:
    model = tiny("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5).train()
    observed = Observed(ContinuousEngine(model, config=CONFIG))
    asked = {observed.engine.add_request(p, PARAMS): PARAMS for p in PROMPTS}
    observed.run()
    assert_parity(observed, Truth(model), asked, tally)


def test_our_attention_outside_of_a_step_says_what_to_do() -> None:
    from paged_engine.errors import UnsupportedModelError

    model = tiny()
    model.set_attn_implementation(ATTENTION_NAME)
    with pytest.raises(UnsupportedModelError, match="only inside"):
        generate(model, PROMPTS[0], 1)
