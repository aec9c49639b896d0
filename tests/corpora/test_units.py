"""Units written into manifests, with the codec that made them."""

import json

import numpy as np
import pytest
import soundfile
import torch

from echox.codecs.base import CODECS
from echox.codecs.kmeans.codec import KMeansCodecConfig
from echox.core.errors import ConfigError, ManifestError
from echox.corpora.units import UnitsConfig, units_path, write_units
from echox.data.manifest import Item, OnBroken, Role, Row, read_manifest, write_manifest
from echox.pipeline.plugins import discover

RATE_HZ = 16_000


def test_every_recorded_answer_gets_units_and_the_codecs_fingerprint(tmp_path):
    discover()
    codec = CODECS.build(KMeansCodecConfig(folder="random"))
    for name, seconds in (("a", 0.6), ("b", 1.1)):
        soundfile.write(
            tmp_path / f"{name}.wav",
            0.1 * np.random.default_rng(0).standard_normal(int(16_000 * seconds)),
            16_000,
        )
    rows = [
        Row(
            name,
            (Item(Role.ASSISTANT, f"text {name}", audio=tmp_path / f"{name}.wav"),),
            {"kind": "answer"},
        )
        for name in "ab"
    ]
    rows.append(Row("silent", (Item(Role.ASSISTANT, "nothing to hear"),)))
    write_manifest(tmp_path / "speech.jsonl", rows)
    config = UnitsConfig(
        manifests=[str(tmp_path / "speech.jsonl")], cache_dir=str(tmp_path / "cache")
    )
    (written,) = write_units(config, codec, device=torch.device("cpu"), bf16=False)
    assert written == units_path(tmp_path / "speech.jsonl") == tmp_path / "speech.units.jsonl"
    first = written.read_bytes()
    read = read_manifest(written).rows
    assert [row.id for row in read] == ["a", "b"]
    assert all(
        row.answer.units and row.extra == {"kind": "answer", "codec": codec.fingerprint()}
        for row in read
    )
    assert max(max(row.answer.units) for row in read) < codec.vocab_size
    write_units(config, codec, device=torch.device("cpu"), bf16=False)
    assert written.read_bytes() == first


class CountingCodec:
    """A codec that remembers the batches it was given."""

    def __init__(self, codec):
        self.codec, self.rate_hz, self.codebooks, self.batches = (
            codec,
            codec.rate_hz,
            codec.codebooks,
            [],
        )

        self.vocab_size = codec.vocab_size

    def fingerprint(self) -> str:
        return self.codec.fingerprint()

    def modules(self):
        return self.codec.modules()

    def encode(self, wave):
        self.batches.append(tuple(wave.samples.shape))
        return self.codec.encode(wave)


@pytest.fixture(scope="module")
def codec():
    discover()
    return CODECS.build(KMeansCodecConfig(folder="random"))


@pytest.fixture
def corpus(tmp_path):
    """A manifest of twelve recorded answers of many lengths, one of them with a NaN."""
    noise = np.random.default_rng(1)
    lines = []
    for number in range(12):
        samples = 0.1 * noise.standard_normal(round(RATE_HZ * (0.2 + 0.15 * (number * 5 % 12))))
        if number == 7:
            samples[100] = np.nan
        soundfile.write(tmp_path / f"{number}.wav", samples, RATE_HZ, subtype="FLOAT")
        answer = Item(Role.ASSISTANT, f"text {number}", audio=tmp_path / f"{number}.wav")
        lines.append(Row(f"row{number}", (answer,)))
    write_manifest(tmp_path / "speech.jsonl", lines)
    return tmp_path / "speech.jsonl"


def encoded(corpus, codec, **settings) -> list[bytes]:
    config = UnitsConfig(
        manifests=[str(corpus)], **{"cache_dir": str(corpus.parent / "cache"), **settings}
    )
    written = write_units(config, codec, device=torch.device("cpu"), bf16=False, shows=False)
    return [path.read_bytes() for path in written]


def test_units_beyond_the_vocabulary_are_refused_and_not_written(corpus, codec):
    smaller = CountingCodec(codec)
    smaller.vocab_size = 4
    with pytest.raises(ConfigError, match=r"CountingCodec gave units from 0 to \d+, but .* 0..3;"):
        encoded(corpus, smaller)
    assert not units_path(corpus).exists()


def test_units_do_not_depend_on_shards_nor_on_batches(corpus, codec):
    whole = encoded(corpus, codec)
    assert encoded(corpus, codec, rows_per_shard=5) == whole
    assert encoded(corpus, codec, rows_per_shard=1, batch_s=0.1) == whole


def test_batches_have_clips_of_similar_length_and_at_most_batch_s(corpus, codec):
    counting = CountingCodec(codec)
    encoded(corpus, counting, batch_s=3.0)
    assert sum(B for B, _ in counting.batches) == 11 and max(B for B, _ in counting.batches) > 1
    assert all(B == 1 or B * T <= 3.0 * RATE_HZ for B, T in counting.batches)
    assert len(counting.batches) <= 8


def test_little_of_a_batch_is_padding(tmp_path, codec):
    lengths_s = np.geomspace(0.1, 1.5, 24)
    for number, seconds in enumerate(lengths_s):
        soundfile.write(
            tmp_path / f"{number}.wav",
            0.1 * np.random.default_rng(number).standard_normal(round(RATE_HZ * seconds)),
            RATE_HZ,
        )
    write_manifest(
        tmp_path / "m.jsonl",
        [
            Row(str(number), (Item(Role.ASSISTANT, "words", audio=tmp_path / f"{number}.wav"),))
            for number in range(24)
        ],
    )
    counting = CountingCodec(codec)
    encoded(tmp_path / "m.jsonl", counting)
    assert sum(B * T for B, T in counting.batches) * 0.9 <= RATE_HZ * sum(lengths_s) * 1.01
    assert len(counting.batches) <= 16


def test_a_clip_that_cannot_be_decoded_is_named_and_costs_only_its_row(corpus, codec):
    (written,) = encoded(corpus, codec, rows_per_shard=4)
    assert b"row7" not in written and written.count(b"\n") == 11
    (problem,) = map(
        json.loads, (corpus.parent / "speech.units.broken.jsonl").read_text().splitlines()
    )
    assert (problem["line"], problem["id"]) == (8, "row7") and "holds NaN" in problem["reason"]
    with pytest.raises(ManifestError, match="line 8.*holds NaN.*on_broken=skip"):
        encoded(corpus, codec, on_broken=OnBroken.refuse, cache_dir=str(corpus.parent / "other"))


def test_clips_outside_the_folder_are_read_once_they_are_allowed(corpus, codec):
    inner = corpus.parent / "inner"
    inner.mkdir()
    (inner / "m.jsonl").write_text(
        corpus.read_text().replace('"audio": "', '"audio": "../').splitlines()[0] + "\n"
    )
    cache = {"cache_dir": str(corpus.parent / "cache")}
    with pytest.raises(
        ManifestError, match="no row of .* has an answer with usable audio: 1 are broken"
    ):
        encoded(inner / "m.jsonl", codec, **cache)
    (written,) = encoded(inner / "m.jsonl", codec, allow_outside=True, **cache)
    assert written.count(b"\n") == 1


def test_parts_are_encoded_by_several_jobs_and_the_last_writes_the_manifest(corpus, codec):
    counting = CountingCodec(codec)
    assert encoded(corpus, counting, rows_per_shard=2, part="1/2") == []
    first = sum(B for B, _ in counting.batches)
    (written,) = encoded(corpus, counting, rows_per_shard=2, part="2/2")
    assert first == 6 and sum(B for B, _ in counting.batches) == 11 and written.count(b"\n") == 11


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b"])
def test_a_malformed_part_is_refused(part):
    with pytest.raises(ConfigError, match="write it as 1/8"):
        UnitsConfig(part=part)
