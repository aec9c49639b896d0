"""The label audit: right labels pass, each fault is named, and training is not changed."""

import dataclasses

import pytest
import torch

from echox.core import checkpoint
from echox.core.errors import TrainingError
from echox.criteria.base import CRITERIA, UnitOutputs
from echox.criteria.speech_text import SpeechTextConfig, SpeechTextCriterion
from echox.engine.audit import audit
from echox.engine.config import Precision
from echox.models.speech_llm import IGNORE
from echox.pipeline.plugins import discover
from echox.pipeline.run import run_recipe
from echox.tasks.base import TASKS
from echox.testing.noise_corpus import (
    one_step_recipe,
    parent_checkpoint,
    prepared_stage,
    small_config,
)

from .toy import toy_task, train_toy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stages():
    discover()
    return {name: prepared_stage(small_config(TASKS[name].config_type)) for name in ("s2t", "t2c")}


@pytest.fixture
def stage(stages, monkeypatch):
    """A stage by name, some of whose task's methods a test may replace."""

    def chosen(name, **replacements):
        for method, replacement in replacements.items():
            monkeypatch.setattr(stages[name].task, method, replacement)
        return stages[name]

    return chosen


def audited(stage, criterion=None, rows=range(4)):
    return audit(
        stage.task,
        stage.model,
        criterion or stage.criterion,
        rows,
        stage="s",
        device=CPU,
        number_format=Precision.fp32,
    )


def fault_of(stage, criterion=None):
    result = audited(stage, criterion)
    assert result.fault is not None and "FAULT" in result.page
    with pytest.raises(TrainingError, match="label audit: .*train.audit=false"):
        result.refuse()
    return result.fault


def first_units(stage):
    """The units of the T2C stage's shortest row, which a page shows first."""
    batch = stage("t2c").batch(range(4))
    return batch.units[batch.row_ids.index("train-1")]


def changed(task, change):
    """The task's `collate`, its batches changed."""
    collate = type(task).collate
    return lambda examples: change(collate(task, examples))


def with_value(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


def test_right_labels_are_printed_and_pass(stage):
    result = audited(stage("s2t"))
    assert result.fault is None
    for line in (
        "a batch of 4 rows",
        "row 'train-1'",
        "40 frames at position 1; 11 tokens for CTC: 'What is it?'",
        "scored  3-7  'Six.<256>'",
        "padding 9-17",
        "-> '<256>'; the stop id is 256",
        "passed",
    ):
        assert line in result.page, result.page
    assert "masked  0-2" in result.page and "[audio]" in result.page
    t2c_page = audited(stage("t2c")).page
    first = " ".join(map(str, first_units(stage)[:4]))
    assert (
        "given   'Six.'" in t2c_page
        and "'NEXT' -> 'END'" in t2c_page
        and f"units   {first}" in t2c_page
    )


def test_labels_without_a_shift_are_a_fault(stage):
    s2t = stage("s2t")
    same = changed(
        s2t.task,
        lambda batch: dataclasses.replace(
            batch, labels=torch.where(batch.labels.roll(1, 1) != IGNORE, batch.ids, IGNORE)
        ),
    )
    assert (
        "row 'train-0': at position" in (fault := fault_of(stage("s2t", collate=same)))
        and "is read next; labels must be" in fault
    )
    far = changed(
        s2t.task, lambda batch: dataclasses.replace(batch, labels=batch.labels.roll(-1, 1))
    )
    assert "is read next; labels must be" in fault_of(stage("s2t", collate=far))


@pytest.mark.parametrize(
    ("shift", "sentence"),
    [(-1, "is predicted from itself"), (1, "is predicted without what stands right before it")],
)
def test_inputs_shifted_inside_the_model_are_a_fault(stage, shift, sentence):
    def forward(model, batch):
        read = batch.targets.roll(shift, 1).where(batch.targets != IGNORE, batch.targets)
        states = model.decoder(
            model.rows(batch.ids), batch.lengths, read.masked_fill(read == IGNORE, 0)
        )
        return UnitOutputs(
            states[batch.targets != IGNORE],
            batch.targets[batch.targets != IGNORE],
            model.decoder.head,
        )

    assert sentence in fault_of(stage("t2c", forward=forward))


def test_scored_padding_is_a_fault(stage):
    last = changed(
        stage("s2t").task,
        lambda batch: dataclasses.replace(batch, labels=with_value(batch.labels, (1, -1), 7)),
    )
    assert (
        "row 'train-1': position 17 of its text is padding (9 positions are real), but id 7"
        in fault_of(stage("s2t", collate=last))
    )
    zeros = changed(
        stage("t2c").task,
        lambda batch: dataclasses.replace(batch, targets=batch.targets.clamp(min=0)),
    )
    assert "of its units is padding" in fault_of(stage("t2c", collate=zeros))


def test_padding_that_changes_the_loss_is_a_fault(stage):
    right = type(stage("s2t").task).forward

    def forward(model, batch):
        outputs = right(stage("s2t").task, model, batch)
        return dataclasses.replace(
            outputs, text_logits=outputs.text_logits * (1 + batch.features.values.mean())
        )

    assert "with other values in their padding, which must not count" in fault_of(
        stage("s2t", forward=forward)
    )


def test_stop_tokens_without_a_target_are_a_fault(stage):
    end = stage("s2t").model.backbone.end_id
    masked = changed(
        stage("s2t").task,
        lambda batch: dataclasses.replace(
            batch, labels=batch.labels.masked_fill(batch.labels == end, IGNORE)
        ),
    )
    assert "and not the stop id 256, so the model would never learn to end" in fault_of(
        stage("s2t", collate=masked)
    )
    cut = changed(
        stage("t2c").task,
        lambda batch: dataclasses.replace(
            batch, targets=batch.targets.masked_fill(batch.targets == 33, IGNORE)
        ),
    )
    assert "and not the stop id 33" in fault_of(stage("t2c", collate=cut))

    class WithoutStops(SpeechTextCriterion):
        def forward(self, outputs, batch):
            is_other = outputs.text_labels != end
            return super().forward(
                dataclasses.replace(
                    outputs,
                    text_logits=outputs.text_logits[is_other],
                    text_labels=outputs.text_labels[is_other],
                ),
                batch,
            )

    unchanged = stage("s2t", collate=changed(stage("s2t").task, lambda batch: batch))
    assert (
        "the stop id at position 7 of its text is a target, but no gradient comes from it"
        in fault_of(unchanged, WithoutStops(SpeechTextConfig()))
    )


def test_a_criterion_that_scores_other_labels_is_a_fault(stage):
    class Moved(SpeechTextCriterion):
        def forward(self, outputs, batch):
            return super().forward(
                dataclasses.replace(outputs, text_labels=outputs.text_labels.roll(1)), batch
            )

    assert "it scores other labels than it is given" in fault_of(
        stage("s2t"), Moved(SpeechTextConfig())
    )


def test_a_forward_with_other_targets_than_the_batch_is_a_fault(stage):
    right = type(stage("s2t").task).forward

    def fewer(model, batch):
        outputs = right(stage("s2t").task, model, batch)
        return dataclasses.replace(
            outputs, text_labels=outputs.text_labels[:-1], text_logits=outputs.text_logits[:-1]
        )

    def others(model, batch):
        outputs = right(stage("s2t").task, model, batch)
        return dataclasses.replace(outputs, text_labels=outputs.text_labels + 1)

    assert (
        "the loss is given 18 targets of 'text' for rows train-1, train-3, and the batch has 19"
        in fault_of(stage("s2t", forward=fewer))
    )
    assert "is to be scored, but the loss is given" in fault_of(stage("s2t", forward=others))


def test_units_and_ids_out_of_range_are_a_fault(stage):
    far = changed(
        stage("t2c").task,
        lambda batch: dataclasses.replace(batch, units=((3, 4000), *batch.units[1:])),
    )
    assert (
        "row 'train-0': unit 1 is 4000, and the codec has units 0 to 31; encode the row"
        in fault_of(stage("t2c", collate=far))
    )
    wrong_unit = changed(
        stage("t2c").task,
        lambda batch: dataclasses.replace(batch, targets=with_value(batch.targets, (2, 1), 99)),
    )
    assert (
        "row 'train-2': position 1 of its units is to be id 99, and the model predicts 0 to 34"
        in fault_of(stage("t2c", collate=wrong_unit))
    )
    wrong_token = changed(
        stage("s2t").task,
        lambda batch: dataclasses.replace(
            batch, ctc_targets=with_value(batch.ctc_targets, (0, 2), 500)
        ),
    )
    assert (
        "row 'train-0': token 2 of its clip's transcript is id 500, and CTC predicts"
        in fault_of(stage("s2t", collate=wrong_token))
    )


def test_units_of_another_codec_are_a_fault(stage, monkeypatch):
    monkeypatch.setattr(stage("t2c").task, "written_by", "another")
    assert (
        "the codecs differ (in use " in (fault := fault_of(stage("t2c")))
        and "of the units another); set codec" in fault
    )


def test_targets_without_weight_are_a_note_not_a_fault(stage):
    class WithoutWeight(SpeechTextCriterion):
        def forward(self, outputs, batch):
            return super().forward(
                dataclasses.replace(outputs, text_logits=outputs.text_logits * 0.0), batch
            )

    result = audited(stage("s2t"), WithoutWeight(SpeechTextConfig()))
    assert result.fault is None and "'text' weighs nothing in this loss" in result.page


def test_a_batch_of_one_row_is_audited(stage):
    assert (
        audited(stage("s2t"), rows=[2]).fault is None
        and "shown is the first" in audited(stage("t2c"), rows=[2]).page
    )


def test_a_task_without_an_audit_trains_with_a_note(tmp_path, capsys):
    train_toy(tmp_path, toy_task(), steps=1)
    assert "shows no audit, so its labels were not checked" in capsys.readouterr().err
    assert "shows no audit" in (tmp_path / "audit.txt").read_text()


def recipe(stages, folder, **train):
    """S2T of the smoke recipe, with dropout, on the corpus of noise."""
    base = one_step_recipe()
    plan = base.plan("s2t")
    plan = dataclasses.replace(plan, train=dataclasses.replace(plan.train, steps=2, **train))
    (folder / "align").mkdir(parents=True)
    (folder / "align" / "final").symlink_to(parent_checkpoint("align"))
    return dataclasses.replace(
        base, run_dir=str(folder), stage="s2t", stages={**base.stages, "s2t": plan}
    )


def test_training_is_the_same_with_and_without_an_audit(stages, tmp_path, capsys):
    for name, train in (("with", {}), ("without", {"audit": False})):
        run_recipe(recipe(stages, tmp_path / name, **train))
    assert checkpoint.fingerprint(tmp_path / "with" / "s2t" / "final") == checkpoint.fingerprint(
        tmp_path / "without" / "s2t" / "final"
    )
    page = (tmp_path / "with" / "s2t" / "audit.txt").read_text()
    assert "passed" in page and page.strip() in capsys.readouterr().err
    assert not (tmp_path / "without" / "s2t" / "audit.txt").exists()


def test_a_fault_stops_training_before_its_first_step(stages, tmp_path, monkeypatch):
    task = type(stages["s2t"].task)
    right = task.collate
    monkeypatch.setattr(
        task,
        "collate",
        lambda self, examples: dataclasses.replace(
            batch := right(self, examples), labels=batch.labels.roll(-1, 1)
        ),
    )
    with pytest.raises(TrainingError, match="label audit: row 'train-"):
        run_recipe(recipe(stages, tmp_path / "run"))
    assert (
        "FAULT" in (tmp_path / "run" / "s2t" / "audit.txt").read_text()
        and not (tmp_path / "run" / "s2t" / "final").exists()
    )
    run_recipe(recipe(stages, tmp_path / "regardless", audit=False))


def test_every_implementation_of_the_unit_loss_passes(stages):
    stage = stages["t2c"]
    for impl in ("reference", "torch"):
        assert (
            audited(stage, CRITERIA.build(CRITERIA.parse({"name": "t2c", "impl": impl}))).fault
            is None
        )
