"""Stages in the published form: trained by a recipe, exported, and answered with; batches equal their rows."""

import dataclasses
import json

import pytest
import tiny_release
import torch
from tiny_llm import write_llm
from tiny_run import RATE_HZ, noise

from echox.criteria.base import CRITERIA
from echox.data.audio import load_audio, save_audio
from echox.encoders.whisper import WhisperConfig
from echox.errors import ManifestError, SignalError
from echox.models.published.compatibility import FORM
from echox.models.published.folder import read_release
from echox.plugins import discover
from echox.tasks.base import TASKS, Parts, StageContext
from echox_cli import generate, prepare, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    discover()
    return tiny_release.write_tiny_release(tmp_path_factory.mktemp("published") / "EchoX-tiny")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Published rows: one audio, two audios, a long clip with a text beside it; units in words of the tokenizer, and one by one."""
    home = tmp_path_factory.mktemp("rows")
    for name, seconds in (("a", 0.6), ("b", 0.4), ("c", 0.8), ("long", 31.0)):
        save_audio(home / f"{name}.wav", noise(len(name), seconds), RATE_HZ)

    def asked(name, value=""):
        return {"from": "user", "value": value, "audio": f"{name}.wav"}

    def answered(text, units, said="what is it"):
        return {"from": "assistant", "value": text, "transcription": said, "units": units}

    conversations = [
        [asked("a"), answered("Yes.", "0_1 1_2 5_6")],
        [asked("b"), answered("A fox", "3_4"), asked("c", "and?"), answered("lives here. It is small.", "2 3 4 5", "and then")],
        [asked("long", "Do it."), answered("No", "<|unit_7_8|><|unit_9_10|>", "")],
    ]
    (home / "rows.json").write_text(json.dumps([{"conversations": turns} for turns in conversations]))
    return home / "rows.json"


def task_of(name, folder, rows, tmp_path, **changes):
    config = TASKS[name].config_type(checkpoint=str(folder), **changes)
    config.data = dataclasses.replace(config.data, train=[str(rows)], valid=[str(rows)])
    encoder = WhisperConfig(weights=str(folder / "whisper"), pad_to_window=True)
    task = TASKS.build(config, StageContext(Parts(encoder, None, None), 1, tmp_path / "cache"))
    torch.manual_seed(1)
    model = task.build()
    task.prepare(model)
    return task, model.eval()


def losses(task, model, criterion, indices):
    examples = task.examples("train")
    batch = task.collate([examples[index] for index in indices])
    return CRITERIA.build(CRITERIA.parse(criterion))(task.forward(model, batch), batch)


CASES = {
    "published_joint": ({"name": "published_joint"}, {}),
    "published_s2t": ({"name": "s2t"}, {}),
    "published_t2c": ({"name": "t2c"}, {}),
    "published_echo": ({"name": "published_echo"}, {"max_words": 6}),
}


@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_padding_and_neighbours_change_no_row(folder, rows, tmp_path, name, released):
    criterion, changes = CASES[name]
    task, model = task_of(name, folder, rows, tmp_path, released_form=released, **changes)
    with torch.no_grad():
        together = losses(task, model, criterion, range(3))
        alone = [losses(task, model, criterion, [index]) for index in range(3)]
    for part, (total, count) in together.parts.items():
        assert float(total) == pytest.approx(sum(float(loss.parts[part][0]) for loss in alone), rel=1e-4), part
        assert float(count) == sum(float(loss.parts[part][1]) for loss in alone) > 0


def test_lessons_are_the_prompt_with_its_answers(folder, rows, tmp_path):
    task, model = task_of("published_s2t", folder, rows, tmp_path)
    tokens, lessons = model.release.tokens, task.examples("train")
    assert [len(lesson.clips) for lesson in lessons] == [1, 2, 1]
    text = tokens.tokenizer.decode(lessons[1].ids)
    begin, end = "<|begin_of_text|>", "<|eot_id|>"
    answer = f"<|start_header_id|>{begin}assistant<|end_header_id|>{begin}\n{begin}A fox{end}<|start_header_id|>"
    assert answer in text and text.endswith(f"{begin}lives here. It is small.{end}")
    learned = tokens.tokenizer.decode([label for label in lessons[1].labels if label != -100])
    assert learned == f"{begin}A fox{end}{begin}lives here. It is small.{end}"
    assert tokens.tokenizer.decode(lessons[1].said[1]) == "and then" and lessons[2].said == ((),)
    batch = task.collate([lessons[index] for index in range(3)])
    assert batch.clip_rows.tolist() == [0, 1, 1, 2] and batch.wave.lengths.tolist() == [480_000, 480_000, 480_000, 960_000]


def test_readings_hold_text_and_unit_words(folder, rows, tmp_path):
    task, model = task_of("published_t2c", folder, rows, tmp_path)
    tokens, readings = task.tokens, task.examples("train")
    texts = [tokens.tokenizer.decode(reading.ids) for reading in readings]
    begin, end = "<|begin_of_text|>", "<|eot_id|>"
    header = f"<|start_header_id|>{begin}speaker<|end_header_id|>{begin}\n"
    assert texts[0] == f"{header}{begin}Yes.{end}{header}{begin}<|unit_0_1|><|unit_1_2|><|unit_5_6|>{end}"
    # Units that stand one by one are grouped into the words there are.
    assert texts[2].endswith(f"{begin}<|unit_2_3|><|unit_4_5|>{end}") and texts[3].endswith(f"<|unit_7_8|><|unit_9_10|>{end}")
    assert not any(name.startswith("language") for name in model.state_dict())


def test_training_sees_what_streaming_speaks(folder, rows, tmp_path):
    """After a segment's states, the words that the voice would say are those that the teacher-forced pass predicts."""
    from echox.models.published.teaching import answer_segments, segment_outputs
    from echox.tasks.published_s2t import taught

    task, model = task_of("published_echo", folder, rows, tmp_path, max_words=6, rule=tiny_rule())
    examples = task.examples("train")
    batch = task.collate([examples[index] for index in range(3)])
    assert int((batch.chunk_lengths > 0).sum()) > 4
    with torch.no_grad():
        passed = taught(model, batch.heard)
        cut = answer_segments(passed, batch.chunk_lengths)
        said = model.release.speak(cut.states, cut.lengths, 6)
        S = said.ids.shape[1]
        units = torch.full((*batch.chunk_lengths.shape, S), -100)
        units[batch.chunk_lengths > 0] = torch.where(torch.arange(S) <= said.lengths[:, None], said.ids, -100)
        outputs = segment_outputs(model.release, passed, batch.chunk_lengths, units)
    assert torch.equal(outputs.unit_head(outputs.unit_states).argmax(-1), outputs.unit_labels)


def tiny_rule():
    from echox.models.segmenting import SegmentRule

    return SegmentRule(window=1, threshold=-1.0, least=3)


def run(house, folder, rows, *more, hears=True):
    paths = [f"{stage}.task.data.{split}=[{rows}]" for stage in ("s2t", "t2c", "echo") for split in ("train", "valid")]
    settings = ("steps=2", "precision=fp32", "accumulation=1", "lr=0.0001", "warmup_fraction=0")  # pulled further, the tiny model falls silent
    brief = [f"{stage}.train.{setting}" for stage in ("s2t", "t2c", "echo") for setting in settings]
    small = [f"{stage}.task.lora.rank=2" for stage in ("s2t", "echo")] + ["t2c.task.max_words=6", "echo.task.max_words=6", "device=cpu"]
    encoder = [f"encoder.weights={folder}/whisper"] if hears else ["encoder=null"]
    return train.main(["recipe=release_finetune", f"checkpoint={folder}", *encoder, *paths, *brief, *small, *more])


def test_one_command_trains_and_the_export_answers(house, folder, rows, capsys):
    assert run(house, folder, rows) == 0
    assert prepare.main(["export", "runs/release_finetune/echo/final", "output=mine", "shard_gigabytes=0.0015"]) == 0
    before, after = read_release(folder), read_release(house / "mine")
    assert list(after.tensors) == list(before.tensors) and after.config == before.config
    changed = {name for name, tensor in before.tensors.items() if not torch.equal(after.tensors[name].view(torch.int16), tensor.view(torch.int16))}
    assert {"model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight", "model.mm_projector1.weight",
            "unit_translator.aligner_MLP.0.weight", "unit_translator.unit_embedding.weight", "unit_translator.lm_head.weight"} <= changed  # fmt: skip
    kept = {"lm_head.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.v_proj.weight", "model.layers.0.mlp.up_proj.weight",
            "model.audio_feature_head.weight", "unit_translator.model.embed_tokens.weight", "model.norm.weight"}  # fmt: skip
    assert not kept & changed
    save_audio(house / "question.wav", noise(5, 0.7), RATE_HZ)
    asked = ["input=question.wav", "output=answer.wav", "max_tokens=12", "device=cpu", f"encoder_folder={folder}/whisper"]
    assert generate.main(["checkpoint=mine", *asked]) == 0
    capsys.readouterr()
    assert prepare.main(["export", "runs/release_finetune/echo/final", "output=mine"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert generate.main(["checkpoint=runs/release_finetune/echo/final", *asked]) == 2
    assert "write 'echox-prepare export" in capsys.readouterr().err


def test_what_is_exported_is_what_was_trained(house, folder, rows):
    """The merged folder computes what the student with LoRA computes."""
    from echox.models.published.folder import build
    from echox.models.published.student import Merged

    task, model = task_of("published_s2t", folder, rows, house)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    learned = {name.removeprefix("release."): tensor for name, tensor in task.learned(model).items()}
    stored = {name: tensor.float() for name, tensor in read_release(folder).tensors.items()}
    merged = dataclasses.replace(read_release(folder), tensors=Merged(stored, learned, task.config.lora))
    batch = task.collate([task.examples("train")[1]])
    with torch.no_grad():
        wanted = task.forward(model, batch).text_logits
        model.release = build(merged)
        torch.testing.assert_close(task.forward(model, batch).text_logits, wanted, atol=1e-4, rtol=1e-4)


def test_the_paper_s_form_is_written_down(house, folder, rows):
    forms = [f"{stage}.task.released_form=false" for stage in ("s2t", "t2c", "echo")]
    assert run(house, folder, rows, "stages=[t2c]", *forms) == 0
    assert prepare.main(["export", "runs/release_finetune/t2c/final", "output=mine"]) == 0
    exported = read_release(house / "mine")
    assert not exported.compatibility.attend_over_turns and exported.config[FORM]["t2c_begin_id"] is None
    assert read_release(folder).compatibility.attend_over_turns


def test_a_run_from_random_weights_is_not_exported(house, folder, rows, capsys):
    assert run(house, folder, rows, "stages=[t2c]", "checkpoint=random") == 0
    assert prepare.main(["export", "runs/release_finetune/t2c/final", "output=mine"]) == 2
    assert "was trained from 'random'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["checkpoint=nowhere"], "nowhere is no published EchoX: it has no config.json"),
        (["s2t.task.modules=[lbn]"], "modules names 'lbn', which this model lacks"),
        (["s2t.task.lora.targets=[w]"], "name no layer"),
        (["s2t.task.data.max_tokens=9"], "at most 9 tokens"),
        (["encoder.weights=random"], "gives 32 channels, but the checkpoint's adapter takes 16"),
    ],
)
def test_what_cannot_be_trained_is_said_in_a_sentence(house, folder, rows, capsys, more, sentence):
    assert run(house, folder, rows, "stages=[s2t]", *more) == 2
    printed = capsys.readouterr().err
    assert sentence in printed.splitlines()[-1]


def test_a_stage_that_hears_wants_an_encoder(house, folder, rows, capsys):
    assert run(house, folder, rows, hears=False) == 2
    assert "encoder has no value, but stage 's2t' needs one" in capsys.readouterr().err.splitlines()[-1]


def test_a_clip_with_nan_names_its_file(folder, rows, tmp_path):
    import soundfile

    samples = noise(1, 0.5).numpy()
    samples[7] = float("nan")
    soundfile.write(tmp_path / "broken.wav", samples, RATE_HZ, subtype="FLOAT")
    (tmp_path / "rows.json").write_text(json.dumps([{"conversations": [{"from": "user", "audio": "broken.wav"}, {"from": "assistant", "value": "x"}]}]))
    task, _ = task_of("published_s2t", folder, tmp_path / "rows.json", tmp_path)
    with pytest.raises(SignalError, match="broken.wav holds NaN"):
        task.collate([task.examples("train")[0]])


def test_a_checkpoint_that_no_stage_takes_is_refused(house, capsys):
    assert train.main(["recipe=echo_tiny", "checkpoint=EchoX-3B"]) == 2
    assert "no stage of echo_tiny starts from one" in capsys.readouterr().err


def test_rows_without_units_teach_no_voice(folder, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([{"conversations": [{"from": "assistant", "value": "x", "units": "99"}]}]))
    with pytest.raises(ManifestError, match="unit words"):
        task_of("published_t2c", folder, tmp_path / "rows.json", tmp_path)


def test_a_fresh_start_is_a_folder_too(house, folder, rows, capsys):
    write_llm(house / "llama", "llama3", spare_rows=0, hidden_size=16, num_hidden_layers=1, max_position_embeddings=4096, tie_word_embeddings=True)
    (house / "words.txt").write_text("\n".join([*map(str, range(12)), "0_1", "3_4"]))
    begun = ["begin", "llama", "words=words.txt", f"vocoder={folder}", f"encoder={folder}/whisper", "unit_model=large", "output=fresh"]
    assert prepare.main(begun) == 0
    fresh = read_release(house / "fresh")
    assert not fresh.compatibility.attend_over_turns and fresh.config["rope_parameters"]["rope_type"] == "llama3"
    embedding, head = fresh.tensors["model.embed_tokens.weight"], fresh.tensors["unit_translator.model.embed_tokens.weight"]
    V = json.loads((house / "llama/config.json").read_text())["vocab_size"]
    assert embedding.shape == (V + 1, 16) == (fresh.config["vocab_size"], 16) and torch.equal(embedding, head) and torch.equal(fresh.tensors["lm_head.weight"], head)
    # The voice has to learn that it says unit words before anything is heard.
    learning = ("t2c.train.steps=30", "t2c.train.lr=0.02")
    assert run(house, house / "fresh", rows, f"encoder.weights={folder}/whisper", *learning) == 0
    assert prepare.main(["export", "runs/release_finetune/echo/final", "output=mine"]) == 0
    save_audio(house / "question.wav", noise(5, 0.7), RATE_HZ)
    asked = ["input=question.wav", "output=answer.wav", "max_tokens=12", "device=cpu", f"encoder_folder={folder}/whisper"]
    assert generate.main(["checkpoint=mine", *asked]) == 0
    assert len(load_audio(house / "answer.wav", RATE_HZ)) > 0
    capsys.readouterr()
    (house / "words.txt").write_text("0 x")
    assert prepare.main([*begun[:-1], "output=other"]) == 2
    assert "'x' is no unit word" in capsys.readouterr().err
