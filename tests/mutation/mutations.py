"""The faults that are planted, each with the test that must notice it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One change to one file of the package.

    `old` occurs there exactly once; `test` fails when `new` stands in its place.
    """

    name: str
    file: str
    old: str
    new: str
    test: str

    @property
    def node_id(self) -> str:
        return f"tests/unit/test_{self.test}"


MUTATIONS = [
    # ------------------------------------------------------------------ block_pool
    Mutation(
        "a hit may cover the whole prompt",
        "block_pool.py",
        "num_full = (len(token_ids) - 1) // self.block_size",
        "num_full = len(token_ids) // self.block_size",
        "block_pool.py::test_a_hit_leaves_at_least_one_token_to_compute",
    ),
    Mutation(
        "a lookup trusts the hash",
        "block_pool.py",
        "if entry is None or not entry.matches(parent, tokens):",
        "if entry is None:",
        "block_pool.py::test_prefixes_with_one_hash_are_told_apart",
    ),
    Mutation(
        "a prefix is its last block",
        "block_pool.py",
        "return self.parent is parent and self.tokens == tokens",
        "return self.tokens == tokens",
        "block_pool.py::test_the_same_tokens_after_another_parent_with_the_same_hash_are_no_hit",
    ),
    Mutation(
        "hits that must be pinned count as free",
        "block_pool.py",
        "if n > self.num_free_after(hits):",
        "if n > len(self._free):",
        "block_pool.py::test_an_allocation_that_fails_does_not_pin_its_hits",
    ),
    Mutation(
        "as many as are free is too many",
        "block_pool.py",
        "if n > self.num_free_after(hits):",
        "if n >= self.num_free_after(hits) and n:",
        "block_pool.py::test_a_new_pool_hands_out_every_block_once",
    ),
    Mutation(
        "a block that is handed out can still be found",
        "block_pool.py",
        "        for block_id in new:\n            self._forget(block_id)\n",
        "        for block_id in new:\n",
        "block_pool.py::test_an_evicted_block_cannot_be_found",
    ),
    Mutation(
        "the youngest is evicted first",
        "block_pool.py",
        "new = [self._free.popitem(last=False)[0] for _ in range(n)]",
        "new = [self._free.popitem(last=True)[0] for _ in range(n)]",
        "block_pool.py::test_the_least_recently_used_prefix_is_evicted_first",
    ),
    Mutation(
        "the beginning of a sequence is evicted first",
        "block_pool.py",
        "for block_id in reversed(block_ids):",
        "for block_id in block_ids:",
        "block_pool.py::test_the_end_of_a_sequence_is_evicted_before_its_beginning",
    ),
    Mutation(
        "sharing is not counted",
        "block_pool.py",
        "            self._free.pop(block_id, None)\n"
        "            self.blocks[block_id].ref_cnt += 1",
        "            self._free.pop(block_id, None)\n            self.blocks[block_id].ref_cnt = 1",
        "block_pool.py::test_a_shared_block_is_free_when_the_last_holder_lets_go",
    ),
    Mutation(
        "a hit stays in the free list",
        "block_pool.py",
        "            self._free.pop(block_id, None)\n",
        "",
        "block_pool.py::test_using_a_prefix_again_makes_it_young",
    ),
    Mutation(
        "one block twice in one call goes unnoticed",
        "block_pool.py",
        "for block_id, times in Counter(block_ids).items():",
        "for block_id, times in dict.fromkeys(block_ids, 1).items():",
        "block_pool.py::test_a_wrong_free_raises_and_changes_nothing",
    ),
    Mutation(
        "negative ids count from the end",
        "block_pool.py",
        "if not 0 <= block_id < self.num_blocks:",
        "if block_id >= self.num_blocks:",
        "block_pool.py::test_a_wrong_free_raises_and_changes_nothing",
    ),
    Mutation(
        "a half-filled block is published",
        "block_pool.py",
        "num_full = num_computed_tokens // self.block_size",
        "num_full = -(-num_computed_tokens // self.block_size)",
        "block_pool.py::test_only_full_computed_blocks_are_published",
    ),
    Mutation(
        "an evicted chain is taken up again",
        "block_pool.py",
        "while first > 0 and not self._is_findable(self.blocks[block_table[first - 1]]):",
        "while first > 0 and self.blocks[block_table[first - 1]].prefix is None:",
        "block_pool.py::test_two_that_outlive_their_evicted_original_agree_on_one_chain",
    ),
    Mutation(
        "a shared block is wiped with its last owner but one",
        "block_pool.py",
        "if self.blocks[block_id].ref_cnt == 1:",
        "if self.blocks[block_id].ref_cnt >= 1:",
        "block_pool.py::test_discarding_spares_what_others_hold",
    ),
    Mutation(
        "blocks above the limit come back as free",
        "block_pool.py",
        "        if self._must_withhold() > 0:\n            self._forget(block.block_id)",
        "        if self._must_withhold() > self.num_blocks:\n"
        "            self._forget(block.block_id)",
        "block_pool.py::test_used_blocks_above_the_limit_are_withheld_as_they_come_back",
    ),
    Mutation(
        "a smaller limit leaves idle blocks where they are",
        "block_pool.py",
        "while self._free and self._must_withhold() > 0:",
        "while self._free and self._must_withhold() > 1:",
        "block_pool.py::test_a_smaller_limit_withholds_idle_blocks_at_once",
    ),
    # ------------------------------------------------------------------ scheduler
    Mutation(
        "nothing is left for those behind",
        "scheduler.py",
        "behind = len(self.running) - place - 1",
        "behind = 0",
        "scheduler.py::test_a_long_prompt_does_not_silence_those_that_decode_behind_it",
    ),
    Mutation(
        "the budget is not spent",
        "scheduler.py",
        "            output.scheduled[request] = num_tokens\n            budget -= num_tokens\n",
        "            output.scheduled[request] = num_tokens\n",
        "scheduler.py::test_prefill_decode_and_chunks_are_one_rule",
    ),
    Mutation(
        "tokens are planned before the hit",
        "scheduler.py",
        "num_tokens = min(request.num_tokens - start, budget)",
        "num_tokens = min(request.num_tokens, budget)",
        "scheduler.py::test_tokens_are_counted_after_the_hit",
    ),
    Mutation(
        "one seat too many",
        "scheduler.py",
        "while budget and len(self.waiting) and len(self.running) < self.max_num_seqs:",
        "while budget and len(self.waiting) and len(self.running) <= self.max_num_seqs:",
        "scheduler.py::test_max_num_seqs_holds_also_while_prompts_are_chunked",
    ),
    Mutation(
        "a lower max_num_seqs is for new requests only",
        "scheduler.py",
        "while len(self.running) > self.max_num_seqs:",
        "while len(self.running) > max(self.max_num_seqs, 99):",
        "scheduler.py::test_a_lower_max_num_seqs_holds_from_the_next_step_on",
    ),
    Mutation(
        "the first in line is preempted",
        "scheduler.py",
        "            victim = self.running[-1]\n",
        "            victim = self.running[0]\n",
        "scheduler.py::test_the_last_in_line_is_preempted_and_loses_everything_but_its_tokens",
    ),
    Mutation(
        "preempted, but the blocks are kept",
        "scheduler.py",
        "        self.pool.free(request.block_table)\n        request.block_table.clear()\n"
        "        request.num_computed_tokens",
        "        request.num_computed_tokens",
        "scheduler.py::test_the_last_in_line_is_preempted_and_loses_everything_but_its_tokens",
    ),
    Mutation(
        "preempted, but the tokens count as computed",
        "scheduler.py",
        "        request.num_computed_tokens = request.num_cached_tokens = 0\n"
        "        request.num_preemptions += 1",
        "        request.num_preemptions += 1",
        "scheduler.py::test_the_last_in_line_is_preempted_and_loses_everything_but_its_tokens",
    ),
    Mutation(
        "admission in a step that preempts",
        "scheduler.py",
        "        if not output.preempted:\n            self._admit(output, budget)",
        "        self._admit(output, budget)",
        "scheduler.py::test_nobody_is_admitted_in_a_step_that_preempts",
    ),
    Mutation(
        "admission does not think of the next token",
        "scheduler.py",
        "missing = self._blocks_for(request.num_tokens + 1) - len(hits)",
        "missing = self._blocks_for(request.num_tokens - 1) - len(hits)",
        "scheduler.py::test_a_request_waits_until_all_it_knows_fits_beside_what_others_will_need",
    ),
    Mutation(
        "admission does not think of those that run",
        "scheduler.py",
        "if self.running and self._num_free_after(hits) < missing + reserved:",
        "if self.running and self._num_free_after(hits) < missing:",
        "scheduler.py::test_a_request_waits_until_all_it_knows_fits_beside_what_others_will_need",
    ),
    Mutation(
        "whoever fills the pool waits for ever",
        "scheduler.py",
        "if self.running and self._num_free_after(hits) < missing + reserved:",
        "if self._num_free_after(hits) < missing + reserved:",
        "scheduler.py::test_a_request_that_fills_the_whole_pool_is_served",
    ),
    Mutation(
        "what never fits is let in",
        "scheduler.py",
        "check_servable(request.num_prompt_tokens, request.max_tokens, self.max_servable_tokens)",
        "pass",
        "scheduler.py::test_a_request_that_can_never_fit_is_refused_at_once",
    ),
    Mutation(
        "priority is ignored",
        "scheduler.py",
        'rank = request.priority if self.policy == "priority" else 0',
        "rank = 0",
        "scheduler.py::test_by_priority_the_lowest_goes_first_and_equals_by_arrival",
    ),
    Mutation(
        "published before it is computed",
        "scheduler.py",
        "request.block_table, request.token_ids, request.num_computed_tokens\n",
        "request.block_table, request.token_ids, len(request.block_table) * self.block_size\n",
        "scheduler.py::test_half_a_prompt_is_published_as_far_as_it_is_computed",
    ),
    Mutation(
        "an abort in flight is not noticed",
        "scheduler.py",
        "            if request.status.is_finished:  # aborted while the batch was in flight\n"
        "                continue\n",
        "",
        "scheduler.py::test_an_abort_while_the_batch_is_in_flight_frees_once",
    ),
    Mutation(
        "who finishes keeps the blocks",
        "scheduler.py",
        "                    finished.append(request)\n"
        "                    self._release(request)\n",
        "                    finished.append(request)\n",
        "scheduler.py::test_one_that_finishes_frees_its_blocks_and_is_reported",
    ),
    Mutation(
        "a rollback keeps the new blocks",
        "scheduler.py",
        "            self.pool.free(request.block_table[kept:])\n"
        "            del request.block_table[kept:]\n",
        "            del request.block_table[kept:]\n",
        "scheduler.py::test_a_step_that_is_rolled_back_leaves_everything_as_it_was",
    ),
    Mutation(
        "a rollback forgets who was preempted",
        "scheduler.py",
        "self._to_waiting(request, output.admitted[request])",
        "self._to_waiting(request, RequestStatus.WAITING)",
        "scheduler.py::test_what_was_preempted_waits_as_such_after_a_rollback",
    ),
    Mutation(
        "a sample shares the block that both write to",
        "scheduler.py",
        "            output.blocks_to_copy.append((copy_from, new[0]))\n",
        "            new[0] = copy_from\n",
        "scheduler.py::test_samples_wait_for_the_prompt_of_the_first_and_copy_its_last_block",
    ),
    Mutation(
        "a sample does not wait for the prompt",
        "scheduler.py",
        "            if self._waits_for_fork(request):\n",
        "            if False:\n",
        "scheduler.py::test_samples_wait_for_the_prompt_of_the_first_and_copy_its_last_block",
    ),
    Mutation(
        "who left the line is served all the same",
        "waiting_queue.py",
        "        while self._heap[0][1] not in self._members:\n"
        "            heapq.heappop(self._heap)\n",
        "",
        "scheduler.py::test_the_line_skips_who_left_it",
    ),
    Mutation(
        "gaps in the line stay",
        "waiting_queue.py",
        "if len(self._heap) > 2 * len(self._members) + 32:",
        "if not self._heap:",
        "scheduler.py::test_gaps_in_the_line_do_not_pile_up",
    ),
    # ------------------------------------------------------------------ batch
    Mutation(
        "positions count from the chunk's beginning",
        "batch.py",
        "np.repeat(starts - (ends - lengths), lengths)",
        "np.repeat(-(ends - lengths), lengths)",
        "batch.py::test_a_prompt_a_chunk_and_a_decode_lie_one_after_the_other",
    ),
    Mutation(
        "the block of the position before",
        "batch.py",
        "tables[rows, positions // block_size]",
        "tables[rows, np.maximum(positions - 1, 0) // block_size]",
        "batch.py::test_a_prompt_a_chunk_and_a_decode_lie_one_after_the_other",
    ),
    Mutation(
        "every token lands in the table of the first",
        "batch.py",
        "tables[rows, positions // block_size]",
        "tables[0 * rows, positions // block_size]",
        "batch.py::test_a_prompt_a_chunk_and_a_decode_lie_one_after_the_other",
    ),
    Mutation(
        "logits of the token after",
        "batch.py",
        "last_indices=to_device(ends - 1)",
        "last_indices=to_device(np.minimum(ends, ends[-1] - 1))",
        "batch.py::test_a_prompt_a_chunk_and_a_decode_lie_one_after_the_other",
    ),
    Mutation(
        "the cache is said to be shorter than it is",
        "batch.py",
        "context_lens=(starts + lengths).tolist()",
        "context_lens=starts.tolist()",
        "batch.py::test_a_prompt_a_chunk_and_a_decode_lie_one_after_the_other",
    ),
    Mutation(
        "a table that is one block short is let through",
        "batch.py",
        "if end > len(request.block_table) * block_size:",
        "if end > (len(request.block_table) + 1) * block_size:",
        "batch.py::test_a_request_has_blocks_for_what_it_computes",
    ),
    # ------------------------------------------------------------------ sampler
    Mutation(
        "top-p drops the token that crosses p",
        "sampler.py",
        "before = weights.cumsum(dim=-1) - weights",
        "before = weights.cumsum(dim=-1)",
        "sampler.py::test_filters_keep_exactly_these",
    ),
    Mutation(
        "top-k keeps one more",
        "sampler.py",
        "by_rank = rank < top_k",
        "by_rank = rank <= top_k",
        "sampler.py::test_filters_keep_exactly_these",
    ),
    Mutation(
        "top-p is a share of everything, also after top-k",
        "sampler.py",
        "keep = by_rank & (before < top_p * total)",
        "keep = by_rank & (before < top_p)",
        "sampler.py::test_filters_keep_exactly_these",
    ),
    Mutation(
        "min-p is a probability of its own",
        "sampler.py",
        "(weights >= min_p * weights[:, :1])",
        "(weights >= min_p)",
        "sampler.py::test_filters_keep_exactly_these",
    ),
    Mutation(
        "nothing lies beyond the candidates",
        "sampler.py",
        "if rest := [s for s, complete in enumerate(is_complete.tolist()) if not complete]:",
        "if rest := []:",
        "sampler.py::test_a_flat_distribution_reaches_beyond_the_candidates",
    ),
    Mutation(
        "a large top-k is measured by the candidates",
        "sampler.py",
        "torch.where(top_k[:, 0] < vocab_size, top_k[:, 0] <= num_candidates, ~keep[:, -1])",
        "~keep[:, -1] | (top_k[:, 0] <= num_candidates)",
        "sampler.py::test_a_top_k_beyond_the_candidates_is_the_total_of_top_p",
    ),
    Mutation(
        "all positions draw the same",
        "sampler.py",
        "keyed_uniform(r.seed, r.sample_index, r.num_output_tokens, _SAMPLING_STREAM)",
        "keyed_uniform(r.seed, r.sample_index, 0, _SAMPLING_STREAM)",
        "sampler.py::test_seeds_samples_and_positions_change_the_draw",
    ),
    Mutation(
        "all samples draw the same",
        "sampler.py",
        "keyed_uniform(r.seed, r.sample_index, r.num_output_tokens, _SAMPLING_STREAM)",
        "keyed_uniform(r.seed, 0, r.num_output_tokens, _SAMPLING_STREAM)",
        "sampler.py::test_seeds_samples_and_positions_change_the_draw",
    ),
    Mutation(
        "the draw depends on the place in the batch",
        "sampler.py",
        "        keyed_uniform(r.seed, r.sample_index, r.num_output_tokens, _SAMPLING_STREAM)\n"
        "        for r in requests",
        "        keyed_uniform(r.seed, r.sample_index, r.num_output_tokens + s, _SAMPLING_STREAM)\n"
        "        for s, r in enumerate(requests)",
        "sampler.py::test_a_draw_depends_on_the_key_alone",
    ),
    Mutation(
        "temperature multiplies",
        "sampler.py",
        "torch.softmax((logits / temperature[:, None]).double(), dim=-1)",
        "torch.softmax((logits * temperature[:, None]).double(), dim=-1)",
        "sampler.py::test_draws_follow_the_distribution",
    ),
    Mutation(
        "negative logits are divided by the repetition penalty too",
        "sampler.py",
        "torch.where(logits > 0, logits / repetition, logits * repetition)",
        "logits / repetition",
        "sampler.py::test_penalties_equal_the_reference",
    ),
    Mutation(
        "presence counts how often",
        "sampler.py",
        "* (in_output > 0)",
        "* in_output",
        "sampler.py::test_penalties_equal_the_reference",
    ),
    Mutation(
        "one more token before a stop",
        "sampler.py",
        "if r.num_output_tokens < r.params.min_tokens\n",
        "if r.num_output_tokens <= r.params.min_tokens\n",
        "sampler.py::test_no_stop_token_before_min_tokens",
    ),
    Mutation(
        "a token without probability at the edge",
        "sampler.py",
        "torch.searchsorted(cumulative, target, right=True)",
        "torch.searchsorted(cumulative, target, right=False)",
        "sampler.py::test_the_smallest_and_the_largest_draw_stay_inside",
    ),
    Mutation(
        "log-probabilities after penalties",
        "sampler.py",
        "logprobs = _logprobs(raw, requests, token_ids)",
        "logprobs = _logprobs(adjusted, requests, token_ids)",
        "sampler.py::test_logprobs_are_those_of_the_model_itself",
    ),
]


@dataclass(frozen=True)
class Equivalent:
    """A change that no test can notice, because it changes nothing."""

    file: str
    old: str
    new: str
    reason: str


EQUIVALENT = [
    Equivalent(
        "sampler.py",
        "keep[:, 0] = True",
        "pass",
        "the most likely token has no mass before it and top_p, total and 1 - min_p are not "
        "negative, so every filter keeps it already; the line says so to the reader",
    ),
    Equivalent(
        "scheduler.py",
        "if budget == 0 or place >= len(self.running):",
        "if budget <= 0 or place >= len(self.running):",
        "the budget is never negative: nobody gets more than is left of it",
    ),
]
