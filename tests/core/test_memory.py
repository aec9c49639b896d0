import pytest
import torch

from echox.assets.loading import loading
from echox.core import checkpoint
from echox.core.memory import is_out_of_memory

FULL = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FULL, True),
        (torch.OutOfMemoryError("CUDA out of\nmemory. Tried to allocate 2 GiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError("out of memory"), False),
    ],
)
def test_errors_of_memory_are_told_from_others(error, expected):
    assert is_out_of_memory(error) is expected


def test_an_allocation_that_fails_is_an_error_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 62, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_files_are_not_called_damaged_where_memory_ran_out(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="can't allocate"), loading("a model", tmp_path):
        raise FULL

    def fails(path):
        raise FULL

    checkpoint.save(tmp_path / "final", {"w": torch.zeros(2)}, {"stage": "toy"})
    monkeypatch.setattr("safetensors.torch.load_file", fails)
    with pytest.raises(RuntimeError, match="can't allocate"):
        checkpoint.load(tmp_path / "final")
