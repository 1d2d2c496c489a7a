"""The block map: the pool as a fixed grid."""

from __future__ import annotations

from paged_engine.replay import EngineState, RequestState
from paged_engine.visualizer.marks import Parts, box, clipped, filled, legend, num, path, text
from paged_engine.visualizer.palette import NUM_COLOURS, colour_class

_LARGEST, _TALLEST = 28.0, 230.0
_FEWEST_LABELLED = 13.0  # pixels a cell needs to hold a number
_MOST_SHOWN = 2048
_MOST_NAMED = 12


class BlockPanel:
    """The grid, what it counts, and its legend.

    Attributes:
        height: In pixels, known before it is drawn.
        text: What it shows, in words.
    """

    def __init__(self, state: EngineState, width: float, heading: str = "Blocks") -> None:
        self._state = state
        self._width = width
        self._heading = heading
        self._numbers = {name: i for i, name in enumerate(state.requests)}
        self._owners = state.owners()
        self._shown = self._num_shown()
        self._columns, self._cell = _grid(self._shown, width)
        rows = -(-self._shown // self._columns)
        self._grid_height = rows * self._cell
        self._labelled = self._cell >= _FEWEST_LABELLED
        self._legend_height = legend(0, 0, width, self._entries())[1]
        self.height = 38 + self._grid_height + self._legend_height
        self.text = f"{self._heading}: {self._counts()}. {self._holders()}"

    def draw(self, x: float, y: float) -> Parts:
        """The panel with its upper left corner at (x, y)."""
        parts = [text(x, y + 11, self._heading, "head")]
        parts.append(text(x, y + 27, self._counts(), "soft"))
        parts.append(f'<g transform="translate({num(x)} {num(y + 36)})">')
        parts += self._cells()
        parts.append("</g>")
        below = y + 38 + self._grid_height
        parts += legend(x, below, self._width, self._entries())[0]
        return parts

    # ------------------------------------------------------------------ the cells

    def _cells(self) -> Parts:
        state, gap = self._state, 2.0 if self._cell >= 9 else 1.0
        side = self._cell - gap
        free, cached = "", ""
        full = dict.fromkeys(range(len(state.requests)), "")
        outline = dict.fromkeys(full, "")
        labels: Parts = []
        fills = self._fills()
        for block_id, block in enumerate(state.blocks[: self._shown]):
            x = block_id % self._columns * self._cell
            y = block_id // self._columns * self._cell
            holders = [self._numbers[name] for name in self._owners.get(block_id, ())]
            if not holders:
                square = box(x, y, side, side)
                free, cached = (
                    (free + square, cached) if block.block_hash is None else (free, cached + square)
                )
                continue
            first, fill = holders[0], fills[block_id]
            if len(holders) > 1:
                up = f"M{num(x)} {num(y)}h{num(side)}l{num(-side)} {num(side)}z"
                down = f"M{num(x + side)} {num(y)}v{num(side)}h{num(-side)}z"
                full[first] += up
                full[holders[1]] += down
            elif fill >= 1:
                full[first] += box(x, y, side, side)
            else:
                free += box(x, y, side, side)
                outline[first] += box(x + 0.5, y + 0.5, side - 1, side - 1)
                if fill:
                    full[first] += box(x, y, side * fill, side)
            if self._labelled:
                labels.append(self._label(x + side / 2, y + side / 2 + 3.2, holders, fill))
        parts = [path(free, "free"), path(cached, "", 'style="fill:url(#pe-hatch)"')]
        for number in full:
            parts.append(filled(full[number], number))
            parts.append(path(outline[number], f"l{number % NUM_COLOURS}"))
        return [*parts, *labels]

    def _label(self, x: float, y: float, holders: list[int], fill: float) -> str:
        """The number of the request, or how many share the block."""
        if len(holders) > 1:
            return text(x, y, f"×{len(holders)}", "mid head halo")
        ink = f"t{holders[0] % NUM_COLOURS}" if fill > 0.7 and holders[0] < NUM_COLOURS else "halo"
        return text(x, y, str(holders[0]), f"tiny mid {ink}")

    def _fills(self) -> dict[int, float]:
        """How full each used block is, from 0 to 1: the best of what its holders computed."""
        fills: dict[int, float] = {}
        size = self._state.block_size
        for request in self._state.requests.values():
            for index, block_id in enumerate(request.block_table):
                filled_slots = min(size, max(0, request.num_computed_tokens - index * size))
                fills[block_id] = max(fills.get(block_id, 0.0), filled_slots / size)
        return fills

    # ------------------------------------------------------------------ words

    def _counts(self) -> str:
        state = self._state
        shared = sum(block.ref_cnt > 1 for block in state.blocks)
        num_free = len(state.blocks) - state.num_used - state.num_cached
        words = [f"{state.num_used} used"]
        words += [f"{shared} of them shared"] if shared else []
        words += [f"{state.num_cached} cached"] if state.num_cached else []
        words.append(f"{num_free} free")
        if state.num_usable != len(state.blocks):
            words.append(f"at most {state.num_usable} usable")
        elif self._shown < len(state.blocks):
            words.append(f"the first {self._shown:,} of {len(state.blocks):,} shown")
        else:
            words.append(f"{state.block_size} tokens each")
        return " · ".join(words)

    def _holders(self) -> str:
        held = [
            f"{r.request_id} holds {_count(len(r.block_table), 'block')}"
            f" with {_count(r.num_computed_tokens, 'token')}"
            for r in self._holding()
        ]
        return "; ".join(held) + "." if held else "Nobody holds a block."

    def _holding(self) -> list[RequestState]:
        return [r for r in self._state.requests.values() if r.block_table]

    def _entries(self) -> list[tuple[str, str]]:
        mark = box(-6, -6, 11, 11)
        entries = []
        holding = self._holding()
        for request in holding[:_MOST_NAMED]:
            number = self._numbers[request.request_id]
            ink = f"t{number % NUM_COLOURS}" if number < NUM_COLOURS else "halo"
            chip = filled(mark, number) + text(-0.5, 3, str(number), f"tiny mid {ink}")
            held = f"{clipped(request.request_id, 14)}: {len(request.block_table)}"
            entries.append((chip, held))
        if len(holding) > _MOST_NAMED:
            entries.append(("", f"and {len(holding) - _MOST_NAMED} more requests"))
        entries.append((path(mark, "free"), "free"))
        if self._state.num_cached:
            entries.append((path(mark, "", 'style="fill:url(#pe-hatch)"'), "cached, reusable"))
        if any(block.ref_cnt > 1 for block in self._state.blocks):
            half = path("M-6 -6h11l-11 11z", colour_class(0)) + path("M5 -6v11h-11z", "c1")
            entries.append((half, "shared"))
        if any(fill < 1 for fill in self._fills().values()):
            part = path(mark, "free") + path(box(-6, -6, 6, 11), "soft") + path(mark, "wait")
            entries.append((part, "part full"))
        return entries

    def _num_shown(self) -> int:
        """All blocks; of a very large pool what is in use, and the rest of that row."""
        blocks = self._state.blocks
        if len(blocks) <= _MOST_SHOWN:
            return max(1, len(blocks))
        touched = [i for i, b in enumerate(blocks) if b.ref_cnt or b.block_hash is not None]
        last = touched[-1] + 1 if touched else 0
        return min(len(blocks), max(256, -(-last // 64) * 64))


def _grid(number: int, width: float) -> tuple[int, float]:
    """Columns, a power of two, and the side of a cell: as large as the height allows."""
    best = (8, min(_LARGEST, width / 8))
    for columns in (8, 16, 32, 64, 128, 256):
        cell = min(_LARGEST, width / columns)
        best = (columns, cell)
        if -(-number // columns) * cell <= _TALLEST:
            break
    return best


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
