"""The worked example of a stage after S2T: preferred answers become likelier than others."""

import json
import shutil

import torch
from echo_home import words_at, write_home
from tiny_run import noise

from echox.core import checkpoint
from echox.data.audio import save_audio
from echox.inference.load import load_pipeline
from echox_cli import train

RATE_HZ = 16_000


def write_pairs(folder):
    """Spoken questions, each with an answer that is preferred to another."""
    rows = []
    for number in range(4):
        save_audio(folder / f"{number}.wav", noise(number, 0.5 + 0.1 * number), RATE_HZ)
        question = {"from": "user", "value": "", "audio": f"{number}.wav"}
        answer = {"from": "assistant", "value": "Yes, it is.", "rejected": f"No, {number}."}
        rows.append({"id": f"pair-{number}", "conversations": [question, answer]})
    # A row without a second answer, and one with the same twice, are no pairs.
    rows.append(
        {"id": "alone", "conversations": [question, {"from": "assistant", "value": "Yes."}]}
    )
    same = {"from": "assistant", "value": "Yes.", "rejected": "Yes."}
    rows.append({"id": "same", "conversations": [question, same]})
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def words(home, pairs, *more):
    """The command line of preference tuning after the S2T stage of a finished run."""
    data = [f"preference.task.data.{split}=[{pairs}]" for split in ("train", "valid")]
    train = "{steps: 30, batch_size: 4, lr: 3.0e-3, validate_every: 30, save_every: 10}"
    stage = ["stages.preference.task=preference", "preference.criterion=dpo", "stage=preference"]
    overrides = words_at(home, *stage, *data, f"preference.train={train}", *more)
    return ["recipe=echo_tiny", *overrides]


def test_preferred_answers_become_likelier_and_a_run_resumes(tmp_path):
    run = write_home(tmp_path)
    pairs = write_pairs(tmp_path)
    s2t = checkpoint.fingerprint(run / "s2t/final")
    assert train.main(words(tmp_path, pairs)) == 0
    lines = [
        json.loads(line) for line in (run / "preference/metrics.jsonl").read_text().splitlines()
    ]
    assert [line for line in lines if line["split"] == "valid"][-1]["preference_accuracy"] == 1.0
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert losses[-1] < losses[0]
    final = checkpoint.load(run / "preference/final")
    assert final.meta["lineage"]["parents"] == {"s2t": s2t}
    assert checkpoint.fingerprint(run / "s2t/final") == s2t

    before = checkpoint.fingerprint(run / "preference/final")
    shutil.rmtree(run / "preference/final")
    shutil.rmtree(run / "preference/checkpoints/step_000000030")
    assert train.main(words(tmp_path, pairs)) == 0
    assert checkpoint.fingerprint(run / "preference/final") == before


def test_its_checkpoint_answers_as_that_of_s2t_does(tmp_path):
    write_home(tmp_path)
    settings = ("preference.train.steps=1", "preference.train.lr=1e-9")
    assert train.main(words(tmp_path, write_pairs(tmp_path), *settings)) == 0
    clips = [noise(7, 0.8)]
    torch.manual_seed(0)
    answers = [
        load_pipeline(tmp_path / "run" / stage / "final", device="cpu").answer(clips)[0].text
        for stage in ("s2t", "preference")
    ]
    assert answers[0] == answers[1] != ""


def test_rows_without_two_answers_are_one_sentence(tmp_path, capsys):
    write_home(tmp_path)
    pairs = write_pairs(tmp_path)
    pairs.write_text("\n".join(pairs.read_text().splitlines()[4:]) + "\n")
    assert train.main(words(tmp_path, pairs)) == 2
    assert (
        "has two different answers; give the assistant's last turn a 'value' and a 'rejected' text"
        in capsys.readouterr().err
    )
