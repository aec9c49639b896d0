"""Configuration of the evaluation of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from echox.core.errors import ConfigError
from echox.core.packages import DISTILLMOS, JIWER, OptionalPackage

# Fields with numbers of rows, which may be 0.
ROWS = (
    "spoken_rows",
    "typed_rows",
    "free_rows",
    "open_rows",
    "t2c_rows",
    "cascade_rows",
    "mos_rows",
)


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """Score a finished run on the corpus's test questions, and keep the answers to listen to.

    `echox-evaluate ablation` compares ways to train its Echo stage.

    Raises:
        ConfigError: a number is out of range.
    """

    run: str = "runs/echo_mini"
    """Folder of the run; the last of its finished stages that answers is scored, aloud rather than
    in text alone, and the last that synthesizes text."""
    corpus: str | None = None
    """Folder of the demo corpus; null takes the one that the run's recipe names, or none where
    `manifests` or `answers` are given."""
    manifests: list[str] = field(default_factory=list)
    """Manifests of one's own, each a section of the report, scored by what their rows hold: a label
    "answer", the assistant's text, the question's words."""
    answers: str | None = None
    """Answers to score instead of a run: answers.jsonl of `echox-generate`, or any lines with "id",
    "text" and, where there are any, "heard" and "audio"; `manifests` names what was answered."""
    allow_outside: bool = False
    """Allow audio outside the folders of `manifests`."""
    out_dir: str | None = None
    """Folder of the report; null takes `report` in the run's folder, or beside the answers."""
    spoken_rows: int = 64
    """Questions of each section whose answers are spoken and transcribed, drawn by `seed`; text is
    scored on all rows."""
    typed_rows: int = 32
    """Questions of each section that are also typed to the language model, drawn by `seed`, to see
    what it knows without speech."""
    free_rows: int = 40
    """Free questions, drawn by `seed`; 0 leaves their section out."""
    open_rows: int = 300
    """Open questions about the world, drawn by `seed`, each asked aloud, typed, and typed to the
    language model as it came; 0 leaves them out."""
    t2c_rows: int = 12
    """Texts of each kind that T2C synthesizes, drawn by `seed`, and whose recordings go through the
    codec; 0 leaves T2C's section out."""
    cascade_rows: int = 16
    """Spoken questions that the full cascade (recogniser, typed question, T2C) answers too; 0
    leaves out all comparisons with cascades."""
    seed: int = 1
    """Seed of every sample."""
    asr: str = "whisper_base"
    """Recogniser that transcribes answers: catalogue name, hub id or local folder of a Whisper."""
    mos_rows: int = 24
    """Clips of each kind of speech whose naturalness is scored by DistillMOS, drawn by `seed`; 0
    for none."""
    batch_size: int = 32
    """Rows answered or synthesized at once."""
    max_tokens: int = 48
    """Text tokens of an answer at most."""
    device: str = "auto"
    """Device to run on: auto, cpu, cuda or cuda:N."""
    codec_folder: str | None = None
    """Where the codec lies, if it was moved since training."""
    encoder_folder: str | None = None
    """Where the encoder lies, if it was moved since training."""
    backbone_folder: str | None = None
    """Where the language model lies, if it was moved since training."""
    overwrite: bool = False
    """Score everything anew, even what the report's folder holds already."""
    plugin_dirs: list[str] = field(default_factory=list)
    """Folders of plugins beside ./plugins and ECHOX_PLUGINS; their code is run."""

    def packages(self) -> list[OptionalPackage]:
        """Return the optional packages that scoring needs."""
        # DistillMOS is not asked for where no clip is scored by it.
        return [JIWER, *([DISTILLMOS] if self.mos_rows else [])]

    def __post_init__(self) -> None:
        if self.answers is not None and self.corpus is not None:
            raise ConfigError(
                f"answers={self.answers} are scored without a run, so no corpus is asked; leave "
                "corpus out, and name by manifests=[FILE.jsonl] what was answered"
            )
        # Here, not where they are used: a wrong number is refused before any model is loaded.
        for name in ("batch_size", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, and is {getattr(self, name)}")
        for name in ROWS:
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, and is {getattr(self, name)}")
