"""Batches as an audit shows them: tracks and clips, whose tensors are views into the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from torch import Tensor

from echox.backbones.base import Backbone
from echox.models.speech_llm import AUDIO, PAD
from echox.models.unit_decoder import IGNORE, UnitDecoder
from echox.signals import Features
from echox.tasks.base import Hearing, Track

MARKS = {AUDIO: "[audio]", PAD: "[padding]"}


def readable(detokenize: Callable[[list[int]], str], letter: int) -> Callable[[Sequence[int]], str]:
    """Ids -> text in which special tokens are seen: as their id in angle brackets, placeholders by their name.

    Args:
        letter: a token that is no special one, between two of which blanks are not stripped.
    """
    alone = detokenize([letter, letter])

    def said(token: int) -> str | None:
        if token < 0:
            return MARKS.get(token, f"<{token}>")
        return f"<{token}>" if detokenize([letter, token, letter]) == alone else None

    def text(ids: Sequence[int]) -> str:
        runs = groupby(ids, lambda token: said(token) is None)
        return "".join(detokenize(list(run)) if plain else "".join(map(said, run)) for plain, run in runs)

    return text


def text_of(backbone: Backbone) -> Callable[[Sequence[int]], str]:
    """A language model's ids as people read them."""
    return readable(backbone.detokenize, backbone.tokenize("a")[-1])


def text_tracks(ids: Tensor, labels: Tensor, shared: int, backbone: Backbone) -> Iterator[Track]:
    """Conversations whose labels stand where they are predicted: ids, labels [B, N]; ids that rows share at their front."""
    text, vocabulary = text_of(backbone), range(backbone.vocab_size)
    for row, (read, scored) in enumerate(zip(ids, labels)):
        length = int((read != PAD).sum())
        yield Track(row, "text", read, scored, 1, length, vocabulary, vocabulary, backbone.end_id, text, shared=shared)


def released_tracks(name: str, ids: Tensor, labels: Tensor, end_id: int, vocabulary: range, swaps: range, text: Callable[[Sequence[int]], str]) -> Iterator[Track]:
    """Sequences in the release's form, whose labels stand at their own ids, padded with the end id: ids, labels [B, N]."""
    for row, (read, scored) in enumerate(zip(ids, labels)):
        yield Track(row, name, read, scored[1:], 1, real_length(read, end_id) - 1, vocabulary, swaps, end_id, text)


def word_track(row: int, targets: Tensor, decoder: UnitDecoder, units: Sequence[int], given: str) -> Track:
    """What a unit decoder is to say [U * K], as its output ids, which it reads too; of K codebooks the first, which has the marks."""
    marks = {decoder.begin_id: "BEGIN", decoder.end_id: "END", decoder.next_id: "NEXT"}
    words = range(decoder.word_count)

    def text(ids: Sequence[int]) -> str:
        return " ".join(marks.get(token, str(token)) for token in ids)

    first = targets.unflatten(0, (-1, decoder.codebooks))[:, 0]
    # A mark of its own says that a codebook says nothing there, which is not scored.
    scored = first if decoder.codebooks == 1 else first.masked_fill(first == decoder.begin_id, IGNORE)
    length = spoken_length(first, decoder.end_id)
    return Track(row, "units", first, scored, 0, length, range(decoder.word_count + len(marks)), words, decoder.end_id, text, units, given=given)


def spoken_length(targets: Tensor, end_id: int) -> int:
    """Targets [U] up to their end id; all of them where there is none."""
    ends = (targets == end_id).nonzero()
    return int(ends[0, 0]) + 1 if len(ends) else len(targets)


def real_length(ids: Tensor, end_id: int) -> int:
    """Ids [N] without the end ids that pad them: the first of those that close it is its own."""
    others = (ids != end_id).nonzero()
    return min(len(ids), int(others[-1, 0]) + 2) if len(others) else 0


def heard_clips(
    features: Features, clip_rows: Sequence[int], places: Sequence[int | None], said: Tensor, lengths: Tensor, ids: range, text: Callable[[Sequence[int]], str]
) -> Iterator[Hearing]:
    """Clips [A] and what CTC is to find in them: said [A, S], lengths [A]."""
    for number, (row, at) in enumerate(zip(clip_rows, places)):
        frames = int(features.lengths[number])
        yield Hearing(row, at, frames / features.rate_hz, frames, said[number], int(lengths[number]), ids, text)


def past(values: Tensor, lengths: Tensor) -> list[Tensor]:
    """What stands past each row's length: values [B, N, ...], lengths [B]."""
    return [row[length:] for row, length in zip(values, lengths.tolist()) if length < len(row)]
