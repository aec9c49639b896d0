"""Llama 3, SmolLM2, Qwen 2 and Qwen 3: own templates and special tokens, tiny and untrained."""

import pytest
import torch
from tiny_llm import FAMILIES, write_llm

from echox.backbones import hub
from echox.backbones.base import Turn
from echox.backbones.hub import HubBackbone, HubBackboneConfig, LoraConfig
from echox.core.errors import ConfigError
from echox.core.signals import Features, padded
from echox.criteria.base import CRITERIA
from echox.decoding.greedy_text import greedy_text
from echox.decoding.text import text_decode_engine
from echox.encoders.whisper import WhisperConfig
from echox.models.speech_adapter import SpeechAdapterConfig
from echox.models.speech_llm import AUDIO
from echox.pipeline.plugins import discover
from echox.tasks.base import Parts
from echox.tasks.conversations import prompt_and_labels
from echox.tasks.s2t.task import SpeechTextBatch, SpeechTextTask, build_speech_llm

SPOKEN_TURNS = [
    Turn("user", " first", has_audio=True),
    Turn("assistant", "yes"),
    Turn("user", "", has_audio=True),
]
WITH_DECODE_ENGINE = {"llama3", "smollm2"}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    discover()
    return write_llm(tmp_path_factory.mktemp("llm") / request.param, request.param)


@pytest.fixture
def family(folder):
    return FAMILIES[folder.name]


@pytest.fixture
def backbone(folder):
    return HubBackbone(
        HubBackboneConfig(weights=str(folder), lora=LoraConfig(rank=2, dropout=0.0))
    ).eval()


def test_prompts_join_with_audio(backbone, family, folder):
    pieces = backbone.prompt(SPOKEN_TURNS)
    texts = [backbone.tokenizer.decode(piece) for piece in pieces]
    tail = "<think>\n\n</think>\n\n" if folder.name == "qwen3" else ""
    if folder.name == "llama3":
        assert texts == [
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
            "Today is 26 Jul 2024\n\nAnswer in one short sentence.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n",
            " first<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
            "yes<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ]
    else:
        assert texts == [
            "<|im_start|>system\nAnswer in one short sentence.<|im_end|>\n<|im_start|>user\n",
            " first<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\n",
            f"<|im_end|>\n<|im_start|>assistant\n{tail}",
        ]
    begin = backbone.tokenizer.bos_token_id
    assert sum(piece.count(begin) for piece in pieces) == (begin is not None), (
        "the template begins a text, and nothing else does"
    )
    assert sum(piece.count(backbone.end_id) for piece in pieces) == 4


def test_without_a_system_message_the_template_s_own_stays(folder):
    alone = HubBackbone(HubBackboneConfig(weights=str(folder), system="", lora=LoraConfig(rank=0)))
    text = alone.tokenizer.decode(alone.prompt([Turn("user", "hi")])[0])
    assert (
        "Today is 26 Jul 2024\n\n<|eot_id|>"
        if folder.name == "llama3"
        else "You are a helpful assistant.<|im_end|>"
    ) in text


def test_the_end_of_a_turn_is_the_template_s(backbone, family):
    ids = backbone.tokenizer.convert_tokens_to_ids
    assert backbone.end_id == ids(family.end)
    assert set(backbone.other_end_ids) == {ids(name) for name in (*family.ends, family.eos)} - {
        backbone.end_id
    }


def test_special_tokens_have_no_text(backbone, family):
    texts = backbone.token_texts()
    ids = backbone.tokenizer.convert_tokens_to_ids
    assert len(texts) == backbone.vocab_size > len(backbone.tokenizer)
    assert {texts[ids(mark)] for mark in family.specials} == {""} and all(
        texts[ids(word)] == word for word in family.plain
    )
    text = "It is , say , don 't ."
    assert backbone.detokenize([*backbone.tokenize(text), backbone.end_id]) == text, (
        "nothing is tidied"
    )


def test_a_shared_prefix_changes_no_state(backbone, monkeypatch):
    monkeypatch.setattr(hub, "PREFIX_COST_TOKENS", 1)
    torch.manual_seed(0)
    rows = torch.randn(3, 7, backbone.hidden_size)
    rows[:, :3] = rows[:1, :3]
    mask = torch.arange(7)[None] < torch.tensor([7, 5, 6])[:, None]
    with torch.no_grad():
        plain, prefixed = (
            backbone.forward_prefix_shared(rows, mask, shared)[mask] for shared in (0, 3)
        )
        alone = torch.cat(
            [
                backbone(row[None, :length], mask[:1, :length]).hidden[0]
                for row, length in zip(rows, mask.sum(1).tolist())
            ]
        )
    torch.testing.assert_close(prefixed, plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(plain, alone, atol=1e-5, rtol=1e-4)


def model_and_batch(folder):
    """The S2T model on this language model, and a batch of two conversations in its template."""
    parts = Parts(
        WhisperConfig(weights="random"),
        HubBackboneConfig(weights=str(folder), lora=LoraConfig(rank=2, dropout=0.0)),
        None,
    )
    torch.manual_seed(0)
    model = build_speech_llm(parts, SpeechAdapterConfig(heads=4), torch.arange(40)).eval()
    prompts = []
    for turns in (SPOKEN_TURNS, SPOKEN_TURNS[:1]):
        pieces = model.backbone.prompt(turns)
        prompts.append(
            [
                token
                for number, piece in enumerate(pieces)
                for token in ([AUDIO] if number else []) + piece
            ]
        )
    ids, labels = prompt_and_labels(
        prompts,
        [
            [*model.backbone.tokenize(text), model.backbone.end_id]
            for text in ("It is Paris.", "It is.")
        ],
    )
    batch = SpeechTextBatch(
        row_ids=("a", "b"),
        count=int((labels >= 0).sum()),
        ids=ids,
        labels=labels,
        prompt_lengths=torch.tensor(list(map(len, prompts))),
        features=Features(torch.randn(3, 40, 32), torch.tensor([40, 22, 31]), 50.0),
        clip_rows=torch.tensor([0, 0, 1]),
        ctc_targets=padded([[3, 4], [5], []], 0),
        ctc_lengths=torch.tensor([2, 1, 0]),
        answers=("", ""),
    )
    return model, batch


def test_a_step_of_training_lowers_the_loss(folder, backbone):
    model, batch = model_and_batch(folder)
    trained = {
        name: parameter
        for name, parameter in model.backbone.named_parameters()
        if parameter.requires_grad
    }
    layers = {name.split(".")[-4] for name in trained}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj"} and len(trained) == 2 * 4 * 2
    criterion = CRITERIA.build(CRITERIA.parse({"name": "s2t"}))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.03)
    losses = []
    for _ in range(2):
        loss = criterion(SpeechTextTask.forward(None, model, batch), batch).total / batch.count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
    assert all(p.grad.abs().sum() > 0 for name, p in trained.items() if "lora_B" in name)
    assert all(
        p.grad is None for name, p in model.backbone.named_parameters() if "lora_" not in name
    )


@torch.no_grad()
def test_greedy_answers_stop_at_any_end(backbone, folder):
    """An answer ends at whichever end token is generated, with and without the decode engine."""
    torch.manual_seed(0)
    prompts, mask = torch.randn(2, 6, backbone.hidden_size), torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    head = backbone.head_rows()
    ends = [backbone.end_id, *backbone.other_end_ids]
    head[ends] = 0.0
    endless = greedy_text(backbone, prompts, mask, 6)
    best = backbone.logits(endless.hidden).amax(-1)
    assert not endless.ended.any() and endless.lengths.tolist() == [6, 6]
    state = endless.hidden[0, 2]
    for end in ends:
        head[ends] = 0.0
        head[end] = state * (1.01 * best[0, 2] / state.square().sum())
        wins = endless.hidden @ head[end] > best
        lengths = [int(row.long().argmax()) if row.any() else 6 for row in wins]
        answers = greedy_text(backbone, prompts, mask, 6)
        assert (
            lengths[0] <= 2
            and answers.lengths.tolist() == lengths
            and answers.ended.tolist() == wins.any(1).tolist()
        )
        for row, length in enumerate(lengths):
            assert answers.ids[row, :length].tolist() == endless.ids[row, :length].tolist()
        loop = text_decode_engine(backbone)
        assert (loop is not None) == (folder.name in WITH_DECODE_ENGINE)
        stepped = greedy_text(backbone, prompts, mask, 6, engine=loop)
        assert (
            stepped.lengths.tolist() == lengths
            and stepped.ended.tolist() == answers.ended.tolist()
            and torch.equal(stepped.ids, answers.ids)
        )


def test_a_llama_with_biases_has_no_decode_engine(tmp_path):
    backbone = HubBackbone(
        HubBackboneConfig(
            weights=str(write_llm(tmp_path / "biased", "smollm2", attention_bias=True))
        )
    )
    assert text_decode_engine(backbone) is None


def test_a_missing_or_refusing_template_is_one_sentence(tmp_path):
    folder = write_llm(tmp_path / "strict", "smollm2")
    strict = folder / "chat_template.jinja"
    strict.write_text(
        "{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}"
        "{% endif %}{{ messages[0].content }}"
    )
    backbone = HubBackbone(HubBackboneConfig(weights=str(folder)))
    assert backbone.end_id == backbone.tokenizer.eos_token_id, "the template has no end of its own"
    with pytest.raises(
        ConfigError,
        match=r"refuses the roles system, user \(System role not supported\).*backbone.system=''",
    ):
        backbone.prompt([Turn("user", "hi")])
    strict.unlink()
    with pytest.raises(ConfigError, match="has no chat template to write conversations with"):
        HubBackbone(HubBackboneConfig(weights=str(folder)))
