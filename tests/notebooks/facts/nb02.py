"""What the tests know of notebook 02."""

# The first line of code of every cell that shows times.
TIMING_CELLS = ["lengths = [16, 48, 128]"]

_CACHE = """
class KVCache:
    def __init__(self, num_layers):
        self.keys = [None] * num_layers
        self.values = [None] * num_layers

    def append(self, layer, k, v):
        {append}
        return self.keys[layer], self.values[layer]

    def join(self, layer, k, v, dim=1):
        old = self.keys[layer] is not None
        self.keys[layer] = torch.cat([self.keys[layer], k], dim) if old else k
        self.values[layer] = torch.cat([self.values[layer], v], dim) if old else v

    @property
    def num_tokens(self):
        return {num_tokens}

    @property
    def num_bytes(self):
        return {num_bytes}
"""


def _cache(
    append: str = "self.join(layer, k, v)",
    num_tokens: str = "0 if self.keys[0] is None else self.keys[0].shape[1]",
    num_bytes: str = "sum(x.nbytes for x in self.keys + self.values if x is not None)",
) -> str:
    return _CACHE.format(append=append, num_tokens=num_tokens, num_bytes=num_bytes)


_NEWEST_FIRST = """if self.keys[layer] is None:
            self.join(layer, k, v)
        else:
            self.keys[layer] = torch.cat([k, self.keys[layer]], 1)
            self.values[layer] = torch.cat([v, self.values[layer]], 1)"""
_SHARED = (
    _cache()
    .replace("class KVCache:", "class KVCache:\n    keys = [None] * 9\n    values = [None] * 9\n")
    .replace("self.keys = [None] * num_layers", "pass")
    .replace("        self.values = [None] * num_layers\n", "")
)


def _attend(
    spread: str = "repeat_interleave(group, dim=0)",
    scale: str = "/ q.shape[1] ** 0.5",
    weights: str = "torch.softmax(scores, dim=-1)",
    before: str = "pass",
    result: str = "(weights[:, None, :] @ v)[:, 0]",
) -> str:
    return f"""
def attend_cached(q, k, v):
    {before}
    group = q.shape[0] // k.shape[0]
    k = k.{spread}
    v = v.{spread}
    scores = (k @ q[:, :, None])[:, :, 0] {scale}
    weights = {weights}
    return {result}
"""


def _bytes(formula: str) -> str:
    return f"def bytes_per_token(config, dtype_bytes):\n    c = config\n    return {formula}\n"


WRONG: dict[str, dict[str, str]] = {
    "02.1": {
        "only the newest token is kept": _cache("self.keys[layer], self.values[layer] = k, v"),
        "only the new ones are returned": _cache("self.join(layer, k, v); return k, v"),
        "nothing is returned": _cache("self.join(layer, k, v); return None"),
        "the newest comes first": _cache(_NEWEST_FIRST),
        "one list for all layers": _cache("layer = 0; self.join(layer, k, v)"),
        "keys and values change places": _cache("self.join(layer, v, k)"),
        "tokens become more heads": _cache("self.join(layer, k, v, dim=0)"),
        "a list shared by all caches": _SHARED,
        "steps are counted instead of tokens": _cache(
            "self.steps = getattr(self, 'steps', 0) + (layer == 0); self.join(layer, k, v)",
            num_tokens="getattr(self, 'steps', 0)",
        ),
        "the values are not weighed": _cache(
            num_bytes="sum(x.nbytes for x in self.keys if x is not None)"
        ),
        "every number is taken for four bytes": _cache(
            num_bytes="sum(4 * x.numel() for x in self.keys + self.values if x is not None)"
        ),
        "num_bytes is forgotten": _cache(num_bytes="None"),
    },
    "02.2": {
        "the scores are not scaled": _attend(scale=""),
        "scaled by the wrong length": _attend(scale="/ k.shape[1] ** 0.5"),
        "heads are dealt out in turns": _attend(spread="repeat(group, 1, 1)"),
        "softmax over the heads": _attend(weights="torch.softmax(scores, dim=0)"),
        "softmax by hand, which overflows": _attend(
            weights="scores.exp() / scores.exp().sum(-1, keepdim=True)"
        ),
        "the newest token is left out": _attend(before="k, v = k[:, :-1], v[:, :-1]"),
        "only the newest token is seen": _attend(before="k, v = k[:, -1:], v[:, -1:]"),
        "a mask that hides all but the first": _attend(
            weights="torch.softmax(scores + torch.full_like(scores, -1e9).triu(1)[:1], -1)"
        ),
        "the keys are mixed instead of the values": _attend(
            result="(weights[:, None, :] @ k)[:, 0]"
        ),
        "a head too many is returned": _attend(result="weights[:, None, :] @ v"),
        "the query is scaled in place": _attend(before="q *= 0.5"),
    },
    "02.3": {
        "query heads": _bytes(
            "c.num_hidden_layers * 2 * c.num_attention_heads * c.head_dim * dtype_bytes"
        ),
        "the values are forgotten": _bytes(
            "c.num_hidden_layers * c.num_key_value_heads * c.head_dim * dtype_bytes"
        ),
        "the layers are forgotten": _bytes("2 * c.num_key_value_heads * c.head_dim * dtype_bytes"),
        "the hidden size": _bytes("c.num_hidden_layers * 2 * c.hidden_size * dtype_bytes"),
        "head_dim from the hidden size": _bytes(
            "c.num_hidden_layers * 2 * c.num_key_value_heads"
            " * (c.hidden_size // c.num_attention_heads) * dtype_bytes"
        ),
        "always four bytes": _bytes(
            "c.num_hidden_layers * 2 * c.num_key_value_heads * c.head_dim * 4"
        ),
        "KiB, as a fraction": _bytes(
            "c.num_hidden_layers * 2 * c.num_key_value_heads * c.head_dim * dtype_bytes / 1024"
        ),
    },
}
