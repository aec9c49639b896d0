"""The functions of `import echox`."""

import base64
import json
import subprocess
import sys
import typing
from dataclasses import replace
from inspect import signature

import pytest
import torch
from tiny_run import RATE_HZ, noise, write_questions, write_run

import echox
from echox.core.errors import CheckpointError, ConfigError, SignalError
from echox.data.audio import audio_header, load_audio, save_audio
from echox.inference.load import load_pipeline
from echox_cli import prepare


def test_import_loads_no_large_library():
    code = "import sys, echox; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'hydra')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert set(echox.__all__) <= set(dir(echox))
    assert all(getattr(echox, name).__doc__ for name in echox.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = echox.lod


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("api") / "run")


def test_a_run_answers_a_question(run, tmp_path):
    question = tmp_path / "question.wav"
    save_audio(question, noise(1, 0.8), RATE_HZ)
    pipeline = echox.load(run, device="cpu", max_tokens=6)
    answer = pipeline(question)
    assert isinstance(pipeline, echox.Pipeline) and pipeline.speaks
    samples = load_audio(question, pipeline.rate_hz)
    expected = load_pipeline(run / "echo" / "final", device="cpu", max_tokens=6).answer([samples])
    assert answer.text == expected[0].text and torch.equal(answer.samples, expected[0].samples)
    answer.save(tmp_path / "answer.wav")
    assert audio_header(tmp_path / "answer.wav").rate_hz == answer.rate_hz
    # What a notebook shows: the text, and a player of the same file.
    shown = replace(answer, text="<b>")._repr_html_()
    content = base64.b64encode((tmp_path / "answer.wav").read_bytes()).decode()
    player = f'<audio controls src="data:audio/wav;base64,{content}"></audio>'
    assert shown == f"<p>&lt;b&gt;</p>{player}"
    assert replace(answer, samples=None, text="yes")._repr_html_() == "<p>yes</p>"
    assert pipeline(samples, rate_hz=pipeline.rate_hz).text == answer.text
    assert pipeline(question, speak=False).samples is None
    with pytest.raises(SignalError, match="set rate_hz"):
        pipeline(samples)


def test_a_run_is_named_in_several_ways(run, tmp_path):
    clip = noise(2, 0.6)
    texts = {
        echox.load(place, device="cpu", max_tokens=4)(clip, rate_hz=RATE_HZ).text
        for place in (run, run / "echo", str(run / "echo" / "final"))
    }
    assert len(texts) == 1
    s2t = echox.load(run / "s2t", device="cpu", max_tokens=4)
    assert not s2t.speaks
    with pytest.raises(SignalError, match="the answer has no speech"):
        s2t(clip, rate_hz=RATE_HZ).save(tmp_path / "none.wav")
    with pytest.raises(CheckpointError, match="holds no finished stage that answers"):
        echox.load(tmp_path, device="cpu")
    with pytest.raises(CheckpointError, match="stage 't2c'; this needs one that answers aloud"):
        echox.load(run / "t2c", device="cpu")


def test_a_codec_copies_a_clip(tmp_path):
    codec = echox.load_codec("kmeans", device="cpu", folder="random")
    units = codec.encode(noise(3, 0.5), rate_hz=RATE_HZ)
    assert units and all(0 <= unit < codec.codec.vocab_size for unit in units)
    copy = codec.decode(units)
    assert copy.rate_hz == codec.codec.rate_hz and copy.seconds > 0.2
    copy.save(tmp_path / "copy.wav")
    assert len(codec.encode(tmp_path / "copy.wav")) > 0
    with pytest.raises(CheckpointError, match="no fitted codec in"):
        echox.load_codec(tmp_path / "nowhere", device="cpu")
    with pytest.raises(ConfigError, match="no field 'foldr'"):
        echox.load_codec("kmeans", device="cpu", foldr="random")


def test_a_manifest_is_answered(run, tmp_path):
    manifest = write_questions(tmp_path / "data", "ask", 2)
    settings = {"max_tokens": 4, "device": "cpu"}
    answers = echox.generate(run, manifest, out_dir=tmp_path / "out", **settings)
    records = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [(record["id"], record["error"]) for record in records] == [
        ("ask/0", None),
        ("ask/1", None),
    ]
    assert all((answers.parent / record["audio"]).is_file() for record in records)
    with pytest.raises(ConfigError, match="no setting 'batchsize' of a generation; did you mean"):
        echox.generate(run, manifest, batchsize=3)


def test_every_command_s_work_is_a_typed_function():
    commands = [command.function for command in prepare.COMMANDS.values()]
    for function in [*commands, *map(echox.__getattr__, ("train", "generate", "evaluate", "load"))]:
        hints = typing.get_type_hints(function)
        assert function.__doc__ and hints.keys() == {*signature(function).parameters, "return"}


def test_recipes_are_run_with_settings(monkeypatch, tmp_path):
    from echox.pipeline import api

    recipes = []
    monkeypatch.setattr(api, "run_recipe", recipes.append)
    settings = {"run_dir": str(tmp_path / "a b"), "s2t.train.steps": 7, "only": ["align", "s2t"]}
    assert echox.train("echo_tiny", {**settings, "report": None}) == tmp_path / "a b"
    assert recipes[0].plan("s2t").train.steps == 7 and recipes[0].members == ["align", "s2t"]
    echox.train("echo_tiny", ["s2t.train.steps=8"])
    assert recipes[1].plan("s2t").train.steps == 8
    with pytest.raises(ConfigError, match="no setting 'spokn_rows' of a report; did you mean"):
        echox.evaluate(tmp_path, spokn_rows=3)
