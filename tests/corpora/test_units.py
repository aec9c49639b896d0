"""Units written into manifests, with the codec that made them."""

import numpy as np
import soundfile
import torch

from echox.codecs.base import CODECS
from echox.codecs.unit_vocoder.codec import KMeansCodecConfig
from echox.corpora.units import UnitsConfig, units_path, write_units
from echox.data.manifest import Item, Role, Row, read_manifest, write_manifest
from echox.plugins import discover


def test_every_spoken_answer_gets_units_and_the_codec_s_fingerprint(tmp_path):
    discover()
    codec = CODECS.build(KMeansCodecConfig(folder="random"))
    for name, seconds in (("a", 0.6), ("b", 1.1)):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * np.random.default_rng(0).standard_normal(int(16_000 * seconds)), 16_000)
    rows = [Row(name, (Item(Role.ASSISTANT, f"text {name}", audio=tmp_path / f"{name}.wav"),), {"kind": "answer"}) for name in "ab"]
    rows.append(Row("silent", (Item(Role.ASSISTANT, "nothing to hear"),)))
    write_manifest(tmp_path / "speech.jsonl", rows)
    config = UnitsConfig(manifests=[str(tmp_path / "speech.jsonl")], cache_dir=str(tmp_path / "cache"))
    (written,) = write_units(config, codec, device=torch.device("cpu"), bf16=False)
    assert written == units_path(tmp_path / "speech.jsonl") == tmp_path / "speech.units.jsonl"
    first = written.read_bytes()
    read = read_manifest(written).rows
    assert [row.id for row in read] == ["a", "b"]
    assert all(row.answer.units and row.extra == {"kind": "answer", "codec": codec.fingerprint()} for row in read)
    assert max(max(row.answer.units) for row in read) < codec.vocab_size
    write_units(config, codec, device=torch.device("cpu"), bf16=False)
    assert written.read_bytes() == first
