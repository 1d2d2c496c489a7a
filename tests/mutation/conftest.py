"""Says at the end how many of the planted faults were noticed."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """From the reports, which also come from pytest-xdist's workers."""
    found: dict[str, int] = {"planted": 0, "killed": 0, "equivalent": 0}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for name, value in report.user_properties:
                    if name.startswith("mutations "):
                        found[name.removeprefix("mutations ")] += value
    if found["planted"]:
        terminalreporter.section("mutations")
        terminalreporter.line(
            f"mutations killed {found['killed']} of {found['planted']}, "
            f"{found['equivalent']} equivalent"
        )
