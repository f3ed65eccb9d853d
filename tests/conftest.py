import pytest
import torch
from tiny import draw_tiny


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny_data():
    return draw_tiny()
