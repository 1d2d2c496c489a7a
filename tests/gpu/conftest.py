"""Where there is no NVIDIA card, all of this is skipped, with one line."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _card() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA card, and there is none here")
