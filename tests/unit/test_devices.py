"""Which device and number format are taken when the user leaves it open, or asks for none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paged_engine.errors import InvalidConfigError
from paged_engine.models import devices
from paged_engine.models.devices import choose_device, choose_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)


@pytest.mark.parametrize("cuda", [False], indirect=True)
def test_without_a_card_the_processor_is_taken(cuda: None) -> None:
    assert choose_device(None) == CPU
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("cuda", [True], indirect=True)
def test_with_a_card_it_is_taken_unless_told_otherwise(cuda: None) -> None:
    assert choose_device(None) == CUDA
    assert choose_device("cuda") == CUDA
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("cuda", [False], indirect=True)
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_card_that_is_not_there_is_refused(cuda: None, device: str) -> None:
    with pytest.raises(InvalidConfigError, match=r"finds no CUDA device; use device='cpu'"):
        choose_device(device)


@pytest.mark.parametrize("cuda", [False, True], indirect=True)
@pytest.mark.parametrize("device", ["xpu", "meta", "tpu", "", "CPU ", 5, [], 1.5])
def test_other_devices_are_refused_with_the_choice_there_is(cuda: None, device: Any) -> None:
    with pytest.raises(InvalidConfigError, match=r"device is .*'cpu'"):
        choose_device(device)


@pytest.mark.parametrize("device", ["mps", "mps:0"])
def test_mps_becomes_the_cpu_with_one_line(device: str, caplog: pytest.LogCaptureFixture) -> None:
    assert choose_device(device) == CPU
    (record,) = caplog.records
    assert "using the CPU" in record.message and "\n" not in record.message


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_formats_by_name_and_by_value(name: Any, dtype: torch.dtype) -> None:
    assert choose_dtype(name, CPU) is dtype


@pytest.mark.parametrize("dtype", ["bf16x", "", None, 32, torch.int8, "float64", [], float])
def test_other_formats_are_refused(dtype: Any) -> None:
    with pytest.raises(InvalidConfigError, match=r"dtype is .*; expected 'auto', 'float32'"):
        choose_dtype(dtype, CPU)


def test_half_precision_is_for_cards() -> None:
    with pytest.raises(InvalidConfigError, match="use float32 or bfloat16"):
        choose_dtype("float16", CPU)
    assert choose_dtype("float16", CUDA) is torch.float16


@pytest.mark.parametrize("native", [False, True])
def test_auto_takes_bfloat16_exactly_where_it_is_native(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_native_bfloat16", lambda device: native)
    assert choose_dtype("auto", CPU) is (torch.bfloat16 if native else torch.float32)


def test_a_torch_that_does_not_say_has_no_native_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert devices.has_native_bfloat16(CPU) is False
