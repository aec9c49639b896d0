"""Stages in the released form: trained by a recipe, exported, used; batches equal their rows."""

import dataclasses
import json

import pytest
import tiny_release
import torch
from tiny_llm import write_llm
from tiny_run import RATE_HZ, noise

from echox.core.errors import ManifestError, SignalError
from echox.core.signals import padded
from echox.criteria.base import CRITERIA
from echox.data.audio import load_audio, save_audio
from echox.encoders.whisper import WhisperConfig
from echox.models.compatibility import FORM
from echox.models.release.folder import read_release
from echox.pipeline.plugins import discover
from echox.tasks.base import TASKS, Parts, StageContext
from echox_cli import generate, prepare, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    discover()
    return tiny_release.write_tiny_release(tmp_path_factory.mktemp("published") / "EchoX-tiny")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows with one audio, two audios, a long clip and a text; units grouped and one by one."""
    home = tmp_path_factory.mktemp("rows")
    for name, seconds in (("a", 0.6), ("b", 0.4), ("c", 0.8), ("long", 31.0)):
        save_audio(home / f"{name}.wav", noise(len(name), seconds), RATE_HZ)

    def question(name, value=""):
        return {"from": "user", "value": value, "audio": f"{name}.wav"}

    def answer(text, units, transcription="what is it"):
        return {"from": "assistant", "value": text, "transcription": transcription, "units": units}

    conversations = [
        [question("a"), answer("Yes.", "0_1 1_2 5_6")],
        [
            question("b"),
            answer("A fox", "3_4"),
            question("c", "and?"),
            answer("lives here. It is small.", "2 3 4 5", "and then"),
        ],
        [question("long", "Do it."), answer("No", "<|unit_7_8|><|unit_9_10|>", "")],
    ]
    (home / "rows.json").write_text(
        json.dumps([{"conversations": turns} for turns in conversations])
    )
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
        assert float(total) == pytest.approx(
            sum(float(loss.parts[part][0]) for loss in alone), rel=1e-4
        ), part
        assert float(count) == sum(float(loss.parts[part][1]) for loss in alone) > 0


def test_examples_are_the_prompt_with_its_answers(folder, rows, tmp_path):
    task, model = task_of("published_s2t", folder, rows, tmp_path)
    tokens, examples = model.release.tokens, task.examples("train")
    assert [len(example.clips) for example in examples] == [1, 2, 1]
    text = tokens.tokenizer.decode(examples[1].ids)
    begin, end = "<|begin_of_text|>", "<|eot_id|>"
    header = f"<|start_header_id|>{begin}assistant<|end_header_id|>{begin}\n"
    answer = f"{header}{begin}A fox{end}<|start_header_id|>"
    assert answer in text and text.endswith(f"{begin}lives here. It is small.{end}")
    targets = tokens.tokenizer.decode([label for label in examples[1].labels if label != -100])
    assert targets == f"{begin}A fox{end}{begin}lives here. It is small.{end}"
    assert tokens.tokenizer.decode(examples[1].transcripts[1]) == "and then"
    assert examples[2].transcripts == ((),)
    batch = task.collate([examples[index] for index in range(3)])
    assert batch.clip_rows.tolist() == [0, 1, 1, 2]
    assert batch.wave.lengths.tolist() == [480_000, 480_000, 480_000, 960_000]


def test_t2c_examples_hold_text_and_unit_tokens(folder, rows, tmp_path):
    task, model = task_of("published_t2c", folder, rows, tmp_path)
    tokens, examples = task.tokens, task.examples("train")
    texts = [tokens.tokenizer.decode(example.ids) for example in examples]
    begin, end = "<|begin_of_text|>", "<|eot_id|>"
    header = f"<|start_header_id|>{begin}speaker<|end_header_id|>{begin}\n"
    assert (
        texts[0]
        == f"{header}{begin}Yes.{end}{header}{begin}<|unit_0_1|><|unit_1_2|><|unit_5_6|>{end}"
    )
    # Units that stand one by one are grouped into the tokens there are.
    assert texts[2].endswith(f"{begin}<|unit_2_3|><|unit_4_5|>{end}") and texts[3].endswith(
        f"<|unit_7_8|><|unit_9_10|>{end}"
    )
    assert not any(name.startswith("language") for name in model.state_dict())


def test_training_has_the_layout_of_inference(folder, rows, tmp_path):
    """The teacher-forced pass predicts the unit tokens that decoding gives for a segment."""
    from echox.models.release.echo import ReleaseEcho
    from echox.models.release.train_forward import answer_states, segment_outputs
    from echox.tasks.release.spoken import teacher_forced

    task, model = task_of("published_echo", folder, rows, tmp_path, max_words=6, rule=tiny_rule())
    examples = task.examples("train")
    batch = task.collate([examples[index] for index in range(3)])
    assert len(batch.spans.rows) > 4
    with torch.no_grad():
        text_pass = teacher_forced(model, batch.conversation)
        states, _, _ = answer_states(text_pass)
        echo = ReleaseEcho(model)
        engine = echo.decode_engine(states.shape[1])
        requests = echo.segment_requests(states, batch.spans, 6, steps=engine.steps)
        generated = [
            completion.tokens[:, 0].tolist() for completion in engine.run(requests.values())
        ]
        units = padded(generated, -100)
        outputs = segment_outputs(model.release, text_pass, batch.spans, units)
    assert torch.equal(outputs.unit_head(outputs.unit_states).argmax(-1), outputs.unit_labels)


def tiny_rule():
    from echox.models.segmenting import SegmentRule

    return SegmentRule(window=1, threshold=-1.0, least=3)


def run(workspace, folder, rows, *more, with_encoder=True):
    paths = [
        f"{stage}.task.data.{split}=[{rows}]"
        for stage in ("s2t", "t2c", "echo")
        for split in ("train", "valid")
    ]
    # At a larger rate, the tiny model generates no units any more.
    settings = (
        "steps=2",
        "precision=fp32",
        "accumulation=1",
        "lr=0.0001",
        "warmup_fraction=0",
    )
    brief = [f"{stage}.train.{setting}" for stage in ("s2t", "t2c", "echo") for setting in settings]
    small = [f"{stage}.task.lora.rank=2" for stage in ("s2t", "echo")] + [
        "t2c.task.max_words=6",
        "echo.task.max_words=6",
        "device=cpu",
    ]
    encoder = [f"encoder.weights={folder}/whisper"] if with_encoder else ["encoder=null"]
    return train.main(
        ["recipe=release_finetune", f"checkpoint={folder}", *encoder, *paths, *brief, *small, *more]
    )


def test_one_command_trains_and_the_export_answers(workspace, folder, rows, capsys):
    assert run(workspace, folder, rows) == 0
    assert (
        prepare.main(
            ["export", "runs/release_finetune/echo/final", "output=mine", "shard_gigabytes=0.0015"]
        )
        == 0
    )
    before, after = read_release(folder), read_release(workspace / "mine")
    assert list(after.tensors) == list(before.tensors) and after.config == before.config
    changed = {
        name
        for name, tensor in before.tensors.items()
        if not torch.equal(after.tensors[name].view(torch.int16), tensor.view(torch.int16))
    }
    assert changed >= {
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.mm_projector1.weight",
        "unit_translator.aligner_MLP.0.weight",
        "unit_translator.unit_embedding.weight",
        "unit_translator.lm_head.weight",
    }
    frozen = {
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.audio_feature_head.weight",
        "unit_translator.model.embed_tokens.weight",
        "model.norm.weight",
    }
    assert not frozen & changed
    save_audio(workspace / "question.wav", noise(5, 0.7), RATE_HZ)
    options = [
        "input=question.wav",
        "output=answer.wav",
        "max_tokens=12",
        "device=cpu",
        f"encoder_folder={folder}/whisper",
    ]
    assert generate.main(["checkpoint=mine", *options]) == 0
    capsys.readouterr()
    assert prepare.main(["export", "runs/release_finetune/echo/final", "output=mine"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert generate.main(["checkpoint=runs/release_finetune/echo/final", *options]) == 2
    assert "write 'echox-prepare export" in capsys.readouterr().err


def test_what_is_exported_is_what_was_trained(workspace, folder, rows):
    """The merged folder computes what the trained model with LoRA computes."""
    from echox.models.release.folder import build
    from echox.models.release.trainable import Merged

    task, model = task_of("published_s2t", folder, rows, workspace)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(
                    0.05
                    * torch.randn(
                        parameter.shape, generator=torch.Generator().manual_seed(len(name))
                    )
                )
    trained = {
        name.removeprefix("release."): tensor
        for name, tensor in task.trained_state_dict(model).items()
    }
    stored = {name: tensor.float() for name, tensor in read_release(folder).tensors.items()}
    merged = dataclasses.replace(
        read_release(folder), tensors=Merged(stored, trained, task.config.lora)
    )
    batch = task.collate([task.examples("train")[1]])
    with torch.no_grad():
        expected = task.forward(model, batch).text_logits
        model.release = build(merged)
        torch.testing.assert_close(
            task.forward(model, batch).text_logits, expected, atol=1e-4, rtol=1e-4
        )


def test_the_paper_s_form_is_recorded(workspace, folder, rows):
    forms = [f"{stage}.task.released_form=false" for stage in ("s2t", "t2c", "echo")]
    assert run(workspace, folder, rows, "only=[t2c]", *forms) == 0
    assert prepare.main(["export", "runs/release_finetune/t2c/final", "output=mine"]) == 0
    exported = read_release(workspace / "mine")
    assert (
        not exported.compatibility.attend_over_turns
        and exported.config[FORM]["t2c_begin_id"] is None
    )
    assert read_release(folder).compatibility.attend_over_turns


def test_a_run_from_random_weights_is_not_exported(workspace, folder, rows, capsys):
    assert run(workspace, folder, rows, "only=[t2c]", "checkpoint=random") == 0
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
def test_what_cannot_be_trained_is_refused_in_a_sentence(
    workspace, folder, rows, capsys, more, sentence
):
    assert run(workspace, folder, rows, "only=[s2t]", *more) == 2
    printed = capsys.readouterr().err
    assert sentence in printed.splitlines()[-1]


def test_a_stage_with_audio_needs_an_encoder(workspace, folder, rows, capsys):
    assert run(workspace, folder, rows, with_encoder=False) == 2
    assert (
        "encoder has no value, but stage 's2t' needs one"
        in capsys.readouterr().err.splitlines()[-1]
    )


def test_a_clip_with_nan_names_its_file(folder, rows, tmp_path):
    import soundfile

    samples = noise(1, 0.5).numpy()
    samples[7] = float("nan")
    soundfile.write(tmp_path / "broken.wav", samples, RATE_HZ, subtype="FLOAT")
    (tmp_path / "rows.json").write_text(
        json.dumps(
            [
                {
                    "conversations": [
                        {"from": "user", "audio": "broken.wav"},
                        {"from": "assistant", "value": "x"},
                    ]
                }
            ]
        )
    )
    task, _ = task_of("published_s2t", folder, tmp_path / "rows.json", tmp_path)
    with pytest.raises(SignalError, match="broken.wav holds NaN"):
        task.collate([task.examples("train")[0]])


def test_a_checkpoint_that_no_stage_takes_is_refused(workspace, capsys):
    assert train.main(["recipe=echo_tiny", "checkpoint=EchoX-3B"]) == 2
    assert "no stage of echo_tiny starts from one" in capsys.readouterr().err


def test_t2c_refuses_rows_without_units(folder, tmp_path):
    (tmp_path / "rows.json").write_text(
        json.dumps([{"conversations": [{"from": "assistant", "value": "x", "units": "99"}]}])
    )
    with pytest.raises(ManifestError, match="unit words"):
        task_of("published_t2c", folder, tmp_path / "rows.json", tmp_path)


def test_a_fresh_start_is_a_folder_too(workspace, folder, rows, capsys):
    write_llm(
        workspace / "llama",
        "llama3",
        spare_rows=0,
        hidden_size=16,
        num_hidden_layers=1,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    (workspace / "words.txt").write_text("\n".join([*map(str, range(12)), "0_1", "3_4"]))
    words = [
        "begin",
        "llama",
        "words=words.txt",
        f"vocoder={folder}",
        f"encoder={folder}/whisper",
        "unit_model=large",
        "output=fresh",
    ]
    assert prepare.main(words) == 0
    fresh = read_release(workspace / "fresh")
    assert (
        not fresh.compatibility.attend_over_turns
        and fresh.config["rope_parameters"]["rope_type"] == "llama3"
    )
    embedding, head = (
        fresh.tensors["model.embed_tokens.weight"],
        fresh.tensors["unit_translator.model.embed_tokens.weight"],
    )
    V = json.loads((workspace / "llama/config.json").read_text())["vocab_size"]
    assert (
        embedding.shape == (V + 1, 16) == (fresh.config["vocab_size"], 16)
        and torch.equal(embedding, head)
        and torch.equal(fresh.tensors["lm_head.weight"], head)
    )
    # The unit translator must learn to predict units before there is any sound.
    brief = ("t2c.train.steps=30", "t2c.train.lr=0.02")
    assert (
        run(workspace, workspace / "fresh", rows, f"encoder.weights={folder}/whisper", *brief) == 0
    )
    assert prepare.main(["export", "runs/release_finetune/echo/final", "output=mine"]) == 0
    save_audio(workspace / "question.wav", noise(5, 0.7), RATE_HZ)
    options = [
        "input=question.wav",
        "output=answer.wav",
        "max_tokens=12",
        "device=cpu",
        f"encoder_folder={folder}/whisper",
    ]
    assert generate.main(["checkpoint=mine", *options]) == 0
    assert len(load_audio(workspace / "answer.wav", RATE_HZ)) > 0
    capsys.readouterr()
    (workspace / "words.txt").write_text("0 x")
    assert prepare.main([*words[:-1], "output=other"]) == 2
    assert "'x' is no unit word" in capsys.readouterr().err
