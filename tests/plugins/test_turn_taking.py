"""The worked example of a task: a classifier of turns, trained until it finds where they end."""

import json

import numpy as np
import soundfile
import torch

from echox_cli import train

RATE_HZ = 16_000


def write_turns(folder, name, count):
    """Turns of noise with a pause in them, which end in a tone that falls."""
    random = np.random.default_rng(count)
    rows = []
    for number in range(count):
        speech = random.standard_normal(int(RATE_HZ * random.uniform(0.5, 1.0)))
        speech[len(speech) // 3 : len(speech) // 2] = 0
        seconds = np.arange(int(0.2 * RATE_HZ)) / RATE_HZ
        tone = np.sin(2 * np.pi * (800 - 1200 * seconds) * seconds)
        clip = folder / f"{name}-{number}.wav"
        soundfile.write(clip, 0.1 * np.concatenate([speech, tone]), RATE_HZ)
        turn = {"from": "user", "value": "", "audio": clip.name}
        rows.append(json.dumps({"id": f"{name}-{number}", "conversations": [turn]}))
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_it_learns_where_turns_end(tmp_path):
    manifests = {
        split: write_turns(tmp_path, split, count) for split, count in (("train", 60), ("valid", 7))
    }
    torch.manual_seed(0)
    words = [
        "recipe=turn_taking",
        "device=cpu",
        "encoder=mel",
        "encoder.bins=24",
        "turn_taking.task.end_s=0.25",
    ]
    words += [f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"]
    words += [f"turn_taking.task.data.{split}=[{path}]" for split, path in manifests.items()]
    words += [
        f"turn_taking.train.{it}"
        for it in ("steps=200", "batch_size=8", "lr=0.003", "validate_every=200")
    ]
    assert train.main(words) == 0
    metrics = (tmp_path / "run/turn_taking/metrics.jsonl").read_text().splitlines()
    valid = [line for line in map(json.loads, metrics) if line["split"] == "valid"][-1]
    assert valid["end_found"] == 1.0 and valid["accuracy"] > 0.93


def test_a_classifier_is_not_asked_for_answers(tmp_path, capsys):
    from echox_cli import generate

    manifest = write_turns(tmp_path, "train", 4)
    words = [
        "recipe=turn_taking",
        "device=cpu",
        "encoder=mel",
        f"turn_taking.task.data.train=[{manifest}]",
    ]
    words += [f"run_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"]
    assert train.main([*words, "turn_taking.train={steps: 1, validate_every: null}"]) == 0
    capsys.readouterr()
    final = tmp_path / "run/turn_taking/final"
    assert generate.main([f"checkpoint={final}", f"input={tmp_path / 'train-0.wav'}"]) == 2
    assert (
        "TurnTakingTask, whose checkpoints cannot be loaded for inference"
        in capsys.readouterr().err
    )
