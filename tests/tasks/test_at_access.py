"""Training on a manifest that is too large for the memory: same examples, lengths and weights."""

import json
import logging

import numpy as np
import pytest
import tiny_release
import torch
from tiny_run import RATE_HZ, noise

from echox.core.errors import ManifestError
from echox.criteria.base import CRITERIA
from echox.data import manifest_index
from echox.data.audio import save_audio
from echox.data.indexed_rows import ChosenRows, IndexedRows, JoinedRows
from echox.data.manifest import OnBroken
from echox.encoders.whisper import WhisperConfig
from echox.engine.config import TrainConfig
from echox.engine.trainer import train
from echox.pipeline.plugins import discover
from echox.tasks import lazy_examples
from echox.tasks.base import TASKS, Parts, StageContext
from echox.tasks.conversations import RowsConfig, SpokenRows, sample_rows
from echox.tasks.lazy_examples import LazyExamples, row_examples


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    discover()
    return tiny_release.write_tiny_release(tmp_path_factory.mktemp("published") / "EchoX-tiny")


def test_manifests_of_one_name_have_a_fingerprint_each(tmp_path):
    paths = [tmp_path / name for name in ("a/manifest.jsonl", "b/manifest.jsonl", "b/other.jsonl")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{path}\n")
    rows = SpokenRows(
        RowsConfig(train=[str(paths[0]), str(paths[2])], valid=[str(paths[1]), str(paths[2])])
    )
    before = rows.fingerprints()
    assert set(before) == {f"manifest:{paths[0]}", f"manifest:{paths[1]}", "manifest:other.jsonl"}
    paths[0].write_text("changed\n")
    after = rows.fingerprints()
    changed = [name for name, fingerprint in after.items() if fingerprint != before[name]]
    assert changed == [f"manifest:{paths[0]}"]


@pytest.fixture
def manifest(tmp_path):
    """Six rows: two of them have no target, one has two answers."""
    for name, seconds in (("a", 0.6), ("b", 0.4), ("long", 130.0)):
        save_audio(tmp_path / f"{name}.wav", noise(len(name), seconds), RATE_HZ)

    def question(name, **stated):
        return {"from": "user", "value": "", "audio": f"{name}.wav", **stated}

    def answer(text, units):
        return {"from": "assistant", "value": text, "transcription": "what is it", "units": units}

    rows = [
        [question("a", duration_s=0.6), answer("Yes.", "0_1 1_2 5_6")],
        [
            question("b"),
            answer("A fox", "3_4"),
            question("a"),
            answer("lives here. It is small.", "2 3 4 5"),
        ],
        [question("long"), answer("No", "7_8")],
        [question("b"), answer("Fox.", "3_4")],
        [question("b"), {"from": "assistant", "value": "", "transcription": "only heard"}],
        [question("b"), answer("It is.", "0_1")],
    ]
    path = tmp_path / "m.jsonl"
    path.write_text(
        "\n".join(
            [
                json.dumps({"id": f"r{number}", "conversations": turns})
                for number, turns in enumerate(rows)
            ]
            + ["{"]
        )
    )
    return path


def task_of(name, folder, manifest, cache, **data):
    config = TASKS[name].config_type(checkpoint=str(folder))
    for key, value in {"train": [str(manifest)], "valid": [str(manifest)], **data}.items():
        setattr(config.data, key, value)
    encoder = (
        None
        if name == "published_t2c"
        else WhisperConfig(weights=str(folder / "whisper"), pad_to_window=True)
    )
    task = TASKS.build(config, StageContext(Parts(encoder, None, None), 1, cache))
    torch.manual_seed(1)
    model = task.build()
    task.prepare(model)
    return task, model


@pytest.mark.parametrize(
    "name, count", [("published_s2t", 4), ("published_joint", 4), ("published_t2c", 6)]
)
def test_examples_and_lengths_are_the_same(folder, manifest, tmp_path, monkeypatch, name, count):
    in_memory = task_of(name, folder, manifest, tmp_path / "cache")[0].examples("train")
    monkeypatch.setattr(manifest_index, "INDEXED_FROM_BYTES", 0)
    examples = task_of(name, folder, manifest, tmp_path / "cache")[0].examples("train")
    assert isinstance(examples.examples, LazyExamples)
    assert isinstance(examples.examples.rows, IndexedRows)
    assert len(examples) == len(in_memory) == count
    assert [examples[index] for index in range(count)] == [
        in_memory[index] for index in range(count)
    ]
    costs = [examples.cost(index) for index in range(count)]
    assert examples.costs().tolist() == in_memory.costs().tolist() == costs
    # The second start knows the lengths without reading the rows.
    monkeypatch.setattr(
        lazy_examples, "_measure_rows", lambda *parts: pytest.fail("rows were read")
    )
    assert len(task_of(name, folder, manifest, tmp_path / "cache")[0].examples("train")) == count


def test_weights_are_the_same_bit_for_bit(folder, manifest, tmp_path, monkeypatch):
    def weights(run):
        task, _ = task_of("published_t2c", folder, manifest, tmp_path / "cache")
        config = TrainConfig(steps=4, batch_size=2, lr=1e-2, save_every=2)
        final = train(
            task,
            CRITERIA.build(CRITERIA.parse({"name": "t2c"})),
            config,
            run_dir=tmp_path / run,
            stage="t2c",
            seed=1,
            device=torch.device("cpu"),
        )
        return [path.read_bytes() for path in sorted(final.rglob("*.safetensors"))]

    in_memory = weights("in_memory")
    monkeypatch.setattr(manifest_index, "INDEXED_FROM_BYTES", 0)
    assert in_memory and weights("indexed") == in_memory


def test_a_row_that_breaks_later_is_replaced_or_refused(
    folder, manifest, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(manifest_index, "INDEXED_FROM_BYTES", 0)
    examples = task_of("published_s2t", folder, manifest, tmp_path / "cache")[0].examples("train")
    (manifest.parent / "a.wav").unlink()
    with caplog.at_level(logging.WARNING):
        assert [examples[index].row_id for index in (0, 1, 0, 2)] == ["r3"] * 4
    assert len([text for text in caplog.messages if "stands in" in text]) == 2
    assert "m.jsonl, line 1: item 1: audio a.wav does not exist" in caplog.text
    examples.examples.on_broken = OnBroken.refuse
    with pytest.raises(ManifestError, match="line 2: item 3: audio a.wav does not exist"):
        examples[1]
    examples.examples.on_broken = OnBroken.skip
    (manifest.parent / "b.wav").unlink()
    with pytest.raises(ManifestError, match="every row broke"):
        examples[0]


def test_a_truncated_file_of_lengths_is_measured_again(tmp_path):
    rows = JoinedRows([list("ab"), list("c")])
    file = tmp_path / "lengths" / "x.npz"

    def examples_of(rows, make, lengths):
        return row_examples(rows, make, len, on_broken=OnBroken.refuse, lengths=lengths)

    examples = examples_of(rows, lambda row: [row, row + row], lambda: file)
    assert [examples[index] for index in range(6)] == ["a", "aa", "b", "bb", "c", "cc"]
    assert examples.costs.tolist() == [1, 2] * 3
    file.write_bytes(file.read_bytes()[:50])
    assert len(examples_of(rows, lambda row: [row], lambda: file)) == 3
    in_memory = examples_of(
        list("abc"), lambda row: [row], lambda: pytest.fail("no file is needed")
    )
    assert in_memory == ["a", "b", "c"]


def test_a_damaged_file_of_lengths_is_measured_again_with_a_line(tmp_path, caplog):
    file = tmp_path / "x.npz"

    def costs():
        rows = JoinedRows([list("ab"), list("c")])
        examples = row_examples(
            rows, lambda row: [row, row + row], len, on_broken=OnBroken.refuse, lengths=lambda: file
        )
        return examples.costs.tolist()

    costs()
    whole = file.read_bytes()
    damaged = [b"", b"x", whole[: len(whole) // 2]]
    # Bytes of archive, names, shapes and values.
    damaged += [
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), 7)
    ]
    for content in damaged:
        file.write_bytes(content)
        assert costs() == [1, 2] * 3
    assert len(caplog.messages) > len(damaged) // 2
    assert all("are damaged" in line for line in caplog.messages)


def test_a_sample_of_a_large_manifest(manifest, monkeypatch):
    monkeypatch.setattr(manifest_index, "INDEXED_FROM_BYTES", 0)
    rows = SpokenRows(
        RowsConfig(train=[str(manifest)], valid=[str(manifest)], sample={"m.jsonl": 3})
    )
    sample = rows.rows("train")
    assert isinstance(sample, ChosenRows) and len(sample) == 3
    assert [row.id for row in sample] == sorted(row.id for row in sample)
    assert all(row.answer.text for row in sample) and list(sample) == list(rows.rows("train"))
    assert len(rows.rows("valid")) == 6
    assert [row.id for row in sample_rows(rows.rows("valid"), 6, "x")] == [
        f"r{number}" for number in range(6)
    ]
    assert np.array_equal(sample.column("line"), [int(row.id[1:]) + 1 for row in sample])
