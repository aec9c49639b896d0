"""Units of a stream through the acoustic model and the vocoder, as far as no later unit changes.

The networks are stacks of convolutions, so every stage waits for the right context that its
receptive field needs, and keeps as much left context for the next chunk. Durations come first,
then mel frames, then samples; each stage runs once over what is new and its context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from echox.codecs.base import DecodeState
from echox.codecs.kmeans.acoustic_model import AcousticModel
from echox.codecs.kmeans.prosody import whole_frames
from echox.core.signals import valid_mask


@dataclass(frozen=True, slots=True)
class RowStream:
    """State of one row: what later units can still change, and the left context of that."""

    units: Tensor  # [U] int64
    expanded: int = 0  # how many of these units, from the first, already are frames
    beyond: float = 0.0  # frames beyond the first that all expanded units were predicted, unrounded
    frames: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    rendered: int = 0  # how many of the frames, each a unit [F], already are mel frames
    mel: Tensor | None = None  # [N, M]; None before the first frame
    sounded: int = 0  # how many of the mel frames already are samples


@dataclass(frozen=True, slots=True)
class StreamState(DecodeState):
    """State of a stream through the k-means codec."""

    rows: tuple[RowStream, ...]


@dataclass(frozen=True, slots=True)
class StreamDecoder:
    """Decodes chunks of units.

    Args:
        model: the acoustic model.
        vocode: log mel [N, M] of a row, and whether silence follows -> samples, N * hop of them or
            more.
        reach_frames: mel frames on either side that a sample depends on.
        hop_samples: samples of a mel frame.
    """

    model: AcousticModel
    vocode: Callable[[Tensor, bool], Tensor]
    reach_frames: int
    hop_samples: int

    def decode(
        self, streams: Sequence[RowStream], units: Sequence[Tensor], *, last: bool
    ) -> tuple[list[Tensor], list[RowStream]]:
        """Decode the next units of rows.

        Args:
            streams: state of each row.
            units: new units [U] of each row.
            last: no more units follow in any row.

        Returns:
            samples [T] of each row that are final now; the state of each row.
        """
        rows = [
            dataclasses.replace(stream, units=torch.cat([stream.units, new]))
            for stream, new in zip(streams, units, strict=True)
        ]
        rows = self._render(self._expand(rows, last), last)
        sounded = [self._sound(row, last) for row in rows]
        return [samples for samples, _ in sounded], [row for _, row in sounded]

    def _expand(self, rows: list[RowStream], last: bool) -> list[RowStream]:
        """Repeat units by their durations, those whose durations no later unit changes."""
        reach = self.model.durations.reach
        finals = [_final(len(row.units), row.expanded, reach, last) for row in rows]
        if all(final == row.expanded for final, row in zip(finals, rows)):
            return rows
        windows, keep = _batch([row.units for row in rows])
        expected = self.model.durations.expected(windows, keep)  # [B, U]
        return [
            _expanded(row, own, final, reach) for row, own, final in zip(rows, expected, finals)
        ]

    def _render(self, rows: list[RowStream], last: bool) -> list[RowStream]:
        """Predict the mel frames that no later unit changes."""
        reach = self.model.reach_frames
        finals = [_final(len(row.frames), row.rendered, reach, last) for row in rows]
        if all(final == row.rendered for final, row in zip(finals, rows)):
            return rows
        windows, keep = _batch([row.frames for row in rows])
        mel = self.model.render(windows, keep)  # [B, F * ratio, M]
        return [
            self._rendered(row, own, final, reach) for row, own, final in zip(rows, mel, finals)
        ]

    def _rendered(self, row: RowStream, mel: Tensor, final: int, reach: int) -> RowStream:
        ratio, cut = self.model.ratio, max(0, final - reach)
        new = mel[row.rendered * ratio : final * ratio]
        return dataclasses.replace(
            row,
            frames=row.frames[cut:],
            rendered=final - cut,
            mel=new if row.mel is None else torch.cat([row.mel, new]),
        )

    def _sound(self, row: RowStream, last: bool) -> tuple[Tensor, RowStream]:
        """Generate the samples [T] that no later mel frame changes."""
        if row.mel is None:
            return row.units.new_zeros(0, dtype=torch.float32), row
        final = _final(len(row.mel), row.sounded, self.reach_frames, last)
        if final == row.sounded:
            return row.mel.new_zeros(0), row
        new = slice(row.sounded * self.hop_samples, final * self.hop_samples)
        samples = self.vocode(row.mel, last)[new]
        cut = max(0, final - self.reach_frames)
        return samples, dataclasses.replace(row, mel=row.mel[cut:], sounded=final - cut)


def _final(count: int, done: int, reach: int, last: bool) -> int:
    """How many entries of a window are final: all at the end, else those with their context."""
    return count if last else max(done, count - reach)


def _batch(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Windows [N] of B rows -> [B, N], and bool [B, N], False on padding."""
    windows = pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=windows.device)
    return windows, valid_mask(lengths, windows.shape[1])


def _expanded(row: RowStream, expected: Tensor, final: int, reach: int) -> RowStream:
    new = slice(row.expanded, final)
    counts, beyond = whole_frames(expected[None, new], row.beyond)
    cut = max(0, final - reach)
    return dataclasses.replace(
        row,
        units=row.units[cut:],
        expanded=final - cut,
        beyond=float(beyond),
        frames=torch.cat([row.frames, row.units[new].repeat_interleave(counts[0])]),
    )
