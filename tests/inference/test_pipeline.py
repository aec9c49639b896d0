"""Pipelines of checkpoints: rows are independent, questions spoken or typed, errors sentences."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_run import RATE_HZ, noise, write_run

from echox.backbones.base import Turn
from echox.core import checkpoint
from echox.core.errors import AssetError, CheckpointError, ConfigError, SignalError
from echox.inference import tts as tts_module
from echox.inference.answers import USER, Question
from echox.inference.load import (
    answering_checkpoint,
    load_answering,
    load_checkpoint,
    load_pipeline,
    load_tts_pipeline,
    moved,
)
from echox.models import echo as echo_module
from echox.tasks.base import Use


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def pipeline(run):
    return load_pipeline(run / "echo" / "final", device="cpu", max_tokens=6, bf16=False)


@pytest.fixture(scope="module")
def tts(run, pipeline):
    return load_tts_pipeline(run / "t2c" / "final", beside=pipeline, bf16=False)


def copied(run, stage, tmp_path, **changes):
    """A checkpoint with parts of its meta replaced."""
    saved = checkpoint.load(run / stage / "final")
    meta = {key: value for key, value in saved.meta.items() if key not in ("format", "files")}
    return checkpoint.save(tmp_path / stage, saved.tensors, meta | changes)


def test_an_answer_has_text_transcript_units_and_samples(pipeline):
    answer = pipeline.answer([noise(0, 1.0)])[0]
    assert answer.text and answer.heard and answer.units
    assert answer.text == pipeline.backbone.detokenize(list(answer.token_ids))
    assert answer.rate_hz == pipeline.codec.rate_hz and answer.seconds > 0
    assert torch.isfinite(answer.samples).all() and answer.samples.dtype == torch.float32
    assert (
        set(answer.timings_s) == {"encoder", "adapter", "text", "units", "codec"}
        and answer.batch == 1
    )


def test_rows_of_a_batch_do_not_influence_each_other(pipeline):
    clips = [noise(seed, seconds) for seed, seconds in ((1, 0.5), (2, 1.7), (3, 0.05), (4, 1.1))]
    together = pipeline.answer(clips)
    for clip, row in zip(clips, together):
        alone = pipeline.answer([clip])[0]
        assert (row.text, row.heard, row.token_ids, row.units) == (
            alone.text,
            alone.heard,
            alone.token_ids,
            alone.units,
        )
        torch.testing.assert_close(row.samples, alone.samples, atol=1e-4, rtol=0)
    assert len({row.text for row in together}) > 1


def test_audio_beyond_the_encoders_window_is_answered(pipeline):
    assert pipeline.answer([noise(5, 31.0)])[0].text


@pytest.mark.parametrize(
    "clip", [torch.zeros(0), torch.zeros(1, RATE_HZ), torch.tensor([0.1, float("nan")])]
)
def test_unusable_audio_is_one_sentence(pipeline, clip):
    with pytest.raises(SignalError, match="samples"):
        pipeline.answer([noise(0, 0.3), clip])


@pytest.fixture
def deaf(pipeline):
    """The pipeline, whose adapter recognises no word."""
    bias = pipeline.speech_llm.adapter.ctc_head.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias[-1] = 1e6  # the blank
    yield pipeline
    with torch.no_grad():
        bias.copy_(before)


def test_silence_is_not_answered_unless_it_is_asked_for(pipeline, monkeypatch):
    clips = [torch.zeros(RATE_HZ), noise(7, 0.5), 1e-4 * noise(8, 0.5)]
    silent, spoken, quiet = pipeline.answer(clips)
    for answer in (silent, quiet):
        assert answer.unheard == "nothing was heard, for the clip is silent"
        assert (answer.text, answer.heard, answer.units) == ("", "", ())
        assert answer.samples is None and answer.cut is None
    assert spoken.unheard is None and spoken.samples is not None
    # The rows beside it do not change what is said.
    assert spoken.units == pipeline.answer(clips[1:2])[0].units
    monkeypatch.setattr(pipeline, "answer_silence", True)
    answer = pipeline.answer(clips[:1])[0]
    assert answer.text and answer.samples is not None and answer.heard == ""
    assert answer.unheard == "nothing was heard, for the clip is silent"


def test_what_no_word_is_recognised_in_is_not_answered(deaf):
    answer = deaf.answer([noise(7, 0.5)])[0]
    assert answer.unheard == "nothing was heard, for no word was recognised in the clip"
    assert answer.text == "" and answer.samples is None
    # Words that are written need not be heard.
    turns = (Turn(USER, "Describe this sound.", True),)
    described = deaf.reply([Question(turns, (noise(7, 0.3),))])[0]
    assert described.text and described.unheard is None
    later = (Turn(USER, "", True), Turn(USER, "What did I say?"))
    assert deaf.reply([Question(later, (noise(7, 0.3),))])[0].text


def test_a_clip_that_cannot_be_speech_is_not_answered_whatever_is_recognised(pipeline):
    white = 0.1 * torch.randn(RATE_HZ, generator=torch.Generator().manual_seed(0))
    steady, short = pipeline.answer([white, noise(7, 0.1)])
    assert steady.unheard == "nothing was heard, for the clip is a steady sound without syllables"
    assert "for 100 ms of the clip sound, which is less than a word" in short.unheard
    for answer in (steady, short):
        # What the adapter made of it stays for an evaluation.
        assert answer.heard == answer.text == "" and answer.samples is None and answer.heard_ids


def test_silent_windows_beside_a_question_are_left_out(pipeline):
    question = noise(9, 1.0)
    padded = torch.cat([torch.zeros(61 * RATE_HZ), question])
    # The last window holds a second of silence before the question.
    alone = pipeline.answer([padded[60 * RATE_HZ :]])[0]
    answer = pipeline.answer([padded])[0]
    assert (answer.heard, answer.units) == (alone.heard, alone.units) and answer.unheard is None


def test_windows_of_a_transcript_are_joined_with_a_space(pipeline, monkeypatch):
    asked, found = [], [[(64, 65), (), (66,)], [(64, 65)]]

    def transcripts(speech, window):
        asked.append(window)
        return [found[len(asked) - 1]]

    monkeypatch.setattr(pipeline.speech_llm.adapter, "transcripts", transcripts)
    long, short = pipeline.answer([noise(5, 0.4), noise(6, 0.3)])
    assert (long.heard, long.heard_ids, short.heard) == ("ab c", (64, 65, 66), "ab")
    assert asked == [1500, 1500]  # frames of 30 s


def test_speech_that_reaches_its_limit_says_so(pipeline, tts, monkeypatch):
    ended = [answer.cut for answer in tts.synthesize(["a", ""])]
    assert ended == [None, None]
    monkeypatch.setattr(tts_module, "MAX_STEPS", 6)
    assert [answer.cut for answer in tts.synthesize(["a", "a " * 30])] == [None, "speech"]
    monkeypatch.setattr(echo_module, "MAX_STEPS", 6)
    # An untrained model ends neither its text nor, so soon, its speech.
    assert pipeline.answer([noise(0, 0.5)])[0].cut == "text, speech"


def test_no_question_gives_no_answer(pipeline, tts):
    assert pipeline.answer([]) == tts.synthesize([]) == pipeline.answer_typed([]) == []


def test_history_is_read_and_typed_questions_need_no_audio(pipeline):
    clip = noise(6, 0.6)
    before = [Turn(USER, "My name is Ann."), Turn("assistant", "Hello Ann.")]
    assert pipeline.answer([clip], [before])[0].text != pipeline.answer([clip])[0].text
    mixed = pipeline.reply(
        [Question((Turn(USER, "hello"),)), Question((Turn(USER, "", True),), (clip,))]
    )
    assert mixed[0].heard == "" and mixed[0].text == pipeline.answer_typed(["hello"])[0]
    assert mixed[1].text == pipeline.answer([clip])[0].text


def test_the_pretrained_model_can_still_answer(pipeline):
    questions = ["Who are you?", "Why?"]
    trained = pipeline.answer_typed(questions)
    grads = [parameter.requires_grad for parameter in pipeline.backbone.parameters()]
    assert pipeline.answer_typed(questions, trained=False) != trained
    assert pipeline.answer_typed(questions) == trained
    assert [parameter.requires_grad for parameter in pipeline.backbone.parameters()] == grads


def test_text_alone_is_not_synthesized(pipeline):
    answer = pipeline.reply([Question((Turn(USER, "", True),), (noise(7, 0.5),))], speak=False)[0]
    assert answer.samples is None and answer.units == () and answer.seconds == 0.0
    assert "codec" not in answer.timings_s


def test_typed_text_is_synthesized_alone_as_in_a_batch(pipeline, tts):
    texts = ["Paris.", "", "It is a longer sentence."]
    together = tts.synthesize(texts)
    assert [answer.text for answer in together] == texts
    assert together[1].samples is None and together[1].units == ()
    for text, row in zip(texts[::2], together[::2]):
        alone = tts.synthesize([text])[0]
        assert row.units == alone.units
        torch.testing.assert_close(row.samples, alone.samples, atol=1e-4, rtol=0)
    # Echo of this run has T2C's own decoder.
    assert [answer.units for answer in pipeline.synthesize(texts)] == [
        answer.units for answer in together
    ]


def test_s2t_answers_in_text_alone(run, pipeline):
    s2t = load_pipeline(run / "s2t" / "final", device="cpu", max_tokens=6, bf16=False)
    clip = noise(8, 0.7)
    answer = s2t.answer([clip])[0]
    assert not s2t.speaks and answer.samples is None
    assert answer.text == pipeline.answer([clip])[0].text
    with pytest.raises(SignalError, match="no voice"):
        s2t.synthesize(["hello"])


def test_a_tts_pipeline_loads_by_itself(run, tts):
    alone = load_tts_pipeline(run / "t2c" / "final", device="cpu", bf16=False)
    assert alone.synthesize(["Paris."])[0].units == tts.synthesize(["Paris."])[0].units


def test_wrong_checkpoints_are_one_sentence(run, tmp_path):
    with pytest.raises(
        CheckpointError, match="stage 't2c'; this needs one that answers aloud or answers in text"
    ):
        load_pipeline(run / "t2c" / "final", device="cpu")
    with pytest.raises(CheckpointError, match="stage 'echo'; this needs one that synthesizes text"):
        load_tts_pipeline(run / "echo" / "final", device="cpu")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        load_pipeline(tmp_path / "nowhere", device="cpu")
    with pytest.raises(CheckpointError, match="says nothing of 's2t'"):
        load_pipeline(copied(run, "s2t", tmp_path, recipe={}), device="cpu")


def test_another_codec_is_refused(run, tmp_path):
    other = copied(run, "echo", tmp_path, lineage={"data": {"codec": "0123456789abcdef"}})
    with pytest.raises(CheckpointError, match="trained with codec 0123456789abcdef.*codec_folder"):
        load_pipeline(other, device="cpu")
    with pytest.raises(CheckpointError, match="no codec in"):
        load_pipeline(run / "echo" / "final", device="cpu", codec_folder=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("stage", "load"), [("echo", load_pipeline), ("t2c", load_tts_pipeline)])
def test_a_codec_that_cannot_decode_is_refused_before_anything_is_built(run, stage, load, tmp_path):
    recipe = checkpoint.verify(run / stage / "final")["recipe"] | {
        "codec": {"name": "hubert_units", "folder": str(tmp_path / "units")}
    }
    with pytest.raises(ConfigError, match="cannot be heard.*no vocoder.*codec.vocoder.folder"):
        load(copied(run, stage, tmp_path, recipe=recipe), device="cpu")


def test_parts_that_were_moved_are_read_from_where_they_are_now(run, tmp_path):
    final, there = run / "s2t" / "final", str(tmp_path)
    with pytest.raises(AssetError, match=f"^{there} does not hold a Whisper model"):
        load_pipeline(final, device="cpu", encoder_folder=there)
    with pytest.raises(AssetError, match=f"^{there} does not hold a causal language model"):
        load_pipeline(final, device="cpu", backbone_folder=there)
    with pytest.raises(AssetError, match=f"^{there} does not hold a causal language model"):
        load_tts_pipeline(run / "t2c" / "final", device="cpu", backbone_folder=there)
    with pytest.raises(ConfigError, match="backbone_folder is 'nowhere', which is no folder"):
        load_pipeline(final, device="cpu", backbone_folder="nowhere")
    with pytest.raises(ConfigError, match="the codec of .* has no weights of its own"):
        moved(load_checkpoint(final, Use.answer)[0], codec=there)


def test_a_run_is_answered_by_its_last_stage_and_the_newest_run_is_offered(
    run, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "runs/mine")
    assert answering_checkpoint(Path("runs/mine")) == Path("runs/mine/echo/final")
    offer = "it does not exist; the newest run that answers is there with checkpoint=runs/mine$"
    for place in ("runs/echo_mini/echo/final", "runs/echo_mini", "runs/mine/other/final"):
        with pytest.raises(CheckpointError, match=f"^{place} is not a checkpoint: {offer}"):
            load_answering(place)
    assert not caplog.text
    # A stage that speaks and cannot be used is named before another one is taken.
    Path("runs/mine/echo/final/meta.json").write_text("{")
    assert answering_checkpoint(Path("runs/mine")) == Path("runs/mine/s2t/final")
    assert "echo/final is damaged" in caplog.text and "left out" in caplog.text
    shutil.rmtree("runs/mine")
    with pytest.raises(CheckpointError, match="it does not exist; train one with echox-train"):
        load_answering("runs/mine")


def test_a_damaged_checkpoint_is_one_sentence(run, tmp_path):
    shutil.copytree(run / "s2t" / "final", tmp_path / "final")
    with (tmp_path / "final" / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(CheckpointError, match="damaged"):
        load_pipeline(tmp_path / "final", device="cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_missing_device_is_refused(run, name):
    with pytest.raises(ConfigError, match=f"device '{name}'"):
        load_pipeline(run / "s2t" / "final", device=name)
