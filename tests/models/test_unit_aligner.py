"""The aligner against brute force, and on data whose alignment is known."""

import itertools

import torch

from echox.models.unit_aligner import UnitAligner, alignment_loss, best_alignment, states_of


def all_alignments(units, letters):
    """Every way to give each letter at least one unit."""
    for cuts in itertools.combinations(range(1, units), letters - 1):
        yield torch.tensor([0, *cuts, units]).diff()


def scores(emissions, counts):
    letters = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return emissions[torch.arange(len(letters)), letters].sum()


def test_loss_and_best_path_equal_brute_force():
    torch.manual_seed(0)
    emissions = torch.randn(2, 7, 4).log_softmax(-1)
    letters, units = torch.tensor([4, 2]), torch.tensor([7, 5])
    expected, best = [], []
    for row in range(2):
        paths = list(all_alignments(int(units[row]), int(letters[row])))
        values = torch.stack([scores(emissions[row], path) for path in paths])
        expected.append(-values.logsumexp(0) / units[row])
        best.append(paths[int(values.argmax())].tolist())
    assert torch.allclose(
        alignment_loss(emissions, letters, units), torch.stack(expected).mean(), atol=1e-5
    )
    counts = best_alignment(emissions, letters, units)
    assert counts[0].tolist() == best[0]
    assert counts[1, :2].tolist() == best[1] and counts[1, 2:].sum() == 0


def test_padding_does_not_matter():
    torch.manual_seed(0)
    aligner = UnitAligner(11, width=16)
    letters, units = torch.randint(3, 20, (1, 5)), torch.randint(0, 11, (1, 9))
    longer = (
        torch.nn.functional.pad(letters, (0, 4), value=7),
        torch.nn.functional.pad(units, (0, 3), value=5),
    )
    lengths = torch.tensor([5]), torch.tensor([9])
    alone = aligner(letters, lengths[0], units)
    padded = aligner(longer[0], lengths[0], longer[1])
    assert torch.allclose(alone, padded[:, :9, :5], atol=1e-5)
    assert torch.equal(best_alignment(alone, *lengths), best_alignment(padded, *lengths)[:, :5])


def test_learns_a_known_alignment():
    """Each letter emits two units of its own, the second repeated one to three times."""
    torch.manual_seed(0)
    aligner = UnitAligner(60, width=32)
    optimizer = torch.optim.Adam(aligner.parameters(), lr=1e-2)
    for _ in range(250):
        letters = torch.randint(3, 23, (16, 6))
        runs = torch.randint(1, 4, (16, 6))
        rows = [
            torch.cat(
                [
                    torch.tensor([2 * int(c) - 6, *([2 * int(c) - 5] * int(n))])
                    for c, n in zip(*pair)
                ]
            )
            for pair in zip(letters, runs)
        ]
        lengths = torch.tensor([len(row) for row in rows])
        units = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        emissions = aligner(letters, torch.full((16,), 6), units)
        optimizer.zero_grad()
        alignment_loss(emissions, torch.full((16,), 6), lengths).backward()
        optimizer.step()
    counts = best_alignment(emissions.detach(), torch.full((16,), 6), lengths)
    assert (counts == runs + 1).float().mean() > 0.9


def test_a_token_without_letters_still_has_a_state():
    assert len(states_of("")) == len(states_of("\u4f60")) == 1
    assert len(states_of(" don't")) == 5
