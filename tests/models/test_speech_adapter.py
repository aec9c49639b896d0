"""The speech adapter: runs, means, independence of rows."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from echox.core.errors import ConfigError
from echox.core.signals import Features
from echox.models.compatibility import RELEASE
from echox.models.frame_runs import ctc_tokens, run_means, runs
from echox.models.release.adapter import released_adapter
from echox.models.speech_adapter import SpeechAdapter, SpeechAdapterConfig
from echox.models.speech_llm import join_adapter


def adapter(texts=(), **changes):
    torch.manual_seed(0)
    backbone = SimpleNamespace(embed=torch.randn(9, 16).__getitem__, token_texts=lambda: texts)
    config = SpeechAdapterConfig(heads=4, **changes)
    model = join_adapter(SimpleNamespace(dim=6), backbone, config, torch.arange(9)).eval()
    torch.nn.init.normal_(model.ctc_head.weight)  # so that there are runs
    return model


def test_runs_keep_first_frames_and_may_drop_a_token():
    best = torch.tensor([[1, 1, 9, 2, 9, 9, 2, 3]])
    real = torch.ones_like(best, dtype=torch.bool)
    real[0, 7] = False
    first, run = runs(best, real, 9)
    assert first[0].tolist() == [True, False, False, True, False, False, True, False]
    assert run[0].tolist() == [0, 0, -1, 1, -1, -1, 2, -1]
    first, run = runs(best, real, None)
    assert first[0].sum() == 5 and run[0].tolist() == [0, 0, 1, 2, 3, 3, 4, -1]


def test_run_means():
    values = torch.tensor([[[1.0], [3.0], [9.0], [5.0]]])
    assert run_means(values, torch.tensor([[0, 0, -1, 1]]), 3)[0, :, 0].tolist() == [2.0, 5.0, 0.0]


def test_rows_depend_on_their_own_frames_only():
    model = adapter()
    values = torch.randn(2, 30, 6)
    batch = model(Features(values, torch.tensor([30, 17]), 50.0))
    poisoned = values[1:].clone()
    alone = model(Features(poisoned[:, :17], torch.tensor([17]), 50.0))
    length = int(alone.lengths[0])
    assert int(batch.lengths[1]) == length > 0
    assert torch.allclose(batch.vectors[1, :length], alone.vectors[0, :length], atol=1e-5)
    assert torch.allclose(batch.ctc_logits[1, :9], alone.ctc_logits[0], atol=1e-4)


def test_no_clips_give_no_vectors_and_every_weight_has_a_gradient():
    model = adapter().train()
    empty = model(Features(torch.zeros(0, 1, 6), torch.zeros(0, dtype=torch.int64), 50.0))
    assert (
        empty.ctc_logits.shape == (0, 1, 10)
        and empty.vectors.shape[0] == len(empty.lengths) == len(empty.frame_lengths) == 0
    )
    (empty.vectors.sum() + empty.ctc_logits.sum()).backward()
    assert all(
        parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters()
    )


def test_ctc_tokens_merge_repeats_and_drop_blanks():
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 1, 3, 1, 2, 0]]), 4).float()
    assert ctc_tokens(logits, torch.tensor([5])) == [[1, 1, 2]]


def test_transcripts_are_parted_by_the_windows_that_tokens_begin_in():
    model = adapter(stack=2)
    # Two clips of four frames a window; the first clip's second token goes on in the second window.
    best = torch.tensor([[1, 9, 9, 2, 2, 9, 3, 3, 4], [9, 9, 9, 9, 5, 9, 9, 9, 9]])

    def speech_of(lengths):
        speech = model(Features(torch.zeros(2, 18, 6), 2 * torch.tensor(lengths), 50.0))
        kept, _ = model.shrink(speech.frames, speech.frame_lengths, best, speech.ctc_logits)
        return dataclasses.replace(speech, tokens=best, kept=kept)

    assert model.transcripts(speech_of([9, 9]), 8) == [[(1, 2), (3,), (4,)], [(5,)]]
    assert model.transcripts(speech_of([9, 9])) == [[(1, 2, 3, 4)], [(5,)]]
    assert model.transcripts(speech_of([1, 4])) == [[(1,)], [()]]


def test_at_first_the_vectors_are_text_embeddings():
    """Where CTC is certain, the kept vector is that token's row."""
    model = adapter()
    frames = torch.randn(1, 3, 16)
    logits = torch.full((1, 3, 10), -50.0)
    logits[0, torch.arange(3), torch.tensor([4, 9, 7])] = 50.0
    kept, vectors = model.shrink(frames, torch.tensor([3]), logits.argmax(-1), logits)
    assert kept.tolist() == [[True, False, True]]
    assert torch.allclose(vectors[0], model.token_rows[[4, 7]], atol=1e-5)


def test_without_expected_text_the_vectors_are_means_of_frames():
    model = adapter(expected_text=False)
    frames = torch.randn(1, 4, 16)
    tokens = torch.tensor([[4, 4, 9, 7]])
    kept, vectors = model.shrink(frames, torch.tensor([4]), tokens, frames[..., :0])
    seen = model.look_back_norm(frames)[0]
    assert kept.tolist() == [[True, False, False, True]]
    # The look-back starts at zero.
    assert torch.allclose(vectors[0], torch.stack([seen[:2].mean(0), seen[3]]), atol=1e-5)


def test_blanks_are_kept_where_the_release_keeps_them():
    values = Features(torch.randn(1, 24, 6), torch.tensor([24]), 50.0)
    assert int(adapter(keep_blanks=True)(values).lengths) >= int(adapter()(values).lengths)


def test_the_release_s_adapter_is_one_of_the_settings():
    """The same weights in an adapter over all tokens, with the settings of the release."""
    model = adapter(positions=False, first_frames=True, keep_blanks=True)
    torch.nn.init.normal_(model.look_back.out_proj.weight)  # zero at first
    config = {"hidden_size": 16, "adapter_size": 6, "vocab_size": 10, "num_attention_heads": 4}
    released = released_adapter(config, blank=9).eval()
    weights = model.state_dict()
    assert set(weights) - set(released.state_dict()) == {"token_ids", "ctc_head.bias"}
    released.load_state_dict({name: weights[name] for name in released.state_dict()})
    features = Features(torch.randn(2, 30, 6), torch.tensor([30, 17]), 50.0)
    own, theirs = model(features), released(features)
    assert torch.equal(own.tokens, theirs.tokens) and torch.equal(own.vectors, theirs.vectors)
    assert model.transcripts(own) == released.transcripts(theirs)
    # Clips of one conversation mix where the release attends over turns, and no others.
    mixed = SpeechAdapter(released.config, released.sizes, compatibility=RELEASE).eval()
    mixed.load_state_dict(released.state_dict())
    alone, together = (mixed(features, rows) for rows in (None, torch.tensor([0, 0])))
    assert not torch.equal(alone.frames, together.frames)
    # Scores over a whole vocabulary are not kept.
    assert own.ctc_logits.shape == (2, 15, 10) and theirs.ctc_logits.shape == (2, 15, 0)


def test_masks_hide_spans_and_channels_in_training_only():
    features = Features(torch.ones(40, 30, 6), torch.tensor([30] * 39 + [5]), 50.0)
    model = adapter(time_masks=2, time_mask_frames=4)
    torch.manual_seed(0)
    hidden = (model.masked(features).values == 0).all(-1)
    assert (
        hidden.any(1).all() and hidden.sum(1).max() <= 8 and hidden.any(0)[:30].float().mean() > 0.9
    )
    assert not hidden[39, 9:].any()  # spans begin inside a clip
    dropped = adapter(channel_dropout=0.5).masked(features).values
    assert (dropped == dropped[:, :1]).all() and set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(model(features).ctc_logits, model(features).ctc_logits)
    with pytest.raises(ConfigError, match="time_masks is -1"):
        SpeechAdapterConfig(time_masks=-1)


def test_sampled_scores_estimate_the_loss_over_the_whole_vocabulary():
    """Exactly so where every token that is not spoken is drawn once, and on average otherwise."""
    model, frames = adapter(), torch.randn(1, 4, 16)
    spoken = torch.tensor([2, 5])
    scores = model.ctc_head(frames)
    expected = scores[..., [2, 5, 9]] - scores.logsumexp(-1, keepdim=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randint", lambda size, shape, device: torch.arange(size))
        sampled = model.sampled_scores(frames, spoken, 9)
    assert sampled.shape == (1, 4, 2 + 9 + 1)
    assert torch.allclose(sampled.log_softmax(-1)[..., [0, 1, -1]], expected, atol=1e-5)
    torch.manual_seed(3)
    normalisers = torch.stack(
        [model.sampled_scores(frames, spoken, 3).float().logsumexp(-1).exp() for _ in range(4000)]
    )
    assert torch.allclose(normalisers.mean(0), scores.logsumexp(-1).exp(), rtol=0.1)


def spelled(texts=(" cat", " cart", "s", " dog", " dogs", " a", "t", " the", "ing")):
    return adapter(texts, spelling_channels=8)


def test_tokens_of_one_spelling_share_what_spelling_adds():
    model = spelled((" cat", " Cat", "cat", " dog", " dogs", " a", "t", " the", "ing"))
    added = model.head_rows() - model.ctc_head.weight
    # Case makes no difference; the beginning of a word does.
    assert torch.allclose(added[0], added[1]) and not torch.allclose(added[0], added[2])
    assert (
        torch.cosine_similarity(added[3], added[4], dim=0)
        > torch.cosine_similarity(added[3], added[7], dim=0) + 0.1
    )
    frames = torch.randn(2, 5, 16)
    assert torch.allclose(
        model.scores(frames), frames @ model.head_rows().T + model.ctc_head.bias, atol=1e-5
    )
    assert not torch.allclose(model.head_rows(), model.ctc_head.weight)
    with torch.no_grad():
        model.ctc_head.weight.zero_()
    # Letters alone tell tokens apart.
    assert model.head_rows()[:8].std(0).mean() > 0.01


def test_spelling_is_trained_and_its_cache_is_never_stale():
    model, frames = spelled(), torch.randn(1, 4, 16)
    with torch.no_grad():
        first = model.scores(frames)
        assert model.head_rows() is model.head_rows()  # computed once where nothing is trained
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model.train().sampled_scores(frames, torch.tensor([2, 5]), 4).logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.head_spelling.parameters())
    optimiser.step()
    with torch.no_grad():
        second = model.eval().scores(frames)
        assert not torch.allclose(first, second)
    assert torch.allclose(second, model.scores(frames), atol=1e-6)  # with gradients: computed anew
    copy = spelled()
    with torch.no_grad():
        copy.scores(frames)
        copy.load_state_dict(model.state_dict())
        assert torch.equal(copy.scores(frames), second)
    model.freeze(alignment=True, look_back=True)
    assert not model.learns and model.head_rows() is model.head_rows()


def test_sampled_scores_read_the_spelling_of_their_sample():
    model, frames, spoken = spelled(), torch.randn(1, 4, 16), torch.tensor([2, 5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randint", lambda size, shape, device: torch.arange(size))
        sampled = model.sampled_scores(frames, spoken, 9)
    assert torch.allclose(
        sampled.log_softmax(-1)[..., [0, 1, -1]],
        model.scores(frames).log_softmax(-1)[..., [2, 5, 9]],
        atol=1e-5,
    )


def test_expected_text_works_under_autocast():
    model, features = adapter(), Features(torch.randn(2, 30, 6), torch.tensor([30, 17]), 50.0)
    with torch.autocast("cpu", torch.bfloat16):
        adapted = model.train()(features)
    adapted.vectors.float().sum().backward()
    assert adapted.lengths.min() > 0 and model.ctc_head.weight.grad is not None
