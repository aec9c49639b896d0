"""Writing a codec's units into manifests."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from echox.codecs.base import Codec
from echox.data.audio import audio_header, load_audio, pad_waveforms
from echox.data.cache import ArrayCache
from echox.data.manifest import OnBroken, Row, manifest_fingerprint, read_manifest, with_units, write_manifest

SUFFIX = ".units.jsonl"


@dataclass(kw_only=True, slots=True)
class UnitsConfig:
    """Encode the assistant's audio of manifests with a fitted codec; NAME.jsonl becomes NAME.units.jsonl beside it."""

    manifests: list[str] = field(default_factory=list)
    """Manifests to read."""
    on_broken: OnBroken = OnBroken.skip
    """What to do with broken rows: skip them, each reported with its line, or refuse the manifest."""
    cache_dir: str = "runs/cache"
    """Folder of finished batches, so that a killed run goes on."""
    batch_s: float = 120.0
    """Audio encoded at once, seconds with padding."""


def write_units(config: UnitsConfig, codec: Codec, *, device: torch.device, bf16: bool) -> list[Path]:
    """Encode and write; a manifest that is up to date is left alone.

    Args:
        codec: on `device`.
    Returns:
        the written manifests; every row names the codec's fingerprint as "codec".
    """
    return [_write(Path(path), config, codec, device, bf16) for path in config.manifests]


def units_path(manifest: str | Path) -> Path:
    """Where the manifest with units stands."""
    return Path(str(manifest).removesuffix('.jsonl') + SUFFIX)


def _write(path: Path, config: UnitsConfig, codec: Codec, device: torch.device, bf16: bool) -> Path:
    spoken = {row.id: row for row in read_manifest(path, on_broken=config.on_broken).rows if row.answer is not None and row.answer.audio is not None}
    source = f"{codec.fingerprint()}-{manifest_fingerprint(path)[:16]}"
    cache = ArrayCache(Path(config.cache_dir) / "units", source)
    costs = [round(audio_header(row.answer.audio).duration_s * 100) for row in spoken.values()]

    def compute(ids: list[str]) -> list[Tensor]:
        wave = pad_waveforms([load_audio(spoken[row_id].answer.audio, codec.rate_hz) for row_id in ids], codec.rate_hz).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            units = codec.encode(wave)
        return [torch.tensor(row, dtype=torch.int32) for row in units.rows()]

    cache.fill(list(spoken), compute, costs=costs, batch_cost=round(config.batch_s * 100), label=f"units of {path.name}")
    target = units_path(path)
    write_manifest(target, [_with_units(row, cache[row.id].tolist(), codec) for row in spoken.values()])
    return target


def _with_units(row: Row, units: list[int], codec: Codec) -> Row:
    return dataclasses.replace(with_units(row, units, codec.codebooks), extra={**row.extra, "codec": codec.fingerprint()})
