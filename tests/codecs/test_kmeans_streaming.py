"""Streams through the k-means codec: the samples of one pass, whatever the chunks are."""

import pytest
import torch

from echox.codecs.base import CODECS
from echox.codecs.kmeans import KMeansCodecConfig
from echox.codecs.kmeans.acoustic_model import AcousticModel, AcousticModelSizes
from echox.codecs.kmeans.prosody import whole_frames
from echox.codecs.kmeans.vocoder import REACH_FRAMES, GriffinLim
from echox.core.signals import Units
from echox.vocoders.mel import MelRecipe

# The depths of a fitted codec, whose receptive fields a stream waits for.
SIZES = AcousticModelSizes(prosody_channels=8, mel_channels=8)


@pytest.fixture(scope="module")
def codec():
    codec = CODECS.build(KMeansCodecConfig(folder="random"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        codec.speaker = AcousticModel(codec.vocab_size, SIZES, codec.speaker.ratio, MelRecipe())
        # Durations of several frames, which no chunk border divides alike.
        codec.speaker.durations.head.weight.data.mul_(3.0)
    return codec.requires_grad_(False).eval()


def chunks_of(codec, units, sizes):
    """The samples of each chunk, row by row, and the last state."""
    parts, state, at = [], None, 0
    for number, size in enumerate(sizes):
        ids = units.ids[:, at : at + size]
        lengths = (units.lengths - at).clamp(0, ids.shape[1])
        last = number == len(sizes) - 1
        wave, state = codec.decode_chunk(Units(ids, lengths, None), state, last=last)
        parts.append([row[:length] for row, length in zip(wave.samples, wave.lengths.tolist())])
        at += size
    return parts, state


@pytest.mark.parametrize("sizes", [[150], [1] * 150, [7, 0, 33, 60, 50], [40, 40, 40, 30]])
def test_chunks_are_the_whole_in_a_batch_of_rows_of_different_length(codec, sizes):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(codec.vocab_size, (3, 150), generator=generator)
    units = Units(ids, torch.tensor([150, 88, 0]), None)
    whole = codec.decode(units)
    parts, _ = chunks_of(codec, units, sizes)
    for row, length in enumerate(whole.lengths.tolist()):
        joined = torch.cat([part[row] for part in parts])
        assert len(joined) == length
        assert torch.allclose(joined, whole.samples[row, :length], atol=1e-5)
    if len(sizes) == 4:
        heard = [len(part[0]) for part in parts]
        assert all(heard[1:]), "every chunk but the first gives samples"


def test_a_stream_keeps_no_more_than_its_context(codec):
    ids = torch.randint(codec.vocab_size, (1, 400), generator=torch.Generator().manual_seed(2))
    units = Units(ids, torch.tensor([400]), None)
    state = None
    for at in range(0, 400, 50):
        chunk = Units(units.ids[:, at : at + 50], torch.tensor([50]), None)
        _, state = codec.decode_chunk(chunk, state, last=False)
    (row,) = state.rows
    # On either side of what comes next stands a receptive field.
    assert len(row.units) == 2 * codec.speaker.durations.reach
    assert len(row.frames) == 2 * codec.speaker.reach_frames
    assert len(row.mel) == 2 * REACH_FRAMES


def test_no_border_of_a_chunk_can_be_heard(codec):
    ids = torch.randint(codec.vocab_size, (1, 150), generator=torch.Generator().manual_seed(3))
    units = Units(ids, torch.tensor([150]), None)
    parts, _ = chunks_of(codec, units, [30] * 5)
    joined = torch.cat([part[0] for part in parts])
    borders = torch.tensor([len(part[0]) for part in parts[:-1]]).cumsum(0)
    slope = joined.diff().abs()
    assert slope[borders - 1].max() <= slope.max()


def test_whole_frames_of_chunks_add_up():
    expected = 3 * torch.rand(1, 1000, generator=torch.Generator().manual_seed(0))
    whole, total = whole_frames(expected)
    first, before = whole_frames(expected[:, :333])
    rest, after = whole_frames(expected[:, 333:], float(before))
    assert torch.equal(torch.cat([first, rest], 1), whole) and float(after) == float(total)
    assert abs(float(whole.sum()) - 1000 - float(total)) <= 0.5


def test_griffin_lim_waits_for_the_end(codec, monkeypatch):
    monkeypatch.setattr(codec, "vocoder", GriffinLim(MelRecipe()))
    monkeypatch.setattr(codec, "streams", codec.vocoder.streams)
    ids = torch.randint(codec.vocab_size, (1, 60), generator=torch.Generator().manual_seed(4))
    parts, _ = chunks_of(codec, Units(ids, torch.tensor([60]), None), [30, 30])
    assert len(parts[0][0]) == 0 < len(parts[1][0])
