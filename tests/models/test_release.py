"""The released layout: read, written, refused in a sentence; and its model, batched as alone."""

import dataclasses
import json
import shutil

import pytest
import safetensors.torch
import tiny_release
import torch
import torch.nn.functional as F

from echox.backbones.base import Turn
from echox.codecs.unit_hifigan import UnitHifiGan, UnitHifiGanConfig
from echox.core.errors import CheckpointError, ConfigError, EchoxError, SignalError
from echox.core.partial_files import is_owned, partial_path
from echox.core.signals import Batch, Features, last_positions, padded
from echox.criteria.base import CRITERIA
from echox.decoding.greedy_text import greedy_text
from echox.models.compatibility import PAPER, RELEASE
from echox.models.release import train_forward
from echox.models.release.adapter import released_adapter
from echox.models.release.ctc import restricted_ctc_scores
from echox.models.release.echo import ReleaseEcho
from echox.models.release.export import write_release
from echox.models.release.folder import build, files_beside, is_release, read_release
from echox.models.release.model import ReleaseSpeechLLM
from echox.models.release.names import our_name, their_name
from echox.models.release.sizes import translator_size
from echox.models.release.tokens import units_in
from echox.models.segmenting import spans_of, whole
from echox.models.speech_llm import IGNORE, PAD
from echox.pipeline.plugins import discover

FRAMES = 40
discover()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_release.write_tiny_release(tmp_path_factory.mktemp("published") / "EchoX-tiny")


@pytest.fixture(scope="module")
def model(folder):
    return build(read_release(folder))


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def random_features(count, frames=FRAMES, seed=0):
    values = torch.randn(count, frames, 16, generator=torch.Generator().manual_seed(seed))
    return Features(values, torch.full((count,), frames), 50.0)


def only(features, *rows):
    return Features(features.values[list(rows)], features.lengths[list(rows)], features.rate_hz)


# The folder


def test_a_round_trip_keeps_every_bit(folder, model, tmp_path):
    assert is_release(folder) and (folder / "model.safetensors.index.json").is_file()
    first = read_release(folder)
    assert all(tensor.dtype == torch.float16 for tensor in first.tensors.values())
    tensors = tiny_release.release_tensors(model, torch.float16)
    write_release(tmp_path / "again", tensors, files_beside(folder))
    second = read_release(tmp_path / "again")
    assert second.tensors.keys() == first.tensors.keys() and second.config == first.config
    assert all(
        torch.equal(second.tensors[name].view(torch.int16), tensor.view(torch.int16))
        for name, tensor in first.tensors.items()
    )
    assert {path.name for path in files_beside(folder)} == {
        path.name for path in files_beside(tmp_path / "again")
    }


def test_an_existing_folder_is_not_written_over(folder, model):
    with pytest.raises(CheckpointError, match="exists already"):
        write_release(folder, tiny_release.release_tensors(model), [])


def test_names_translate_both_ways(model):
    for name in model.state_dict():
        assert our_name(their_name(name)) == name
    # As training named the denoising adapter before: such checkpoints are still exported.
    assert their_name("translator.denoiser.3.bias") == "unit_translator.aligner_MLP.3.bias"
    theirs = {their_name(name) for name in model.state_dict()}
    assert theirs >= {
        "lm_head.weight",
        "model.mm_projector1.bias",
        "model.lbm.encoder_attn.in_proj_weight",
        "unit_translator.unit_embedding.weight",
        "unit_translator.aligner_MLP.3.weight",
        "unit_translator.model.layers.1.mlp.up_proj.weight",
    }
    assert (
        their_name("adapter.layers.0.self_attn.in_proj_bias")
        == "model.asr_transformer_encoder.layers.0.self_attn.in_proj_bias"
    )


def rewrite(folder, change):
    """The folder's weights as one file, after a change of the dictionary."""
    tensors = {name: tensor.clone() for name, tensor in read_release(folder).tensors.items()}
    change(tensors)
    for path in folder.glob("model*"):
        path.unlink()
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


def drop_tensor(name):
    return lambda folder: rewrite(folder, lambda tensors: tensors.pop(name))


def shorten_tensor(name):
    return lambda folder: rewrite(
        folder, lambda tensors: tensors.__setitem__(name, tensors[name][1:].clone())
    )


def remove(name):
    return lambda folder: (folder / name).unlink()


def overwrite(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def set_key(name, key, value):
    return lambda folder: (folder / name).write_text(
        json.dumps(json.loads((folder / name).read_text()) | {key: value})
    )


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            drop_tensor("model.out_norm.weight"),
            "lacks 1 tensors of EchoX, such as model.out_norm.weight",
        ),
        (
            drop_tensor("model.layers.1.mlp.up_proj.weight"),
            "lacks 1 tensors of EchoX, such as model.layers.1.mlp.up_proj.weight",
        ),
        (
            drop_tensor("unit_translator.model.layers.0.self_attn.q_proj.weight"),
            "lacks tensor unit_translator.model.layers.0.self_attn.q_proj.weight",
        ),
        (
            drop_tensor("model.asr_transformer_encoder.layers.0.linear1.weight"),
            "lacks tensor model.asr_transformer_encoder.layers.0.linear1.weight",
        ),
        (
            shorten_tensor("lm_head.weight"),
            r"tensor lm_head.weight in .* has shape \[12810, 16\], but .* ask for \[12811, 16\]",
        ),
        (
            shorten_tensor("unit_translator.aligner_MLP.3.bias"),
            r"aligner_MLP.3.bias in .* has shape \[15\]",
        ),
        (
            shorten_tensor("unit_translator.model.layers.0.self_attn.k_proj.weight"),
            "no whole number of heads",
        ),
        (remove("config.json"), "has no config.json"),
        (overwrite("config.json", b"{"), "config.json cannot be read"),
        (set_key("config.json", "adapter_size", None), "lacks adapter_size"),
        (
            set_key("config.json", "vocab_size", 7),
            r"has shape \[12811, 16\], but .* ask for \[7, 16\]",
        ),
        (
            remove("model.safetensors.index.json"),
            "has neither model.safetensors nor model.safetensors.index.json",
        ),
        (
            remove("model-00002-of-00002.safetensors"),
            "lacks the weights model-00002-of-00002.safetensors",
        ),
        (
            overwrite("model-00002-of-00002.safetensors", b"no weights at all"),
            "model-00002-of-00002.safetensors is damaged",
        ),
        (overwrite("model.safetensors.index.json", b"[]"), "is no index of shards"),
        (remove("tokenizer.json"), "has no tokenizer.json"),
    ],
)
def test_a_broken_folder_is_refused_in_a_sentence(copy, damage, sentence):
    damage(copy)
    with pytest.raises(EchoxError, match=sentence) as error:
        build(read_release(copy))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (remove("g_00500000"), "weights .*g_00500000 do not exist"),
        (remove("vocoder_config.json"), "vocoder_config.json does not exist"),
        (overwrite("g_00500000", b"garbage"), "without running code"),
        (
            lambda folder: torch.save({"generator": {}}, folder / "g_00500000"),
            "lacks .* tensors that vocoder_config.json asks for",
        ),
        (
            set_key("vocoder_config.json", "num_embeddings", 50),
            r"units.weight .* has shape \[1000, 4\], but vocoder_config.json asks for \[50, 4\]",
        ),
        (set_key("vocoder_config.json", "upsample_rates", None), "is no vocoder config of fairseq"),
        (set_key("vocoder_config.json", "f0", True), "pitch"),
    ],
)
def test_a_broken_vocoder_is_refused_in_a_sentence(copy, damage, sentence):
    damage(copy)
    with pytest.raises(CheckpointError, match=sentence) as error:
        tiny_release.codec(copy)
    assert "\n" not in str(error.value)


def test_code_in_the_vocoder_is_not_run(copy, tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"generator": Trap()}, copy / "g_00500000")
    with pytest.raises(CheckpointError, match="without running code"):
        tiny_release.codec(copy)
    assert not (tmp_path / "ran").exists()


def test_a_shared_head_is_read_by_its_other_name(copy):
    rows = read_release(copy).tensors["unit_translator.model.embed_tokens.weight"].float()
    drop_tensor("lm_head.weight")(copy)
    assert torch.equal(build(read_release(copy)).language.head.weight, rows)
    set_key("config.json", "tie_word_embeddings", True)(copy)
    tied = build(read_release(copy))
    assert torch.equal(tied.language.head.weight, tied.language.body.embed_tokens.weight)


def test_stored_precision_leaves_rotary_tables_alone(folder, model):
    half = build(read_release(folder), dtype=None)
    assert half.language.head.weight.dtype == torch.float16
    assert torch.equal(
        half.language.body.rotary_emb.inv_freq, model.language.body.rotary_emb.inv_freq
    )


@pytest.mark.parametrize(
    ("named", "sizes", "expected"),
    [
        ({"unit_model": "large"}, (2, 16, 16, 8, 24), (2, 16, 4, 2)),
        ({"unit_model": "small"}, (4, 512, 512, 128, 2048), (4, 512, 8, 2)),
        (
            {"unit_model": "small"},
            (6, 512, 512, 128, 2048),
            (6, 512, 8, 2),
        ),  # what "small" was in the training code
        ({}, (6, 512, 512, 128, 2048), (6, 512, 8, 2)),
        ({"unit_model": "medium"}, (8, 768, 768, 768, 2048), (8, 768, 12, 12)),
        ({"unit_model": None}, (8, 768, 768, 768, 2048), (8, 768, 12, 12)),
        ({}, (8, 768, 768, 768, 2048), (8, 768, 12, 12)),  # the tensors know better than the key
        # Of another width: as many heads as the size has that `unit_model`, or its absence, names.
        ({"unit_model": "small"}, (3, 256, 256, 64, 700), (3, 256, 8, 2)),
        ({}, (6, 32, 32, 4, 64), (6, 32, 8, 1)),
        ({}, (6, 96, 96, 24, 64), (6, 96, 8, 2)),
        ({}, (6, 384, 384, 96, 700), (6, 384, 8, 2)),
        ({}, (6, 640, 640, 160, 700), (6, 640, 8, 2)),
        ({"unit_model": "medium"}, (8, 96, 96, 96, 64), (8, 96, 12, 12)),
        ({"unit_model": "medium"}, (8, 384, 384, 384, 700), (8, 384, 12, 12)),
        # Twelve do not divide 640: heads of 64 channels.
        ({"unit_model": "medium"}, (8, 640, 640, 640, 700), (8, 640, 10, 10)),
        ({"unit_model": "large", "num_attention_heads": 8}, (2, 96, 96, 24, 64), (2, 96, 8, 2)),
        # At the language model's width: 8 heads of 2 as named, or its own 4 of 4.
        ({}, (6, 16, 16, 2, 24), (6, 16, 8, 1)),
        ({}, (6, 16, 16, 8, 24), (6, 16, 4, 2)),
        ({"unit_model": "large"}, (5, 16, 16, 8, 99), (5, 16, 4, 2)),
        (
            {"unit_model": "large", "head_dim": 8},
            (2, 16, 32, 16, 24),
            (2, 16, 4, 2),
        ),  # heads wider than width / heads
    ],
)
def test_sizes_come_from_the_tensors(named, sizes, expected):
    layers, width, queries, keys, inner = sizes
    prefix = "unit_translator.model.layers."
    shapes = {f"{prefix}{number}.input_layernorm.weight": (width,) for number in range(layers)}
    shapes |= {
        f"{prefix}0.self_attn.q_proj.weight": (queries, width),
        f"{prefix}0.self_attn.k_proj.weight": (keys, width),
        f"{prefix}0.mlp.up_proj.weight": (inner, width),
    }
    config = {
        key: value for key, value in tiny_release.CONFIG.items() if key != "unit_model"
    } | named
    size = translator_size(config, shapes)
    assert (
        size.layers,
        size.width,
        size.heads,
        size.key_heads,
    ) == expected and size.feed_forward == inner


# The speech adapter


def adapter(compatibility):
    torch.manual_seed(0)
    return released_adapter(tiny_release.CONFIG, 29, compatibility, classes=30).eval()


def changed_by(net, frame, clip_rows=None, row=0):
    """Which of the aligned frames [A, F] depend on one stacked frame of a clip."""
    features = random_features(3)
    touched = features.values.clone()
    touched[row, 2 * frame] += 1
    with torch.no_grad():
        before, after = (
            net.align(dataclasses.replace(features, values=values), clip_rows)[0]
            for values in (features.values, touched)
        )
    return (before - after).abs().amax(-1) > 1e-6


def test_the_paper_attends_over_time():
    changed = changed_by(adapter(PAPER), 3)
    assert changed[0].all() and not changed[1:].any()


def test_the_release_attends_over_turns_of_a_sample():
    alone = changed_by(adapter(RELEASE), 3)
    assert alone.nonzero().tolist() == [[0, 3]]
    together = changed_by(adapter(RELEASE), 3, torch.tensor([0, 0, 1]))
    assert together.nonzero().tolist() == [[0, 3], [1, 3]]


def test_look_back_sees_the_dropped_frames_in_the_paper_alone():
    frames = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[3, 3, 3, 5, 5, 29]])  # kept are frames 0, 3 and 5
    touched = frames.clone()
    touched[0, 1] += 1
    with torch.no_grad():
        for compatibility, sees in ((PAPER, True), (RELEASE, False)):
            net = adapter(compatibility)
            before, after = (
                net.shrink(values, torch.tensor([6]), tokens, values[..., :0])[1]
                for values in (frames, touched)
            )
            assert before.shape[1] == 3
            assert bool(((before - after).abs() > 1e-6).any()) is sees


@pytest.mark.parametrize("compatibility", [PAPER, RELEASE])
def test_padding_frames_do_not_count(compatibility):
    net = adapter(compatibility)
    long, short = random_features(1, 40), random_features(1, 22, seed=5)
    values = torch.full((2, 40, 16), 9.0)
    values[0], values[1, :22] = long.values[0], short.values[0]
    with torch.no_grad():
        both = net(Features(values, torch.tensor([40, 22]), 50.0))
        for row, alone in enumerate((net(long), net(short))):
            size = int(alone.lengths[0])
            assert int(both.lengths[row]) == size
            torch.testing.assert_close(
                both.vectors[row, :size], alone.vectors[0], atol=1e-5, rtol=0
            )


# Prompts


def test_every_piece_of_a_prompt_begins_anew(model):
    tokens = model.tokens
    ids = tokens.prompt([Turn("user", "ab", True), Turn("assistant", "c"), Turn("user", "d")])
    text = tokens.tokenizer.decode(ids)
    begin, end = "<|begin_of_text|>", "<|eot_id|>"

    def header(role):
        return f"<|start_header_id|>{begin}{role}<|end_header_id|>"

    turns = (
        f"{header('user')}{begin}\n<audio_patch>{begin}ab{end}"
        f"{header('assistant')}{begin}\n{begin}c{end}{header('user')}{begin}d{end}"
    )
    assert text.startswith(
        f"{begin}{header('system')}{begin}\n{begin}You are a helpful"
    ) and text.endswith(f"{turns}{header('assistant')}{begin}\n")
    assert tokens.prompt([Turn("user", "ab")], limit=9) == tokens.prompt([Turn("user", "ab")])[:9]


def test_a_system_turn_takes_the_place_of_the_default(model):
    text = model.tokens.tokenizer.decode(
        model.tokens.prompt([Turn("system", "Be brief."), Turn("user", "a")])
    )
    assert "Be brief." in text and "helpful" not in text


@pytest.mark.parametrize("turns", [[Turn("tool", "x")], [Turn("assistant", "x", True)]])
def test_turns_of_other_roles_are_refused(model, turns):
    with pytest.raises(SignalError):
        model.tokens.prompt(turns)


@pytest.mark.parametrize(
    "text, units",
    [
        ("<|unit_1_2|><|unit_3|>", [1, 2, 3]),
        ("<|unit_▁85|><|unit_87|> 5", []),
        ("<|unit_▁8_5|><|unit_▁87|>", [8, 5, 87]),
        ("<|unit_999_1000|>x7", [999, 7]),
        ("", []),
    ],
)
def test_units_are_read_from_the_string(text, units):
    assert units_in(text) == units


def prompt(model, rows, speech, clip_rows):
    speech_llm = ReleaseSpeechLLM(torch.nn.Identity(), model)
    return speech_llm.prompt(padded(rows, PAD), speech, clip_rows)


def test_placeholders_and_audios_must_be_as_many(model):
    speech = model.adapter(random_features(1))
    ids = model.tokens.prompt([Turn("user", "<audio_patch>", True)])
    with pytest.raises(SignalError, match="2 audio placeholders .* but 1 audios"):
        prompt(model, [ids], speech, torch.tensor([0]))
    with pytest.raises(SignalError, match="0 audio placeholders .* but 1 audios"):
        prompt(model, [model.tokens.prompt([Turn("user", "x")])], speech, torch.tensor([0]))


def test_turn_ends_are_hidden_beside_audio_alone(model):
    ids = [
        model.tokens.prompt([Turn("user", "a", True), Turn("assistant", "b"), Turn("user", "c")]),
        model.tokens.prompt([Turn("user", "a")]),
    ]
    with torch.no_grad():
        speech = model.adapter(random_features(1))
        prompted = prompt(model, ids, speech, torch.tensor([0]))
        _, repeated = model.expand(torch.tensor([ids[0]]), speech, torch.tensor([0]))
    assert prompted.mask[0].tolist() == (repeated[0] != model.tokens.end_id).tolist()
    lengths = last_positions(prompted.mask) + 1
    assert prompted.mask[1].sum() == len(ids[1]) == lengths[1]
    assert lengths[0] == len(ids[0]) - 1 + int(speech.lengths[0])


# Batches


def conversations():
    """Rows with no audio, one and two."""
    return [
        ([Turn("user", "hello there")], []),
        ([Turn("user", "", True)], [0]),
        ([Turn("user", "x", True), Turn("assistant", "yes"), Turn("user", "", True)], [1, 2]),
    ]


def generate_answers(model, rows, features):
    ids = [model.tokens.prompt(turns) for turns, _ in rows]
    owners = torch.tensor(
        [row for row, (_, clips) in enumerate(rows) for _ in clips], dtype=torch.int64
    )
    with torch.no_grad():
        speech = model.adapter(features) if len(owners) else None
        prompted = prompt(model, ids, speech, owners)
        return prompted, greedy_text(model.language, prompted.embeddings, prompted.mask, 12)


def test_a_batch_answers_as_its_rows_alone(model):
    features, rows = random_features(3), conversations()
    _, together = generate_answers(model, rows, features)
    for number, (turns, clips) in enumerate(rows):
        _, alone = generate_answers(model, [(turns, clips)], only(features, *clips))
        assert together.rows()[number] == alone.rows()[0]
        size = len(alone.rows()[0])
        torch.testing.assert_close(
            together.hidden[number, :size], alone.hidden[0, :size], atol=1e-4, rtol=0
        )


def test_decoding_equals_one_teacher_forced_pass(model):
    """What the cache and the growing mask give is what a single teacher-forced pass gives."""
    prompted, answers = generate_answers(model, conversations(), random_features(3))
    for row, length in enumerate((last_positions(prompted.mask) + 1).tolist()):
        ids = answers.ids[row : row + 1, : answers.lengths[row]]
        embeddings = torch.cat(
            [prompted.embeddings[row : row + 1, :length], model.language.embed(ids)], dim=1
        )
        visible = torch.cat(
            [prompted.mask[row : row + 1, :length], torch.ones_like(ids, dtype=torch.bool)], dim=1
        )
        with torch.no_grad():
            hidden = model.language(embeddings, visible).hidden
        torch.testing.assert_close(
            hidden[0, length - 1 : -1], answers.hidden[row, : ids.shape[1]], atol=1e-4, rtol=0
        )


def test_segments_are_decoded_together_as_alone(model):
    hidden = torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(3))
    lengths = torch.tensor([9, 1, 5])
    echo = ReleaseEcho(ReleaseSpeechLLM(torch.nn.Identity(), model))
    together = echo.speak_segments(hidden, whole(lengths), 30)
    for row, length in enumerate(lengths.tolist()):
        states = hidden[row : row + 1, :length]
        assert echo.speak_segments(states, whole(torch.tensor([length])), 30) == [together[row]]
    assert any(together)
    # An engine has the positions of as many steps as are asked for, beyond the model's own limit.
    framing = len(model.segment_prompt(hidden[:1], lengths[:1]).embeddings[0]) - 9
    assert echo.decode_engine(9, 1, 3000).capacity == framing + 9 + 3000


def test_a_translator_without_denoiser_says_so(copy):
    rewrite(
        copy, lambda tensors: [tensors.pop(name) for name in list(tensors) if "aligner_MLP" in name]
    )
    with pytest.raises(CheckpointError, match="no denoising adapter"):
        build(read_release(copy)).translator.denoise(torch.zeros(1, 2, 16))


# Training passes


def example_batch(model):
    """Two conversations of two audio turns each, their answers as labels."""
    tokens, pad = model.tokens, model.tokens.end_id
    rows, labels = [], []
    for first, second in (("one", "three more"), ("a", "b")):
        ids = tokens.prompt([Turn("user", "", True)])
        targets = [IGNORE] * len(ids)
        answer = [*tokens.tokenize(first), pad]
        ids, targets = ids + answer, targets + answer
        question = [
            *tokens.header("user"),
            *tokens.tokenize("\n"),
            tokens.audio_id,
            *tokens.tokenize(""),
            pad,
            *tokens.header("assistant"),
            *tokens.tokenize("\n"),
        ]
        ids, targets = ids + question, targets + [IGNORE] * len(question)
        answer = [*tokens.tokenize(second), pad]
        rows, labels = [*rows, ids + answer], [*labels, targets + answer]
    width = max(map(len, rows))
    return (
        torch.tensor([row + [pad] * (width - len(row)) for row in rows]),
        torch.tensor([row + [IGNORE] * (width - len(row)) for row in labels]),
    )


def test_labels_stand_behind_their_audios(model):
    ids, labels = example_batch(model)
    rows = torch.tensor([0, 0, 1, 1])
    text_pass = train_forward.forward_text(model, ids, labels, random_features(4), rows)
    for row in range(2):
        assert (
            text_pass.labels[row][text_pass.labels[row] != IGNORE].tolist()
            == labels[row][labels[row] != IGNORE].tolist()
        )
        last = int((labels[row] != IGNORE).nonzero()[-1])
        grown = int(text_pass.speech.lengths[rows == row].sum()) - 2
        assert int((text_pass.labels[row] != IGNORE).nonzero()[-1]) == last + grown


def loss_of(name, outputs, targets):
    loss = CRITERIA.build(CRITERIA.parse({"name": name}))(outputs, Batch(("row",), targets))
    means = {part: total / count for part, (total, count) in loss.parts.items()}
    return loss.total / targets, means


def test_the_text_loss_is_that_of_one_row_after_the_other(model):
    ids, labels = example_batch(model)
    features = random_features(4)
    targets = torch.tensor(
        [
            [3, 4, 5],
            [6, IGNORE, IGNORE],
            [7, 8, IGNORE],
            [9, 9, IGNORE],
        ]
    )

    def parts_of(rows, clips):
        chosen = only(features, *clips)
        owners = torch.arange(len(rows)).repeat_interleave(2)
        outputs = train_forward.text_outputs(
            model,
            train_forward.forward_text(model, ids[rows], labels[rows], chosen, owners),
            targets[clips],
        )
        return loss_of("s2t", outputs, len(outputs.text_labels)), len(outputs.text_labels)

    (total, both), _ = parts_of([0, 1], [0, 1, 2, 3])
    alone = [parts_of([row], [2 * row, 2 * row + 1]) for row in range(2)]
    weights = [count for _, count in alone]
    torch.testing.assert_close(
        both["text"], sum(parts["text"] * count for (_, parts), count in alone) / sum(weights)
    )
    torch.testing.assert_close(both["ctc"], sum(parts["ctc"] for (_, parts), _ in alone) / 2)
    torch.testing.assert_close(total, both["text"] + 0.3 * both["ctc"])


def test_ctc_of_a_clip_s_own_tokens_is_that_of_the_whole_vocabulary():
    """Loss and gradients against CTC over all tokens.

    A token is repeated, a clip has no target, and targets are ragged.
    """
    net = adapter(PAPER)
    frames = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(4))
    targets = torch.tensor([[3, 3, 7, 3], [5, 1, IGNORE, IGNORE], [IGNORE] * 4])
    lengths = (targets != IGNORE).sum(1)

    def restricted(frames):
        scores, indices = restricted_ctc_scores(net, frames, targets)
        assert scores.shape == (3, 12, 6)
        return scores.log_softmax(-1), indices, 5

    def full(frames):
        return net.ctc_head(frames).log_softmax(-1), targets.clamp(min=0), 29

    results = []
    for scores in (restricted, full):
        inputs = frames.clone().requires_grad_()
        net.zero_grad()
        log_probs, indices, blank = scores(inputs)
        loss = F.ctc_loss(
            log_probs.transpose(0, 1),
            indices,
            torch.full((3,), 12),
            lengths,
            blank=blank,
            reduction="none",
        )
        loss[:2].sum().backward()
        results.append((loss.detach(), inputs.grad, net.ctc_head.weight.grad.clone()))
    for restricted_values, full_values in zip(*results):
        torch.testing.assert_close(restricted_values, full_values, atol=1e-4, rtol=1e-4)


def test_a_clip_does_not_attend_beyond_the_end_of_another_of_its_conversation():
    """Frames beyond a shorter clip's end are no keys for those of a longer one."""
    net = adapter(RELEASE)
    values = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(6))
    short = Features(values, torch.tensor([40, 20]), 50.0)
    clip_rows = torch.tensor([0, 0])
    with torch.no_grad():
        frames, _ = net.align(short, clip_rows)
        alone, _ = net.align(Features(values[:1], torch.tensor([40]), 50.0), torch.tensor([0]))
    assert torch.isfinite(frames).all()
    torch.testing.assert_close(frames[0, 10:], alone[0, 10:])
    assert (frames[0, :10] - alone[0, :10]).abs().amax() > 1e-4


def test_answers_are_given_by_the_states_that_predict_their_tokens(model):
    ids, labels = example_batch(model)
    # The answers are given by the last turn alone, as in Echo training.
    is_last = (ids == model.tokens.audio_id).cumsum(1) == 2
    labels = labels.masked_fill(~is_last, IGNORE)
    text_pass = train_forward.forward_text(
        model, ids, labels, random_features(4), torch.tensor([0, 0, 1, 1])
    )
    states, tokens, lengths = train_forward.answer_states(text_pass)
    for row, length in enumerate(lengths.tolist()):
        places = (text_pass.labels[row] != IGNORE).nonzero()[:-1, 0]  # without the end of the turn
        assert torch.equal(states[row, :length], text_pass.hidden[row, places - 1])
        assert torch.equal(tokens[row, :length], text_pass.labels[row, places])
    units = torch.full((3, 4), IGNORE)
    units[0, :3] = torch.tensor([12811, 12812, model.tokens.end_id])
    units[1, :2] = units[2, :2] = torch.tensor([12813, model.tokens.end_id])
    spans = spans_of([(0, 0, 3), (0, 3, 5), (1, 0, 2)])
    outputs = train_forward.segment_outputs(model, text_pass, spans, units)
    assert len(outputs.unit_labels) == 7 and len(outputs.denoised) == 3 + 2 + 2
    loss, _ = loss_of("published_echo", outputs, 1)
    loss.backward()
    assert torch.isfinite(loss) and all(
        torch.isfinite(weight.grad).all()
        for weight in model.parameters()
        if weight.grad is not None
    )
    model.zero_grad(set_to_none=True)


# The vocoder


def test_rows_of_units_are_decoded_by_themselves(folder):
    from echox.core.signals import Units

    codec = tiny_release.codec(folder)
    ids = torch.tensor([[5, 6, 7, 8], [9, 1, 0, 0], [0, 0, 0, 0]])
    wave = codec.decode(Units(ids, torch.tensor([4, 2, 0]), None))
    assert wave.rate_hz == 16_000 and wave.lengths[2] == 0
    torch.testing.assert_close(
        wave.samples[1, : int(wave.lengths[1])], codec.sound(torch.tensor([9, 1]))
    )
    with pytest.raises(SignalError, match="unit 1000 is beyond the 1000 units"):
        codec.sound(torch.tensor([1000]))


def test_a_vocoder_only_decodes(folder):
    with pytest.raises(ConfigError, match="only turns units into speech"):
        tiny_release.codec(folder).encode(None)
    assert (
        UnitHifiGan(UnitHifiGanConfig(folder=str(folder))).fingerprint()
        == tiny_release.codec(folder).fingerprint()
    )


def test_an_export_names_its_process_and_leaves_that_of_another_alone(tmp_path):
    output, seen = tmp_path / "release", []
    other = partial_path(output, ".partial")
    other.mkdir()

    def beside():
        # Read after the partial folder was made.
        seen.extend(tmp_path.iterdir())
        yield from ()

    write_release(output, {"a": torch.zeros(3)}, beside(), {})
    assert len(seen) == 2 and all(map(is_owned, seen))
    assert sorted(tmp_path.iterdir()) == sorted([other, output])
