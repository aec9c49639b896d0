"""A full or read-only disk is one sentence at any write; what was finished stays, and goes on."""

import errno
import pickle

import pytest
import torch
from full_disk import fill_disk
from safetensors import SafetensorError

from echox.codecs.quantization import folder as fitted_folder
from echox.core import checkpoint
from echox.core.errors import DiskError, EchoxError
from echox.core.files import atomic_write
from echox.corpora.own_answers import OwnAnswer, OwnAnswers
from echox.data.audio import save_audio
from echox.data.manifest import Item, Role, Row, write_manifest
from echox.engine.audit import Audit
from echox.engine.metrics import MetricsLog
from echox.evaluation import report
from echox.inference.live import GrowingWav
from echox.inference.records import Records
from echox.models.release.export import write_release
from echox.pipeline.scaffold import ScaffoldConfig, write_plugin
from echox.vocoders.layout import TINY, normed, tiny_generator, write_vocoder


def step_checkpoints(folder):
    def write(number):
        tensors = {"weight": torch.full((50,), float(number))}
        checkpoint.save(checkpoint.step_folder(folder, number), tensors, {"step": number}, {})

    return write


def final_checkpoint(folder):
    def write(number):
        tensors = {"weight": torch.full((50,), float(number))}
        checkpoint.save(folder / "final", tensors, {"step": number})

    return write


def metrics(folder):
    log = MetricsLog(folder, step=0)
    return lambda number: log.write(number, "train", {"loss": 1.0})


def metrics_of_a_resumed_run(folder):
    def write(number):
        MetricsLog(folder, step=number).write(number, "train", {"loss": 1.0})

    return write


def record(number):
    return {"id": f"{number}", "text": "Six.", "audio": None, "error": None}


def answers(folder):
    records = Records(folder, {}, overwrite=False)
    return lambda number: records.add([record(number)])


def answers_of_a_resumed_run(folder):
    def write(number):
        records = Records(folder, {}, overwrite=False)
        records.add([record(number)])
        records.in_order(["2", "1"])

    return write


def export(folder):
    def write(number):
        tensors = {"weight": torch.full((50,), float(number))}
        write_release(folder / f"release-{number}", tensors, [], {"number": number})

    return write


def vocoder(folder):
    net = normed(tiny_generator())
    return lambda number: write_vocoder(folder, net, TINY, number)


def own_answers(folder):
    def write(number):
        made = OwnAnswers(folder / "own.jsonl", lambda questions, seed: [OwnAnswer("Six.")])
        made.to([f"What is {number}?"])

    return write


def clip(folder):
    return lambda number: save_audio(folder / "clip.wav", torch.full((800,), 0.1 * number), 16_000)


def streamed_answer(folder):
    def write(number):
        with GrowingWav(folder / f"{number}.wav", 16_000) as sink:
            sink.write(torch.full((800,), 0.1 * number))

    return write


def manifest(folder):
    rows = [Row("a", (Item(Role.USER, "Why?"), Item(Role.ASSISTANT, "So."))) for _ in range(3)]
    return lambda number: write_manifest(folder / "rows.jsonl", rows[:number])


def report_page(folder):
    return lambda number: report._write(folder / "report.html", f"page {number}\n")


def audit_page(folder):
    return lambda number: Audit(f"page {number}").write(folder)


def plugin(folder):
    def write(number):
        config = ScaffoldConfig(name=f"ear{number}", kind="encoder", folder=str(folder))
        write_plugin(config)

    return write


KINDS = [
    *(step_checkpoints, final_checkpoint, metrics, metrics_of_a_resumed_run),
    *(answers, answers_of_a_resumed_run, export, vocoder, own_answers, clip, streamed_answer),
    *(manifest, report_page, audit_page, plugin),
]


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_write_that_fails_leaves_what_was_there_and_succeeds_later(
    tmp_path, monkeypatch, kind, number
):
    folder, expected = tmp_path / "here", tmp_path / "expected"
    write, write_expected = kind(folder), kind(expected)
    write(1)
    before = content(folder)
    with monkeypatch.context() as patched:
        fill_disk(patched, number)
        with pytest.raises(EchoxError) as error:
            write(2)
    text = str(error.value)
    assert str(folder) in text and "\n" not in text
    if number == errno.EROFS:
        assert "Read-only file system; " in text
    else:
        assert "No space left on device (" in text and " needed, " in text and " free in " in text
    # A stream that is played while it is written is a whole file at any time.
    left = {name: data for name, data in content(folder).items() if name != "2.wav"}
    assert left == before
    write(2)
    write_expected(1)
    write_expected(2)
    assert content(folder) == content(expected)


def test_a_library_that_writes_by_itself_is_understood(tmp_path, monkeypatch):
    def full(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")

    monkeypatch.setattr(fitted_folder, "save_file", full)
    with pytest.raises(DiskError, match=r"No space left on device \(more than 4 bytes needed"):
        fitted_folder.write_fitted(tmp_path / "codec", {}, {"a": torch.zeros(3)}, {}, {})
    assert list((tmp_path / "codec").iterdir()) == []


def test_other_faults_are_told_as_they_are(tmp_path):
    with pytest.raises(PermissionError), atomic_write(tmp_path / "file"):
        raise PermissionError(errno.EACCES, "Permission denied", "elsewhere")
    with pytest.raises(NotADirectoryError), atomic_write(tmp_path / "file"):
        raise NotADirectoryError(errno.ENOTDIR, "no folder", "elsewhere")
    assert list(tmp_path.iterdir()) == []


def test_the_error_of_a_step_in_another_process_is_the_same():
    error = DiskError(errno.ENOSPC, "No space left", "runs/a", "free some space")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.errno) == (DiskError, str(error), errno.ENOSPC)
    assert str(copy) == "runs/a could not be written: No space left; free some space"
