import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Parts this small are slower on several threads, and much slower where the processors are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
