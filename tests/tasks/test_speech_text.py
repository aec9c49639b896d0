"""S2T: training computes the states and tokens of generation, also from cached states."""

import copy
from pathlib import Path

import pytest
import tiny_run
import torch

from echox.backbones.hub import HubBackboneConfig, LoraConfig
from echox.codecs.kmeans.codec import KMeansCodecConfig
from echox.core import checkpoint
from echox.core.errors import ManifestError
from echox.core.signals import Batch, Features, padded
from echox.criteria.base import CRITERIA
from echox.criteria.speech_text import SpeechTextConfig
from echox.data.manifest import Item, Role, Row, read_manifest, write_manifest
from echox.decoding.greedy_text import greedy_text
from echox.encoders.whisper import WhisperConfig
from echox.metrics.text import CharacterErrorConfig
from echox.models.speech_adapter import SpeechAdapterConfig
from echox.models.speech_llm import AUDIO, IGNORE, PAD
from echox.tasks.base import Parts, StageContext
from echox.tasks.conversations import SpokenDataConfig, prompt_and_labels
from echox.tasks.echo.task import answer_states
from echox.tasks.s2t.frozen_states import StatesBatch
from echox.tasks.s2t.task import (
    SpeechTextBatch,
    SpeechTextTask,
    SpeechTextTaskConfig,
    build_speech_llm,
    prompt_only,
    speech_llm_state_dict,
    teacher_forced,
)


@pytest.fixture(scope="module")
def model():
    parts = Parts(
        WhisperConfig(weights="random"),
        HubBackboneConfig(weights="random"),
        KMeansCodecConfig(folder="random"),
    )
    torch.manual_seed(0)
    model = build_speech_llm(parts, SpeechAdapterConfig(heads=4), torch.arange(40)).eval()
    torch.nn.init.normal_(model.adapter.ctc_head.weight)
    return model


def test_an_adapter_that_reads_spelling_comes_back_from_its_checkpoint(tmp_path):
    parts = Parts(
        WhisperConfig(weights="random"),
        HubBackboneConfig(weights="random"),
        KMeansCodecConfig(folder="random"),
    )
    config, features = (
        SpeechAdapterConfig(heads=4, spelling_channels=8),
        Features(torch.randn(1, 30, 32), torch.tensor([30]), 50.0),
    )
    torch.manual_seed(0)
    before, after = (
        build_speech_llm(parts, config, torch.arange(64, 100)).eval() for _ in range(2)
    )
    trained = speech_llm_state_dict(before)
    saved = checkpoint.load(checkpoint.save(tmp_path / "final", trained, {}))
    with torch.no_grad():
        assert not torch.equal(
            after.adapter(features).ctc_logits, before.adapter(features).ctc_logits
        )
        checkpoint.fill(after, saved, set(trained))
        assert torch.equal(after.adapter(features).ctc_logits, before.adapter(features).ctc_logits)
    assert {"adapter.head_spelling.groups.weight", "adapter.head_spelling.out.weight"} <= set(
        trained
    )


def test_rows_without_a_question_are_left_out(model, tmp_path):
    answer = Item(Role.ASSISTANT, "Yes.")
    rows = [
        Row("alone", (answer,)),
        Row("asked", (Item(Role.USER, "Is it?"), answer)),
        Row("only asked", (answer, Item(Role.USER, "Is it?"))),
    ]
    write_manifest(tmp_path / "mixed.jsonl", rows)
    write_manifest(tmp_path / "answers.jsonl", [rows[0], rows[2]])

    def read(name):
        data = SpokenDataConfig(train=[str(tmp_path / name)])
        task = SpeechTextTask(
            SpeechTextTaskConfig(data=data), StageContext(Parts(None, None, None), 1, tmp_path)
        )
        task.read(model)
        return [row.row_id for row in task.splits["train"]]

    assert read("mixed.jsonl") == ["asked"]
    with pytest.raises(ManifestError, match="has an answer to learn, after a question"):
        read("answers.jsonl")


def batch_of(model, prompts, targets, features, clip_rows):
    ids, labels = prompt_and_labels(prompts, targets)
    return SpeechTextBatch(
        row_ids=tuple(map(str, range(len(prompts)))),
        count=1,
        ids=ids,
        labels=labels,
        prompt_lengths=torch.tensor(list(map(len, prompts))),
        features=features,
        clip_rows=torch.tensor(clip_rows),
        ctc_targets=padded([[] for _ in clip_rows], 0),
        ctc_lengths=torch.zeros(len(clip_rows), dtype=torch.long),
        answers=("",) * len(prompts),
    )


def test_labels_are_the_next_ids():
    ids, labels = prompt_and_labels([[5, AUDIO, 6], [7]], [[8, 9], []])
    assert ids.tolist() == [[5, AUDIO, 6, 8, 9], [7, PAD, PAD, PAD, PAD]]
    assert labels.tolist() == [[IGNORE, IGNORE, 8, 9, IGNORE], [IGNORE] * 5]


@torch.no_grad()
def test_teacher_forcing_equals_generation_with_two_clips_in_a_row(model):
    torch.manual_seed(1)
    features = Features(torch.randn(3, 40, 32), torch.tensor([40, 22, 31]), 50.0)
    prompts, clip_rows = [[1, AUDIO, 2, 3, AUDIO, 4], [5, 6, AUDIO, 7]], [0, 0, 1]
    questions = batch_of(model, prompts, [[1], [1]], features, clip_rows)
    prompted = prompt_only(model, questions)
    generated = greedy_text(model.backbone, prompted.embeddings, prompted.mask, 6)
    answers = [
        [*ids[:length], model.backbone.end_id]
        for ids, length in zip(generated.ids.tolist(), generated.lengths.tolist())
    ]
    batch = batch_of(model, prompts, answers, features, clip_rows)
    _, states = teacher_forced(model, batch)
    hidden, lengths = answer_states(states, batch)
    assert lengths.tolist() == generated.lengths.tolist()
    for row, length in enumerate(lengths.tolist()):
        assert length > 0
        assert torch.allclose(hidden[row, :length], generated.hidden[row, :length], atol=1e-4)
        assert model.backbone.logits(hidden[row, :length]).argmax(-1).tolist() == answers[row][:-1]


@torch.no_grad()
def test_answers_are_scored_by_the_metrics_of_the_config(model, tmp_path):
    torch.manual_seed(1)
    features = Features(torch.randn(2, 40, 32), torch.tensor([40, 31]), 50.0)
    prompts, clip_rows = [[1, AUDIO, 2], [5, AUDIO, 7]], [0, 1]
    config = SpeechTextTaskConfig(
        data=SpokenDataConfig(), max_answer_tokens=6, metrics={"letters": CharacterErrorConfig()}
    )
    parts = Parts(None, None, None)
    task = SpeechTextTask(config, StageContext(parts=parts, seed=1, cache_dir=tmp_path))
    prompted = prompt_only(model, batch_of(model, prompts, [[1], [1]], features, clip_rows))
    generated = greedy_text(model.backbone, prompted.embeddings, prompted.mask, 6)
    own = [ids[:n] for ids, n in zip(generated.ids.tolist(), generated.lengths.tolist())]
    other = model.backbone.tokenize("something else")
    scores = []
    for targets in (own, [other, other]):
        answers = [[*ids, model.backbone.end_id] for ids in targets]
        batch = batch_of(model, prompts, answers, features, clip_rows)
        scores.append(task.score(model, lambda batch=batch: [batch]))
    assert scores[0].get("letters", 0.0) == 0.0 and scores[1]["letters"] > 0.5


@torch.no_grad()
def test_a_batch_equals_its_rows(model):
    torch.manual_seed(2)
    features = Features(torch.randn(2, 40, 32), torch.tensor([40, 18]), 50.0)
    prompts, targets = [[1, AUDIO, 2], [5, 6, 7, AUDIO, 8]], [[9, 10, 11], [12]]
    _, together = teacher_forced(model, batch_of(model, prompts, targets, features, [0, 1]))
    for row, length in enumerate((40, 18)):
        clip = Features(
            features.values[row : row + 1, :length], features.lengths[row : row + 1], 50.0
        )
        batch = batch_of(model, prompts[row : row + 1], targets[row : row + 1], clip, [0])
        _, alone = teacher_forced(model, batch)
        labels = batch.labels[0] != IGNORE
        assert torch.allclose(
            together[row, : batch.ids.shape[1]][labels], alone[0][labels], atol=1e-4
        )


def test_only_the_look_back_is_trained_behind_a_frozen_alignment(model):
    torch.manual_seed(4)
    model = copy.deepcopy(model).train()
    model.adapter.freeze(alignment=True, look_back=False)
    batch = batch_of(
        model,
        [[1, AUDIO, 2]],
        [[3, 4]],
        Features(torch.randn(1, 40, 32), torch.tensor([40]), 50.0),
        [0],
    )
    speech, hidden = teacher_forced(model, batch)
    assert speech.lengths.item() > 0
    hidden.sum().backward()
    assert {
        name.split(".")[0]
        for name, parameter in model.adapter.named_parameters()
        if parameter.grad is not None
    } == {"look_back", "look_back_norm"}


def frozen_task(tmp_path, **changes):
    """S2T behind the frozen adapter of a finished run, with LoRA in the upper of two layers."""
    manifest = tmp_path / "asked.jsonl"
    if not manifest.exists():
        tiny_run.write_questions(tmp_path, "asked", 5)
    backbone = HubBackboneConfig(
        weights="random", lora=LoraConfig(rank=4, top_layers=1, dropout=0.0)
    )
    adapter = SpeechAdapterConfig(heads=4, dropout=0.5, time_masks=2, channel_dropout=0.5)
    settings = {"adapter": adapter, "train_alignment": False, "train_look_back": False, **changes}
    config = SpeechTextTaskConfig(
        data=SpokenDataConfig(train=[str(manifest)], valid=[str(manifest)]), **settings
    )
    context = StageContext(
        parts=Parts(WhisperConfig(weights="random"), backbone, None),
        seed=1,
        cache_dir=tmp_path / "cache",
        parents={"align": tiny_run.write_run(tmp_path / "run") / "s2t" / "final"},
    )
    task = SpeechTextTask(config, context)
    torch.manual_seed(0)
    model = task.build().train()
    for name, parameter in model.backbone.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    task.prepare(model)
    return task, model.train()


def test_training_from_cached_states_is_training_from_the_clips(tmp_path):
    task, model = frozen_task(tmp_path)
    train = task.examples("train")
    plain = task.collate([train[index] for index in range(len(train))])
    cached = task.collate([train.at(index, 0) for index in range(len(train))])
    assert isinstance(plain, SpeechTextBatch) and isinstance(cached, StatesBatch)
    results = []
    for batch in (plain, cached):
        outputs = task.forward(model, batch)
        loss = torch.nn.functional.cross_entropy(outputs.text_logits, outputs.text_labels)
        model.zero_grad()
        loss.backward()
        lora = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        results.append((outputs.text_labels, outputs.text_logits.detach(), lora))
    (labels, logits, gradients), (cached_labels, cached_logits, cached_gradients) = results
    assert torch.equal(labels, cached_labels) and len(labels) == cached.count
    assert torch.allclose(logits, cached_logits, atol=1e-5)
    assert gradients and all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(gradients, cached_gradients, strict=True)
    )
    assert float(sum(gradient.abs().sum() for gradient in gradients)) > 0
    # Validation and audits read the clips.
    assert isinstance(task.collate([task.examples("valid").at(0, 0)]), SpeechTextBatch)


@pytest.mark.parametrize("changes", [{}, {"train_look_back": True, "train_alignment": True}])
def test_written_questions_are_learned_too(tmp_path, changes):
    tiny_run.write_questions(tmp_path, "spoken", 2)
    answer = Item(Role.ASSISTANT, "It is a number.")
    typed = [
        Row(f"typed-{number}", (Item(Role.USER, f"What is {number}?"), answer), {})
        for number in range(3)
    ]
    write_manifest(
        tmp_path / "asked.jsonl", [*read_manifest(tmp_path / "spoken.jsonl").rows, *typed]
    )
    task, model = frozen_task(tmp_path, **changes)
    train = task.examples("train")
    written = [number for number in range(len(train)) if not train[number].clips]
    assert len(train) == 5 and len(written) == 3
    for chosen in (written, range(5)):
        plain = [train[number] for number in chosen]
        cached = [train.at(number, 0) for number in chosen]
        outputs = [task.forward(model, task.collate(rows)) for rows in (plain, cached)]
        if not changes:
            assert torch.allclose(outputs[0].text_logits, outputs[1].text_logits, atol=1e-5)
        loss = CRITERIA.build(SpeechTextConfig())(outputs[0], Batch((), 1)).total
        model.zero_grad(set_to_none=True)
        loss.backward()
        assert torch.isfinite(loss) and all(
            parameter.grad is not None
            for parameter in model.parameters()
            if parameter.requires_grad
        )


def test_an_unfinished_answer_has_no_end_token(tmp_path):
    spoken = tiny_run.write_questions(tmp_path, "spoken", 1)
    (row,) = read_manifest(spoken).rows
    question, answer = row.turns
    unfinished = Row(
        "on", (question, Item(Role.ASSISTANT, answer.text, extra={"unfinished": True})), {}
    )
    write_manifest(tmp_path / "asked.jsonl", [row, unfinished])
    task, model = frozen_task(tmp_path)
    finished_target, unfinished_target = (
        task.examples("train")[number].target for number in range(2)
    )
    assert finished_target == (*unfinished_target, model.backbone.end_id)


def test_states_are_computed_anew_for_another_adapter_or_clip(tmp_path):
    task, _ = frozen_task(tmp_path)
    before = task.states.cache
    repeated, _ = frozen_task(tmp_path)
    assert repeated.states.cache.fingerprint == before.fingerprint
    assert len(repeated.states.cache) == len(before) == len(repeated.keys)
    clip = next((tmp_path).glob("**/*.wav"))
    tiny_run.save_audio(clip, tiny_run.noise(99, 0.7), tiny_run.RATE_HZ)
    changed, _ = frozen_task(tmp_path)
    assert set(changed.keys) != set(task.keys)


def test_states_depend_on_the_adapter_s_settings(tmp_path):
    """Also on those that change its vectors and no weight."""
    fingerprints = set()
    for settings in ({}, {"expected_text": False, "keep_blanks": True}):
        task, model = frozen_task(tmp_path, adapter=SpeechAdapterConfig(heads=4, **settings))
        fingerprints.add(task.states.cache.fingerprint)
        train = task.examples("train")
        plain, cached = (
            task.forward(model, task.collate([row])).text_logits
            for row in (train[0], train.at(0, 0))
        )
        assert torch.allclose(plain, cached, atol=2e-2)
    assert len(fingerprints) == 2


def test_a_clip_without_speech_has_blank_targets_where_the_adapter_is_trained(tmp_path):
    tiny_run.write_questions(tmp_path, "spoken", 2)
    spoken, other = read_manifest(tmp_path / "spoken.jsonl").rows
    question, answer = other.turns
    silent = Row("silent", (question, Item(Role.ASSISTANT, answer.text)), {"no_speech": True})
    unknown = Row("unknown", silent.turns, {})
    write_manifest(tmp_path / "asked.jsonl", [spoken, silent, unknown])
    task, model = frozen_task(tmp_path, train_alignment=True)
    rows = {row.row_id: row for row in map(task.examples("train").__getitem__, range(3))}
    losses = {}
    for name in ("silent", "unknown"):
        batch = task.collate([rows[name]])
        losses[name] = CRITERIA.build(SpeechTextConfig())(task.forward(model, batch), batch)
    assert [float(count) for _, count in (loss.parts["ctc"] for loss in losses.values())] == [1, 0]
    assert losses["silent"].total > losses["unknown"].total


@pytest.mark.parametrize("changes", [{"train_look_back": True}, {"train_alignment": True}])
def test_states_are_cached_only_where_nothing_below_is_trained(tmp_path, changes):
    task, model = frozen_task(tmp_path, **changes)
    train = task.examples("train")
    assert task.states is None and train.at(0, 0) == train[0]
    assert {group["name"] for group in task.parameter_groups(model)} == {"adapter", "lora"}


def test_a_frozen_adapter_has_neither_masks_nor_dropout(tmp_path):
    task, model = frozen_task(tmp_path)
    batch = task.collate([task.examples("train")[0]])
    first, second = (model.train().adapter(batch.features).vectors for _ in range(2))
    assert torch.equal(first, second)
    assert {group["name"] for group in task.parameter_groups(model)} == {"lora"}


def test_paths_of_answers_do_not_enter_prompts(tmp_path: Path):
    from echox.backbones.hub import HubBackbone
    from echox.data.manifest import Item, Role, Row, spoken_pairs
    from echox.tasks.conversations import conversation_ids

    row = Row(
        "r",
        (
            Item(Role.USER, audio=tmp_path / "q.wav"),
            Item(Role.ASSISTANT, "Yes.", audio=tmp_path / "a.wav", transcription="Is it?"),
        ),
    )
    prompt, target, clips = conversation_ids(HubBackbone(HubBackboneConfig(weights="random")), row)
    assert clips == [tmp_path / "q.wav"] and prompt.count(AUDIO) == 1 and len(target) == 5
    assert spoken_pairs(row) == [(tmp_path / "q.wav", "Is it?"), (tmp_path / "a.wav", "Yes.")]
    assert spoken_pairs(row, answers=False) == [(tmp_path / "q.wav", "Is it?")]
