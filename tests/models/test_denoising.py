"""Text rows and the denoising adapter."""

import pytest
import torch

from echox.core.errors import ConfigError
from echox.models.denoising import DenoisingAdapter, DenoisingConfig
from echox.models.spelling import TextRows, spell


def rows(channels=8):
    torch.manual_seed(0)
    return TextRows(torch.randn(6, 16), [" cat", "cat", " act", "", "dog", "."], channels)


def test_spelling_tells_tokens_apart_and_ignores_the_batch():
    table = rows()
    vectors = table(torch.arange(6)) - table.rows
    assert all((vectors[a] - vectors[b]).abs().max() > 1e-3 for a, b in [(0, 1), (0, 2), (1, 4)])
    assert torch.allclose(
        table(torch.tensor([[4, 5]])) - table.rows[[4, 5]], vectors[[4, 5]], atol=1e-6
    )
    assert spell(["Cat"], 16).equal(spell(["cat"], 16))


def test_without_spelling_the_rows_are_those_of_the_model_scaled():
    table = rows(0)
    assert torch.equal(table(torch.tensor([2])), table.rows[[2]])
    assert not list(table.parameters())


def test_a_certain_state_becomes_its_tokens_vector():
    table = rows()
    adapter = DenoisingAdapter(DenoisingConfig(feed_forward=8, candidates=3), 16).eval()
    logits = torch.full((1, 2, 6), -40.0)
    logits[0, 0, 4] = logits[0, 1, 0] = 40.0
    assert torch.allclose(
        adapter(torch.randn(1, 2, 16), adapter.candidates(logits), table),
        table(torch.tensor([[4, 0]])),
        atol=1e-5,
    )


def test_a_low_temperature_moves_the_mix_to_the_likeliest_token():
    table = rows()
    logits = torch.tensor([[[0.0, 2.0, 1.5, -1.0, 0.5, 0.0]]])
    hidden = torch.randn(1, 1, 16)
    likeliest = table(torch.tensor([[1]]))

    def distance(temperature):
        adapter = DenoisingAdapter(
            DenoisingConfig(feed_forward=8, candidates=6, temperature=temperature), 16
        ).eval()
        return (adapter(hidden, adapter.candidates(logits), table) - likeliest).norm().item()

    assert distance(0.01) < 1e-4 < distance(0.25) < distance(1.0)
    with pytest.raises(ConfigError, match="temperature is 0"):
        DenoisingConfig(temperature=0)


def test_the_papers_adapter_reads_the_state_alone():
    adapter = DenoisingAdapter(DenoisingConfig(feed_forward=8, candidates=0), 16).eval()
    assert adapter.candidates(torch.randn(1, 2, 6)) is None
    assert adapter(torch.randn(1, 2, 16), None, rows()).shape == (1, 2, 16)
