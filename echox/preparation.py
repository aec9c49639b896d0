"""What `echox-prepare` does to audio and codecs: one config and one function a command."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from echox.chain import SpeechClips
from echox.codecs.base import CODECS, CodecConfig
from echox.corpora.demo import DemoCorpusConfig, build_demo_corpus
from echox.corpora.units import UnitsConfig, write_units
from echox.device import device_named, multiplies_bf16_fast
from echox.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class FitCodecConfig:
    """Fit a codec to recordings of the voice it shall speak with."""

    manifests: list[str] = field(default_factory=list)
    """Manifests whose assistant audio is the voice."""
    codec: CodecConfig = MISSING
    """The codec to fit."""
    device: str = "auto"
    """Device to fit on: auto, cpu, cuda or cuda:N."""


@dataclass(kw_only=True, slots=True)
class EncodeUnitsConfig(UnitsConfig):
    """Encode the assistant's audio of manifests with a fitted codec; NAME.jsonl becomes NAME.units.jsonl beside it."""

    codec: CodecConfig = MISSING
    """The codec to encode with."""
    device: str = "auto"
    """Device to encode on: auto, cpu, cuda or cuda:N."""


def make_corpus(config: DemoCorpusConfig) -> None:
    """Synthesise the demo corpus; free questions stay without answers, which a recipe's language model gives them."""
    print(build_demo_corpus(config))


def fit_codec(config: FitCodecConfig) -> None:
    """Fit a codec, unless it is fitted already.

    Raises:
        ConfigError: no manifest is named, or the codec is not one that is fitted. ManifestError: one is broken.
    """
    codec_type = CODECS.entry_of(config.codec).implementation
    if codec_type.is_ready(config.codec):
        print("the codec is fitted already; nothing was done")
        return
    codec_type.fit(config.codec, SpeechClips(config.manifests), device_named(config.device))


def encode_units(config: EncodeUnitsConfig) -> None:
    """Write manifests with units, and print their paths.

    Raises:
        ConfigError: no manifest is named. CheckpointError: the codec is not fitted. ManifestError: a manifest is missing or broken.
    """
    if not config.manifests:
        raise ConfigError("no manifest was named; give manifests=[FILE.jsonl,...]")
    device = device_named(config.device)
    codec = CODECS.build(config.codec).to(device)
    for path in write_units(config, codec, device=device, bf16=multiplies_bf16_fast(device)):
        print(path)
