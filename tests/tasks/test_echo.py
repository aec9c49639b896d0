"""Echo: its labels, its segments, and that a batch is its rows."""

import dataclasses
import json
import shutil

import pytest
import torch
from echo_home import ANSWERS, recipe_at, words_at, write_home

from echox.core import checkpoint
from echox.core.errors import CheckpointError, ConfigError
from echox.criteria.base import CRITERIA
from echox.engine.audit import audit
from echox.engine.config import Precision
from echox.models.segmenting import SegmentRule, segments, whole
from echox.models.speech_llm import IGNORE
from echox.pipeline.run import run_recipe
from echox.pipeline.tasks import stage_task
from echox.tasks.base import TASKS
from echox.tasks.echo.task import answer_states
from echox.tasks.s2t.task import teacher_forced
from echox_cli import prepare, train

CPU = torch.device("cpu")
CUTS = ("echo.task.segments.rule.threshold=-1.0", "echo.task.segments.rule.window=2")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("echo")
    write_home(folder)
    return folder


@pytest.fixture(scope="module")
def stage(home):
    """Builds the Echo stage, prepared, in eval mode."""
    stages = {}

    def build(*more):
        if more not in stages:
            task = stage_task(recipe_at(home, *more), "echo", CPU)
            torch.manual_seed(0)
            model = task.build()
            task.prepare(model)
            stages[more] = task, model.eval()
        return stages[more]

    return build


def states_of(task, model, batch):
    return answer_states(
        teacher_forced(model.speech_llm, batch.conversation)[1], batch.conversation
    )


def all_rows(task):
    examples = task.examples("train")
    return task.collate([examples[index] for index in range(len(examples))])


@torch.no_grad()
def test_before_the_first_step_echo_is_the_cascade(stage):
    task, model = stage()
    hidden, lengths = states_of(task, model, all_rows(task))
    text = model.speech_llm.backbone.logits(hidden).argmax(-1)
    unit_tokens = model.speak(hidden, lengths)
    assert all(unit_tokens) and unit_tokens == model.voice.speak(text, lengths)
    # More steps than a segment has by default are no reason to refuse it.
    assert model.speak(hidden, lengths, max_steps=1500) == unit_tokens
    vectors = model.denoise(hidden, model.candidates(hidden))
    assert torch.equal(vectors, model.voice.rows(text))


@torch.no_grad()
@pytest.mark.parametrize(
    "more", [(), CUTS, ("echo.task.online={}",)], ids=["whole", "segments", "online"]
)
def test_a_batch_is_its_rows(stage, more):
    task, model = stage(*more)
    examples = task.examples("train")
    batch = all_rows(task)
    hidden, lengths = states_of(task, model, batch)
    together, unit_tokens = task.forward(model, batch), model.speak(hidden, lengths)
    assert len(set(lengths.tolist())) > 2
    alone = []
    for row in range(len(examples)):
        single = task.collate([examples[row]])
        states, size = states_of(task, model, single)
        assert size[0] == lengths[row]
        torch.testing.assert_close(hidden[row, : size[0]], states[0, : size[0]], atol=1e-4, rtol=0)
        assert model.speak(states, size) == [unit_tokens[row]]
        alone.append(task.forward(model, single))
    assert together.unit_labels.tolist() == [
        label for row in alone for label in row.unit_labels.tolist()
    ]
    for name in ("unit_states", "denoised", "text_vectors", "text_logits"):
        torch.testing.assert_close(
            getattr(together, name),
            torch.cat([getattr(row, name) for row in alone]),
            atol=1e-4,
            rtol=0,
        )


def test_two_spoken_turns_are_two_clips_of_one_row(stage):
    task, _ = stage()
    batch = all_rows(task)
    last = len(ANSWERS) - 1
    assert batch.conversation.clip_rows.tolist() == [*range(last), last, last]


@torch.no_grad()
def test_segments_are_cut_as_in_streaming_and_each_is_a_sample_of_its_own(stage):
    task, model = stage(*CUTS)
    batch = all_rows(task)
    hidden, lengths = states_of(task, model, batch)
    rule = SegmentRule(threshold=-1.0, window=2)
    rows, starts, ends = (
        getattr(batch.spans, name).tolist() for name in ("rows", "starts", "ends")
    )
    spans = list(zip(rows, starts, ends))
    for row, length in enumerate(lengths.tolist()):
        scores = model.cutter.scores(hidden[row, :length]).tolist()
        assert [(start, end) for at, start, end in spans if at == row] == [
            (cut.start, cut.end) for cut in segments(scores, rule)
        ]
    assert len(spans) > len(batch.row_ids) == len(whole(lengths).rows)
    outputs = task.forward(model, batch)
    done = 0
    for (row, start, end), target in zip(spans, batch.targets):
        target = target[target != IGNORE]
        piece = outputs.denoised[sum(lengths[:row]) + start : sum(lengths[:row]) + end][None]
        alone = model.voice.decoder(piece, torch.tensor([end - start]), target[None])[0]
        torch.testing.assert_close(
            outputs.unit_states[done : done + len(target)], alone, atol=1e-4, rtol=0
        )
        assert (
            target.tolist()
            == model.voice.targets(
                batch.text[row : row + 1, start:end], torch.tensor([end - start])
            )[0]
        )
        done += len(target)


@torch.no_grad()
def test_online_labels_of_an_untrained_stage_are_the_cached_ones(stage):
    (cached, cached_model), (online, online_model) = stage(), stage("echo.task.online={}")
    hidden, lengths = states_of(cached, cached_model, all_rows(cached))
    text = cached_model.speech_llm.backbone.logits(hidden).argmax(-1)
    first, second = (
        task.labels.labels(model, all_rows(task), hidden, lengths, text)
        for task, model in ((cached, cached_model), (online, online_model))
    )
    real = torch.arange(first.text.shape[1])[None] < lengths[:, None]
    assert torch.equal(first.targets, second.targets) and torch.equal(
        first.text[real], second.text[real]
    )
    assert online.collate([online.examples("train")[0]]).count == len(ANSWERS[0]) + 1
    online_model.train()
    teacher = online_model.teacher
    assert not teacher.training and not teacher.voice.decoder.drop.training
    assert not any(name.startswith("teacher.") for name in online.trained_state_dict(online_model))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_online_labels_follow_the_model_and_the_teacher_stays(stage):
    task, model = stage("echo.task.online={}", "echo.task.label_batch=3")
    batch = all_rows(task)
    hidden, lengths = states_of(task, model, batch)
    text, other = (model.speech_llm.backbone.logits(h).argmax(-1) for h in (hidden, -hidden))
    before = task.labels.labels(model, batch, hidden, lengths, text).targets
    with torch.no_grad():
        model.voice.decoder.head.weight.mul_(-1)
    assert torch.equal(task.labels.labels(model, batch, hidden, lengths, text).targets, before)
    after = task.labels.labels(model, batch, hidden, lengths, other)
    assert torch.equal(after.text, other) and not torch.equal(after.targets, before)


def count_heads(monkeypatch, model):
    """The list that each call of the model's vocabulary head is added to."""
    calls, logits = [], model.speech_llm.backbone.logits
    monkeypatch.setattr(
        model.speech_llm.backbone, "logits", lambda hidden: calls.append(1) or logits(hidden)
    )
    return calls


STARTS = (
    ("echo.task.denoiser.candidates=0",),
    ("echo.task.denoiser.candidates=1", "echo.task.online={}"),
    ("echo.task.denoiser.candidates=3",),
)


@pytest.mark.parametrize("more", STARTS)
def test_a_step_computes_the_vocabulary_head_once(home, stage, monkeypatch, more):
    task, model = stage(*more)
    batch = all_rows(task)
    criterion = CRITERIA.build(recipe_at(home).plan("echo").criterion)
    hidden, lengths = states_of(task, model, batch)
    # The same step, each part of it with logits of its own.
    logits = model.speech_llm.backbone.logits(hidden)
    with monkeypatch.context() as separate:
        separate.setattr(
            "echox.tasks.echo.task._candidates_by_answer",
            lambda of_all, _: model.denoiser.candidates(logits),
        )
        expected = losses_of(task, model, batch, criterion)
    calls = count_heads(monkeypatch, model)
    loss, gradients = losses_of(task, model, batch, criterion)
    assert len(calls) == 1
    torch.testing.assert_close(loss, expected[0], atol=1e-6, rtol=1e-6)
    assert gradients.keys() == expected[1].keys() and len(gradients) > 20
    for name, gradient in gradients.items():
        # Gradients of the candidates' weights are summed in another order.
        assert (gradient - expected[1][name]).norm() <= 1e-5 * expected[1][name].norm(), name


def losses_of(task, model, batch, criterion):
    """Loss of a step and its gradients by parameter."""
    model.zero_grad()
    loss = criterion(task.forward(model, batch), batch).total
    loss.backward()
    named = [(name, p.grad.clone()) for name, p in model.named_parameters() if p.grad is not None]
    return loss.detach(), dict(named)


@torch.no_grad()
@pytest.mark.parametrize("more", STARTS)
def test_text_that_is_known_spares_the_vocabulary_head(stage, monkeypatch, more):
    task, model = stage(*more)
    hidden, lengths = states_of(task, model, all_rows(task))
    text = model.speech_llm.backbone.logits(hidden).argmax(-1)
    expected = model.speak(hidden, lengths)
    calls = count_heads(monkeypatch, model)
    assert model.speak(hidden, lengths, text=text) == expected
    assert len(calls) == (task.config.denoiser.candidates > 1)


@pytest.mark.parametrize("more", [("echo.task.online={}",), CUTS], ids=["online", "segments"])
def test_a_run_that_was_stopped_ends_with_the_same_bits(home, tmp_path, more):
    shutil.copytree(home / "run", tmp_path / "run")
    recipe = recipe_at(
        home, *more, f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"
    )
    run_recipe(recipe)
    assert (tmp_path / "cache" / "pseudo_labels").exists() == (more == CUTS)
    folder = tmp_path / "run" / "echo"
    before = checkpoint.fingerprint(folder / "final")
    shutil.rmtree(folder / "final")
    shutil.rmtree(checkpoint.step_folders(folder / "checkpoints")[-1])
    run_recipe(recipe)
    assert checkpoint.fingerprint(folder / "final") == before
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"unit_error", "units", "denoising"} <= losses[-1].keys()


def test_labels_are_written_by_a_command_and_stale_ones_refused(home, tmp_path, capsys):
    named = f"echo.task.labels={tmp_path / 'labels'}"
    words = ["recipe=echo_tiny", *words_at(home, named)]
    task = stage_task(recipe_at(home, named), "echo", CPU)
    with pytest.raises(
        CheckpointError,
        match="there are no finished pseudo-labels in .*labels; "
        "write them anew with 'echox-prepare labels'",
    ):
        task.prepare(task.build())
    assert prepare.main(["labels", *words]) == 0
    assert str(tmp_path / "labels") in capsys.readouterr().out
    task.prepare(task.build())
    assert len(task.examples("train")) == len(ANSWERS) and all_rows(task).targets.shape[0] == len(
        ANSWERS
    )
    for more, changed in ((CUTS, "segments"), (("backbone.system=Other.",), "language model")):
        other = stage_task(recipe_at(home, named, *more), "echo", CPU)
        with pytest.raises(
            CheckpointError,
            match=f"are stale, they were made with another {changed}; write them anew",
        ):
            other.prepare(other.build())


def test_labels_of_other_texts_are_stale(home, tmp_path):
    named = f"echo.task.labels={tmp_path / 'labels'}"
    assert prepare.main(["labels", "recipe=echo_tiny", *words_at(home, named)]) == 0
    task = stage_task(recipe_at(home, named), "echo", CPU)
    model = task.build()
    rows = task.speech_text.splits["train"]
    rows[1] = dataclasses.replace(rows[1], target=rows[1].target[1:])
    with pytest.raises(
        CheckpointError,
        match="1 of 8 conversations are not among them as their text and audio now are, "
        "such as 'row-1'",
    ):
        task.prepare(model)


def test_labels_are_either_online_or_cached(home, capsys):
    words = ["recipe=echo_tiny", *words_at(home, "echo.task.online={}")]
    assert prepare.main(["labels", *words]) == 2
    assert "nothing to write; set echo.task.online=null" in capsys.readouterr().err
    assert train.main([*words, "echo.task.labels=x"]) == 2
    assert "set one of the two to null" in capsys.readouterr().err
    assert prepare.main(["labels", *words, "echo.task.online=null", "stage=t2c"]) == 2
    assert "ask for stage=echo" in capsys.readouterr().err


@pytest.mark.parametrize("trigger", ["", "no"])
def test_a_trigger_is_one_token(home, trigger):
    recipe = recipe_at(home, f"echo.task.segments.trigger='{trigger}'")
    with pytest.raises(ConfigError, match="name a text that is one, such as '.'"):
        stage_task(recipe, "echo", CPU).build()


def test_the_unit_decoder_has_a_rate_of_its_own(home):
    task = stage_task(recipe_at(home, "echo.task.voice_lr_scale=0.25"), "echo", CPU)
    scales = {group["name"]: group["lr_scale"] for group in task.parameter_groups(task.build())}
    assert scales == {"denoiser": 1.0, "voice": 0.25, "speech_llm": 0.1} and "echo" in TASKS


@pytest.mark.parametrize("stage_name", ["s2t", "echo"])
def test_a_recipe_may_freeze_the_alignment(stage_name, tmp_path):
    write_home(tmp_path)
    # It holds an adapter, as an align checkpoint does.
    shutil.copytree(tmp_path / "run" / "s2t", tmp_path / "run" / "align")

    def trained(setting):
        task = stage_task(
            recipe_at(tmp_path, f"{stage_name}.task.train_alignment={setting}"), stage_name, CPU
        )
        model = task.build()
        adapter = model.adapter if stage_name == "s2t" else model.speech_llm.adapter
        trained_ids = {
            id(parameter)
            for group in task.parameter_groups(model)
            for parameter in group["params"]
            if parameter.requires_grad
        }
        return {
            name.split(".")[0]
            for name, parameter in adapter.named_parameters()
            if id(parameter) in trained_ids
        }

    look_back = {"look_back", "look_back_norm"}
    assert trained("false") == look_back and trained("true") == look_back | {
        "projector",
        "position",
        "layers",
        "out_norm",
        "ctc_head",
    }


def test_a_command_audits_the_first_batch(home, tmp_path, capsys):
    words = ["recipe=echo_tiny", *words_at(home, f"cache_dir={tmp_path / 'cache'}")]
    assert prepare.main(["audit", *words, *CUTS]) == 0
    page = capsys.readouterr().out
    assert (
        "targets of 'text' in 2 sequences" in page
        and "codec     of the pseudo-labels: " in page
        and "passed" in page
    )
    assert (home / "run" / "echo" / "audit.txt").read_text() == page
    (home / "run" / "echo" / "audit.txt").unlink()
    assert prepare.main(["audit", *words, "echo.task.online={}"]) == 0
    assert "units are made at every step" in capsys.readouterr().out


def test_an_audit_refuses_labels_of_another_codec(home, tmp_path):
    recipe = recipe_at(home, f"run_dir={tmp_path / 'run'}")
    shutil.copytree(home / "run", tmp_path / "run")
    task = stage_task(recipe, "echo", CPU)
    model = task.build()
    task.prepare(model)
    task.labels.makers["codec"] = "another"
    report = audit(
        task,
        model,
        CRITERIA.build(recipe.plan("echo").criterion),
        range(4),
        stage="echo",
        device=CPU,
        number_format=Precision.fp32,
    )
    assert "of the pseudo-labels another" in report.fault
