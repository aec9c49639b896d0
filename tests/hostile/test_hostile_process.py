"""The judge of hostile cases: each way in which a command can go wrong is told from the others."""

import os
import signal
import sys
import time
from pathlib import Path
from random import Random

import hostile_process
import pytest
from hostile_mutations import damaged, dump, mutated
from hostile_process import Ending, run_isolated

from echox.core.memory import out_of_memory_text


def says(text, code):
    print(text, file=sys.stderr)
    return code


@pytest.mark.parametrize(
    ("body", "ending"),
    [
        (lambda: 0, Ending.done),
        (lambda: says("two rows are broken", 1), Ending.done),
        (lambda: says("echox-train: there is no such file", 2), Ending.refused),
        (lambda: {}["missing"], Ending.traceback),
        (lambda: says("Traceback (most recent call last):", 0), Ending.traceback),
        (lambda: 3, Ending.traceback),
        (lambda: sys.exit(0), Ending.traceback),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), Ending.died),
        (lambda: time.sleep(60), Ending.hung),
        (lambda: says(out_of_memory_text(MemoryError(), "use less"), 2), Ending.memory),
        (lambda: len(b"1" * (1 << 30)), Ending.memory),
        (lambda: open("../outside/new", "w").close() or 0, Ending.trespassed),
        (lambda: os.remove("../outside/secret.wav") or 0, Ending.trespassed),
    ],
)
def test_every_ending_is_told_from_the_others(tmp_path, monkeypatch, body, ending):
    monkeypatch.setattr(hostile_process, "SECONDS", 1.0 if ending is Ending.hung else 60.0)
    # Of this process now, which the case's begins with; its peak may lie far above that.
    limit = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 + (1 << 28)
    monkeypatch.setattr(hostile_process, "RESIDENT_BYTES", limit)
    for name in ("work", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside" / "secret.wav").write_bytes(b"RIFF")
    outcome = run_isolated(body, tmp_path)
    assert outcome.ending is ending, outcome.message


def test_the_address_space_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(hostile_process, "ADDRESS_SPACE_BYTES", 1 << 28)
    for name in ("work", "outside"):
        (tmp_path / name).mkdir()
    outcome = run_isolated(lambda: len(bytearray(1 << 30)), tmp_path)
    assert outcome.ending is Ending.traceback and "MemoryError" in outcome.message


def test_a_seed_makes_the_same_mutation():
    row = {"id": "a", "conversations": [{"from": "user", "value": "Hello."}]}
    for seed in range(50):
        twice = [dump(mutated(row, random, 2), random) for random in (Random(seed), Random(seed))]
        assert twice[0] == twice[1]
        content = bytes(range(256))
        assert damaged(content, Random(seed)) == damaged(content, Random(seed)) != content
