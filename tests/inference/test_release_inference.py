"""Released folders: rows are independent, streams equal batches, and commands import and export."""

import json

import pytest
import soundfile
import tiny_release
import torch
from safetensors.torch import save_file
from tiny_run import RATE_HZ, noise, write_questions

from echox.backbones.base import Turn
from echox.core.errors import AssetError, CheckpointError, SignalError
from echox.core.signals import Waveform
from echox.inference.answers import Question
from echox.inference.release import load_release_pipeline
from echox.inference.streaming import stream
from echox.models.release.folder import files_beside, read_release, release_files
from echox.models.release.hearing import windowed
from echox.models.segmenting import Segmenter, SegmentRule, segments
from echox_cli import generate, prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from echox.pipeline.plugins import discover

    discover()
    return tiny_release.write_tiny_release(tmp_path_factory.mktemp("published") / "EchoX-tiny")


@pytest.fixture(scope="module")
def pipeline(folder):
    loaded = load_release_pipeline(folder, device="cpu", max_tokens=24)
    # Short segments, so that a short answer has several.
    loaded.echo.cutter.rule = SegmentRule(window=1, threshold=-1.0, least=3)
    return loaded


def spoken_question(clip):
    return Question((Turn("user", "", True),), (clip,))


def two_turns():
    return Question(
        (Turn("user", "", True), Turn("assistant", "yes"), Turn("user", "and", True)),
        (noise(1, 0.6), noise(2, 0.3)),
    )


def test_rows_are_answered_together_as_alone(pipeline):
    questions = [spoken_question(noise(0, 0.5)), two_turns(), Question((Turn("user", "typed"),))]
    together = pipeline.reply(questions)
    for question, answer in zip(questions, together):
        (alone,) = pipeline.reply([question])
        assert (answer.token_ids, answer.units, answer.heard_ids) == (
            alone.token_ids,
            alone.units,
            alone.heard_ids,
        )
        if alone.samples is not None:
            torch.testing.assert_close(answer.samples, alone.samples, atol=1e-5, rtol=0)
    assert any(answer.samples is not None for answer in together) and together[2].heard == ""


def test_streaming_gives_the_same_in_order(pipeline):
    question = two_turns()
    (answer,) = pipeline.reply([question])
    pieces = list(stream(pipeline, question))
    segments_samples = [piece.samples for piece in pieces if piece.samples is not None]
    assert pieces[-1].text == answer.text and len(segments_samples) > 1
    torch.testing.assert_close(torch.cat(segments_samples), answer.samples, atol=1e-5, rtol=0)
    assert pieces[0].samples is None and len(pieces[0].text) <= 1


def test_the_second_clip_is_encoded_too(pipeline):
    first, second = two_turns(), two_turns()
    changed = Question(second.turns, (second.clips[0], noise(7, 0.9)))
    hidden = [
        pipeline.encode_questions([question]).prompted.embeddings for question in (first, changed)
    ]
    assert hidden[0].shape != hidden[1].shape or not torch.equal(*hidden)


def test_long_audio_is_encoded_in_windows(pipeline):
    model = pipeline.speech_llm
    short, long = (model.adapter(model.encode_clips([noise(3, s)])) for s in (29.0, 31.0))
    assert (short.frame_lengths.item(), long.frame_lengths.item()) == (750, 1500)


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (spoken_question(torch.zeros(0)), "at least 1"),
        (spoken_question(torch.full((800,), float("nan"))), "NaN"),
        (
            Question((Turn("user", "<audio_patch>", True),), (torch.zeros(800),)),
            "2 audio placeholders .* but 1 audios",
        ),
        (
            Question((Turn("user", "", True), Turn("user", "", True)), (torch.zeros(800),)),
            "2 turns of a conversation have a place for audio, but 1 clips",
        ),
        (Question((Turn("user", "word " * 400),)), "EchoX was trained on 1024 at most"),
    ],
)
def test_wrong_questions_are_refused_in_one_sentence(pipeline, question, sentence):
    with pytest.raises(SignalError, match=sentence) as refusal:
        pipeline.reply([question])
    assert "\n" not in str(refusal.value)


def test_a_prompt_beyond_the_positions_is_refused(folder):
    with pytest.raises(SignalError, match="longer than the 4096 of the language model"):
        load_release_pipeline(folder, device="cpu", max_tokens=4000).reply(
            [spoken_question(noise(0, 0.5))]
        )


def test_audio_of_another_rate_is_refused(pipeline):
    with pytest.raises(SignalError, match="takes audio at 16000 Hz, got 8000 Hz"):
        pipeline.speech_llm.encode_audio(Waveform(torch.zeros(1, 800), torch.tensor([800]), 8000))


def test_a_missing_whisper_is_refused(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("whisper"))
    with pytest.raises(AssetError, match="set encoder_folder to where it lies"):
        load_release_pipeline(copy, device="cpu")
    assert (
        load_release_pipeline(copy, device="cpu", encoder_folder=str(folder / "whisper")).rate_hz
        == RATE_HZ
    )
    (copy / "config.json").write_text(
        json.dumps(json.loads((copy / "config.json").read_text()) | {"adapter_size": 20})
    )
    with pytest.raises(
        CheckpointError, match="gives 16 channels, but the checkpoint's adapter takes 20"
    ):
        load_release_pipeline(copy, device="cpu", encoder_folder=str(folder / "whisper"))


def test_the_commands_answer_import_and_export(workspace, folder, capsys):
    soundfile.write(workspace / "question.wav", noise(5, 0.7).numpy(), RATE_HZ)
    words = ["input=question.wav", "max_tokens=12", "device=cpu"]
    assert generate.main([f"checkpoint={folder}", "output=first.wav", *words]) == 0
    assert prepare.main(["import", str(folder), "output=runs/imported"]) == 0
    assert json.loads((workspace / "runs/imported/meta.json").read_text())["stage"] == "published"
    assert generate.main(["checkpoint=runs/imported", "output=second.wav", *words]) == 0
    assert (workspace / "first.wav").read_bytes() == (workspace / "second.wav").read_bytes()
    assert (
        prepare.main(["export", "runs/imported", "output=EchoX-again", "shard_gigabytes=0.0015"])
        == 0
    )
    before, after = read_release(folder), read_release(workspace / "EchoX-again")
    assert before.tensors.keys() == after.tensors.keys() and before.config == after.config
    assert all(
        torch.equal(after.tensors[name].view(torch.int16), tensor.view(torch.int16))
        for name, tensor in before.tensors.items()
    )
    for ours, theirs in zip(
        files_beside(workspace / "EchoX-again"), files_beside(folder), strict=True
    ):
        assert ours.name == theirs.name and ours.read_bytes() == theirs.read_bytes()
    assert len(list((workspace / "EchoX-again").glob("model-*.safetensors"))) > 1
    capsys.readouterr()
    assert prepare.main(["import", str(folder), "output=runs/imported"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert prepare.main(["export", str(workspace), "output=other"]) == 2
    assert "is not a checkpoint" in capsys.readouterr().err
    for path in release_files(folder):
        assert path.read_bytes() == (workspace / "runs/imported" / path.name).read_bytes()
    (workspace / "runs/imported/tokenizer.json").write_text("{}")
    assert prepare.main(["export", "runs/imported", "output=other"]) == 2
    assert (
        "tokenizer.json has 2 bytes" in capsys.readouterr().err
        and not (workspace / "other").exists()
    )


def test_soundwave_encodes_with_its_own_whisper_and_answers_in_text(workspace, capsys):
    folder = tiny_release.write_tiny_soundwave(workspace / "Soundwave")
    pipeline = load_release_pipeline(folder, device="cpu", max_tokens=12)
    (answer,) = pipeline.reply([two_turns()])
    assert not pipeline.speaks and answer.text and answer.samples is None
    # The same Whisper beside the folder gives the same features.
    tiny_release.write_whisper(workspace / "whisper", heads=1)
    beside = load_release_pipeline(folder, device="cpu", max_tokens=12, encoder_folder="whisper")
    torch.testing.assert_close(
        beside.speech_llm.encoder(windowed([noise(1, 0.5)], RATE_HZ)).values,
        pipeline.speech_llm.encoder(windowed([noise(1, 0.5)], RATE_HZ)).values,
        atol=1e-2,
        rtol=0,
    )
    *pieces, last = stream(pipeline, two_turns())
    assert [piece.samples for piece in pieces] == [None] * len(answer.token_ids)
    assert last.answer is not None and last.answer.text == answer.text
    assert prepare.main(["import", "Soundwave", "output=runs/imported"]) == 0
    assert prepare.main(["export", "runs/imported", "output=again"]) == 0
    before, after = read_release(folder), read_release(workspace / "again")
    assert (
        set(before.tensors) == set(after.tensors)
        and "model.audio_tower.conv1.weight" in after.tensors
    )
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items())
    soundfile.write(workspace / "question.wav", noise(5, 0.7).numpy(), RATE_HZ)
    assert (
        generate.main(
            ["checkpoint=runs/imported", "input=question.wav", "max_tokens=6", "device=cpu"]
        )
        == 0
    )
    assert "not spoken: the checkpoint has no voice" in capsys.readouterr().err


def test_a_damaged_inner_whisper_is_refused_in_one_sentence(workspace):
    folder = tiny_release.write_tiny_soundwave(workspace / "Soundwave")
    tensors = {
        name: tensor.clone()
        for name, tensor in read_release(folder).tensors.items()
        if name != "model.audio_tower.layer_norm.weight"
    }
    for path in folder.glob("model*"):
        path.unlink()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(AssetError, match="the Whisper inside .* cannot be read"):
        load_release_pipeline(folder, device="cpu")


def test_a_manifest_is_answered_by_a_released_folder(workspace, folder):
    manifest = write_questions(workspace / "data", "ask", 3)
    assert (
        generate.main(
            [
                f"checkpoint={folder}",
                f"manifest={manifest}",
                "out_dir=out",
                "max_tokens=8",
                "device=cpu",
                "batch_size=2",
            ]
        )
        == 0
    )
    rows = [json.loads(line) for line in (workspace / "out/answers.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(row["error"] is None and row["text"] for row in rows)


def test_segments_are_known_as_late_as_the_window():
    scores = [0.0, 0.5, 0.0, 0.0, 0.3, 0.1, 0.0]
    cuts = list(segments(scores, SegmentRule(window=2, threshold=0.2)))
    assert [(cut.start, cut.end, cut.known) for cut in cuts] == [(0, 2, 4), (2, 5, 7), (5, 7, 7)]
    segmenter = Segmenter(SegmentRule(window=2, threshold=0.4))
    assert [segmenter.push(score) is not None for score in scores] == [
        False,
        False,
        False,
        True,
        False,
        False,
        False,
    ]
    assert list(segments([])) == []
