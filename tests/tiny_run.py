"""A finished run of tiny random parts: checkpoints of s2t, t2c and echo that belong together.

It is written by hand in a second, without training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from echox.backbones.base import BACKBONES
from echox.backbones.hub import HubBackboneConfig, LoraConfig
from echox.codecs.base import CODECS
from echox.codecs.kmeans.codec import KMeansCodecConfig
from echox.core import checkpoint
from echox.core.config import to_plain
from echox.data.audio import save_audio
from echox.data.manifest import Item, Role, Row, write_manifest
from echox.encoders.whisper import WhisperConfig
from echox.models.denoising import DenoisingAdapter, DenoisingConfig
from echox.models.echo import EchoModel
from echox.models.speech_adapter import SpeechAdapterConfig
from echox.models.unit_decoder import UnitDecoderConfig
from echox.pipeline import plugins
from echox.tasks.base import Parts
from echox.tasks.echo.task import EchoTaskConfig
from echox.tasks.s2t.task import SpeechTextTaskConfig, build_speech_llm, speech_llm_state_dict
from echox.tasks.t2c.task import TextUnitsTaskConfig, t2c_model_of

RATE_HZ = 16_000
TOKENS = 40  # that CTC may emit


@dataclass(kw_only=True, slots=True)
class TinyRecipe:
    """What a recipe records of its parts and tasks."""

    encoder: WhisperConfig = field(default_factory=lambda: WhisperConfig(weights="random"))
    backbone: HubBackboneConfig = field(
        default_factory=lambda: HubBackboneConfig(weights="random", lora=LoraConfig(rank=4))
    )
    codec: KMeansCodecConfig = field(default_factory=lambda: KMeansCodecConfig(folder="random"))
    s2t: dict = field(
        default_factory=lambda: {"task": SpeechTextTaskConfig(adapter=SpeechAdapterConfig(heads=4))}
    )
    t2c: dict = field(
        default_factory=lambda: {
            "task": TextUnitsTaskConfig(
                decoder=UnitDecoderConfig(
                    layers=2, width=32, heads=2, feed_forward=64, max_words_per_token=4
                ),
                spelling_channels=8,
            )
        }
    )
    echo: dict = field(
        default_factory=lambda: {"task": EchoTaskConfig(denoiser=DenoisingConfig(feed_forward=32))}
    )


def write_run(run: Path) -> Path:
    """Write random models with output: every text token has units, and audio changes the answer."""
    plugins.discover()
    recipe = TinyRecipe()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = _model(recipe)
        _strengthen_outputs(model)
    codec = {"codec": CODECS.build(recipe.codec).fingerprint()}
    speech_llm = speech_llm_state_dict(model.speech_llm)
    t2c = dict(model.voice.state_dict())
    echo = {f"speech_llm.{name}": tensor for name, tensor in speech_llm.items()} | {
        f"voice.{name}": tensor for name, tensor in t2c.items()
    }
    echo |= {f"denoiser.{name}": tensor for name, tensor in model.denoiser.state_dict().items()}
    for stage, tensors, data in (
        ("s2t", speech_llm, {}),
        ("t2c", t2c, codec),
        ("echo", echo, codec),
    ):
        meta = {
            "stage": stage,
            "recipe": to_plain(recipe),
            "lineage": {"parents": {}, "data": data},
            "step": 1,
            "metrics": {},
        }
        checkpoint.save(run / stage / "final", tensors, meta)
    return run


def _model(recipe: TinyRecipe) -> EchoModel:
    parts = Parts(recipe.encoder, recipe.backbone, recipe.codec)
    # Letters of the byte tokenizer, small and large: without one nothing counts as heard.
    ids = torch.cat([torch.arange(64, 90), torch.arange(32, 6 + TOKENS)])
    speech_llm = build_speech_llm(parts, recipe.s2t["task"].adapter, ids)
    t2c = t2c_model_of(recipe.t2c["task"], speech_llm.backbone, CODECS.build(recipe.codec))
    return EchoModel(
        speech_llm,
        DenoisingAdapter(recipe.echo["task"].denoiser, speech_llm.backbone.hidden_size),
        t2c,
    )


@torch.no_grad()
def _strengthen_outputs(model: EchoModel) -> None:
    for name, parameter in model.speech_llm.backbone.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)
    nn.init.normal_(model.speech_llm.adapter.ctc_head.weight, std=0.5)
    head = model.voice.decoder.head.weight
    nn.init.normal_(head, std=1.0)
    head[model.voice.decoder.next_id] = 0.0


def backbone():
    """The run's language model, untrained."""
    return BACKBONES.build(TinyRecipe().backbone)


def noise(seed: int, seconds: float) -> torch.Tensor:
    """A clip [T] of noise that swells and fades as syllables do: steady noise is not speech."""
    samples = torch.randn(int(seconds * RATE_HZ), generator=torch.Generator().manual_seed(seed))
    times_s = torch.arange(len(samples)) / RATE_HZ
    return 0.2 * samples * (0.1 + torch.sin(2 * torch.pi * 3 * times_s).square())


def write_questions(folder: Path, name: str, count: int, **extra) -> Path:
    """A manifest of spoken questions with answers, each of its own length."""
    rows = []
    for number in range(count):
        clip = folder / "clips" / f"{name}-{number}.wav"
        save_audio(clip, noise(number, 0.4 + 0.15 * number), RATE_HZ)
        labels = {
            "kind": ("capital", "day")[number % 2],
            "voice": "noise",
            "answer": "Paris",
            **extra,
        }
        turns = (
            Item(Role.USER, audio=clip),
            Item(Role.ASSISTANT, "It is Paris.", transcription=f"What is {number}?"),
        )
        rows.append(Row(f"{name}/{number}", turns, labels))
    write_manifest(folder / f"{name}.jsonl", rows)
    return folder / f"{name}.jsonl"


def write_speech(folder: Path, name: str, texts: list[str]) -> Path:
    """A manifest of recorded sentences of two kinds."""
    rows = []
    for number, text in enumerate(texts):
        clip = folder / "clips" / f"{name}-{number}.wav"
        save_audio(clip, noise(100 + number, 0.8), RATE_HZ)
        rows.append(
            Row(
                f"{name}-{number}",
                (Item(Role.ASSISTANT, text, audio=clip),),
                {"kind": ("answer", "sentence")[number % 2], "voice": "noise"},
            )
        )
    write_manifest(folder / f"{name}.jsonl", rows)
    return folder / f"{name}.jsonl"
