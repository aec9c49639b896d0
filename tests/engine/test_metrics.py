"""metrics.jsonl and its TensorBoard view."""

import json
import os
from pathlib import Path

import pytest

from echox.core.errors import DiskError
from echox.engine.metrics import MetricsLog


def test_a_resumed_log_drops_the_lines_after_its_step(tmp_path):
    log = MetricsLog(tmp_path, step=0)
    for step in (1, 2, 3):
        log.write(step, "train", {"loss": 1.0 / step})
    log.close()
    with log.path.open("a") as file:
        file.write('{"step": 2, "spl')
    resumed = MetricsLog(tmp_path, step=2)
    resumed.write(3, "valid", {"loss": float("nan")})
    resumed.close()
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1] == {"step": 3, "split": "valid", "loss": None}


@pytest.mark.parametrize(
    "damage", [b"\xe9\xff", b'{"step": "one"}', b"[" * 5_000, b'{"step": [1]}', b"7"]
)
def test_a_damaged_line_is_dropped_alone(tmp_path, damage):
    log = MetricsLog(tmp_path, step=0)
    log.write(1, "train", {"loss": 2.0})
    with log.path.open("ab") as file:
        file.write(damage + b"\n")
    log.write(2, "train", {"loss": 1.0})
    MetricsLog(tmp_path, step=2)
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 2]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_full_disk_is_one_sentence(tmp_path):
    log = MetricsLog(tmp_path, step=0)
    log.path = Path("/dev/full")
    with pytest.raises(DiskError, match="/dev/full could not be written: No space left"):
        log.write(1, "train", {"loss": 1.0})
    log.close()


def test_tensorboard_by_config(tmp_path):
    pytest.importorskip("tensorboard")
    log = MetricsLog(tmp_path, step=0, tensorboard=True)
    log.write(1, "train", {"loss": 1.0})
    log.close()
    assert list((tmp_path / "tensorboard").glob("events.*"))
