"""Notebook 03: what shows times, and answers that are wrong."""

TIMING_CELLS = ["import os"]

_PAD = """
def pad_left(prompts, pad_id):
    width = {width}
    ids, mask = [], []
    for prompt in prompts:
        missing = width - len(prompt)
        ids.append({row})
        mask.append({marks})
    return {result}
"""


def _pad(
    width: str = "max(map(len, prompts))",
    row: str = "[pad_id] * missing + prompt",
    marks: str = "[0] * missing + [1] * len(prompt)",
    result: str = "ids, mask",
) -> str:
    return _PAD.format(width=width, row=row, marks=marks, result=result)


_PLACES = """
def positions(mask):
    return {result}
"""

_WASTE = """
def wasted_slot_steps(lengths, batch_size):
    wasted = 0
    for start in range(0, len(lengths), batch_size):
        batch = lengths[start : start + batch_size]
        wasted += {wasted}
    return wasted
"""

_BATCHES = """
def static_batches(model, prompts, max_tokens, batch_size, eos_token_ids=()):
    answers = []
    for start in range(0, len(prompts), batch_size):
        limits = max_tokens[start : start + batch_size]
        ids, mask = pad_left(prompts[start : start + batch_size], PAD)
        new, done, cache = [[] for _ in ids], [False] * len(ids), None
        while {going}:
            logits, cache = forward(model, ids, {mask}, {places}, cache)
            ids = [[int(row.argmax())] for row in logits]
            mask = {grown}
            for i, (token,) in enumerate(ids):
                if {kept}:
                    new[i].append(token)
                    done[i] = {end}
        answers += new
    return answers
"""


def _batches(
    going: str = "not all(done)",
    mask: str = "mask",
    places: str = "positions(mask)",
    grown: str = "[[*row, 1] for row in mask]",
    kept: str = "not done[i]",
    end: str = "len(new[i]) == limits[i] or token in eos_token_ids",
) -> str:
    return _BATCHES.format(going=going, mask=mask, places=places, grown=grown, kept=kept, end=end)


WRONG = {
    "03.1": {
        "pads on the right": _pad(row="prompt + [pad_id] * missing"),
        "pads left, but the mask as for the right": _pad(marks="[1] * len(prompt) + [0] * missing"),
        "the mask made from the ids": _pad(marks="[int(t != pad_id) for t in ids[-1]]"),
        "the mask upside down": _pad(marks="[1] * missing + [0] * len(prompt)"),
        "as wide as the first prompt": _pad(width="len(prompts[0])"),
        "one column too many": _pad(width="max(map(len, prompts)) + 1"),
        "always padded with 0": _pad(row="[0] * missing + prompt"),
        "ids only": _pad(result="ids"),
        "an exception": _pad(width="max(prompts)"),
        "the prompts themselves grow": """
def pad_left(prompts, pad_id):
    width = max(map(len, prompts))
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    for prompt in prompts:
        while len(prompt) < width:
            prompt.insert(0, pad_id)
    return prompts, mask
""",
        "a loop without end": """
def pad_left(prompts, pad_id):
    width = max(map(len, prompts))
    ids = [list(prompt) for prompt in prompts]
    while any(len(row) < width for row in ids):
        ids = [list(prompt) for prompt in prompts]
    return ids, ids
""",
    },
    "03.2": {
        "pads are counted": _PLACES.format(result="[list(range(len(row))) for row in mask]"),
        "it begins at 1": _PLACES.format(
            result="[[sum(row[: i + 1]) for i in range(len(row))] for row in mask]"
        ),
        "-1 under a pad": _PLACES.format(
            result="[[sum(row[: i + 1]) - 1 for i in range(len(row))] for row in mask]"
        ),
        "only the tokens get one": _PLACES.format(result="[list(range(sum(row))) for row in mask]"),
        "the first row's for all": _PLACES.format(
            result="[[max(0, i - mask[0].count(0)) for i in range(len(r))] for r in mask]"
        ),
        "one row only": _PLACES.format(result="list(range(len(mask[0])))"),
        "the mask itself is changed": """
def positions(mask):
    for row in mask:
        pads = row.count(0)
        for i in range(len(row)):
            row[i] = max(0, i - pads)
    return mask
""",
    },
    "03.3": {
        "all slot-steps": _WASTE.format(wasted="max(batch) * len(batch)"),
        "empty seats count": _WASTE.format(wasted="max(batch) * batch_size - sum(batch)"),
        "the longest of all": _WASTE.format(wasted="max(lengths) * len(batch) - sum(batch)"),
        "up to the shortest": _WASTE.format(wasted="sum(batch) - min(batch) * len(batch)"),
        "one too few for each": _WASTE.format(
            wasted="sum(max(0, max(batch) - n - 1) for n in batch)"
        ),
        "a share": _WASTE.format(wasted="1 - sum(batch) / (max(batch) * len(batch))"),
        "sorted first": """
def wasted_slot_steps(lengths, batch_size):
    lengths, wasted = sorted(lengths), 0
    for start in range(0, len(lengths), batch_size):
        batch = lengths[start : start + batch_size]
        wasted += max(batch) * len(batch) - sum(batch)
    return wasted
""",
        "nothing is returned": """
def wasted_slot_steps(lengths, batch_size):
    print(max(lengths) * batch_size - sum(lengths))
""",
    },
    "03.4": {
        "no mask": _batches(mask="None"),
        "the mask sees pads": _batches(mask="[[1] * len(row) for row in mask]"),
        "no positions": _batches(places="None"),
        "positions that count pads": _batches(places="[list(range(len(row))) for row in mask]"),
        "the mask does not grow": _batches(
            mask="mask + [] if cache is None else [r[:-1] + [0] for r in mask]"
        ),
        "what a finished row says is kept": _batches(
            kept="True", end="done[i] or len(new[i]) == limits[i] or token in eos_token_ids"
        ),
        "ends with the first member": _batches(going="not any(done)"),
        "the end token does not end": _batches(end="len(new[i]) == limits[i]"),
        "one token too many": _batches(end="len(new[i]) > limits[i] or token in eos_token_ids"),
        "never ends": _batches(end="False"),
        "a batch runs to its largest limit": _batches().replace(
            "while not all(done)", "for _ in range(max(limits))"
        ),
        "everybody at once": _batches()
        .replace("batch_size):\n        limits", "99):\n        limits")
        .replace("start + batch_size", "start + 99"),
        "no cache": """
def static_batches(model, prompts, max_tokens, batch_size, eos_token_ids=()):
    answers = []
    for start in range(0, len(prompts), batch_size):
        limits = max_tokens[start : start + batch_size]
        known = [list(p) for p in prompts[start : start + batch_size]]
        new, done = [[] for _ in known], [False] * len(known)
        while not all(done):
            ids, mask = pad_left(known, PAD)
            logits, _ = forward(model, ids, mask, positions(mask))
            for i, row in enumerate(logits):
                token = int(row.argmax())
                known[i].append(token)
                if not done[i]:
                    new[i].append(token)
                    done[i] = len(new[i]) == limits[i] or token in eos_token_ids
        answers += new
    return answers
""",
        "sorted by length and left so": """
def static_batches(model, prompts, max_tokens, batch_size, eos_token_ids=()):
    answers = []
    for prompt, limit in sorted(zip(prompts, max_tokens), key=lambda pair: pair[1]):
        new, ids, cache, mask = [], [prompt], None, [[1] * len(prompt)]
        while len(new) < limit and not set(new) & set(eos_token_ids):
            logits, cache = forward(model, ids, mask, positions(mask), cache)
            new.append(int(logits[0].argmax()))
            ids, mask = [[new[-1]]], [[*mask[0], 1]]
        answers.append(new)
    return answers
""",
        "one after the other": """
def static_batches(model, prompts, max_tokens, batch_size, eos_token_ids=()):
    answers = []
    for prompt, limit in zip(prompts, max_tokens):
        new, ids, cache, mask = [], [prompt], None, [[1] * len(prompt)]
        while len(new) < limit and not set(new) & set(eos_token_ids):
            logits, cache = forward(model, ids, mask, positions(mask), cache)
            new.append(int(logits[0].argmax()))
            ids, mask = [[new[-1]]], [[*mask[0], 1]]
        answers.append(new)
    return answers
""",
    },
}
