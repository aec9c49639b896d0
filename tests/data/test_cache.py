"""The array cache: same bytes after an interruption, any length and dtype, picklable."""

import json
import logging
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


def flipped(at):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    return damage


def lengthened_index(path):
    """Name more bytes than there are, with the right checksum of the index."""
    head, body = path.read_text().split("\n")
    header = json.loads(head)
    path.write_text(json.dumps(header | {"bytes": header["bytes"] + 6}) + "\n" + body)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "missing": lambda path: path.unlink(),
    "first byte": flipped(0),
    "last byte": flipped(-1),
}
INDEX_DAMAGES = {
    "no JSON": lambda path: path.write_text("not json"),
    "a list": lambda path: path.write_text("[1]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "more bytes": lengthened_index,
    "endless": lambda path: path.write_text('{"bytes": Infinity, "sha256": "x"}\n{}'),
    "fractions": lambda path: path.write_text('{"a": [0.5, [1], "int16"]}'),
    "negative": lambda path: path.write_text('{"a": [-2, [1], "int16"]}'),
}


@pytest.mark.parametrize(
    ("ending", "damage"),
    [(ending, DAMAGES[name]) for ending in (".bin", ".json") for name in DAMAGES]
    + [(".json", damage) for damage in INDEX_DAMAGES.values()],
    ids=[f"{ending[1:]} {name}" for ending in (".bin", ".json") for name in DAMAGES]
    + [*INDEX_DAMAGES],
)
def test_a_damaged_shard_is_made_again_with_one_line(tmp_path, caplog, ending, damage):
    fill(ArrayCache(tmp_path, "f"), Compute())
    before = contents(tmp_path)
    damage(tmp_path / f"f/00001{ending}")
    with caplog.at_level(logging.WARNING):
        cache = ArrayCache(tmp_path, "f")
        fill(cache, Compute())
    assert contents(tmp_path) == before and cache["clip3"].shape == (COSTS[3], 3)
    # A missing index is what an interruption leaves, about which nobody needs to be told.
    expected = 0 if not (ending == ".json" and damage is DAMAGES["missing"]) else 1
    assert len(caplog.messages) == 1 - expected
    assert all("damaged" in line and str(tmp_path) in line for line in caplog.messages)


def test_damage_in_a_large_cache_is_noticed_at_the_first_read(tmp_path, monkeypatch, caplog):
    fill(ArrayCache(tmp_path, "f"), Compute())
    before = contents(tmp_path)
    monkeypatch.setattr(module, "VERIFIED_BYTES", 0)
    flipped(-1)(tmp_path / "f/00001.bin")
    cache = ArrayCache(tmp_path, "f")
    assert not caplog.messages
    damaged = list(cache._shards["00001"].index.locations)
    assert cache[damaged[0]].shape[1] == 3
    with pytest.raises(AssetError, match=r"00001\.bin is damaged.*start again"):
        for key in damaged:
            cache[key]
    fill(ArrayCache(tmp_path, "f"), Compute())
    assert contents(tmp_path) == before


def test_a_cache_of_an_earlier_version_is_read(tmp_path, caplog):
    """Its index has no checksums; the length of its data is compared."""
    fill(ArrayCache(tmp_path, "f"), Compute())
    for path in (tmp_path / "f").glob("*.json"):
        entries = json.loads(path.read_text().split("\n")[1])
        path.write_text(json.dumps({key: entry[:3] for key, entry in entries.items()}))
    compute = Compute()
    fill(ArrayCache(tmp_path, "f"), compute)
    assert not compute.batches and not caplog.messages
    DAMAGES["half"](tmp_path / "f/00001.bin")
    fill(ArrayCache(tmp_path, "f"), compute)
    assert compute.batches and len(caplog.messages) == 1


def test_a_complete_cache_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    fill(ArrayCache(tmp_path, "f"), Compute())

    def read_only(*arguments, **options):
        raise OSError(30, "Read-only file system")

    for name in ("FileLock", "atomic_write"):
        monkeypatch.setattr(module, name, read_only)
    fill(ArrayCache(tmp_path, "f"), Compute())
    with pytest.raises(AssetError, match=r"Read-only file system; about .* GB more are needed"):
        ArrayCache(tmp_path, "f").fill([*KEYS, "new"], Compute())
