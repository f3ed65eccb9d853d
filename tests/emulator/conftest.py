import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """The emulator has one, and torch's own would only wait for work, and for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
