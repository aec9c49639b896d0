"""The unit HiFi-GAN decodes units in chunks as it does at once."""

import pytest
import torch

from echox.codecs.base import PendingUnits
from echox.codecs.unit_hifigan import UnitHifiGan, UnitHifiGanConfig
from echox.core.errors import SignalError
from echox.core.signals import Units
from echox.vocoders.layout import TINY, build_generator, normed, write_vocoder

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["one speaker", "several speakers", "no durations"])
def codec(request, tmp_path_factory):
    """A vocoder of such large weights that a wrong context changes the samples measurably."""
    folder = tmp_path_factory.mktemp("vocoder")
    several = {"multispkr": "_", "model_in_dim": 8, "num_speakers": 3}
    settings = (
        TINY
        | {
            "one speaker": {},
            "several speakers": several,
            "no durations": {"dur_predictor_params": None},
        }[request.param]
    )
    torch.manual_seed(0)
    net = build_generator(settings, folder)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.mul_(2.0 if "vocoder" in name and parameter.ndim > 1 else 1.0)
        if net.predictor is not None:
            net.predictor.out.bias.fill_(1.3)
    write_vocoder(folder, normed(net), settings, 1)
    return UnitHifiGan(UnitHifiGanConfig(folder=str(folder), speaker=1))


def random_units(codec, count):
    return torch.randint(codec.vocab_size, (count,), generator=torch.Generator().manual_seed(count))


def decoded_chunks(codec, units, sizes):
    """Samples of one row in chunks of the given sizes, the rest in the last one."""
    state, chunks = None, []
    pieces = [*units.split([*sizes, len(units) - sum(sizes)])]
    for number, piece in enumerate(pieces):
        wave, state = codec.decode_chunk(
            Units(piece[None], torch.tensor([len(piece)]), None),
            state,
            last=number == len(pieces) - 1,
        )
        chunks.append(wave.samples[0, : int(wave.lengths[0])])
    return chunks


@pytest.mark.parametrize(
    "sizes",
    [[1] * 39, [7] * 5, [0, 20, 0, 1], [39], []],
    ids=["ones", "sevens", "ragged", "all but one", "whole"],
)
def test_chunks_equal_decoding_at_once(codec, sizes):
    units = random_units(codec, 40)
    whole, chunks = codec.sound(units), decoded_chunks(codec, units, sizes)
    assert float(whole.std()) > 1e-2
    joined = torch.cat(chunks)
    assert len(joined) == len(whole) and float((joined - whole).abs().max()) <= TOLERANCE
    if len(sizes) == 39:
        # The first samples come as soon as the units after them fill the receptive fields.
        first = next(number for number, samples in enumerate(chunks) if len(samples))
        assert first <= codec.reach_frames[1] + codec.reach_units


def test_rows_of_a_batch_stream_independently(codec):
    rows = [random_units(codec, 30), random_units(codec, 11)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    state, chunks = None, [[], []]
    for start in range(0, 30, 6):
        lengths = torch.tensor([min(6, max(0, len(row) - start)) for row in rows])
        wave, state = codec.decode_chunk(
            Units(ids[:, start : start + 6], lengths, None), state, last=start == 24
        )
        for row, length in enumerate(wave.lengths.tolist()):
            chunks[row].append(wave.samples[row, :length])
    for row, pieces in zip(rows, chunks):
        torch.testing.assert_close(torch.cat(pieces), codec.sound(row), atol=TOLERANCE, rtol=0)


def test_the_state_of_a_stream_does_not_grow(codec):
    state = None
    for _ in range(30):
        piece = random_units(codec, 8)
        _, state = codec.decode_chunk(
            Units(piece[None], torch.tensor([8]), None), state, last=False
        )
    (row,) = state.rows
    longest = int(codec.net.durations(random_units(codec, 400))[1].max())
    assert len(row.units) <= 2 * codec.reach_units + 1
    assert len(row.frames) <= sum(codec.reach_frames) + 8 * longest


def test_an_unknown_unit_in_a_stream_is_refused_by_number(codec):
    beyond = Units(torch.tensor([[codec.vocab_size]]), torch.tensor([1]), None)
    with pytest.raises(SignalError, match=f"unit {codec.vocab_size} is beyond"):
        codec.decode_chunk(beyond, None, last=True)


def test_a_stream_does_not_go_on_from_the_state_of_another_codec(codec):
    units = Units.of_rows([(1, 2)], 1, torch.device("cpu"))
    with pytest.raises(SignalError, match="from a StreamState, and not from a PendingUnits"):
        codec.decode_chunk(units, PendingUnits(()), last=True)
