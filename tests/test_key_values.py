"""A cache reaches a model under the name that its release of the library has for it."""

import warnings

import pytest
import torch
from torch import nn

from echox.backbones.hub import HubBackbone, HubBackboneConfig
from echox.key_values import cached


class Before(nn.Module):
    def forward(self, inputs_embeds, past_key_values=None, **swallowed):
        return past_key_values


class Since(nn.Module):
    def forward(self, inputs_embeds, cache=None, **swallowed):
        return cache


@pytest.mark.parametrize("model", [Before(), Since()])
def test_a_model_gets_its_cache(model):
    cache = object()
    assert model(None, **cached(model, cache)) is cache


def test_a_cached_pass_continues_the_one_before_and_the_library_has_nothing_against_it():
    backbone = HubBackbone(HubBackboneConfig(weights="random")).eval()
    embeddings, mask = backbone.embed(torch.arange(12).view(2, 6)), torch.ones(2, 6, dtype=torch.bool)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = backbone(embeddings, mask).hidden
        first = backbone(embeddings[:, :4], mask[:, :4], use_cache=True)
        rest = backbone(embeddings[:, 4:], mask, first.cache, use_cache=True)
    torch.testing.assert_close(torch.cat([first.hidden, rest.hidden], dim=1), whole)
