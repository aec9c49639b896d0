"""A bounded cache: what was asked for last stays."""

from echox.core.recently_used import RecentlyUsed


def test_what_was_not_asked_for_the_longest_leaves_first():
    kept = RecentlyUsed(10)
    for number in range(3):
        kept.put(bytes([number]), number, 4 if number < 2 else 3)
    assert len(kept) == 2 and kept.get(b"\0") is None and kept.get(b"\1") == 1
    kept.put(b"\3", 3, 6)
    assert kept.get(b"\2") is None and (kept.get(b"\1"), kept.get(b"\3")) == (1, 3)


def test_a_value_put_again_counts_once_and_one_too_large_is_not_kept():
    kept = RecentlyUsed(10)
    for _ in range(5):
        kept.put(b"a", 1, 6)
    assert kept.get(b"a") == 1
    kept.put(b"b", 2, 11)
    assert kept.get(b"b") is None
