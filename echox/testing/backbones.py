"""The contract of a backbone; see `echox.backbones.base.Backbone`."""

from __future__ import annotations

import torch
from torch import Tensor

from echox.backbones.base import BACKBONES, Backbone, BackboneConfig, Turn
from echox.testing.rules import (
    differing,
    has_a_stable_fingerprint,
    outline_has_the_shapes,
    survives_a_checkpoint,
)

# Masks and caches change the order of float32 sums, no more.
ABSOLUTE_TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-3

PLAIN = "The quick brown fox, 3 of them."
# Other scripts, an emoji, and the object replacement character, which prompts may use for audio.
STRANGE = ("日本語のテキスト", "Привет, мир", "مرحبا", "🙂", "a\ufffcb", "", " ")


def attributes_are_stated(config: BackboneConfig) -> None:
    """Check that the backbone states its sizes and its special tokens.

    Raises:
        AssertionError: an attribute is missing or out of range.
    """
    backbone = _build(config)
    for name in ("hidden_size", "vocab_size"):
        value = getattr(backbone, name, None)
        assert isinstance(value, int) and value > 0, (
            f"{type(backbone).__name__}.{name} must be a positive integer, not {value!r}"
        )
    for name in ("end_id", "pad_id"):
        value = getattr(backbone, name, None)
        assert isinstance(value, int) and 0 <= value < backbone.vocab_size, (
            f"{name} must be one of the {backbone.vocab_size} ids, not {value!r}"
        )


def shapes_fit(config: BackboneConfig) -> None:
    """Check embeddings and hidden states [B, S, H], and logits [B, S, V].

    Raises:
        AssertionError: a shape is wrong, or a state is not finite.
    """
    backbone = _build(config)
    H, V = backbone.hidden_size, backbone.vocab_size
    ids = torch.tensor([[1, 2, 3], [2, 1, 0]])
    assert tuple(backbone.embed(ids).shape) == (2, 3, H), (
        f"embed of [2, 3] must be [2, 3, {H}], not {list(backbone.embed(ids).shape)}"
    )
    # A single sequence too, as prompts are embedded piece by piece.
    assert tuple(backbone.embed(ids[0]).shape) == (3, H), (
        f"embed of [3] must be [3, {H}], not {list(backbone.embed(ids[0]).shape)}"
    )
    state = backbone(backbone.embed(ids), torch.ones(2, 3, dtype=torch.bool))
    assert tuple(state.hidden.shape) == (2, 3, H), (
        f"hidden must be [2, 3, {H}], not {list(state.hidden.shape)}"
    )
    # A cache that is kept by mistake fills the memory in training.
    assert state.cache is None, "without use_cache, the state's cache must be None"
    assert tuple(backbone.logits(state.hidden).shape) == (2, 3, V), f"logits must be [2, 3, {V}]"
    assert tuple(backbone.head_rows().shape) == (V, H), (
        f"head_rows must be [{V}, {H}], not {list(backbone.head_rows().shape)}"
    )
    assert bool(state.hidden.isfinite().all()), "a hidden state is not finite"


@torch.no_grad()
def padding_does_not_matter(config: BackboneConfig) -> None:
    """Check that padding on either side leaves the states of a row as they are.

    Raises:
        AssertionError: a state differs by more than the tolerances.
    """
    backbone = _build(config)
    embeddings = _embeddings(backbone, 5)
    alone = backbone(embeddings, torch.ones(1, 5, dtype=torch.bool)).hidden[0]
    generator = torch.Generator().manual_seed(2)
    # Larger than embeddings are, so that a small leak shows.
    padding = 3.0 * torch.randn(1, 4, backbone.hidden_size, generator=generator)
    real, pad = torch.ones(1, 5, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool)
    right = backbone(torch.cat([embeddings, padding], 1), torch.cat([real, pad], 1)).hidden[0, :5]
    _assert_close(right, alone, "padding on the right changed the states before it")
    left = backbone(torch.cat([padding, embeddings], 1), torch.cat([pad, real], 1)).hidden[0, 4:]
    _assert_close(left, alone, "padding on the left changed the states behind it")


@torch.no_grad()
def nothing_sees_the_future(config: BackboneConfig) -> None:
    """Check that attention is causal.

    Raises:
        AssertionError: a later position changes an earlier state.
    """
    backbone = _build(config)
    embeddings, mask = _embeddings(backbone, 6), torch.ones(1, 6, dtype=torch.bool)
    before = backbone(embeddings, mask).hidden[0, :3]
    # In place: `before` was computed already.
    embeddings[:, 3:] += 1.0
    _assert_close(
        backbone(embeddings, mask).hidden[0, :3],
        before,
        "later positions changed the states of earlier ones",
    )


@torch.no_grad()
def a_cache_changes_nothing(config: BackboneConfig) -> None:
    """Check that decoding with a cache gives the states of one pass.

    Raises:
        AssertionError: there is no cache, or a state differs by more than the tolerances.
    """
    backbone = _build(config)
    embeddings, mask = _embeddings(backbone, 6), torch.ones(1, 6, dtype=torch.bool)
    one_pass = backbone(embeddings, mask).hidden[0, 4:]  # [2, H]
    state = backbone(embeddings[:, :4], mask[:, :4], use_cache=True)
    assert state.cache is not None, "with use_cache, the state must carry a cache"
    steps = []
    for end in (5, 6):
        # The mask also covers the positions in the cache.
        state = backbone(embeddings[:, end - 1 : end], mask[:, :end], state.cache, use_cache=True)
        steps.append(state.hidden[0])
    _assert_close(
        torch.cat(steps), one_pass, "with a cache the states differ from those of one pass"
    )


def text_comes_back(config: BackboneConfig) -> None:
    """Check that a text survives `tokenize` and `detokenize`, in any script.

    Raises:
        AssertionError: another text comes back, or an id is outside the vocabulary.
    """
    backbone = _build(config)
    ids = backbone.tokenize(PLAIN)
    assert ids and all(
        isinstance(token, int) and 0 <= token < backbone.vocab_size for token in ids
    ), "tokenize must give ids of the vocabulary"
    # Special tokens are placed by `prompt`, and would end an answer here.
    assert backbone.end_id not in ids, "tokenize must add no special token"
    assert backbone.detokenize(ids) == PLAIN, f"{PLAIN!r} came back as {backbone.detokenize(ids)!r}"
    assert backbone.detokenize([*ids, backbone.end_id]) == PLAIN, (
        "detokenize must drop the end token"
    )
    # Not every tokenizer has these characters, so no text need come back.
    for text in STRANGE:
        assert all(0 <= token < backbone.vocab_size for token in backbone.tokenize(text)), (
            f"{text!r} gave ids outside the vocabulary"
        )


def every_token_has_a_text(config: BackboneConfig) -> None:
    """Check that every id has a text, in the order of the ids.

    Raises:
        AssertionError: one is missing or no text, or the texts do not spell a word.
    """
    backbone = _build(config)
    texts = backbone.token_texts()
    assert len(texts) == backbone.vocab_size, (
        f"token_texts must hold {backbone.vocab_size} texts, not {len(texts)}"
    )
    assert all(isinstance(text, str) for text in texts), "token_texts must hold texts alone"
    assert texts[backbone.end_id] == "", (
        f"the end token's text must be empty, not {texts[backbone.end_id]!r}"
    )
    spelling = "".join(texts[token] for token in backbone.tokenize("fox"))
    # Stripped, since a first token may have a leading space.
    assert spelling.strip() == "fox", f"the tokens of 'fox' spell {spelling!r}"


def prompts_leave_room_for_audio(config: BackboneConfig) -> None:
    """Check that a prompt is split where the audio of each turn goes.

    Raises:
        AssertionError: a prompt has another number of pieces, or an id outside the vocabulary.
    """
    backbone = _build(config)
    spoken, typed = Turn("user", "", has_audio=True), Turn("user", PLAIN)
    answer, system = Turn("assistant", "Yes."), Turn("system", "Be brief.")
    for turns, audios in (
        ([typed], 0),
        ([spoken], 1),
        ([spoken, answer, spoken], 2),
        ([system, Turn("user", PLAIN, True)], 1),
    ):
        pieces = backbone.prompt(list(turns))
        assert len(pieces) == audios + 1, (
            f"a conversation with {audios} audios must give {audios + 1} id lists, "
            f"not {len(pieces)}"
        )
        assert all(0 <= token < backbone.vocab_size for piece in pieces for token in piece), (
            "a prompt holds ids outside the vocabulary"
        )
    # A text that holds the placeholder of audio itself must not be split there.
    for text in STRANGE:
        pieces = backbone.prompt([Turn("user", text, has_audio=True)])
        assert len(pieces) == 2, (
            f"the text {text!r} beside one audio gave {len(pieces)} id lists instead of 2"
        )


def gradients_pass_through(config: BackboneConfig) -> None:
    """Check that gradients reach the embeddings and every trained parameter.

    Raises:
        AssertionError: one has no gradient.
    """
    backbone = _build(config).train()
    embeddings = _embeddings(backbone, 4).requires_grad_()
    state = backbone(embeddings, torch.ones(1, 4, dtype=torch.bool))
    # Any scalar of all logits serves.
    backbone.logits(state.hidden).float().logsumexp(-1).sum().backward()
    assert embeddings.grad is not None and bool(embeddings.grad.abs().sum() > 0), (
        "no gradient reaches the embeddings: nothing below can learn"
    )
    missed = [
        name
        for name, parameter in backbone.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    assert not missed, f"no gradient reaches {', '.join(missed)}"


@torch.no_grad()
def what_was_trained_can_be_left_out(config: BackboneConfig) -> None:
    """Check that `as_pretrained` gives the pretrained model within its block alone.

    Raises:
        AssertionError: trained weights still have an effect, or are not back after it.
    """
    backbone = _build(config)
    embeddings, mask = _embeddings(backbone, 4), torch.ones(1, 4, dtype=torch.bool)
    fresh = backbone(embeddings, mask).hidden
    flags = {name: parameter.requires_grad for name, parameter in backbone.named_parameters()}
    # A LoRA begins as zero, so untrained it would show in no output.
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1)
    trained = backbone(embeddings, mask).hidden
    with backbone.as_pretrained():
        _assert_close(
            backbone(embeddings, mask).hidden,
            fresh,
            "inside as_pretrained what was trained on top still shows",
        )
    _assert_close(
        backbone(embeddings, mask).hidden,
        trained,
        "after as_pretrained the trained model is not back",
    )
    changed = [
        name
        for name, parameter in backbone.named_parameters()
        if flags[name] != parameter.requires_grad
    ]
    assert not changed, f"as_pretrained changed whether {', '.join(changed)} is trained"


def two_builds_are_one_model(config: BackboneConfig) -> None:
    """Check that the seed alone decides the weights.

    Raises:
        AssertionError: a tensor differs between two builds.
    """
    first, second = _build(config).state_dict(), _build(config).state_dict()
    names = differing(first, second)
    assert not names, f"two builds after the same seed differ in {', '.join(names[:3])}"


def the_outline_has_its_shapes(config: BackboneConfig) -> None:
    """Check that the backbone can be built on the meta device, as dry runs do, with its shapes.

    Raises:
        AssertionError: it cannot, has values there, or has other shapes.
    """
    outline_has_the_shapes(BACKBONES, config, ("hidden_size", "vocab_size", "max_positions"))


def config_survives_a_checkpoint(config: BackboneConfig) -> None:
    """Check that the config comes back from the data that a checkpoint records of it.

    Raises:
        AssertionError: another config comes back.
    """
    survives_a_checkpoint(BACKBONES, config)


def fingerprint_is_stable(config: BackboneConfig) -> None:
    """Check that two builds have one fingerprint.

    Raises:
        AssertionError: the fingerprint is no text, or differs.
    """
    has_a_stable_fingerprint(lambda: _build(config))


CHECKS = (
    attributes_are_stated,
    shapes_fit,
    padding_does_not_matter,
    nothing_sees_the_future,
    a_cache_changes_nothing,
    text_comes_back,
    every_token_has_a_text,
    prompts_leave_room_for_audio,
    gradients_pass_through,
    what_was_trained_can_be_left_out,
    two_builds_are_one_model,
    the_outline_has_its_shapes,
    config_survives_a_checkpoint,
    fingerprint_is_stable,
)


def _build(config: BackboneConfig) -> Backbone:
    # Random weights must be equal between the builds of one rule.
    torch.manual_seed(0)
    return BACKBONES.build(config).eval()


def _embeddings(backbone: Backbone, positions: int) -> Tensor:
    """Return embeddings of random tokens [1, S, H] with S = `positions`."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, backbone.vocab_size, (1, positions), generator=generator)
    return backbone.embed(ids).detach().clone()


def _assert_close(actual: Tensor, expected: Tensor, sentence: str) -> None:
    torch.testing.assert_close(
        actual,
        expected,
        atol=ABSOLUTE_TOLERANCE,
        rtol=RELATIVE_TOLERANCE,
        msg=lambda text: f"{sentence}: {text}",
    )
