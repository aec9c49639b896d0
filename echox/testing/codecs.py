"""The contract of a codec; see `echox.codecs.base.Codec`."""

from __future__ import annotations

import torch
from torch import Tensor

from echox.codecs.base import CODECS, Codec, CodecConfig, DecodeState
from echox.data.text import edit_distance
from echox.signals import Units, Waveform
from echox.testing import has_a_stable_fingerprint, survives_a_checkpoint
from echox.testing.speech import EDGE_FRAMES, noise, only_row, refuses_other_rates

# Batching changes the order of float32 sums, and a frame that lies between two units may then go to the other one.
DIFFERING_UNITS = 0.02
SAMPLE_TOLERANCE = 1e-3
# A chunk is summed in another order than the whole, no more.
CHUNK_TOLERANCE = 1e-5
CHUNKS = (3, 0, 1, 4)  # units in the first chunks, the rest in the last one


def attributes_are_stated(config: CodecConfig) -> None:
    codec = _build(config)
    for name in ("rate_hz", "unit_rate_hz", "vocab_size", "word_count", "codebooks"):
        value = getattr(codec, name, None)
        assert isinstance(value, (int, float)) and value > 0, f"{type(codec).__name__}.{name} must be a positive number, not {value!r}"


def sizes_are_known_before_it_is_built(config: CodecConfig) -> None:
    codec, implementation = _build(config), CODECS.entry_of(config).implementation
    reason = implementation.why_mute(config)
    assert (reason is None) is codec.decodes, f"decodes is {codec.decodes}, and why_mute says {reason!r}"
    known = (implementation.expected_word_count(config), implementation.expected_codebooks(config))
    assert known == (codec.word_count, codec.codebooks), f"{known} words and codebooks were expected, and there are {(codec.word_count, codec.codebooks)}"


def it_is_ready(config: CodecConfig) -> None:
    assert CODECS.entry_of(config).implementation.is_ready(config) is True, "is_ready must say True of a codec that can be built"


def units_fit(config: CodecConfig) -> None:
    codec = _build(config)
    if not codec.encodes:
        return
    lengths = [codec.rate_hz, codec.rate_hz // 2]
    units = _encode(codec, noise(codec.rate_hz, lengths))
    shape = list(units.ids.shape[:-1])
    assert units.ids.dtype == torch.int64 and shape == ([2] if codec.codebooks == 1 else [2, codec.codebooks]), (
        f"ids must be int64 [B, U], or [B, K, U] of {codec.codebooks} codebooks, not {units.ids.dtype} {[*shape, 'U']}"
    )
    assert units.lengths.dtype == torch.int64 and tuple(units.lengths.shape) == (2,), "lengths must be int64 [B]"
    assert units.rate_hz in (None, codec.unit_rate_hz), (
        f"rate_hz must be {codec.unit_rate_hz}, or None where repeats are merged, not {units.rate_hz}"
    )
    assert codec.merges is (units.rate_hz is None), f"merges is {codec.merges}, but rate_hz of units is {units.rate_hz}"
    for samples, row in zip(lengths, _rows(units)):
        assert row.numel() and 0 <= int(row.min()) <= int(row.max()) < codec.vocab_size, f"units must lie in 0..{codec.vocab_size - 1}"
        at_most = samples / codec.rate_hz * codec.unit_rate_hz + EDGE_FRAMES
        assert row.shape[-1] <= at_most, (
            f"{samples} samples gave {row.shape[-1]} units; {codec.unit_rate_hz} a second make at most {at_most:.0f}"
        )


def padding_and_neighbours_do_not_matter_to_units(config: CodecConfig) -> None:
    codec = _build(config)
    if not codec.encodes:
        return
    wave = noise(codec.rate_hz, [codec.rate_hz // 2, codec.rate_hz])
    for row, together in enumerate(_rows(_encode(codec, wave))):
        (alone,) = _rows(_encode(codec, only_row(wave, row)))
        differing = edit_distance(together.flatten().tolist(), alone.flatten().tolist())
        assert differing <= DIFFERING_UNITS * alone.numel(), (
            f"{differing} of {alone.numel()} units changed with the row's neighbours or its padding"
        )


def other_rates_are_refused(config: CodecConfig) -> None:
    codec = _build(config)
    if not codec.encodes:
        return
    refuses_other_rates(codec.encode, codec.rate_hz)


def speech_fits(config: CodecConfig) -> None:
    codec = _build(config)
    if not codec.decodes:
        return
    wave = _decode(codec, _some_units(codec))
    assert wave.rate_hz == codec.rate_hz, f"decode gave {wave.rate_hz} Hz, the codec's rate is {codec.rate_hz} Hz"
    assert wave.samples.dtype == torch.float32 and wave.samples.ndim == 2, "samples must be float32 [B, T]"
    assert tuple(wave.lengths.shape) == (wave.samples.shape[0],), "lengths must be [B]"
    for samples in _sounds(wave):
        assert len(samples), "units gave no sound"
        assert bool(samples.isfinite().all()) and float(samples.abs().max()) <= 1.0, "samples must be finite and in [-1, 1]"


def padding_and_neighbours_do_not_matter_to_speech(config: CodecConfig) -> None:
    codec = _build(config)
    if not codec.decodes:
        return
    units = _some_units(codec)
    together = _sounds(_decode(codec, units))
    for row, length in enumerate(units.lengths.tolist()):
        (alone,) = _sounds(_decode(codec, Units(units.ids[row : row + 1, ..., :length], units.lengths[row : row + 1], units.rate_hz)))
        assert len(together[row]) == len(alone), f"a row has {len(together[row])} samples in a batch and {len(alone)} on its own"
        worst = float((together[row] - alone).abs().max())
        assert worst <= SAMPLE_TOLERANCE, f"a row's speech changed by up to {worst:.3g} with its neighbours or its padding"


def the_same_units_sound_the_same(config: CodecConfig) -> None:
    codec = _build(config)
    if not codec.decodes:
        return
    first, second = _decode(codec, _some_units(codec)), _decode(codec, _some_units(codec))
    assert torch.equal(first.samples, second.samples), "decoding the same units twice gave two different sounds"


def chunks_sound_like_the_whole(config: CodecConfig) -> None:
    codec = _build(config)
    if not codec.decodes:
        return
    units = _some_units(codec)
    whole = _sounds(_decode(codec, units))
    cut = [sum(CHUNKS[:count]) for count in range(len(CHUNKS) + 1)]
    state, waves, states = None, [], []
    for number, start in enumerate(cut):
        last = number == len(cut) - 1
        chunk = _slice(units, start, units.ids.shape[-1] if last else cut[number + 1])
        states.append(state)
        wave, state = _decode_chunk(codec, chunk, state, last)
        waves.append((chunk, last, wave))
    for row, sound in enumerate(whole):
        joined = torch.cat([_sounds(wave)[row] for _, _, wave in waves])
        assert len(joined) == len(sound), f"a row has {len(sound)} samples whole and {len(joined)} in chunks"
        worst = float((joined - sound).abs().max())
        assert worst <= CHUNK_TOLERANCE, f"a row's speech in chunks is up to {worst:.3g} away from the whole"
    for (chunk, last, wave), state in zip(waves, states):
        again, _ = _decode_chunk(codec, chunk, state, last)
        assert torch.equal(again.samples, wave.samples), "a chunk decoded again from the same state sounds otherwise: the state was changed"


def a_codec_that_streams_speaks_before_the_last_chunk(config: CodecConfig) -> None:
    codec = _build(config)
    if not codec.decodes:
        return
    wave, _ = _decode_chunk(codec, _units(codec, [codec.rate_hz]), None, last=False)
    heard = int(wave.lengths.max())
    assert (heard > 0) is codec.streams, f"streams is {codec.streams}, but a second of units gave {heard} samples before the last chunk"


def nothing_is_taken(config: CodecConfig) -> None:
    codec = _build(config)
    if codec.encodes:
        wave = Waveform(torch.zeros(2, codec.rate_hz), torch.tensor([codec.rate_hz, 0]), codec.rate_hz)
        assert int(_encode(codec, wave).lengths[1]) == 0, "a row without samples must give no unit"
    if not codec.decodes:
        return
    units = _some_units(codec)
    emptied = Units(units.ids, units.lengths * torch.tensor([1, 0]), units.rate_hz)
    assert int(_decode(codec, emptied).lengths[1]) == 0, "a row without units must give a waveform of length 0"
    assert _decode(codec, Units(units.ids, units.lengths * 0, units.rate_hz)).lengths.tolist() == [0, 0], (
        "empty rows alone must be taken too"
    )


def words_are_another_spelling_of_units(config: CodecConfig) -> None:
    codec = _build(config)
    for units in _units(codec, [codec.rate_hz, codec.rate_hz // 3]).rows():
        words = codec.words(units)
        assert len(words) <= len(units), f"{len(units)} units became {len(words)} words; a word is one unit or several"
        assert all(0 <= word < codec.word_count for word in words), f"words must lie in 0..{codec.word_count - 1}"
        assert codec.units_of(words) == units, "units_of does not undo words"
    assert codec.words([]) == [] and codec.units_of([]) == [], "no units are no words"


def config_survives_a_checkpoint(config: CodecConfig) -> None:
    survives_a_checkpoint(CODECS, config)


def fingerprint_is_stable(config: CodecConfig) -> None:
    has_a_stable_fingerprint(lambda: _build(config))


CHECKS = (
    attributes_are_stated,
    sizes_are_known_before_it_is_built,
    it_is_ready,
    units_fit,
    padding_and_neighbours_do_not_matter_to_units,
    other_rates_are_refused,
    speech_fits,
    padding_and_neighbours_do_not_matter_to_speech,
    the_same_units_sound_the_same,
    chunks_sound_like_the_whole,
    a_codec_that_streams_speaks_before_the_last_chunk,
    nothing_is_taken,
    words_are_another_spelling_of_units,
    config_survives_a_checkpoint,
    fingerprint_is_stable,
)


def _build(config: CodecConfig) -> Codec:
    torch.manual_seed(0)
    return CODECS.build(config).eval()


@torch.no_grad()
def _encode(codec: Codec, wave: Waveform) -> Units:
    return codec.encode(wave)


@torch.no_grad()
def _decode(codec: Codec, units: Units) -> Waveform:
    return codec.decode(units)


@torch.no_grad()
def _decode_chunk(codec: Codec, units: Units, state: DecodeState | None, last: bool) -> tuple[Waveform, DecodeState]:
    return codec.decode_chunk(units, state, last=last)


def _slice(units: Units, start: int, end: int) -> Units:
    """Units `start` to `end` of every row."""
    return Units(units.ids[..., start:end], (units.lengths - start).clamp(0, end - start), units.rate_hz)


def _units(codec: Codec, samples: list[int]) -> Units:
    """Units of noise of so many samples; drawn at random where the codec has no encoder."""
    if codec.encodes:
        return _encode(codec, noise(codec.rate_hz, samples))
    lengths = torch.tensor([int(count / codec.rate_hz * codec.unit_rate_hz) for count in samples])
    ids = torch.randint(codec.vocab_size, (len(samples), int(lengths.max())), generator=torch.Generator().manual_seed(0))
    return Units(ids, lengths, None)


def _some_units(codec: Codec) -> Units:
    """Of noise, two rows of different length, with units no codec has behind the shorter one's end."""
    units = _units(codec, [codec.rate_hz // 2, codec.rate_hz // 4])
    ids = units.ids.clone()
    for row, length in enumerate(units.lengths.tolist()):
        ids[row, ..., length:] = codec.vocab_size + 7
    return Units(ids, units.lengths, units.rate_hz)


def _rows(units: Units) -> list[Tensor]:
    return [ids[..., :length] for ids, length in zip(units.ids, units.lengths.tolist())]


def _sounds(wave: Waveform) -> list[Tensor]:
    return [samples[:length] for samples, length in zip(wave.samples, wave.lengths.tolist())]
