"""What S2T trains on is what generation does: the same states, the same tokens."""

import copy
from pathlib import Path

import pytest
import torch

from echox.backbones.hub import HubBackboneConfig
from echox.codecs.unit_vocoder.codec import KMeansCodecConfig
from echox.encoders.whisper import WhisperConfig
from echox.models.decoding import greedy_text
from echox.models.speech_adapter import SpeechAdapterConfig
from echox.models.speech_llm import AUDIO, IGNORE, PAD
from echox.signals import Features
from echox.tasks.base import Parts
from echox.tasks.echo import answer_states
from echox.tasks.speech_text import SpeechTextBatch, build_speech_llm, prompt_only, teacher_forced
from echox.tasks.spoken import padded, prompt_and_labels


@pytest.fixture(scope="module")
def model():
    parts = Parts(WhisperConfig(weights="random"), HubBackboneConfig(weights="random"), KMeansCodecConfig(folder="random"))
    torch.manual_seed(0)
    model = build_speech_llm(parts, SpeechAdapterConfig(heads=4), torch.arange(40)).eval()
    torch.nn.init.normal_(model.adapter.ctc_head.weight)
    return model


def batch_of(model, prompts, targets, features, clip_rows):
    ids, labels = prompt_and_labels(prompts, targets)
    return SpeechTextBatch(
        row_ids=tuple(map(str, range(len(prompts)))), count=1, ids=ids, labels=labels, prompt_lengths=torch.tensor(list(map(len, prompts))), features=features,
        clip_rows=torch.tensor(clip_rows), ctc_targets=padded([[] for _ in clip_rows], 0), ctc_lengths=torch.zeros(len(clip_rows), dtype=torch.long), answers=("",) * len(prompts),
    )  # fmt: skip


def test_labels_are_the_next_ids():
    ids, labels = prompt_and_labels([[5, AUDIO, 6], [7]], [[8, 9], []])
    assert ids.tolist() == [[5, AUDIO, 6, 8, 9], [7, PAD, PAD, PAD, PAD]]
    assert labels.tolist() == [[IGNORE, IGNORE, 8, 9, IGNORE], [IGNORE] * 5]


@torch.no_grad()
def test_teacher_forcing_equals_generation_with_two_clips_in_a_row(model):
    torch.manual_seed(1)
    features = Features(torch.randn(3, 40, 32), torch.tensor([40, 22, 31]), 50.0)
    prompts, clip_rows = [[1, AUDIO, 2, 3, AUDIO, 4], [5, 6, AUDIO, 7]], [0, 0, 1]
    asked = batch_of(model, prompts, [[1], [1]], features, clip_rows)
    prompted = prompt_only(model, asked)
    said = greedy_text(model.backbone, prompted.embeddings, prompted.mask, 6)
    answers = [[*ids[:length], model.backbone.end_id] for ids, length in zip(said.ids.tolist(), said.lengths.tolist())]
    batch = batch_of(model, prompts, answers, features, clip_rows)
    _, states = teacher_forced(model, batch)
    hidden, lengths = answer_states(states, batch)
    assert lengths.tolist() == said.lengths.tolist()
    for row, length in enumerate(lengths.tolist()):
        assert length > 0
        assert torch.allclose(hidden[row, :length], said.hidden[row, :length], atol=1e-4)
        assert model.backbone.logits(hidden[row, :length]).argmax(-1).tolist() == answers[row][:-1]


@torch.no_grad()
def test_a_batch_equals_its_rows(model):
    torch.manual_seed(2)
    features = Features(torch.randn(2, 40, 32), torch.tensor([40, 18]), 50.0)
    prompts, targets = [[1, AUDIO, 2], [5, 6, 7, AUDIO, 8]], [[9, 10, 11], [12]]
    _, together = teacher_forced(model, batch_of(model, prompts, targets, features, [0, 1]))
    for row, length in enumerate((40, 18)):
        own = Features(features.values[row : row + 1, :length], features.lengths[row : row + 1], 50.0)
        batch = batch_of(model, prompts[row : row + 1], targets[row : row + 1], own, [0])
        _, alone = teacher_forced(model, batch)
        labels = batch.labels[0] != IGNORE
        assert torch.allclose(together[row, : batch.ids.shape[1]][labels], alone[0][labels], atol=1e-4)


def test_of_a_frozen_alignment_only_the_look_back_learns(model):
    torch.manual_seed(4)
    model = copy.deepcopy(model).train()
    model.adapter.freeze_alignment()
    batch = batch_of(model, [[1, AUDIO, 2]], [[3, 4]], Features(torch.randn(1, 40, 32), torch.tensor([40]), 50.0), [0])
    speech, hidden = teacher_forced(model, batch)
    assert speech.lengths.item() > 0
    hidden.sum().backward()
    assert {name.split(".")[0] for name, parameter in model.adapter.named_parameters() if parameter.grad is not None} == {"look_back", "look_back_norm"}


def test_paths_of_answers_do_not_enter_prompts(tmp_path: Path):
    from echox.backbones.hub import HubBackbone
    from echox.data.manifest import Item, Role, Row
    from echox.data.manifest import spoken_pairs
    from echox.tasks.spoken import conversation_ids

    row = Row("r", (Item(Role.USER, audio=tmp_path / "q.wav"), Item(Role.ASSISTANT, "Yes.", audio=tmp_path / "a.wav", transcription="Is it?")))
    prompt, target, clips = conversation_ids(HubBackbone(HubBackboneConfig(weights="random")), row)
    assert clips == [tmp_path / "q.wav"] and prompt.count(AUDIO) == 1 and len(target) == 5
    assert spoken_pairs(row) == [(tmp_path / "q.wav", "Is it?"), (tmp_path / "a.wav", "Yes.")]
    assert spoken_pairs(row, answers=False) == [(tmp_path / "q.wav", "Is it?")]
