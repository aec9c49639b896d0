"""From tokens to a vocoder's input: merging, expansion and codebook look-up, on every path that a CPU can walk."""

import pytest
import torch

from echox.errors import ConfigError
from echox.kernels.unit_decode import Codebooks, Impl, OpenRun, Spellings, dedup_units, expand_durations, expand_words, reference, rvq_dequantize

PATHS = [Impl.torch, Impl.triton]
by_value = {"ids": lambda impl: impl.value}
WORDS = [[5], [6, 7], [], [8, 8, 9, 5, 6], [3]]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Kernels walk over several blocks of a row."""
    from echox.kernels.unit_decode import launch

    monkeypatch.setattr(launch, "BLOCK", 16)


def table(*rows, fill=99):
    """Ragged rows -> [B, widest] with rubbish past the lengths, and the lengths."""
    width = max(1, *map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows]), torch.tensor([len(row) for row in rows])


def drawn(B, T, entries, seed=0):
    """Rows of up to T units in short runs, one empty and one full."""
    draw = torch.Generator().manual_seed(seed)
    lengths = [T, 0, *torch.randint(1, T, (B - 2,), generator=draw).tolist()]
    return [torch.randint(0, entries, (length,), generator=draw).tolist() for length in lengths]


def listed(values, lengths):
    assert not (values * (torch.arange(values.shape[1]) >= lengths[:, None])).any()  # nothing past the lengths
    return [row[:length] for row, length in zip(values.tolist(), lengths.tolist())]


@pytest.mark.parametrize("impl", PATHS, **by_value)
def test_whole_rows_are_merged(impl):
    rows = [[4], [4, 4, 4], [1, 2, 3], *drawn(4, 40, 2)]
    found = dedup_units(*table(*rows), impl=impl)
    assert found.units.shape == (7, 40)
    merged = [reference.merged(row) for row in rows]
    assert listed(found.units, found.lengths) == [units for units, _ in merged]
    assert listed(found.durations, found.lengths) == [durations for _, durations in merged]
    assert (found.open.unit == -1).all() and not found.open.duration.any()


@pytest.mark.parametrize("impl", PATHS, **by_value)
def test_a_stream_is_merged_as_a_whole(impl):
    """However it is cut into chunks, empty ones included, and whenever a row ends."""
    rows = [[4], [7] * 30, *drawn(3, 37, 2, seed=1)]
    cuts = [[0, 1, 1, 1], [0, 10, 20, 30], [0, 17, 34, 37], [0, 0, 0, 0], [0, 0, 5, 99]]
    joined, open = [([], []) for _ in rows], OpenRun.none(5)
    for chunk in range(3):
        found = dedup_units(*table(*(row[cut[chunk] : cut[chunk + 1]] for row, cut in zip(rows, cuts))), open, torch.full((5,), chunk == 2), impl=impl)
        for (units, durations), more, lasting in zip(joined, listed(found.units, found.lengths), listed(found.durations, found.lengths)):
            assert not units or not more or units[-1] != more[0]
            units += more
            durations += lasting
        open = found.open
    assert joined == [reference.merged(row) for row in rows]
    assert (open.unit == -1).all()


@pytest.mark.parametrize("impl", PATHS, **by_value)
def test_the_last_run_is_held_back(impl):
    found = dedup_units(*table([3, 3, 5, 5, 5], [2], []), OpenRun(torch.tensor([3, 2, 8]), torch.tensor([4, 1, 6])), impl=impl)
    assert listed(found.units, found.lengths) == [[3], [], []] and listed(found.durations, found.lengths) == [[6], [], []]
    assert found.open.unit.tolist() == [5, 2, 8] and found.open.duration.tolist() == [3, 2, 6]


@pytest.mark.parametrize("impl", PATHS, **by_value)
def test_words_are_spelled(impl):
    """Marks, end tokens and rubbish spell nothing; what does not fit is cut and told."""
    rows = [[3, 1, 0], [2, 2], [5, 3, -4, 1, 2**40], *drawn(4, 20, 6)]
    spellings, expected = Spellings.of(WORDS), [reference.spelled(row, Spellings.of(WORDS)) for row in rows]
    assert expected[0] == [8, 8, 9, 5, 6, 6, 7, 5] and expected[1] == []
    words, lengths = table(*rows, fill=0)
    whole = expand_words(words, lengths, spellings, 120, impl=impl)
    assert listed(whole.values, whole.lengths) == expected and torch.equal(whole.wanted, whole.lengths)
    cut = expand_words(words, lengths, spellings, 7, impl=impl)
    assert listed(cut.values, cut.lengths) == [row[:7] for row in expected] and torch.equal(cut.wanted, whole.wanted)


@pytest.mark.parametrize("impl", PATHS, **by_value)
def test_durations_undo_merging(impl):
    rows = [*drawn(4, 40, 2), [6] * 33]
    units, lengths = table(*rows)
    runs = dedup_units(units, lengths, impl=impl)
    frames = expand_durations(runs.units, runs.durations, runs.lengths, 40, impl=impl)
    assert listed(frames.values, frames.lengths) == rows
    odd = expand_durations(torch.tensor([[1, 2, 3]]), torch.tensor([[2, -5, 3]]), torch.tensor([3]), 4, impl=impl)
    assert odd.values.tolist() == [reference.lasting([1, 2, 3], [2, -5, 3])[:4]] and odd.wanted.item() == 5 and odd.lengths.item() == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("impl", PATHS, **by_value)
def test_codebooks_are_added(impl, dtype):
    """Ragged codebooks, codes out of range, fewer codebooks than tables, and lengths."""
    draw = torch.Generator().manual_seed(0)
    books = Codebooks.of([torch.randn(size, 20, generator=draw) for size in (9, 5, 7)], dtype=dtype)
    codes, lengths = torch.randint(-2, 11, (3, 3, 19), generator=draw), torch.tensor([19, 0, 11])
    truth = torch.stack([reference.looked_up(row, books) for row in codes]) * (torch.arange(19) < lengths[:, None])[..., None]
    found = rvq_dequantize(codes, lengths, books, impl=impl)
    assert found.dtype is dtype and torch.allclose(found.double(), truth, rtol=2**-8 if dtype is torch.bfloat16 else 1e-6, atol=1e-6)
    assert torch.equal(rvq_dequantize(codes, lengths, books, channels_first=True, impl=impl), found.transpose(1, 2))
    first = rvq_dequantize(codes[:, :1], lengths, books, impl=impl)
    assert torch.equal(first[0], rvq_dequantize(codes[:1, :1], lengths[:1], books, impl=impl)[0])


def test_output_projections_are_folded():
    draw = torch.Generator().manual_seed(0)
    tables, layers = [torch.randn(9, 4, generator=draw) for _ in range(3)], [torch.nn.Linear(4, 30, bias=bias) for bias in (True, False, True)]
    books = Codebooks.of(tables, projections=[layer.weight for layer in layers], biases=[layer.bias for layer in layers])
    codes = torch.randint(0, 9, (2, 3, 6), generator=draw)
    truth = sum(layer(book[codes[:, k]]) for k, (book, layer) in enumerate(zip(tables, layers)))
    assert books.channels == 30 and torch.allclose(rvq_dequantize(codes, torch.tensor([6, 6]), books), truth, atol=1e-5)


ONE, LENGTH = torch.zeros(1, 3, dtype=torch.int64), torch.tensor([3])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: dedup_units(ONE[0], LENGTH), r"\[B, U\]"),
        (lambda: dedup_units(ONE.float(), LENGTH), "int64"),
        (lambda: dedup_units(ONE, LENGTH, last=torch.tensor([True])), "OpenRun.none"),
        (lambda: expand_words(ONE, LENGTH, Spellings.of(WORDS), 0), "capacity"),
        (lambda: expand_durations(ONE, ONE[:, :2], LENGTH, 5), "one shape"),
        (lambda: Spellings.of([[], []]), "spells no unit"),
        (lambda: Codebooks.of([]), "one at least"),
        (lambda: Codebooks.of([torch.zeros(3, 2), torch.zeros(3, 4)]), "equal channels"),
        (lambda: Codebooks.of([torch.zeros(3, 2)], projections=[torch.zeros(5, 3)]), "projection"),
        (lambda: Codebooks.of([torch.zeros(3, 2)], projections=[]), "0 projections"),
        (lambda: rvq_dequantize(ONE, LENGTH, Codebooks.of([torch.zeros(3, 2)])), "codes"),
        (lambda: rvq_dequantize(ONE[:, None].expand(1, 2, 3), LENGTH, Codebooks.of([torch.zeros(3, 2)])), "tables for 1"),
    ],
)
def test_what_does_not_fit_is_a_sentence(call, sentence):
    with pytest.raises(ConfigError, match=sentence):
        call()
