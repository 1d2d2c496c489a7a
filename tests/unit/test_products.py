"""Products with packed weights in C++, against fp64, over random shapes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paged_engine.kernels.build import INSTRUCTIONS
from paged_engine.kernels.library import PRODUCTS, Kernels, load_kernels
from paged_engine.models import packed_linear
from paged_engine.models.packed_linear import PanelLinear
from tests.helpers.faulty_kernels import faulty_kernels, kernels_for

WAYS = list(PRODUCTS)
# Of a result: fp32 adds up in the order of the depth, and bf16 is rounded once at the end.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8}


@pytest.fixture(scope="module", autouse=True)
def nothing_is_right_by_chance() -> Iterator[None]:
    """New memory is NaN, and not what the last product left there."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def product_error(
    kernels: Kernels, rows: int, depth: int, columns: int, way: str, *, has_bias: bool
) -> float:
    """The largest difference, in units of what rounding may do."""
    dtype = PRODUCTS[way]
    draw = torch.Generator().manual_seed(rows * depth + columns)
    x = torch.randn(rows, depth, generator=draw).to(dtype)
    weight = torch.randn(columns, depth, generator=draw).to(dtype)
    bias = torch.randn(columns, generator=draw).to(dtype) if has_bias else None
    before = x.clone()
    got = PanelLinear(kernels, way, weight, bias)(x)
    assert got.dtype == dtype and got.shape == (rows, columns) and torch.equal(x, before)
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    # what is added up, without signs: the sums may cancel, their rounding does not
    size = x.double().abs() @ weight.double().abs().T + 1
    allowed = TOLERANCE[torch.float32] * size + TOLERANCE[dtype] * exact.abs()
    return float(((got.double() - exact).abs() / allowed).max())


@given(
    # tiles of 4 to 12 rows, groups of 96, or of 32 and 256; panels of 8 to 48 columns; blocks of
    # 341 (16 lanes, fp32) to 4096 of the depth, odd ones too: around the borders
    st.sampled_from([1, 2, 5, 6, 7, 11, 12, 13, 16, 17, 24, 32, 95, 97, 200, 257]),
    st.sampled_from([1, 2, 15, 64, 341, 342, 700, 1100]),
    st.sampled_from([1, 3, 8, 12, 15, 16, 17, 24, 25, 33, 49, 100]),
    st.sampled_from(WAYS),
    st.booleans(),
)
def test_a_product_is_the_product(
    rows: int, depth: int, columns: int, way: str, has_bias: bool
) -> None:
    kernels = load_kernels()
    assert product_error(kernels, rows, depth, columns, way, has_bias=has_bias) <= 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("capability", sorted(INSTRUCTIONS))
def test_each_set_of_instructions_with_enough_work_for_two_threads(
    capability: str, way: str
) -> None:
    kernels = kernels_for(capability)
    lanes = {"AVX2": 8, "DEFAULT": 4}.get(capability, 16)
    registers = {"floats": 3, "widened_pairs": 2, "dots": 2, "matrices": 2}
    assert kernels.panel_columns == {its: wide * lanes for its, wide in registers.items()}
    for rows in (1, 19, 250):
        assert product_error(kernels, rows, 577, 1001, way, has_bias=True) <= 1


def test_nothing_is_no_error() -> None:
    out = PanelLinear(load_kernels(), "floats", torch.ones(5, 3), None)(torch.empty(0, 3))
    assert out.shape == (0, 5)


@pytest.mark.parametrize("way", WAYS)
def test_a_weight_that_needs_no_padding_is_not_copied_for_it(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding copies even where nothing is missing, and the largest weight sets peak memory."""
    kernels = load_kernels()
    monkeypatch.setattr(packed_linear, "pad", lambda *_: pytest.fail("it was padded"))
    weight = torch.ones(2 * kernels.panel_columns[way], 2 * kernels.panel_numbers[way])
    PanelLinear(kernels, way, weight.to(PRODUCTS[way]), None)


def test_a_nan_stays_in_its_row_and_infinity_in_its_column() -> None:
    x, weight = torch.randn(9, 20).abs() + 0.1, torch.randn(40, 20).abs() + 0.1
    x[4, 7], weight[21, 3] = float("nan"), float("inf")
    out = PanelLinear(load_kernels(), "floats", weight, None)(x)
    rest = torch.ones(9, 40, dtype=torch.bool)
    rest[4], rest[:, 21] = False, False
    assert out[4].isnan().all() and out[rest].isfinite().all()
    assert out[[0, 1, 2, 3, 5, 6, 7, 8], 21].isinf().all()


def test_a_row_gets_the_same_bits_alone_and_in_a_batch() -> None:
    """Whoever joins the batch changes nobody's logits."""
    x = torch.randn(100, 64)
    packed = PanelLinear(load_kernels(), "floats", torch.randn(50, 64), None)
    together = packed(x)
    assert all(torch.equal(packed(x[i : i + 1])[0], together[i]) for i in range(100))


# ------------------------------------------------------------------ faults

FAULTS = {
    "the bias is left out": ("a.bias && c <", "false && c <"),
    "the bias of the first columns": ("a.bias + column + c * LANES", "a.bias + column"),
    "the last number of the depth is lost": ("i < tile.to -", "i + 1 < tile.to -"),
    "every row is the first": ("x[(r * a.steps + i) * PARTS + p]", "x[i * PARTS + p]"),
    "the same registers twice": ("COLUMNS<Way> + c * LANES", "COLUMNS<Way>"),
    "the same half of 32 bits twice": ("Vec(pairs & ~0xFFFF)", "Vec(pairs << 16)"),
    "a weight keeps the other half": ("Vec(pairs & ~0xFFFF)", "Vec(pairs & ~0xFF)"),
    "the second of x is the first": ("+ i) * PARTS + p]", "+ i) * PARTS]"),
    "the first weights twice": ("Way::part(weights[c], p)", "Way::part(weights[c], 0)"),
    "an odd depth ends with what was there": ("width - 1, 0, sizeof", "width - 1, 255, sizeof"),
    "the rows lie one number closer": ("x + row * a.depth + i", "x + row * (a.depth - 1) + i"),
    "the last column is lost": ("out + c * LANES, there -", "out + c * LANES, there - 1 -"),
    "the panel of other columns": ("piece.panel * WIDE * a.steps", "0 * WIDE * a.steps"),
    "the last group is lost": ("= groups * panels;", "= panels;"),
    "the last panel is lost": ("= groups * panels;", "= groups * panels - (panels > 1);"),
    "every panel is the first": ("row, i % panels}", "row, 0 * i}"),
    "the last tile is lost": ("tile < tiles;", "tile < tiles - (tiles > 1);"),
    "the last block is lost": ("block < blocks;", "block < blocks - (blocks > 1);"),
    "each block is the first": ("weights + from * WIDE", "weights + 0 * WIDE"),
    "each block is the first of x": ("(tile.row * a.steps + tile.from)", "(tile.row * a.steps)"),
    "the blocks before are forgotten": ("tile.from > 0", "tile.from > a.steps"),
    "tiles share their sums": ("sums + begin * WIDE", "sums"),
    "a group begins at the first row": ("{piece.row + begin, from", "{begin, from"),
    "a tile of one row fewer": ("tile<Way, ROWS>(a,", "tile<Way, (ROWS + 1) / 2>(a,"),
    "the last number of a row is lost": ("a.depth + i, there)", "a.depth + i, there - 1)"),
    "rows of the sums lie closer": ("sums += COLUMNS<Way>", "sums += LANES"),
    "rows of the result lie closer": ("out += a.columns", "out += a.columns - 1"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_in_the_source_is_seen(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernels = faulty_kernels("products.cpp", *FAULTS[name], monkeypatch, tmp_path)
    shapes = [(13, 30, 29), (98, 7, 9), (13, 2801, 15)]  # 12 columns of floats: blocks of 1365
    errors = [
        product_error(kernels, *shape, way, has_bias=True) for shape in shapes for way in WAYS
    ]
    assert not all(error <= 100 for error in errors)  # NaN is no small error


# Of the unit for small matrices, which only some processors have.
UNIT, OURS = "matrix_unit.h", "products.cpp"
FAULTS_OF_THE_UNIT = {
    "the lower half is the upper": (UNIT, "(5, lower_rows", "(5, upper_rows"),
    "the same columns twice": (UNIT, "(columns) + UNIT_BYTES", "(columns)"),
    "the second columns' sums are the first's": (UNIT, "(1, to + UNIT_ROWS,", "(1, to,"),
    "the last sums are put left": (UNIT, "(3, lower + UNIT_ROWS, stride", "(3, lower, stride"),
    "the lower sums so far are the upper": (UNIT, "loadd(2, lower,", "loadd(2, from,"),
    "the rows lie closer": (OURS, "a.steps * sizeof *x", "(a.steps - 1) * sizeof *x"),
    "each step is the first": (OURS, "tile.weights + i * WIDE", "tile.weights"),
    "each step of x is the first": (OURS, "add_products(x + i,", "add_products(x,"),
    "the lower half is one row later": (OURS, "x + UNIT_ROWS *", "x + (UNIT_ROWS + 1) *"),
    "no lower half": (OURS, "{rows > UNIT_ROWS, true}", "{rows > UNIT_ROWS + 8, true}"),
    "what came before is forgotten": (OURS, "from > 0) load", "from < 0) load"),
    "there is no result": (OURS, "put_sums(sums_so_far, WIDE, half);", ""),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS_OF_THE_UNIT)
def test_each_fault_in_the_use_of_the_unit_is_seen(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernels = faulty_kernels(*FAULTS_OF_THE_UNIT[name], monkeypatch, tmp_path, "AMX")
    shapes = [(24, 90, 29), (19, 40, 70), (32, 2801, 15)]
    errors = [product_error(kernels, *shape, "matrices", has_bias=True) for shape in shapes]
    assert not all(error <= 100 for error in errors)  # NaN is no small error
