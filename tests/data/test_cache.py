"""The array cache: same bytes after an interruption, any length and dtype, picklable."""

import pickle

import pytest
import torch

from echox.core.errors import AssetError
from echox.data import cache as module
from echox.data.cache import ArrayCache

KEYS = [f"clip{number}" for number in range(30)]
COSTS = [(7 * number) % 11 for number in range(30)]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD_BATCHES", 2)


class Compute:
    """Arrays that depend on the size of the batch, so that other batches would show."""

    def __init__(self, batches_until_killed: int | None = None) -> None:
        self.batches: list[list[str]] = []
        self.batches_until_killed = batches_until_killed

    def __call__(self, keys):
        if len(self.batches) == self.batches_until_killed:
            raise KeyboardInterrupt
        self.batches.append(keys)
        return [
            torch.full((COSTS[KEYS.index(key)], 3), float(len(keys))).bfloat16() for key in keys
        ]


def fill(cache, compute, keys=KEYS):
    costs = [COSTS[KEYS.index(key)] for key in keys]
    cache.fill(keys, compute, costs=costs, batch_cost=40, batch_size=8, progress=False)


def contents(folder):
    return {
        path.name: path.read_bytes()
        for path in folder.rglob("*.*")
        if path.suffix in (".bin", ".json")
    }


def test_an_interrupted_cache_ends_with_the_same_bytes(tmp_path):
    uninterrupted, interrupted = Compute(), Compute(batches_until_killed=5)
    fill(ArrayCache(tmp_path / "whole", "f"), uninterrupted)
    with pytest.raises(KeyboardInterrupt):
        fill(ArrayCache(tmp_path / "part", "f"), interrupted)
    assert len(ArrayCache(tmp_path / "part", "f")) > 0
    resumed = Compute()
    fill(ArrayCache(tmp_path / "part", "f"), resumed, list(reversed(KEYS)))
    assert len(resumed.batches) == len(uninterrupted.batches) - 4
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_a_shard_without_its_index_is_made_again(tmp_path):
    fill(ArrayCache(tmp_path, "f"), Compute())
    before = contents(tmp_path)
    last = sorted((tmp_path / "f").glob("*.json"))[-1]
    last.unlink()
    fill(ArrayCache(tmp_path, "f"), Compute())
    assert contents(tmp_path) == before


def test_batches_keep_their_limits_and_nothing_is_computed_twice(tmp_path):
    compute, cache = Compute(), ArrayCache(tmp_path, "f")
    fill(cache, compute)
    assert sorted(key for batch in compute.batches for key in batch) == sorted(KEYS)
    for batch in compute.batches:
        longest = max(COSTS[KEYS.index(key)] for key in batch)
        assert len(batch) <= 8 and longest * len(batch) <= 40
    fill(cache, compute)
    assert len(set(map(tuple, compute.batches))) == len(compute.batches)
    assert cache.length("clip3") == COSTS[3] and cache["clip0"].shape == (0, 3)
    assert "clip3" in cache and "clip99" not in cache


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32]
)
def test_arrays_come_back_bit_for_bit(tmp_path, dtype):
    arrays = {str(F): (100 * torch.randn(F, 4)).to(dtype) for F in (1, 5, 3)}
    ArrayCache(tmp_path, "f").fill(
        list(arrays), lambda keys: [arrays[key] for key in keys], progress=False
    )
    cache = pickle.loads(pickle.dumps(ArrayCache(tmp_path, "f")))
    for key, array in arrays.items():
        assert cache[key].dtype is dtype and torch.equal(cache[key], array)


def test_other_fingerprints_share_nothing(tmp_path):
    fill(ArrayCache(tmp_path, "f"), Compute())
    assert len(ArrayCache(tmp_path, "g")) == 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AssetError, match="could not be written"):
        fill(ArrayCache(tmp_path / "file", "f"), Compute())
