"""What the tests know of notebook 00."""

# The first line of code of every cell that shows times.
TIMING_CELLS = ["import platform"]
WRONG: dict[str, dict[str, str]] = {}
