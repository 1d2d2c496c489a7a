"""What all tests share: few threads, the hypothesis profiles, the summary at the end.

Nothing here imports torch: many tests run without it.
"""

import os
import signal

import pytest
from hypothesis import settings

from tests.helpers.summaries import mutation_lines, parity_lines

# Read by torch when it is first imported, hence set here. pytest-xdist's workers share the cores: a
# pool of threads in each of them would only make them wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A job that a shell started in the background ignores Ctrl-C, and so would every program that the
# tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: a shared machine is slow at times, and that is no bug. Derandomized: what passed here
# passes there. To look for new failures: pytest --hypothesis-profile=explore
settings.register_profile("full", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("quick", parent=settings.get_profile("full"), max_examples=20)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("full")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """It stands here because pytest-xdist's controller reads no conftest further in."""
    if lines := mutation_lines(terminalreporter) + parity_lines(terminalreporter):
        terminalreporter.section("in short")
        for line in lines:
            terminalreporter.line(line)
