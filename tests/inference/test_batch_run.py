"""Manifest runs: each row has a record, broken rows do not affect others, stopped runs go on."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
from full_disk import fill_disk
from tiny_run import RATE_HZ, noise, write_questions, write_run

from echox.core.errors import CapacityError, ConfigError, DiskError, ManifestError, SignalError
from echox.data.audio import save_audio
from echox.inference import batch_run
from echox.inference.batch_run import GenerateConfig, generate
from echox.inference.pipeline import SpeechToSpeechPipeline
from echox.models import echo


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def config(run, tmp_path):
    manifest = write_questions(tmp_path / "data", "ask", 5)
    return GenerateConfig(
        checkpoint=str(run / "echo" / "final"),
        manifest=str(manifest),
        out_dir=str(tmp_path / "out"),
        batch_size=2,
        max_tokens=5,
        device="cpu",
    )


def records(config):
    with open(f"{config.out_dir}/answers.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def add_line(config, record):
    with open(config.manifest, "a", encoding="utf-8") as out:
        out.write((record if isinstance(record, str) else json.dumps(record)) + "\n")


def spoken_row(name, audio):
    return {"id": name, "conversations": [{"from": "user", "value": "", "audio": audio}]}


def test_every_row_has_a_line_and_a_wav(config, capsys):
    assert generate(config) == 0
    rows = records(config)
    assert [row["id"] for row in rows] == [f"ask/{number}" for number in range(5)]
    assert [row["line"] for row in rows] == [1, 2, 3, 4, 5]
    assert len({row["audio"] for row in rows}) == 5
    for row in rows:
        assert row["error"] is None and row["text"] and row["timings_s"]["codec"] > 0
        assert all(unit.isdigit() for unit in row["units"].split())
        assert soundfile.info(f"{config.out_dir}/{row['audio']}").duration == pytest.approx(
            row["seconds"], abs=1e-3
        )
        # An untrained model does not end its text, so the limit does.
        assert row["cut"] == "text"
    assert "5 of 5 rows answered, 5 aloud" in capsys.readouterr().out


def test_a_run_answers_by_its_last_stage_that_answers(config):
    assert generate(config) == 0
    by_checkpoint = [row["units"] for row in records(config)]
    config.checkpoint = str(Path(config.checkpoint).parents[1])
    # The answers of the same checkpoint: nothing is left to do.
    assert generate(config) == 0
    config.overwrite = True
    assert generate(config) == 0
    assert [row["units"] for row in records(config)] == by_checkpoint


def test_the_token_limit_depends_on_the_checkpoint(config, tmp_path):
    config.max_tokens = None
    assert config.limit == 64
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "config.json").write_text('{"model_type": "EchoX"}')
    config.checkpoint = str(tmp_path / "release")
    assert config.limit == 512
    config.max_tokens = 7
    assert config.limit == 7


def test_broken_rows_do_not_affect_others(config, tmp_path, capsys):
    soundfile.write(
        tmp_path / "data" / "nan.wav",
        torch.full((800,), float("nan")).numpy(),
        RATE_HZ,
        subtype="FLOAT",
    )
    soundfile.write(tmp_path / "data" / "empty.wav", torch.zeros(0).numpy(), RATE_HZ)
    soundfile.write(
        tmp_path / "data" / "stereo.wav", torch.stack([noise(1, 0.5)] * 2, 1).numpy(), 8_000
    )
    add_line(config, spoken_row("nan", "nan.wav"))
    add_line(config, spoken_row("empty", "empty.wav"))
    add_line(config, "this is no JSON")
    add_line(config, spoken_row("gone", "nowhere.wav"))
    add_line(config, {"id": "mute", "conversations": [{"from": "assistant", "value": "Hello."}]})
    add_line(config, spoken_row("stereo", "stereo.wav"))
    add_line(config, {"id": "typed", "conversations": [{"from": "user", "value": "Who are you?"}]})
    assert generate(config) == 0
    rows = {row["id"]: row for row in records(config)}
    assert [row["line"] for row in records(config)] == list(range(1, 13))
    reasons = {
        "nan": "NaN",
        "empty": "zero length",
        "line-8": "not JSON",
        "gone": "does not exist",
        "mute": "asks nothing",
    }
    for row_id, reason in reasons.items():
        assert reason in rows[row_id]["error"] and rows[row_id]["audio"] is None
    assert sum(row["error"] is None for row in rows.values()) == 7
    assert rows["typed"]["heard"] == "" and rows["typed"]["audio"]
    printed = capsys.readouterr()
    assert "7 of 12 rows answered" in printed.out and "line 9 (row 'gone')" in printed.err


def fail_on_the_longest(monkeypatch, error):
    """Have the models raise an error for the longest of the questions."""
    reply = SpeechToSpeechPipeline.reply

    def fails(self, questions, **kwargs):
        if any(len(clip) > 0.9 * RATE_HZ for question in questions for clip in question.clips):
            raise error
        return reply(self, questions, **kwargs)

    monkeypatch.setattr(SpeechToSpeechPipeline, "reply", fails)


def test_a_row_that_the_models_refuse_is_isolated(config, monkeypatch):
    fail_on_the_longest(monkeypatch, SignalError("too long"))
    assert generate(config) == 0
    assert [row["error"] for row in records(config)] == [None, None, None, None, "too long"]


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (
            torch.OutOfMemoryError("CUDA out of\nmemory."),
            CapacityError,
            r"^memory ran out \(CUDA out of memory.\); it happened while answering one row: ",
        ),
        (MemoryError(), CapacityError, "MemoryError"),
        (RuntimeError("mat1 and mat2"), RuntimeError, "mat1"),
    ],
)
def test_an_error_that_is_no_row_s_own_ends_the_run(config, monkeypatch, error, expected, text):
    fail_on_the_longest(monkeypatch, error)
    with pytest.raises(expected, match=text):
        generate(config)
    # What was answered before stays, and is not answered again.
    assert [row["error"] for row in records(config)] == [None] * 4


def test_a_stopped_run_goes_on_where_it_stopped(config, monkeypatch):
    answer_rows, calls = batch_run.answer_rows, []

    def stops_after_one_batch(pipeline, rows, **kwargs):
        calls.append([row.id for row in rows])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer_rows(pipeline, rows, **kwargs)

    monkeypatch.setattr(batch_run, "answer_rows", stops_after_one_batch)
    with pytest.raises(KeyboardInterrupt):
        generate(config)
    with open(f"{config.out_dir}/answers.jsonl", "a") as out:
        out.write('{"id": "ask/4", "te')  # killed while writing
    assert generate(config) == 0
    assert calls[0] == ["ask/0", "ask/1"] and sorted(sum(calls[2:], [])) == [
        "ask/2",
        "ask/3",
        "ask/4",
    ]
    assert [row["id"] for row in records(config)] == [f"ask/{number}" for number in range(5)]
    before = records(config)
    assert generate(config) == 0 and records(config) == before and len(calls) == 4


def test_a_run_on_a_full_disk_keeps_what_it_answered_and_goes_on(config, monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        # That of the last answer; batches are of two rows.
        fill_disk(patched, holds=lambda path: path.name.startswith(".ask_4"))
        with pytest.raises(DiskError, match="No space left on device .* needed, .* free in .*wavs"):
            generate(config)
    assert [row["id"] for row in records(config)] == [f"ask/{number}" for number in range(4)]
    assert not [path for path in tmp_path.rglob(".*.wav")]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("wavs/*.wav")}
    assert generate(config) == 0
    assert len(kept) == 4 and {path: path.stat().st_mtime_ns for path in kept} == kept
    row = records(config)[4]
    assert row["error"] is None and Path(f"{config.out_dir}/{row['audio']}").is_file()


def add_other_rows(config, folder):
    """Add a conversation, a typed question, silence and rows that cannot be answered."""
    save_audio(folder / "silent.wav", torch.zeros(RATE_HZ), RATE_HZ)
    soundfile.write(folder / "empty.wav", torch.zeros(0).numpy(), RATE_HZ)
    clips = [{"from": "user", "value": "", "audio": f"clips/ask-{n}.wav"} for n in (0, 1)]
    turns = [clips[0], {"from": "assistant", "value": "Go on."}, clips[1]]
    add_line(config, {"id": "turns", "conversations": turns})
    add_line(config, {"id": "typed", "conversations": [{"from": "user", "value": "Who?"}]})
    add_line(config, {"id": "long", "conversations": [{"from": "user", "value": "a" * 2100}]})
    for row in (spoken_row("silent", "silent.wav"), spoken_row("empty", "empty.wav"), "no JSON"):
        add_line(config, row)


def compared(config):
    """The records without what depends on the way, and the samples of their files."""
    rows = [{**row, "timings_s": None, "batch": None} for row in records(config)]
    paths = [row["audio"] and f"{config.out_dir}/{row['audio']}" for row in rows]
    return rows, [soundfile.read(path, dtype="int16")[0] for path in paths if path]


def test_a_streamed_manifest_is_the_plain_one(config, tmp_path, capsys):
    add_other_rows(config, tmp_path / "data")
    assert generate(config) == 0
    assert "7 of 11 rows answered, 7 aloud" in capsys.readouterr().out
    plain, plain_samples = compared(config)
    config.out_dir, config.stream = str(tmp_path / "streamed"), True
    assert generate(config) == 0
    streamed, samples = compared(config)
    assert streamed == plain and len(samples) == 7
    for one, other in zip(samples, plain_samples, strict=True):
        assert abs(one.astype(int) - other).max() <= 1
    assert "7 of 11 rows answered, 7 aloud" in capsys.readouterr().out
    times = [row["timings_s"] for row in records(config) if row["audio"]]
    for each in times:
        assert list(each.values()) == sorted(each.values()), each
        assert {"first_text", "first_unit", "first_audible", "done"} <= set(each)


def test_a_stopped_stream_keeps_what_has_ended(config, tmp_path, monkeypatch):
    config.stream, saved = True, []

    def stops(path, samples, rate_hz):
        if len(saved) == 3:
            raise KeyboardInterrupt
        save_audio(path, samples, rate_hz)
        saved.append(path.name)

    monkeypatch.setattr(batch_run, "save_audio", stops)
    with pytest.raises(KeyboardInterrupt):
        generate(config)
    monkeypatch.undo()
    before = records(config)
    assert len(before) == 3 and all(row["error"] is None for row in before)
    # Both ways answer alike, so the plain one may go on.
    config.stream = False
    assert generate(config) == 0
    assert len(records(config)) == 5
    assert [row for row in records(config) if row["batch"] == 1 and row in before] == before


@pytest.mark.parametrize(
    ("error", "expected"),
    [(torch.OutOfMemoryError("CUDA out of memory."), CapacityError), (KeyError("x"), KeyError)],
)
def test_an_error_that_is_no_row_s_own_ends_a_stream(config, monkeypatch, error, expected):
    def fails(self, *args):
        raise error

    monkeypatch.setattr(SpeechToSpeechPipeline, "encode_questions", fails)
    config.stream = True
    with pytest.raises(expected):
        generate(config)
    assert records(config) == []


def test_failed_rows_and_lost_wavs_are_answered_again(config, tmp_path):
    add_line(config, spoken_row("late", "late.wav"))
    save_audio(tmp_path / "data" / "late.wav", noise(9, 0.4), RATE_HZ)
    (tmp_path / "data" / "late.wav").rename(tmp_path / "late.wav")
    generate(config)
    first = {row["id"]: row for row in records(config)}
    assert "does not exist" in first["late"]["error"]
    (tmp_path / "late.wav").rename(tmp_path / "data" / "late.wav")
    (tmp_path / "out" / first["ask/3"]["audio"]).unlink()
    generate(config)
    again = {row["id"]: row for row in records(config)}
    assert again["late"]["error"] is None and (tmp_path / "out" / again["ask/3"]["audio"]).exists()
    assert again["ask/0"] == first["ask/0"] and again["ask/3"]["units"] == first["ask/3"]["units"]


def test_answers_of_another_run_are_not_mixed(config):
    generate(config)
    config.max_tokens = 3
    with pytest.raises(
        ConfigError, match="another max_tokens; choose another out_dir, or set overwrite=true"
    ):
        generate(config)
    config.overwrite = True
    assert generate(config) == 0 and len(records(config)) == 5


def test_a_silent_row_says_so_and_has_no_speech(config, tmp_path, capsys):
    save_audio(tmp_path / "data" / "silent.wav", torch.zeros(RATE_HZ), RATE_HZ)
    add_line(config, spoken_row("silent", "silent.wav"))
    assert generate(config) == 0
    row = records(config)[-1]
    assert (row["heard"], row["text"], row["audio"], row["error"]) == ("", "", None, None)
    assert row["unheard"] == "nothing was heard, for the clip is silent"
    printed = capsys.readouterr().out
    assert "5 of 6 rows answered, 5 aloud" in printed and "in 1 nothing was heard" in printed
    assert "5 cut in text" in printed
    # It is a finished record, and one of other settings is not mixed with it.
    assert generate(config) == 0 and records(config)[-1] == row
    config.answer_silence = True
    with pytest.raises(ConfigError, match="another answer_silence"):
        generate(config)
    config.overwrite = True
    assert generate(config) == 0
    assert records(config)[-1]["audio"] and records(config)[-1]["unheard"] == row["unheard"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_silent_file_is_not_answered(config, tmp_path, capsys, stream):
    save_audio(tmp_path / "silent.wav", torch.zeros(RATE_HZ), RATE_HZ)
    one_file = GenerateConfig(
        checkpoint=config.checkpoint,
        input=str(tmp_path / "silent.wav"),
        output=str(tmp_path / "answer.wav"),
        stream=stream,
        device="cpu",
        max_tokens=5,
    )
    with pytest.raises(SignalError, match="nothing was heard, for the clip is silent; record it"):
        generate(one_file)
    assert not (tmp_path / "answer.wav").exists() and not capsys.readouterr().out
    one_file.answer_silence = True
    assert generate(one_file) == 0 and (tmp_path / "answer.wav").exists()


def test_one_file(config, tmp_path, capsys, monkeypatch):
    one_file = GenerateConfig(
        checkpoint=config.checkpoint,
        input=str(tmp_path / "data/clips/ask-0.wav"),
        output=str(tmp_path / "answer.wav"),
        device="cpu",
        max_tokens=5,
    )
    assert generate(one_file) == 0
    assert soundfile.info(one_file.output).samplerate == RATE_HZ
    printed = capsys.readouterr().out
    assert f"spoken:   {one_file.output}" in printed and "limit of the unit decoder" not in printed
    monkeypatch.setattr(echo, "MAX_STEPS", 6)
    assert generate(one_file) == 0
    assert "cut at the limit of the unit decoder: set shorter segments" in capsys.readouterr().out
    one_file.stream = True
    assert generate(one_file) == 0
    assert "cut at its limit of length: text, speech" in capsys.readouterr().out


def test_wrong_input_is_refused_before_models_are_loaded(config, tmp_path):
    with pytest.raises(ConfigError, match="nothing to answer"):
        generate(GenerateConfig())
    with pytest.raises(ConfigError, match="both given"):
        GenerateConfig(manifest="a.jsonl", input="a.wav")
    with pytest.raises(SignalError, match="does not exist"):
        generate(GenerateConfig(checkpoint=config.checkpoint, input=str(tmp_path / "nowhere.wav")))
    with pytest.raises(ManifestError, match="empty"):
        (tmp_path / "empty.jsonl").touch()
        generate(
            GenerateConfig(checkpoint=config.checkpoint, manifest=str(tmp_path / "empty.jsonl"))
        )


def test_a_manifest_without_one_usable_row(config, tmp_path):
    (tmp_path / "bad.jsonl").write_text("{}\n[]\n")
    assert (
        generate(
            GenerateConfig(
                checkpoint=config.checkpoint,
                manifest=str(tmp_path / "bad.jsonl"),
                out_dir=str(tmp_path / "bad"),
                device="cpu",
            )
        )
        == 2
    )


def test_file_names_are_distinct_and_stay_in_their_folder():
    names = [
        batch_run.file_name(row_id) for row_id in ("a/b", "a_b", "a b", "../x", "x" * 300, "Zoë")
    ]
    assert len(set(names)) == len(names) and names[1] == "a_b"
    assert all("/" not in name and not name.startswith(".") and len(name) < 120 for name in names)
