"""How many cores a page may draw on, by a clock and a system of the test's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from paged_engine.visualizer import idle_cores as module
from paged_engine.visualizer.idle_cores import IdleCores


class Machine:
    """Its clock, and the seconds that its cores have been idle, all together."""

    def __init__(self) -> None:
        self.now, self.idle = 100.0, 5000.0

    def run(self, seconds: float, idle_cores: float) -> None:
        self.now += seconds
        self.idle += seconds * idle_cores


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: machine.now))
    times = SimpleNamespace(cpu_times=lambda: SimpleNamespace(idle=machine.idle))
    monkeypatch.setattr(module, "psutil", times)
    return machine


@pytest.mark.parametrize(
    "idle, count", [(0.0, 0), (0.3, 0), (0.5, 1), (0.97, 1), (1.3, 1), (3.5, 4), (63.0, 63)]
)
def test_what_is_left_of_a_core_counts_as_one(machine: Machine, idle: float, count: int) -> None:
    cores = IdleCores()
    assert cores.count == 0
    machine.run(0.4, idle)
    cores.look()
    assert cores.count == count


def test_each_look_counts_from_the_one_before(machine: Machine) -> None:
    cores = IdleCores()
    machine.run(10, 2)
    cores.look()
    machine.run(0.3, 0)
    cores.look()
    assert cores.count == 0


def test_too_short_a_time_says_nothing_and_is_not_lost(machine: Machine) -> None:
    cores = IdleCores()
    machine.run(1, 2)
    cores.look()
    machine.run(0.2, 0)
    cores.look()
    assert cores.count == 2
    machine.run(0.2, 0.5)
    cores.look()
    assert cores.count == 0  # a quarter of one, over both


def test_a_pause_is_not_counted(machine: Machine) -> None:
    cores = IdleCores()
    machine.run(60, 2)
    cores.begin()
    machine.run(0.5, 0)
    cores.look()
    assert cores.count == 0


def test_the_system_can_be_asked() -> None:
    cores = IdleCores()
    cores._then -= 1
    cores.look()
    assert cores.count == 0  # of a second of which nothing was counted
