"""The unit decoder with K codebooks: delay pattern, labels, and generation as teacher-forced."""

import pytest
import torch

from echox.core.errors import ConfigError
from echox.models.codebook_pattern import aligned, delays_of, frames_of, staggered
from echox.models.speech_llm import IGNORE
from echox.models.unit_decoder import UnitDecoder, UnitDecoderConfig
from echox.models.unit_generation import generate_targets, generate_unit_tokens, unit_decode_engine

CODES = 12  # of each codebook
SILENCE, END, NEXT = CODES, CODES + 1, CODES + 2
DELAYS = [0, 1, 2]


def decoder(monotonic=True, delay=1, codebooks=3, **changes):
    torch.manual_seed(0)
    shape = {
        "layers": 2,
        "width": 32,
        "heads": 2,
        "feed_forward": 64,
        "max_words_per_token": 5,
        "dropout": 0.0,
    } | changes
    config = UnitDecoderConfig(monotonic=monotonic, codebook_delay=delay, **shape)
    model = UnitDecoder(config, 16, CODES, codebooks).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model


def padded(rows):
    width = max(map(len, rows))
    return torch.tensor([[*row, *[IGNORE] * (width - len(row))] for row in rows])


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("rows", [[], [[1, 2, 3]], [[r, 10 + r, 20 + r] for r in range(7)]])
def test_aligned_is_the_inverse_of_staggered(rows, delay):
    delays = delays_of(3, delay)
    steps = staggered(rows, delays, 99)
    assert len(steps) == len(rows) + 2 * delay and aligned(steps, delays) == rows


def test_codebooks_lag_each_other_and_are_silent_beside_marks():
    target = decoder().target_of([[1, 2, 3, 4, 5, 6], [], [7, 8, 9]])
    steps = [target[start : start + 3] for start in range(0, len(target), 3)]
    assert [step[0] for step in steps] == [1, 4, NEXT, NEXT, 7, NEXT, END, SILENCE, SILENCE]
    assert [step[1] for step in steps] == [
        SILENCE,
        2,
        5,
        SILENCE,
        SILENCE,
        8,
        SILENCE,
        SILENCE,
        SILENCE,
    ]
    assert [step[2] for step in steps] == [
        SILENCE,
        SILENCE,
        3,
        6,
        SILENCE,
        SILENCE,
        9,
        SILENCE,
        SILENCE,
    ]
    together = decoder(delay=0).target_of([[1, 2, 3, 4, 5, 6]])
    assert together == [1, 2, 3, 4, 5, 6, NEXT, SILENCE, SILENCE, END, SILENCE, SILENCE]


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("codebooks", [1, 3])
def test_unit_tokens_of_a_target_are_those_it_was_made_of(delay, codebooks):
    model = decoder(delay=delay, codebooks=codebooks)
    tokens = [[1, 2, 3, 4, 5, 6], [], [7, 8, 9]]
    target = model.target_of(tokens)
    assert model.unit_tokens_in([*target, IGNORE, IGNORE]) == sum(tokens, [])
    assert model.unit_tokens_in(model.target_of([])) == []


def test_silence_is_no_label():
    model = decoder()
    targets = padded([model.target_of([[1, 2, 3], [4, 5, 6]]), model.target_of([[7, 8, 9]])])
    hidden = torch.randn(2, targets.shape[1] // 3, 32)
    states, labels = model.labelled(hidden, targets)
    assert labels.shape == (len(states), 3) and len(states) == 7 + 5
    by_codebook = [sorted(column[column != IGNORE].tolist()) for column in labels.T]
    assert by_codebook == [[1, 4, 7, END, END, NEXT, NEXT, NEXT], [2, 5, 8], [3, 6, 9]]
    result = model.head(states, labels)
    assert int(result.valid.sum()) == 14 and not result.correct[~result.valid].any()


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("monotonic", [True, False])
def test_generation_equals_teacher_forcing(monotonic, delay):
    model = decoder(monotonic, delay)
    text, lengths = torch.randn(3, 4, 16), torch.tensor([4, 2, 1])
    rows = generate_targets(model, text, lengths, max_steps=40)
    targets = padded(rows)
    hidden = model(text, lengths, targets)
    steps = targets.unflatten(1, (-1, 3))
    scores = [
        part.detach().clone()
        for part in model.logits(hidden).split([CODES + 3, CODES + 1, CODES + 1], dim=-1)
    ]
    mark = NEXT if monotonic else END
    for part in scores:
        part[..., SILENCE] = float("-inf")
    scores[0][..., END if monotonic else NEXT] = float("-inf")
    compared = 0
    for k in range(3):
        # A mark that is due, and an end at the limit, are forced whatever the scores are.
        free = (steps[..., k] != IGNORE) & (steps[..., k] < CODES)
        assert torch.equal(scores[k].argmax(-1)[free], steps[..., k][free]), f"codebook {k}"
        compared += int(free.sum())
    assert compared > 30 and all(mark in row for row in rows)


@pytest.mark.parametrize("delay", DELAYS)
def test_rows_are_independent_and_pass_every_text_token_once(delay):
    model = decoder(delay=delay)
    text, lengths = torch.randn(3, 4, 16), torch.tensor([4, 2, 1])
    engine = unit_decode_engine(model, slots=2, capacity=128)
    together = generate_unit_tokens(model, text, lengths, max_steps=60, engine=engine)
    for row, length in enumerate(lengths.tolist()):
        (alone,) = generate_unit_tokens(
            model, text[row : row + 1, :length], lengths[row : row + 1], max_steps=60
        )
        assert together[row] == alone
        assert together[row] and len(together[row]) % 3 == 0 and max(together[row]) < CODES
    targets = generate_targets(model, text, lengths, max_steps=60)
    for target, length in zip(targets, lengths.tolist()):
        first = [frame[0] for frame in aligned(frames_of(target, 3), model.delays)]
        assert first.count(NEXT) == length and first[-1] == END and first.count(END) == 1


def test_the_limit_leaves_complete_frames():
    model = decoder(monotonic=False, delay=2)
    (codes,) = generate_unit_tokens(model, torch.randn(1, 2, 16), torch.tensor([2]), max_steps=6)
    assert len(codes) == 3 * (6 - 4)  # the last four steps hold no complete frame
    text, lengths = torch.randn(2, 3, 16), torch.tensor([0, 3])
    assert generate_unit_tokens(model, text, lengths, max_steps=30)[0] == []


def test_gradients_reach_every_weight():
    model = decoder().train()
    targets = torch.tensor([model.target_of([[1, 2, 3], [4, 5, 6]])])
    states, labels = model.labelled(
        model(torch.randn(1, 2, 16), torch.tensor([2]), targets), targets
    )
    model.head(states, labels).loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_single_codebook_has_one_table_and_no_further_state():
    model = decoder(codebooks=1)
    assert model.words.weight.shape == model.head.weight.shape == (CODES + 3, 32)
    assert "words.first_rows" not in model.state_dict()


def test_a_negative_delay_is_refused():
    with pytest.raises(ConfigError, match="codebook_delay is -1"):
        UnitDecoderConfig(codebook_delay=-1)
