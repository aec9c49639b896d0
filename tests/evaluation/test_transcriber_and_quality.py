"""The recogniser and the naturalness model, where their weights can be had."""

import pytest
import torch
import torchaudio

from echox.assets import asset_folder
from echox.core.errors import AssetError
from echox.core.packages import DISTILLMOS
from echox.evaluation.quality import Quality
from echox.evaluation.transcriber import Transcriber


@pytest.fixture(scope="module")
def clips():
    """Two sentences, samples [T] at 24 kHz."""
    hibari = pytest.importorskip(
        "hibari", reason="needs the voice of the package hibari-tts"
    ).Hibari()
    return [
        torch.as_tensor(hibari(text, seed=0)) for text in ("Seven plus nine is sixteen.", "Paris.")
    ]


@pytest.fixture(scope="module")
def transcriber():
    try:
        asset_folder("whisper_base")
    except AssetError as error:
        pytest.skip(f"needs the asset whisper_base: {error}")
    return Transcriber("whisper_base", batch_size=2)


def test_clips_are_transcribed_in_their_order(transcriber, clips):
    texts = transcriber.transcribe([clips[0], torch.zeros(0), clips[1]], 24_000)
    assert texts == ["7 plus 9 is 16.", "", "Paris."]
    assert transcriber.transcribe([], 24_000) == []
    assert transcriber.name.startswith("whisper_base@") and "greedy" in transcriber.name


def test_speech_sounds_more_natural_than_noise(clips):
    if not DISTILLMOS.is_installed():
        pytest.skip("needs the package distillmos")
    quality = Quality()
    at_16k = torchaudio.functional.resample(clips[0], 24_000, 16_000)
    assert quality.score(clips[0], 24_000) == pytest.approx(quality.score(at_16k, 16_000), abs=0.05)
    assert (
        quality.score(at_16k, 16_000)
        > 3.5
        > 2.5
        > quality.score(
            0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0)), 16_000
        )
    )
    assert quality.score(at_16k[:1000], 16_000) is None
