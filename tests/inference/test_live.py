"""Live answers: file and pipe get the samples of the stream, one segment after the other."""

import io

import pytest
import soundfile
import tiny_release
import torch
from tiny_run import RATE_HZ, noise, write_run

from echox.backbones.base import Turn
from echox.data.audio import save_audio
from echox.inference.answers import USER, Piece, Question
from echox.inference.live import GrowingWav, TextPrinter, pcm, play
from echox.inference.load import load_pipeline
from echox.inference.streaming import stream
from echox.models.segmenting import SegmentRule, SegmentsConfig
from echox_cli import generate

CUTS = SegmentsConfig(rule=SegmentRule(threshold=-1.0, window=1))
OVERRIDES = ("segments.rule.threshold=-1.0", "segments.rule.window=1", "device=cpu", "max_tokens=9")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    write_run(folder / "run")
    save_audio(folder / "ask.wav", noise(1, 0.6), RATE_HZ)
    return folder


def overrides(home, *more):
    return [
        f"checkpoint={home / 'run' / 'echo' / 'final'}",
        f"input={home / 'ask.wav'}",
        *OVERRIDES,
        *more,
    ]


@pytest.fixture(scope="module")
def pieces(home):
    """The pieces of the same stream, from Python."""
    pipeline = load_pipeline(home / "run" / "echo" / "final", device="cpu", max_tokens=9)
    clip = torch.from_numpy(soundfile.read(home / "ask.wav", dtype="float32")[0])
    return list(stream(pipeline, Question((Turn(USER, "", True),), (clip,)), CUTS))


def test_a_file_grows_and_a_pipe_carries_the_same(home, pieces, tmp_path, capsysbinary):
    samples = b"".join(pcm(piece.samples) for piece in pieces if piece.samples is not None)
    assert (
        generate.main(overrides(home, "stream=true", f"output={tmp_path / 'new' / 'a.wav'}")) == 0
    )
    printed = capsysbinary.readouterr().out.decode()
    assert soundfile.read(tmp_path / "new" / "a.wav", dtype="int16")[0].tobytes() == samples
    count = sum(piece.samples is not None for piece in pieces)
    assert (
        count > 1
        and f"answered: {pieces[-1].text}\n" in printed
        and f"in {count} chunks" in printed
        and "first speech after" in printed
    )
    assert generate.main(overrides(home, "output=-")) == 0
    piped = capsysbinary.readouterr()
    assert piped.out == samples
    assert (
        f"aplay -f S16_LE -r {RATE_HZ}" in piped.err.decode()
        and pieces[-1].text in piped.err.decode()
    )


def test_each_segment_is_in_the_file_before_the_next_is_generated(tmp_path):
    path, lengths = tmp_path / "a.wav", []

    def pieces():
        for number in range(3):
            yield Piece("ab"[: number + 1])
            assert path.exists() == (number > 0), (
                "nothing appears before there is something to hear"
            )
            yield Piece("ab"[: number + 1], torch.full((100 * (number + 1),), 0.5 + number))
            lengths.append(len(soundfile.read(path)[0]))

    out = io.StringIO()
    with GrowingWav(path, RATE_HZ) as sink:
        timings = play(pieces(), sink.write, out, RATE_HZ)
    assert lengths == [100, 300, 600] and out.getvalue() == "answered: ab\n"
    assert (timings.chunks, timings.tokens, timings.tokens_before_speech) == (3, 3, 1)
    assert (
        timings.speech_s == pytest.approx(600 / RATE_HZ)
        and 0 < timings.first_text_s <= timings.first_speech_s <= timings.took_s
    )
    assert soundfile.read(path)[0].max() <= 1.0, "larger samples are clipped"


def test_incomplete_characters_wait_and_corrections_are_printed():
    out = io.StringIO()
    printer = TextPrinter(out)
    for text in ("gr", "gr\ufffd", "grün"):
        printer.show(text)
    printer.close()
    assert out.getvalue() == "answered: grün\n"
    printer = TextPrinter(out := io.StringIO())
    for text in ("ab", "xb"):
        printer.show(text)
    printer.close()
    assert out.getvalue() == "answered: ab\nanswered: xb\n"


def test_a_released_folder_streams_too(tmp_path, capsysbinary):
    folder = tiny_release.write_tiny_release(tmp_path / "EchoX-tiny")
    save_audio(tmp_path / "ask.wav", noise(3, 0.5), RATE_HZ)
    words = [
        f"checkpoint={folder}",
        f"input={tmp_path / 'ask.wav'}",
        "device=cpu",
        "max_tokens=24",
        "segments.rule.threshold=-1.0",
        "segments.rule.window=1",
        "segments.rule.least=3",
    ]
    assert generate.main([*words, "output=-"]) == 0
    streamed = capsysbinary.readouterr()
    assert b"chunks" in streamed.err and len(streamed.out) > 2 and len(streamed.out) % 2 == 0
    soundwave = tiny_release.write_tiny_soundwave(tmp_path / "Soundwave-tiny")
    assert (
        generate.main(
            [f"checkpoint={soundwave}", *words[1:3], "stream=true", f"output={tmp_path / 'x.wav'}"]
        )
        == 2
    )
    assert b"has no voice, so there is no speech to stream" in capsysbinary.readouterr().err


def test_wrong_outputs_are_refused_before_models_are_loaded(home, tmp_path, capsys):
    assert generate.main(overrides(home, "stream=true", "output=a.flac")) == 2
    assert "a stream is written as .wav, or as raw samples to -" in capsys.readouterr().err
    assert generate.main(["manifest=x.jsonl", "output=-"]) == 2
    assert "output=- streams one answer, and a manifest has many" in capsys.readouterr().err
    assert (
        generate.main(
            [
                f"checkpoint={home / 'run' / 's2t' / 'final'}",
                f"input={home / 'ask.wav'}",
                "stream=true",
                f"output={tmp_path / 'x.wav'}",
            ]
        )
        == 2
    )
    assert "has no voice" in capsys.readouterr().err and not (tmp_path / "x.wav").exists()
