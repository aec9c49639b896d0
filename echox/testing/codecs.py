"""The contract of a codec; see `echox.codecs.base.Codec`.

A codec that has to be fitted is fitted to some seconds of made speech first, once for all rules, in
a temporary folder. The settings of its fit are the config's, so a test gives small ones.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echox.codecs.base import CODECS, Codec, CodecConfig, DecodeState
from echox.core.device import device_named
from echox.core.signals import EDGE_FRAMES, Units, Waveform
from echox.data.text import edit_distance
from echox.testing.rules import Rule, has_a_stable_fingerprint, survives_a_checkpoint
from echox.testing.speech import made_speech, noise, only_row, refuses_other_rates

# Batching changes the order of float32 sums, and a frame between two units may then get the other.
DIFFERING_UNITS = 0.02
SAMPLE_TOLERANCE = 1e-3
# A chunk is summed in another order than the whole, no more.
CHUNK_TOLERANCE = 1e-5
# An empty chunk and a single unit too; the rest of the units is the last chunk.
CHUNKS = (3, 0, 1, 4)


def attributes_are_stated(config: CodecConfig) -> None:
    """Check that the codec states its rates and its sizes.

    Raises:
        AssertionError: an attribute is missing or not positive.
    """
    codec = _build(config)
    for name in ("rate_hz", "unit_rate_hz", "vocab_size", "unit_vocab_size", "codebooks"):
        value = getattr(codec, name, None)
        assert isinstance(value, (int, float)) and value > 0, (
            f"{type(codec).__name__}.{name} must be a positive number, not {value!r}"
        )


def sizes_are_known_before_it_is_built(config: CodecConfig) -> None:
    """Check that the config alone tells the sizes of the unit vocabulary and the codebooks.

    Raises:
        AssertionError: a size differs from that of the codec, or `cannot_decode_reason` does.
    """
    codec, implementation = _build(config), CODECS.entry_of(config).implementation
    # Models and dry runs read these from the config, before there are any weights.
    reason = implementation.cannot_decode_reason(config)
    assert (reason is None) is codec.decodes, (
        f"decodes is {codec.decodes}, and cannot_decode_reason says {reason!r}"
    )
    expected = (
        implementation.expected_unit_vocab_size(config),
        implementation.expected_codebooks(config),
    )
    sizes = (codec.unit_vocab_size, codec.codebooks)
    assert expected == sizes, f"{expected} words and codebooks were expected, and there are {sizes}"


def it_is_ready(config: CodecConfig) -> None:
    """Check that `is_ready` is true of a codec that can be built, and its folder agrees with it.

    Raises:
        AssertionError: it is not ready.
        ConfigError: `check_folder` refuses the folder that this very config was fitted to.
    """
    implementation = CODECS.entry_of(config).implementation
    assert implementation.is_ready(config) is True, (
        "is_ready must say True of a codec that can be built, and of one that was fitted"
    )
    implementation.check_folder(config)


def units_fit(config: CodecConfig) -> None:
    """Check that units are ids [B, U], or [B, K, U] of K codebooks, at the rate the codec states.

    Raises:
        AssertionError: a shape, a dtype, a rate or an id is wrong.
    """
    codec = _build(config)
    if not codec.encodes:
        return
    lengths = [codec.rate_hz, codec.rate_hz // 2]
    units = _encode(codec, noise(codec.rate_hz, lengths))
    _check_unit_shapes(codec, units)
    assert units.rate_hz in (None, codec.unit_rate_hz), (
        f"rate_hz must be {codec.unit_rate_hz}, or None where repeats are merged, "
        f"not {units.rate_hz}"
    )
    assert codec.merges is (units.rate_hz is None), (
        f"merges is {codec.merges}, but rate_hz of units is {units.rate_hz}"
    )
    for samples, row in zip(lengths, _rows(units)):
        # Noise is no silence, so each row has units.
        assert row.numel() and 0 <= int(row.min()) <= int(row.max()) < codec.vocab_size, (
            f"units must lie in 0..{codec.vocab_size - 1}"
        )
        # At most: merged repeats leave fewer.
        at_most = samples / codec.rate_hz * codec.unit_rate_hz + EDGE_FRAMES
        assert row.shape[-1] <= at_most, (
            f"{samples} samples gave {row.shape[-1]} units; "
            f"{codec.unit_rate_hz} a second make at most {at_most:.0f}"
        )


def _check_unit_shapes(codec: Codec, units: Units) -> None:
    shape = list(units.ids.shape[:-1])
    expected = [2] if codec.codebooks == 1 else [2, codec.codebooks]
    assert units.ids.dtype == torch.int64 and shape == expected, (
        f"ids must be int64 [B, U], or [B, K, U] of {codec.codebooks} codebooks, "
        f"not {units.ids.dtype} {[*shape, 'U']}"
    )
    assert units.lengths.dtype == torch.int64 and tuple(units.lengths.shape) == (2,), (
        "lengths must be int64 [B]"
    )


def padding_and_neighbours_do_not_matter_to_units(config: CodecConfig) -> None:
    """Check that a row has the same units alone and in a batch.

    Raises:
        AssertionError: more than `DIFFERING_UNITS` of them differ.
    """
    codec = _build(config)
    if not codec.encodes:
        return
    wave = noise(codec.rate_hz, [codec.rate_hz // 2, codec.rate_hz])
    for row, together in enumerate(_rows(_encode(codec, wave))):
        (alone,) = _rows(_encode(codec, only_row(wave, row)))
        # A distance, since one unit more, where repeats are merged, moves all behind it.
        changed = edit_distance(together.flatten().tolist(), alone.flatten().tolist())
        assert changed <= DIFFERING_UNITS * alone.numel(), (
            f"{changed} of {alone.numel()} units changed with the row's neighbours or its padding"
        )


def other_rates_are_refused(config: CodecConfig) -> None:
    """Check that audio of another rate is refused.

    Raises:
        AssertionError: it is encoded.
    """
    codec = _build(config)
    # A codec of units alone, such as a vocoder, reads no audio.
    if not codec.encodes:
        return
    refuses_other_rates(codec.encode, codec.rate_hz)


def speech_fits(config: CodecConfig) -> None:
    """Check that units are decoded into samples [B, T] float32 in [-1, 1].

    Raises:
        AssertionError: a shape, a dtype, a rate or a sample is wrong.
    """
    codec = _build(config)
    if not codec.decodes:
        return
    # Units and padding of two rows, as a batch of answers has them.
    wave = _decode(codec, _some_units(codec))
    assert wave.rate_hz == codec.rate_hz, (
        f"decode gave {wave.rate_hz} Hz, the codec's rate is {codec.rate_hz} Hz"
    )
    assert wave.samples.dtype == torch.float32 and wave.samples.ndim == 2, (
        "samples must be float32 [B, T]"
    )
    assert tuple(wave.lengths.shape) == (wave.samples.shape[0],), "lengths must be [B]"
    for samples in _clips(wave):
        assert len(samples), "units gave no sound"
        assert bool(samples.isfinite().all()) and float(samples.abs().max()) <= 1.0, (
            "samples must be finite and in [-1, 1]"
        )


def padding_and_neighbours_do_not_matter_to_speech(config: CodecConfig) -> None:
    """Check that a row has the same samples alone and in a batch.

    Raises:
        AssertionError: a sample differs by more than `SAMPLE_TOLERANCE`, or the length does.
    """
    codec = _build(config)
    if not codec.decodes:
        return
    units = _some_units(codec)
    together = _clips(_decode(codec, units))
    for row, length in enumerate(units.lengths.tolist()):
        ids, lengths = units.ids[row : row + 1, ..., :length], units.lengths[row : row + 1]
        (alone,) = _clips(_decode(codec, Units(ids, lengths, units.rate_hz)))
        # Lengths first, since clips of two lengths cannot be subtracted.
        assert len(together[row]) == len(alone), (
            f"a row has {len(together[row])} samples in a batch and {len(alone)} on its own"
        )
        worst = float((together[row] - alone).abs().max())
        assert worst <= SAMPLE_TOLERANCE, (
            f"a row's speech changed by up to {worst:.3g} with its neighbours or its padding"
        )


def the_same_units_sound_the_same(config: CodecConfig) -> None:
    """Check that decoding draws no random numbers.

    Raises:
        AssertionError: the same units give other samples the second time.
    """
    codec = _build(config)
    if not codec.decodes:
        return
    first, second = _decode(codec, _some_units(codec)), _decode(codec, _some_units(codec))
    assert torch.equal(first.samples, second.samples), (
        "decoding the same units twice gave two different sounds"
    )


def chunks_sound_like_the_whole(config: CodecConfig) -> None:
    """Check that decoding in chunks gives the samples of one pass, and keeps its states.

    Raises:
        AssertionError: a sample differs by more than `CHUNK_TOLERANCE`, or a state was
            changed in place.
    """
    codec = _build(config)
    if not codec.decodes:
        return
    units = _some_units(codec)
    one_pass = _clips(_decode(codec, units))
    chunks = _decode_chunks(codec, units)
    for row, clip in enumerate(one_pass):
        # A chunk may give no samples yet, which the state then holds back.
        joined = torch.cat([_clips(chunk.wave)[row] for chunk in chunks])
        assert len(joined) == len(clip), (
            f"a row has {len(clip)} samples whole and {len(joined)} in chunks"
        )
        worst = float((joined - clip).abs().max())
        assert worst <= CHUNK_TOLERANCE, (
            f"a row's speech in chunks is up to {worst:.3g} away from the whole"
        )
    # After all chunks: a state that is changed in place gives other samples now.
    for chunk in chunks:
        again, _ = _decode_chunk(codec, chunk.units, chunk.state, chunk.last)
        assert torch.equal(again.samples, chunk.wave.samples), (
            "a chunk decoded again from the same state sounds otherwise: the state was changed"
        )


@dataclasses.dataclass(frozen=True)
class _Chunk:
    units: Units
    state: DecodeState | None  # before the chunk
    last: bool
    wave: Waveform


def _decode_chunks(codec: Codec, units: Units) -> list[_Chunk]:
    """Decode units in chunks of `CHUNKS`, and the rest in a last one."""
    starts = [sum(CHUNKS[:count]) for count in range(len(CHUNKS) + 1)]
    ends = [*starts[1:], units.ids.shape[-1]]
    chunks: list[_Chunk] = []
    state = None
    for number, (start, end) in enumerate(zip(starts, ends)):
        chunk, last = _slice(units, start, end), number == len(CHUNKS)
        wave, next_state = _decode_chunk(codec, chunk, state, last)
        chunks.append(_Chunk(chunk, state, last, wave))
        state = next_state
    return chunks


def a_codec_that_streams_speaks_before_the_last_chunk(config: CodecConfig) -> None:
    """Check that `streams` tells whether samples come before the last chunk.

    Raises:
        AssertionError: it does not.
    """
    codec = _build(config)
    if not codec.decodes:
        return
    # A second of units is enough for any decoder that is to answer while it generates. Of speech,
    # since noise may be one unit throughout for a codec that was fitted to speech.
    wave, _ = _decode_chunk(codec, _second_of_speech(codec), None, last=False)
    samples = int(wave.lengths.max())
    assert (samples > 0) is codec.streams, (
        f"streams is {codec.streams}, but a second of units gave {samples} samples "
        "before the last chunk"
    )


def nothing_is_taken(config: CodecConfig) -> None:
    """Check that rows without samples or units are encoded and decoded into nothing.

    Raises:
        AssertionError: such a row has units or samples, or raises an error.
    """
    codec = _build(config)
    if codec.encodes:
        lengths = torch.tensor([codec.rate_hz, 0])
        wave = Waveform(torch.zeros(2, codec.rate_hz), lengths, codec.rate_hz)
        assert int(_encode(codec, wave).lengths[1]) == 0, "a row without samples must give no unit"
    if not codec.decodes:
        return
    units = _some_units(codec)
    # As in a batch in which one answer has no units.
    one_empty = Units(units.ids, units.lengths * torch.tensor([1, 0]), units.rate_hz)
    assert int(_decode(codec, one_empty).lengths[1]) == 0, (
        "a row without units must give a waveform of length 0"
    )
    both_empty = Units(units.ids, units.lengths * 0, units.rate_hz)
    assert _decode(codec, both_empty).lengths.tolist() == [0, 0], (
        "empty rows alone must be taken too"
    )


def words_are_another_spelling_of_units(config: CodecConfig) -> None:
    """Check that `units_of` undoes `unit_tokens_of`, whose ids are in the unit vocabulary.

    Raises:
        AssertionError: other units come back, or a word is out of range.
    """
    codec = _build(config)
    for units in _units(codec, [codec.rate_hz, codec.rate_hz // 3]).rows():
        # A language model's vocabulary may merge several units into one word.
        words = codec.unit_tokens_of(units)
        assert len(words) <= len(units), (
            f"{len(units)} units became {len(words)} words; a word is one unit or several"
        )
        assert all(0 <= word < codec.unit_vocab_size for word in words), (
            f"words must lie in 0..{codec.unit_vocab_size - 1}"
        )
        assert codec.units_of(words) == units, "units_of does not undo unit_tokens_of"
    assert codec.unit_tokens_of([]) == [] and codec.units_of([]) == [], "no units are no words"


def config_survives_a_checkpoint(config: CodecConfig) -> None:
    """Check that the config comes back from the data that a checkpoint records of it.

    Raises:
        AssertionError: another config comes back.
    """
    survives_a_checkpoint(CODECS, config)


def fingerprint_is_stable(config: CodecConfig) -> None:
    """Check that two builds have one fingerprint.

    Raises:
        AssertionError: the fingerprint is no text, or differs.
    """
    has_a_stable_fingerprint(lambda: _build(config))


_RULES: tuple[Rule, ...] = (
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


@dataclasses.dataclass(frozen=True)
class _Fit:
    """What came of fitting a codec, once for all rules."""

    config: CodecConfig
    error: Exception | None
    temporary: tempfile.TemporaryDirectory[str]  # the folder is deleted with this value


_FITS: dict[tuple[type[Codec], str], _Fit] = {}


def _fit_of(config: CodecConfig) -> _Fit | None:
    """Fit a codec to made speech in a temporary folder; None where it is ready as it is."""
    implementation = CODECS.entry_of(config).implementation
    if implementation.is_ready(config):
        return None
    assert any(field.name == "folder" for field in dataclasses.fields(config)), (
        f"{type(config).__name__} needs a field `folder`, where a codec that is fitted is written"
    )
    # Configs cannot be keys, since they can be changed.
    key = (implementation, json.dumps(CODECS.describe(config), sort_keys=True))
    if key not in _FITS:
        temporary = tempfile.TemporaryDirectory(prefix="echox-contract-")
        changed: dict[str, Any] = {"folder": str(Path(temporary.name) / "codec")}
        fitted = dataclasses.replace(config, **changed)
        error = None
        try:
            speech = made_speech(implementation.fit_rate_hz(fitted))
            implementation.fit(fitted, speech, device_named("cpu"))
        except Exception as raised:
            error = raised
        _FITS[key] = _Fit(fitted, error, temporary)
    return _FITS[key]


def a_fit_makes_it_ready(config: CodecConfig) -> None:
    """Check that a codec that is not ready can be fitted to some seconds of speech.

    Raises:
        AssertionError: its config has no `folder`, it is not ready after its fit, or the sizes
            that the config tells before are below those after it.
        Exception: whatever the fit raises.
    """
    fit = _fit_of(config)
    if fit is None:
        return
    if fit.error is not None:
        raise fit.error
    implementation = CODECS.entry_of(config).implementation
    assert implementation.is_ready(fit.config) is True, (
        "is_ready must say True of the folder that fit wrote"
    )
    # A dry run and the models' shapes read it before there is a fit; a language may learn less.
    before = implementation.expected_unit_vocab_size(config)
    after = implementation.expected_unit_vocab_size(fit.config)
    assert before >= after, (
        f"expected_unit_vocab_size is {before} before the fit, and {after} after it"
    )


def _on_a_fitted_codec(rule: Rule) -> Rule:
    """Return a rule that tests the fitted codec where a config's is not ready."""

    @functools.wraps(rule)
    def test(config: CodecConfig) -> None:
        fit = _fit_of(config)
        # Said in full by the rule above, and not once more for each.
        assert fit is None or fit.error is None, "it could not be fitted"
        rule(config if fit is None else fit.config)

    return test


CHECKS: tuple[Rule, ...] = (a_fit_makes_it_ready, *map(_on_a_fitted_codec, _RULES))


def _build(config: CodecConfig) -> Codec:
    # Random weights must be equal between the builds of one rule.
    torch.manual_seed(0)
    return CODECS.build(config).eval()


@torch.no_grad()
def _encode(codec: Codec, wave: Waveform) -> Units:
    return codec.encode(wave)


@torch.no_grad()
def _decode(codec: Codec, units: Units) -> Waveform:
    return codec.decode(units)


@torch.no_grad()
def _decode_chunk(
    codec: Codec, units: Units, state: DecodeState | None, last: bool
) -> tuple[Waveform, DecodeState]:
    return codec.decode_chunk(units, state, last=last)


def _slice(units: Units, start: int, end: int) -> Units:
    """Return the units from `start` to `end` of every row."""
    # A row may end before the chunk, within it or after it.
    lengths = (units.lengths - start).clamp(0, end - start)
    return Units(units.ids[..., start:end], lengths, units.rate_hz)


def _units(codec: Codec, samples: list[int]) -> Units:
    """Return units of noise, or random units where the codec has no encoder.

    Args:
        codec: the codec.
        samples: samples of the noise of each row.
    """
    if codec.encodes:
        return _encode(codec, noise(codec.rate_hz, samples))
    lengths = torch.tensor([int(count / codec.rate_hz * codec.unit_rate_hz) for count in samples])
    shape, generator = (len(samples), int(lengths.max())), torch.Generator().manual_seed(0)
    ids = torch.randint(codec.vocab_size, shape, generator=generator)
    return Units(ids, lengths, None)


def _second_of_speech(codec: Codec) -> Units:
    """Return the units of a second of made speech, or random units, as `_units`."""
    if not codec.encodes:
        return _units(codec, [codec.rate_hz])
    speech = torch.cat(made_speech(codec.rate_hz, clips=1))[: codec.rate_hz]
    wave = Waveform(speech[None], torch.tensor([codec.rate_hz]), codec.rate_hz)
    return _encode(codec, wave)


def _some_units(codec: Codec) -> Units:
    """Return units of two rows of different length, whose padding is outside the vocabulary."""
    units = _units(codec, [codec.rate_hz // 2, codec.rate_hz // 4])
    ids = units.ids.clone()
    for row, length in enumerate(units.lengths.tolist()):
        # A codec that reads its padding fails by an index error.
        ids[row, ..., length:] = codec.vocab_size + 7
    return Units(ids, units.lengths, units.rate_hz)


def _rows(units: Units) -> list[Tensor]:
    """Return the ids [U] or [K, U] of each row, without padding."""
    return [ids[..., :length] for ids, length in zip(units.ids, units.lengths.tolist())]


def _clips(wave: Waveform) -> list[Tensor]:
    """Return the samples [T] of each row, without padding."""
    return [samples[:length] for samples, length in zip(wave.samples, wave.lengths.tolist())]
