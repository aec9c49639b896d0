"""Batches as an audit shows them: targets whose tensors are views into the batch.

Because they are views, an audit can change what the model reads and see which losses follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from torch import Tensor

from echox.backbones.base import Backbone
from echox.core.signals import Features, Waveform
from echox.models.speech_llm import AUDIO, IGNORE, PAD
from echox.models.unit_decoder import UnitDecoder
from echox.tasks.base import CtcTargets, TokenTargets

# Negative ids, which no tokenizer knows.
MARKS = {AUDIO: "[audio]", PAD: "[padding]"}

TextFormat = Callable[[Sequence[int]], str]
"""Token ids -> text for people."""


def text_format(detokenize: Callable[[list[int]], str], letter: int) -> TextFormat:
    """Text in which special tokens are visible.

    They appear as their id in angle brackets, placeholders by their name.

    Args:
        detokenize: token ids -> text, special tokens dropped.
        letter: a token that is not special, between two of which blanks are not stripped.
    """
    # Between letters, because some tokenizers strip blanks at the ends of a text.
    alone = detokenize([letter, letter])

    def mark(token: int) -> str | None:
        """How a special token is shown; None for a plain one."""
        if token < 0:
            return MARKS.get(token, f"<{token}>")
        # A special token leaves nothing between two letters.
        return f"<{token}>" if detokenize([letter, token, letter]) == alone else None

    def text(ids: Sequence[int]) -> str:
        # Plain tokens are decoded by the run, because characters may span tokens.
        runs = groupby(ids, lambda token: mark(token) is None)
        return "".join(
            detokenize(list(run)) if is_plain else "".join(mark(token) or "" for token in run)
            for is_plain, run in runs
        )

    return text


def backbone_text(backbone: Backbone) -> TextFormat:
    """Text of a language model's token ids, special tokens visible."""
    return text_format(backbone.detokenize, backbone.tokenize("a")[-1])


def text_targets(
    ids: Tensor, labels: Tensor, shared: int, backbone: Backbone
) -> Iterator[TokenTargets]:
    """Targets of conversations whose labels stand one position earlier than their ids.

    Args:
        ids: [B, N] token ids, PAD-padded.
        labels: [B, N], IGNORE where there is no target.
        shared: ids at the front that all rows have in common.
        backbone: the language model.
    """
    text, vocabulary, end_id = backbone_text(backbone), range(backbone.vocab_size), backbone.end_id
    lengths = (ids != PAD).sum(1).tolist()
    return token_targets(
        "text", ids, labels, lengths, vocabulary, vocabulary, end_id, text, shared=shared
    )


def token_targets(
    name: str,
    ids: Tensor,
    scored: Tensor,
    lengths: Sequence[int],
    vocabulary: range,
    swaps: range,
    end_id: int,
    text: TextFormat,
    *,
    shared: int = 0,
) -> Iterator[TokenTargets]:
    """Targets of sequences each of whose positions predicts the id after it.

    Args:
        name: of the targets among `Outputs.scored`.
        ids: [B, N] token ids.
        scored: [B, M] the id that comes next, IGNORE where that is no target.
        lengths: real positions of each row of `scored`.
        vocabulary: ids that may be predicted.
        swaps: ids that may be exchanged for each other in what is read.
        end_id: ends the targets.
        text: token ids -> text for people.
        shared: ids at the front that all rows have in common.
    """
    for row, (read, own, length) in enumerate(zip(ids, scored, lengths)):
        yield TokenTargets(
            row, name, read, own, 1, length, vocabulary, swaps, end_id, text, shared=shared
        )


def unit_targets(
    row: int, targets: Tensor, decoder: UnitDecoder, units: Sequence[int], given: str
) -> TokenTargets:
    """Targets of a unit decoder; with K codebooks those of the first, which has the marks.

    Args:
        row: in the batch.
        targets: [U * K] output ids, which the decoder reads too.
        decoder: the unit decoder.
        units: of the codec, for which the targets stand.
        given: the text that is spoken, "" where it is no part of the batch.
    """
    marks = {decoder.begin_id: "BEGIN", decoder.end_id: "END", decoder.next_id: "NEXT"}
    unit_tokens = range(decoder.unit_vocab_size)

    def text(ids: Sequence[int]) -> str:
        return " ".join(marks.get(token, str(token)) for token in ids)

    first, scored = _first_codebook(targets, decoder)
    length = length_with_end(first, decoder.end_id)
    # The decoder reads what it predicts, one step later: read and scored ids are the same.
    return TokenTargets(
        row,
        "units",
        first,
        scored,
        0,
        length,
        # Marks may be predicted, but only unit tokens are exchanged for each other.
        range(decoder.unit_vocab_size + len(marks)),
        unit_tokens,
        decoder.end_id,
        text,
        units,
        given=given,
    )


def _first_codebook(targets: Tensor, decoder: UnitDecoder) -> tuple[Tensor, Tensor]:
    """Ids [U] of the first codebook among targets [U * K], and those that the loss scores."""
    first = targets.unflatten(0, (-1, decoder.codebooks))[:, 0]
    if decoder.codebooks == 1:
        return first, first
    # BEGIN stands where a codebook has no code, which is not scored.
    return first, first.masked_fill(first == decoder.begin_id, IGNORE)


def length_with_end(targets: Tensor, end_id: int) -> int:
    """Number of targets [U] up to and with their end id; all where there is none."""
    ends = (targets == end_id).nonzero()
    return int(ends[0, 0]) + 1 if len(ends) else len(targets)


def unpadded_length(ids: Tensor, end_id: int) -> int:
    """Number of ids [N] without the end ids that pad them; the first of those is a row's own."""
    # The end id also stands within a row, so padding is looked for from behind.
    others = (ids != end_id).nonzero()
    return min(len(ids), int(others[-1, 0]) + 2) if len(others) else 0


def clip_targets(
    frames: Tensor,
    rate_hz: float,
    clip_rows: Sequence[int],
    places: Sequence[int | None],
    targets: Tensor,
    lengths: Tensor,
    ids: range,
    text: TextFormat,
) -> Iterator[CtcTargets]:
    """CTC targets of A clips.

    Args:
        frames: [A] of the encoder, before stacking.
        rate_hz: frames per second of the encoder.
        clip_rows: row of each clip.
        places: position of each clip in what its row's language model reads; None where there is
            none.
        targets: [A, S] ids that CTC is to find.
        lengths: [A] targets of each clip.
        ids: what CTC may emit, without the blank.
        text: ids -> text for people.
    """
    for row, place, count, own, length in zip(
        clip_rows, places, frames.tolist(), targets, lengths.tolist()
    ):
        yield CtcTargets(row, place, count / rate_hz, count, own, length, ids, text)


def padding_of_clips(clips: Features | Waveform) -> list[Tensor]:
    """Padding of each clip that has any, of its features or of its samples."""
    values = clips.samples if isinstance(clips, Waveform) else clips.values
    return padding_of_rows(values, clips.lengths)


def padding_of_rows(values: Tensor, lengths: Tensor) -> list[Tensor]:
    """Padding of each row that has any: values [B, N, ...], lengths [B]."""
    return [row[length:] for row, length in zip(values, lengths.tolist()) if length < len(row)]
