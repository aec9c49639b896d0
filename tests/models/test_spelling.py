"""Spellings of tokens as vectors."""

import torch

from echox.models.spelling import NgramRows, letter_groups


def test_letter_groups_mark_where_a_word_begins_and_ends():
    assert letter_groups(" Cat") == "^ c a t $ ^c ca at t$ ^ca cat at$ ^cat cat$".split()
    assert letter_groups("t") == ["t", "$", "t$"] and letter_groups("") == ["$"]
    assert len(letter_groups("a" * 500)) == len(letter_groups("a" * 16))


def test_rows_of_some_tokens_equal_those_of_all_and_have_about_length_one():
    torch.manual_seed(0)
    texts = [" rain", " Rain", "rain", " raining", "7", "", " internationalisation", " cold"]
    rows = NgramRows(texts, 64, 96)
    table = rows()
    assert torch.allclose(rows(torch.tensor([3, 0, 3])), table[[3, 0, 3]], atol=1e-5)
    assert torch.equal(table[0], table[1]) and not torch.allclose(table[0], table[2])
    assert 0.5 < table.norm(dim=1).mean() < 2
    likeness = torch.cosine_similarity(table[:, None], table[None], dim=-1)
    assert likeness[0, 3] > likeness[0, 7] + 0.2


def test_an_untrained_token_learns_from_others_of_its_letters():
    torch.manual_seed(0)
    rows = NgramRows([" rain", " raining", " moon", " moons"], 32, 16)
    targets = torch.randn(2, 16)
    optimiser = torch.optim.Adam(rows.parameters(), lr=1e-2)
    for _ in range(200):
        optimiser.zero_grad()
        (rows(torch.tensor([0, 2])) - targets).square().mean().backward()
        optimiser.step()
    likeness = torch.cosine_similarity(rows()[[1, 3]][:, None], targets[None], dim=-1)
    assert likeness[0, 0] > likeness[0, 1] and likeness[1, 1] > likeness[1, 0]
