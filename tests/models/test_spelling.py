"""How tokens are spelt."""

import torch

from echox.models.spelling import NgramRows, letter_groups


def test_groups_of_letters_tell_where_a_word_begins_and_ends():
    assert letter_groups(" Cat") == ["^", "c", "a", "t", "$", "^c", "ca", "at", "t$", "^ca", "cat", "at$", "^cat", "cat$"]
    assert letter_groups("t") == ["t", "$", "t$"] and letter_groups("") == ["$"]
    assert len(letter_groups("a" * 500)) == len(letter_groups("a" * 16))


def test_rows_are_read_for_some_tokens_as_for_all_and_are_as_long_as_one():
    torch.manual_seed(0)
    texts = [" rain", " Rain", "rain", " raining", "7", "", " internationalisation", " cold"]
    rows = NgramRows(texts, 64, 96)
    every = rows()
    assert torch.allclose(rows(torch.tensor([3, 0, 3])), every[[3, 0, 3]], atol=1e-5)
    assert torch.equal(every[0], every[1]) and not torch.allclose(every[0], every[2])
    assert 0.5 < every.norm(dim=1).mean() < 2
    likeness = torch.cosine_similarity(every[:, None], every[None], dim=-1)
    assert likeness[0, 3] > likeness[0, 7] + 0.2


def test_a_token_never_met_learns_from_others_of_its_letters():
    torch.manual_seed(0)
    rows = NgramRows([" rain", " raining", " moon", " moons"], 32, 16)
    wanted = torch.randn(2, 16)
    optimiser = torch.optim.Adam(rows.parameters(), lr=1e-2)
    for _ in range(200):
        optimiser.zero_grad()
        (rows(torch.tensor([0, 2])) - wanted).square().mean().backward()
        optimiser.step()
    likeness = torch.cosine_similarity(rows()[[1, 3]][:, None], wanted[None], dim=-1)
    assert likeness[0, 0] > likeness[0, 1] and likeness[1, 1] > likeness[1, 0]
