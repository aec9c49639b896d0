"""Wrong inputs to the commands: each is one clear sentence or handled, never a traceback."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_run
from echo_home import WITHOUT_CORPUS

from echox.core.files import atomic_write
from echox_cli import evaluate, generate, info, prepare, train

PLAIN = ["checkpoint=run/echo/final", "device=cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, shared by all tests."""
    return tiny_run.write_run(tmp_path_factory.mktemp("wrong") / "run")


@pytest.fixture
def bench(workspace, run):
    """A working folder with a run, a good manifest, and much that is broken."""
    (workspace / "run").symlink_to(run)
    tiny_run.write_questions(workspace, "questions", 2)
    noise = tiny_run.noise(0, 0.5).numpy()  # 8000 samples, here of a second
    soundfile.write("stereo8k.wav", np.stack([noise, noise[::-1]], axis=1), 8000)
    soundfile.write("empty.wav", np.zeros(0), 16_000)
    soundfile.write("nan.wav", np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    Path("notaudio.wav").write_text("hello")
    Path("truncated.wav").write_bytes(Path("stereo8k.wav").read_bytes()[:30])
    Path("empty.jsonl").write_text("")
    Path("binary.jsonl").write_bytes(b"\xff\xfe\x00\x01")
    Path("a_file").write_text("")
    rows = [json.loads(line) for line in Path("questions.jsonl").read_text().splitlines()]
    rows[0]["conversations"][0]["audio"] = "../../etc/passwd"
    Path("outside.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows[0]["conversations"][0]["audio"] = "nan.wav"
    Path("nan.jsonl").write_text(json.dumps(rows[0]) + "\n")
    silent = {**rows[1], "no_speech": True}
    del silent["conversations"][1]["transcription"]
    Path("silent.jsonl").write_text(json.dumps(silent) + "\n")
    return workspace


def training(stage, *overrides, data="questions.jsonl"):
    """The words that train one stage of the smoke recipe on a manifest."""
    keys = [
        f"{name}.task.data.{split}"
        for name in ("align", "s2t", "echo")
        for split in ("train", "valid")
    ]
    keys += ["t2c.task.train", "t2c.task.valid"]
    lists = [f"{key}=[{data if key.endswith('train') else ''}]" for key in keys]
    return [
        "recipe=echo_tiny",
        "device=cpu",
        *WITHOUT_CORPUS,
        "codec.folder=random",
        "vocoder=null",
        "units=[]",
        f"stage={stage}",
        *lists,
        f"{stage}.train.steps=2",
        *overrides,
    ]


WRONG = [
    (generate, ["input=empty.wav", *PLAIN], "audio empty.wav has zero length; record it again"),
    (
        generate,
        ["input=nan.wav", *PLAIN],
        "audio nan.wav holds NaN or infinite samples; export it again",
    ),
    (generate, ["input=notaudio.wav", *PLAIN], "audio notaudio.wav is not readable as audio"),
    (generate, ["input=truncated.wav", *PLAIN], "audio truncated.wav is not readable as audio"),
    (generate, ["input=missing.wav", *PLAIN], "audio missing.wav does not exist"),
    (generate, ["input=run", *PLAIN], "audio run is a folder"),
    (
        generate,
        ["input=stereo8k.wav", "output=a.mp3", *PLAIN],
        "the path is a.mp3; change its ending",
    ),
    (
        generate,
        ["input=stereo8k.wav", "output=a_file/a.wav", *PLAIN],
        "could not be written: a file stands where a folder is needed",
    ),
    (generate, PLAIN, "nothing to answer: give manifest=questions.jsonl, or input=question.wav"),
    (
        generate,
        ["input=stereo8k.wav", "manifest=questions.jsonl", *PLAIN],
        "manifest and input are both given",
    ),
    (generate, ["input=stereo8k.wav", "checkpoint=nowhere"], "nowhere is not a checkpoint"),
    (
        generate,
        ["input=stereo8k.wav", "checkpoint=run/t2c/final"],
        "is a checkpoint of stage 't2c'; this needs one that answers aloud or answers in text",
    ),
    (
        generate,
        ["manifest=empty.jsonl", *PLAIN],
        "the manifest empty.jsonl is empty; it needs at least one row",
    ),
    (generate, ["manifest=nix.jsonl", *PLAIN], "the manifest nix.jsonl does not exist"),
    (
        generate,
        ["manifest=questions.jsonl", "out_dir=a_file", *PLAIN],
        "a_file; a file stands where a folder is needed",
    ),
    (evaluate, ["run=nowhere"], "nowhere holds no finished stage that answers or synthesizes"),
    (evaluate, ["run=run"], "the recipe of run names no corpus; set corpus=FOLDER"),
    (evaluate, ["run=run", "corpus=run"], "run holds none of the test manifests"),
    (info, ["encoder", "wisper"], "no encoder named 'wisper'; did you mean 'whisper'?"),
    (info, ["enkoder"], "no topic or field 'enkoder'; did you mean 'encoder'?"),
    (info, ["recipe", "echo_tyni"], "no recipe named 'echo_tyni'; did you mean 'echo_tiny'?"),
    (prepare, ["split", "questions.jsonl", "processes=2147483648"], "use 1 to 4096"),
    (prepare, ["index", "manifests=[[a]]"], "manifests takes a list of texts, manifests=[a,b]"),
    (generate, [*PLAIN, "plugin_dirs=7"], "plugin_dirs takes a list of folders, plugin_dirs=[a,b]"),
    (generate, [*PLAIN, "plugin_dirs=[[a]]"], "plugin_dirs takes a list of folders"),
    (prepare, ["validate", "run"], "the manifest run is a folder; name the .jsonl file in it"),
    (prepare, ["manifest", "run"], "can be used: no clips are in it"),
    (
        prepare,
        ["units", "codec=kmeans", "codec.folder=random"],
        "no manifest was named; give manifests=[FILE.jsonl,...]",
    ),
    (
        prepare,
        ["units", "questions.jsonl", "codec=kmeans", "codec.folder=gone"],
        "there is no codec in gone",
    ),
    (prepare, ["codec", "codec=kmeans", "codec.folder=gone"], "manifests=[...] in echox-prepare"),
    (
        prepare,
        ["codec", "questions.jsonl", "codec=kmeans", "codec.folder=gone"],
        "needs at least two recordings, got 0",
    ),
    (prepare, ["corpus", "share=2"], "share must be above 0 and at most 1, and is 2.0"),
    (
        prepare,
        ["corpus", "folder=a_file", "share=0.01"],
        "the corpus folder a_file could not be written",
    ),
    (train, training("s2t"), "train the stage 'align' first"),
    (train, training("align", data="nix.jsonl"), "missing files: nix.jsonl (manifest)"),
    (
        train,
        training("align", data="nan.jsonl"),
        "audio nan.wav holds NaN or infinite samples; export it again",
    ),
    (
        train,
        training("align", data="silent.jsonl"),
        "no row of silent.jsonl has both audio and its words",
    ),
    (train, training("align", data="empty.jsonl"), "the manifest empty.jsonl is empty"),
    (train, training("align", data=""), "no manifest was named"),
    (train, training("align", "run_dir=a_file"), "a file stands where a folder is needed"),
    (train, training("align", "align.task.adapter.heads=5"), "adapter.heads 5 does not divide"),
    (
        train,
        training("align", "backbone.lora.targets=[nope]"),
        "lora.targets ['nope'] name no layer",
    ),
    (train, training("align", "encoder.weights=./gone"), "missing files: ./gone (weights)"),
    (
        train,
        training("align", "encoder.weights=./run"),
        "missing files: run/config.json, run/model.safetensors",
    ),
    (
        train,
        training("align", "backbone.weights=./run"),
        "missing files: run/config.json, run/model.safetensors",
    ),
    (
        train,
        training("t2c"),
        "no row of questions.jsonl has units on its assistant turn; "
        "write them with 'echox-prepare units'",
    ),
    (
        train,
        training("t2c", "codec.folder=gone"),
        "missing files: gone (the codec, and codec_speech",
    ),
    (train, training("align", "align.train.lr=nan"), "lr must be above 0, not nan"),
    (
        train,
        ["recipe=echo_tiny", "device=gpu"],
        "device 'gpu' is unknown; use auto, cpu, cuda or cuda:N",
    ),
]


@pytest.mark.parametrize(
    ("command", "words", "sentence"),
    WRONG,
    ids=[
        f"{command.__name__.rpartition('.')[2]}-{sentence[:40]}" for command, _, sentence in WRONG
    ],
)
def test_a_wrong_input_is_one_sentence(bench, capsys, command, words, sentence):
    assert command.main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("echox-")]
    assert len(lines) == 1 and sentence in lines[0], lines


def test_eight_kilohertz_in_stereo_is_answered(bench, capsys):
    assert generate.main(["input=stereo8k.wav", "output=answer.wav", *PLAIN]) == 0
    assert soundfile.info("answer.wav").samplerate == 16_000


def test_audio_outside_the_manifest_s_folder_is_named_and_the_rest_answered(bench, capsys):
    assert generate.main(["manifest=outside.jsonl", "out_dir=answers", *PLAIN]) == 0
    printed = capsys.readouterr()
    assert "1 of 2 rows answered" in printed.out
    sentence = "lies outside the manifest's folder; move it inside, or allow paths outside"
    assert sentence in printed.err


def test_text_in_other_scripts_is_answered(bench, capsys):
    texts = ["日本語のテキスト \ufffc", "Привет, мир 🙂", "مرحبا"]
    rows = [
        {"id": str(number), "conversations": [{"from": "user", "value": text}]}
        for number, text in enumerate(texts)
    ]
    Path("typed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert generate.main(["manifest=typed.jsonl", "out_dir=answers", "max_tokens=4", *PLAIN]) == 0
    assert "3 of 3 rows answered" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["flip", "cut", "meta"])
def test_a_corrupt_checkpoint_is_an_error(bench, run, capsys, damage):
    shutil.copytree(run / "s2t", "copy")
    weights = Path("copy/final/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    if damage == "meta":
        Path("copy/final/meta.json").write_text("{")
    else:
        weights.write_bytes(content if damage == "flip" else content[:100])
    assert generate.main(["input=stereo8k.wav", "checkpoint=copy/final"]) == 2
    assert "checkpoint copy/final is damaged" in capsys.readouterr().err


def test_a_full_disk_is_an_error_when_audio_is_written(bench, capsys, monkeypatch):
    def full(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert generate.main(["input=stereo8k.wav", "output=answer.wav", *PLAIN]) == 2
    message = capsys.readouterr().err
    assert "answer.wav could not be written: No space left on device (" in message
    assert " needed, " in message and "; free some space and start again" in message
    assert not Path("answer.wav").exists()


def test_a_full_disk_is_an_error_when_a_cache_is_filled(bench, capsys, monkeypatch):
    real = Path.open

    def full(self, mode="r", *arguments, **named):
        if "w" in mode and self.suffix == ".bin":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return real(self, mode, *arguments, **named)

    monkeypatch.setattr(Path, "open", full)
    assert train.main(training("align")) == 2
    message = capsys.readouterr().err
    assert "could not be written: No space left on device (" in message
    assert "; free space or choose another folder; finished shards are kept" in message


def test_a_file_without_read_permission_is_an_error(bench, capsys, monkeypatch):
    real = Path.open

    def forbidden(self, *arguments, **named):
        if self.name == "questions.jsonl":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return real(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", forbidden)
    assert generate.main(["manifest=questions.jsonl", *PLAIN]) == 2
    assert (
        "the manifest questions.jsonl could not be read: Permission denied"
        in capsys.readouterr().err
    )


def test_a_plugin_that_failed_is_named_where_its_part_is_unknown(bench, write, capsys):
    write("plugins/mine.py", "import nosuchmodule")
    assert train.main(["recipe=echo_tiny", "encoder=mine"]) == 2
    errors = capsys.readouterr().err
    assert "no encoder named 'mine'" in errors
    assert "plugin plugins/mine.py failed to load: ModuleNotFoundError" in errors


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "defaults: [_stages, {encoder: wisper}, _self_]",
            "no encoder named 'wisper'; did you mean 'whisper'?",
        ),
        ("defaults: [echo_tiny, _self_]\nsteps: 3", "no field 'steps' in Recipe"),
        ("defaults: [echo_tiny, _self_]\nstages: {s2t: {train: {steps: lots}}}", "s2t.train.steps"),
        ("a: [1,\nb: 2", "is not valid YAML at line"),
        ("- 1", "is not a recipe; it must hold `key: value` lines"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(bench, write, capsys, text, sentence):
    write("recipes/mine.yaml", text)
    assert train.main(["recipe=mine"]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and sentence in errors


def test_a_file_in_place_of_a_folder_is_left_as_it_is(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(NotADirectoryError), atomic_write(tmp_path / "file" / "x.txt"):
        pass
    assert (tmp_path / "file").read_text() == "kept"
