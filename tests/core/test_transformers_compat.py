"""The key-value cache reaches a model under the keyword that its release takes."""

import warnings

import pytest
import torch
from torch import nn

from echox.backbones.hub import HubBackbone, HubBackboneConfig
from echox.core.transformers_compat import cache_kwargs


class Before(nn.Module):
    def forward(self, inputs_embeds, past_key_values=None, **swallowed):
        return past_key_values


class Since(nn.Module):
    def forward(self, inputs_embeds, cache=None, **swallowed):
        return cache


@pytest.mark.parametrize("model", [Before(), Since()])
def test_a_model_gets_its_cache(model):
    cache = object()
    assert model(None, **cache_kwargs(model, cache)) is cache


def test_a_cached_pass_continues_the_previous_one_without_warnings():
    backbone = HubBackbone(HubBackboneConfig(weights="random")).eval()
    embeddings = backbone.embed(torch.arange(12).view(2, 6))
    mask = torch.ones(2, 6, dtype=torch.bool)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        full = backbone(embeddings, mask).hidden
        first = backbone(embeddings[:, :4], mask[:, :4], use_cache=True)
        rest = backbone(embeddings[:, 4:], mask, first.cache, use_cache=True)
    torch.testing.assert_close(torch.cat([first.hidden, rest.hidden], dim=1), full)
