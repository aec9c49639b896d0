"""Settings of `echox-generate`."""

from __future__ import annotations

from dataclasses import dataclass, field

from echox.core.errors import ConfigError
from echox.inference.live import PIPE
from echox.inference.pipeline import MAX_TOKENS
from echox.inference.release import RELEASE_TOKENS
from echox.models.release.folder import is_release
from echox.models.segmenting import SegmentsConfig


@dataclass(kw_only=True, slots=True)
class GenerateConfig:
    """Answer spoken questions aloud: those of a manifest, or one file.

    Raises:
        ConfigError: fields exclude each other, or a number is out of range.
    """

    checkpoint: str = "runs/echo_mini/echo/final"
    """Finished checkpoint of the echo stage, a run that has one, or a published EchoX folder; a
    checkpoint of s2t, and Soundwave, answer in text alone."""
    manifest: str | None = None
    """Manifest whose questions are answered."""
    input: str | None = None
    """One audio file to answer, instead of a manifest."""
    output: str = "answer.wav"
    """Audio file of that one answer; "-" streams raw 16-bit samples to stdout."""
    stream: bool = False
    """Give the one answer as it comes: text token by token, and speech chunk by chunk into a .wav
    that grows, or to stdout. Of a manifest, answer batch_size rows at once, each of which is
    recorded as it ends, with the seconds to its first text, unit and audible sample. Text, units
    and speech are those without it."""
    segments: SegmentsConfig | None = None
    """Where an answer is cut into segments that are decoded to units one by one; null cuts as the
    checkpoint was trained, and at pauses where it was trained on whole answers."""
    out_dir: str = "answers"
    """Folder of a manifest's answers: answers.jsonl and wavs/."""
    batch_size: int = 16
    """Rows answered at once."""
    max_tokens: int | None = None
    """Text tokens of an answer at most; null takes 512 for a published folder and 64 for others."""
    answer_silence: bool = False
    """Answer where nothing was heard too: silence, noise, too short a clip. A model that was not
    trained to ask again, as echo_small is, invents an answer."""
    device: str = "auto"
    """Device to run on: auto, cpu, cuda or cuda:N."""
    codec_folder: str | None = None
    """Where the codec lies, if it was moved since training."""
    encoder_folder: str | None = None
    """Where the encoder lies, if it was moved since training, or where Whisper lies, for a
    published EchoX folder whose config.json does not say it."""
    backbone_folder: str | None = None
    """Where the language model lies, if it was moved since training."""
    allow_outside: bool = False
    """Allow audio outside the manifest's folder."""
    overwrite: bool = False
    """Answer everything anew, even what out_dir holds already."""
    plugin_dirs: list[str] = field(default_factory=list)
    """Folders of plugins beside ./plugins and ECHOX_PLUGINS; their code is run."""

    def __post_init__(self) -> None:
        # Fields that exclude each other are refused here, long before a model is loaded.
        if self.manifest and self.input:
            raise ConfigError("manifest and input are both given; give one of them")
        if self.manifest and self.output == PIPE:
            raise ConfigError(
                "output=- streams one answer, and a manifest has many; give input=question.wav, or "
                "leave output out"
            )
        for name in ("batch_size", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, and is {value}")

    @property
    def limit(self) -> int:
        """Text tokens of an answer at most, from this checkpoint."""
        if self.max_tokens is not None:
            return self.max_tokens
        return RELEASE_TOKENS if is_release(self.checkpoint) else MAX_TOKENS
