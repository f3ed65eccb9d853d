"""What all tests share: a seed, a little data, and threads that give way to other programs."""

import os

# OpenMP's threads normally spin while they wait. Where other programs run too, that makes small
# tensor operations take fifty times as long. Read when torch is loaded, so it comes first.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from tiny import draw_tiny


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny_data():
    return draw_tiny()
