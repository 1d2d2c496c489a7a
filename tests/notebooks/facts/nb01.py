"""What the tests know of notebook 01."""

# The first line of code of every cell that shows times.
TIMING_CELLS = ["lengths = [8, 16, 32, 64, 128, 256]"]

HEAD = """
import torch

def greedy_generate(model, prompt, max_tokens, eos_token_ids=()):
"""
LOOP = (
    HEAD
    + """
    known, new = list(prompt), []
    while len(new) < max_tokens:
        with torch.inference_mode():
            logits = model(torch.tensor([known]), use_cache=False).logits
        token = int(logits[0, -1].argmax())
        new.append(token)
        known.append(token)
        if token in eos_token_ids:
            break
    return new
"""
)


def loop(old: str, new: str) -> str:
    """The right loop with one thing changed."""
    assert LOOP.count(old) == 1
    return LOOP.replace(old, new)


def counted(expression: str, name: str = "forward_tokens") -> str:
    """A function of two numbers."""
    return f"def {name}(num_prompt, num_new):\n    return {expression}\n"


WRONG = {
    "01.1": {
        "reads the first row": loop("logits[0, -1]", "logits[0, 0]"),
        "reads the row before the last": loop("logits[0, -1]", "logits[0, -2]"),
        "never appends the new token to what is known": loop("        known.append(token)\n", ""),
        "appends to the caller's prompt": loop("list(prompt), []", "prompt, []"),
        "knows no end token": loop("if token in eos_token_ids:", "if False:"),
        "leaves the end token out": loop(
            "        new.append(token)\n        known.append(token)\n"
            "        if token in eos_token_ids:\n            break\n",
            "        if token in eos_token_ids:\n            break\n"
            "        new.append(token)\n        known.append(token)\n",
        ),
        "one token too many": loop("< max_tokens", "<= max_tokens"),
        "one token too few": loop("< max_tokens", "< max_tokens - 1"),
        "an end token in the prompt ends it": loop(
            "if token in eos_token_ids:", "if set(known) & set(eos_token_ids):"
        ),
        "an end token at the end of the prompt ends it": loop(
            "while len(new) < max_tokens:",
            "while len(new) < max_tokens and known[-1] not in eos_token_ids:",
        ),
        "gives the prompt back as well": loop("return new", "return known"),
        "gives tensors": loop("int(logits[0, -1].argmax())", "logits[0, -1].argmax()"),
        "gives one tensor": loop("return new", "return torch.tensor(new)"),
        "gives nothing back": loop("    return new\n", ""),
        "one more pass for nothing": loop(
            "    return new", "    model(torch.tensor([known]))\n    return new"
        ),
        "all rows of one pass": HEAD
        + "    logits = model(torch.tensor([list(prompt)])).logits\n"
        + "    return logits[0].argmax(-1).tolist()[:max_tokens]\n",
        "lets transformers do it": HEAD
        + "    ids = model.generate(torch.tensor([prompt]), max_new_tokens=max_tokens)\n"
        + "    return ids[0, len(prompt):].tolist()\n",
        "forgets the prompt after the first pass": loop(
            "known.append(token)", "known = new.copy()"
        ),
        "keeps keys and values": HEAD
        + "    known, new, cache = list(prompt), [], None\n"
        + "    while len(new) < max_tokens:\n"
        + "        out = model(torch.tensor([known]), past_key_values=cache, use_cache=True)\n"
        + "        cache, token = out.past_key_values, int(out.logits[0, -1].argmax())\n"
        + "        new.append(token)\n        known = [token]\n"
        + "        if token in eos_token_ids:\n            break\n"
        + "    return new\n",
        "never ends": loop("while len(new) < max_tokens", "while True"),
        "never ends and calls nothing": loop(
            "    known, new = list(prompt), []", "    new = []\n    while not new:\n        pass"
        ),
        "a tensor of one dimension": loop("torch.tensor([known])", "torch.tensor(known)"),
        "a list in place of a tensor": loop("torch.tensor([known])", "[known]"),
    },
    "01.2": {
        "as if nothing grew": counted("num_prompt * num_new"),
        "each token once": counted("num_prompt + num_new - 1"),
        "the first pass has a new token already": counted(
            "sum(num_prompt + i for i in range(1, num_new + 1))"
        ),
        "a pass after the last token": counted("sum(num_prompt + i for i in range(num_new + 1))"),
        "all as long as the last": counted("(num_prompt + num_new - 1) * num_new"),
        "a float": counted("num_prompt * num_new + num_new * (num_new - 1) / 2"),
        "nothing": counted("None or print(end='')"),
    },
    "01.3": {
        "the last one too": counted("num_prompt + num_new", "needed_tokens"),
        "the new ones alone": counted("num_new", "needed_tokens"),
        "the prompt alone": counted("num_prompt", "needed_tokens"),
        "two too few": counted("num_prompt + num_new - 2", "needed_tokens"),
        "a float": counted("(num_prompt + num_new - 1) / 1", "needed_tokens"),
    },
}
