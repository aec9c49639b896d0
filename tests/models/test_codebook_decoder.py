"""The unit decoder with K codebooks: patterns and their inverse, labels, and generation that says what teacher forcing predicts."""

import pytest
import torch

from echox.errors import ConfigError
from echox.models.codebook_pattern import aligned, delays_of, staggered
from echox.models.unit_decoder import IGNORE, UnitDecoder, UnitDecoderConfig
from echox.models.unit_loop.text_speech import decoder_loop

WORDS = 12  # codes of each codebook
NOTHING, END, NEXT = WORDS, WORDS + 1, WORDS + 2
DELAYS = [0, 1, 2]


def decoder(monotonic=True, delay=1, codebooks=3, **changes):
    torch.manual_seed(0)
    shape = {"layers": 2, "width": 32, "heads": 2, "feed_forward": 64, "max_words_per_token": 5, "dropout": 0.0} | changes
    config = UnitDecoderConfig(monotonic=monotonic, codebook_delay=delay, **shape)
    model = UnitDecoder(config, 16, WORDS, codebooks).eval()
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


def test_codebooks_stand_behind_each_other_and_say_nothing_beside_marks():
    target = decoder().target_of([[1, 2, 3, 4, 5, 6], [], [7, 8, 9]])
    steps = [target[start : start + 3] for start in range(0, len(target), 3)]
    assert [step[0] for step in steps] == [1, 4, NEXT, NEXT, 7, NEXT, END, NOTHING, NOTHING]
    assert [step[1] for step in steps] == [NOTHING, 2, 5, NOTHING, NOTHING, 8, NOTHING, NOTHING, NOTHING]
    assert [step[2] for step in steps] == [NOTHING, NOTHING, 3, 6, NOTHING, NOTHING, 9, NOTHING, NOTHING]
    together = decoder(delay=0).target_of([[1, 2, 3, 4, 5, 6]])
    assert together == [1, 2, 3, 4, 5, 6, NEXT, NOTHING, NOTHING, END, NOTHING, NOTHING]


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("codebooks", [1, 3])
def test_words_in_a_target_are_those_it_was_made_of(delay, codebooks):
    model = decoder(delay=delay, codebooks=codebooks)
    tokens = [[1, 2, 3, 4, 5, 6], [], [7, 8, 9]]
    target = model.target_of(tokens)
    assert model.words_in([*target, IGNORE, IGNORE]) == [word for words in tokens for word in words]
    assert model.words_in(model.target_of([])) == []


def test_only_what_is_said_is_a_label():
    model = decoder()
    targets = padded([model.target_of([[1, 2, 3], [4, 5, 6]]), model.target_of([[7, 8, 9]])])
    hidden = torch.randn(2, targets.shape[1] // 3, 32)
    states, labels = model.labelled(hidden, targets)
    assert labels.shape == (len(states), 3) and len(states) == 7 + 5
    said = [sorted(column[column != IGNORE].tolist()) for column in labels.T]
    assert said == [[1, 4, 7, END, END, NEXT, NEXT, NEXT], [2, 5, 8], [3, 6, 9]]
    found = model.head(states, labels)
    assert int(found.valid.sum()) == 14 and not found.correct[~found.valid].any()


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("monotonic", [True, False])
def test_what_is_generated_is_what_teacher_forcing_predicts(monotonic, delay):
    model = decoder(monotonic, delay)
    text, lengths = torch.randn(3, 4, 16), torch.tensor([4, 2, 1])
    rows = model.generate_targets(text, lengths, max_words=40)
    targets = padded(rows)
    hidden = model(text, lengths, targets)
    steps = targets.unflatten(1, (-1, 3))
    scores = [part.detach().clone() for part in model.logits(hidden).split([WORDS + 3, WORDS + 1, WORDS + 1], dim=-1)]
    mark = NEXT if monotonic else END
    for part in scores:
        part[..., NOTHING] = float("-inf")
    scores[0][..., END if monotonic else NEXT] = float("-inf")
    compared = 0
    for k in range(3):
        # A mark that is due, and an end at the limit, are said whatever the scores are.
        free = (steps[..., k] != IGNORE) & (steps[..., k] < WORDS)
        assert torch.equal(scores[k].argmax(-1)[free], steps[..., k][free]), f"codebook {k}"
        compared += int(free.sum())
    assert compared > 30 and all(mark in row for row in rows)


@pytest.mark.parametrize("delay", DELAYS)
def test_rows_do_not_influence_each_other_and_pass_every_token_once(delay):
    model = decoder(delay=delay)
    text, lengths = torch.randn(3, 4, 16), torch.tensor([4, 2, 1])
    loop = decoder_loop(model, slots=2, capacity=128)
    together = model.generate(text, lengths, max_words=60, loop=loop)
    for row, length in enumerate(lengths.tolist()):
        assert together[row] == model.generate(text[row : row + 1, :length], lengths[row : row + 1], max_words=60)[0]
        assert together[row] and len(together[row]) % 3 == 0 and max(together[row]) < WORDS
    for target, length in zip(model.generate_targets(text, lengths, max_words=60), lengths.tolist()):
        first = [row[0] for row in aligned([target[at : at + 3] for at in range(0, len(target), 3)], model.delays)]
        assert first.count(NEXT) == length and first[-1] == END and first.count(END) == 1


def test_the_limit_leaves_whole_frames():
    model = decoder(monotonic=False, delay=2)
    (words,) = model.generate(torch.randn(1, 2, 16), torch.tensor([2]), max_words=6)
    assert len(words) == 3 * (6 - 4)  # of the last four steps' frames not all codes were said
    assert model.generate(torch.randn(2, 3, 16), torch.tensor([0, 3]), max_words=30)[0] == []


def test_gradients_reach_every_weight():
    model = decoder().train()
    targets = torch.tensor([model.target_of([[1, 2, 3], [4, 5, 6]])])
    states, labels = model.labelled(model(torch.randn(1, 2, 16), torch.tensor([2]), targets), targets)
    model.head(states, labels).loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_single_codebook_has_the_weights_it_always_had():
    one = decoder(codebooks=1)
    assert one.words.weight.shape == one.head.weight.shape == (WORDS + 3, 32)
    assert "words.first_rows" not in one.state_dict()


def test_a_negative_delay_is_refused():
    with pytest.raises(ConfigError, match="codebook_delay is -1"):
        UnitDecoderConfig(codebook_delay=-1)
