"""Centres that scikit-learn and joblib really wrote, in every packing, and pickles that must not run."""

import os
import pickle
import zlib
from io import BytesIO, UnsupportedOperation

import joblib
import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans

from echox.codecs.quantization.centres import read_centres
from echox.codecs.quantization.inert_pickle import STAND_INS, read_inert
from echox.errors import CheckpointError

POINTS = np.random.RandomState(0).randn(200, 6).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    """As fairseq fits them, with the state of its random numbers inside."""
    model = MiniBatchKMeans(5, batch_size=64, n_init=2, random_state=0).fit(POINTS)
    return model.partial_fit(POINTS)


@pytest.fixture(params=[None, ("zlib", 3), ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)], ids=str)
def packing(request):
    return request.param or 0


def test_what_fairseq_writes(fitted, packing, tmp_path):
    joblib.dump(fitted, tmp_path / "km.bin", compress=packing)
    centres = read_centres(tmp_path / "km.bin")
    assert centres.dtype == torch.float32 and np.array_equal(centres.numpy(), fitted.cluster_centers_.astype(np.float32))


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_of_joblib_and_pickle(fitted, protocol, tmp_path):
    wanted = fitted.cluster_centers_.astype(np.float32)
    joblib.dump(fitted, tmp_path / "km.bin", protocol=protocol)
    assert np.array_equal(read_centres(tmp_path / "km.bin").numpy(), wanted)
    (tmp_path / "km.pkl").write_bytes(pickle.dumps(fitted, protocol))
    assert np.array_equal(read_centres(tmp_path / "km.pkl").numpy(), wanted)


def test_other_models_and_arrays(tmp_path):
    whole = KMeans(4, n_init=1, random_state=np.random.RandomState(1)).fit(POINTS.astype(np.float64))
    assert whole.cluster_centers_.dtype == np.float64
    joblib.dump(whole, tmp_path / "whole.bin")
    assert np.allclose(read_centres(tmp_path / "whole.bin").numpy(), whole.cluster_centers_)
    for order in ("C", "F"):
        array = np.array(POINTS, order=order)
        joblib.dump(array, tmp_path / "array.bin")
        np.save(tmp_path / "array.npy", array)
        for name in ("array.bin", "array.npy"):
            assert np.array_equal(read_centres(tmp_path / name).numpy(), POINTS)
    joblib.dump(POINTS.astype(">f8"), tmp_path / "big_endian.bin")
    assert np.allclose(read_centres(tmp_path / "big_endian.bin").numpy(), POINTS)


def test_older_files_have_other_names_and_no_padding(fitted, tmp_path):
    """joblib before 1.2 pads nothing, scikit-learn before 0.22 has another module, NumPy before 2 too."""
    joblib.dump(fitted, tmp_path / "new.bin")
    old = (tmp_path / "new.bin").read_bytes().replace(b"\x8c\x17sklearn.cluster._kmeans", b"\x8c\x18sklearn.cluster.k_means_")
    assert old != (tmp_path / "new.bin").read_bytes()
    (tmp_path / "old.bin").write_bytes(_without_frames(old))
    assert np.array_equal(read_centres(tmp_path / "old.bin").numpy(), fitted.cluster_centers_.astype(np.float32))
    pipe = _Pipe()
    joblib.dump(fitted, pipe)
    (tmp_path / "unpadded.bin").write_bytes(pipe.getvalue())
    assert np.array_equal(read_centres(tmp_path / "unpadded.bin").numpy(), fitted.cluster_centers_.astype(np.float32))


def _without_frames(content):
    """The same pickle without the marks of its frames, whose sizes an edit made wrong."""
    parts, start = [], 0
    while (at := content.find(b"\x95", start)) >= 0 and int.from_bytes(content[at + 1 : at + 9], "little") < len(content):
        parts.append(content[start:at])
        start = at + 9
    return b"".join(parts) + content[start:]


class _Pipe(BytesIO):
    """A file that cannot tell its place: joblib writes arrays into it without padding, as it always did before 1.2."""

    def tell(self):
        raise UnsupportedOperation


class Malice:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, eval, print, joblib.load, np.load, getattr], ids=lambda function: function.__name__)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_file_is_named_and_not_run(function, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    victim = Malice(function, "ran")
    for name, content in {"bare.bin": victim, "inside.bin": {"cluster_centers_": POINTS, "labels_": victim}}.items():
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(CheckpointError, match=f"{function.__name__}.*nothing of it was run") as caught:
            read_centres(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value)
    joblib.dump(victim, tmp_path / "packed.bin", compress=("zlib", 1))
    with pytest.raises(CheckpointError, match=function.__name__):
        read_centres(tmp_path / "packed.bin")
    assert not (tmp_path / "ran").exists()


# A pickle may set attributes of whatever it finds: here of the function that stands for numpy's scalar, and of the class of records.
@pytest.mark.parametrize("named", [b"cnumpy.core.multiarray\nscalar\n", b"cnumpy\nndarray\n"])
def test_what_stands_in_cannot_be_changed(named):
    before = {name: dict(vars(stand)) for name, stand in STAND_INS.items()}
    with pytest.raises(CheckpointError, match="gives a state"):
        read_inert(named + b"N}X\x0c\x00\x00\x00__defaults__Ns\x86b.")
    assert before == {name: dict(vars(stand)) for name, stand in STAND_INS.items()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "EOFError"),
        (b"PK\x03\x04 a zip", "no centres that can be read"),
        (zlib.compress(b"x" * 1000)[:-9], "cut off"),
        (b"ZF0x12", "before 0.10"),
        (pickle.dumps([1, 2]), "holds a list"),
        (pickle.dumps(POINTS[0]), r"shape \[6\]"),
        (pickle.dumps(np.array([["a"]])), "no numbers"),
        (pickle.dumps(np.array([[{}]], dtype=object)), "no numbers"),
        (pickle.dumps(POINTS * np.nan), "not finite"),
        (pickle.dumps(POINTS)[:-200], "no centres that can be read"),
        # Within the four bytes of a number that says how much follows.
        (pickle.dumps(POINTS, 2)[:2] + b"X\x01\x00", "no centres that can be read"),
        # A size of 2^40 is not believed before so much is there.
        (b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"x", "no centres that can be read"),
    ],
)
def test_what_holds_no_centres_is_one_sentence(content, message, tmp_path):
    (tmp_path / "km.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_centres(tmp_path / "km.bin")
    assert "\n" not in str(caught.value)


def test_a_bomb_and_a_missing_file(tmp_path, monkeypatch):
    monkeypatch.setattr("echox.codecs.quantization.centres.MOST_BYTES", 1000)
    (tmp_path / "bomb.bin").write_bytes(zlib.compress(bytes(100_000)))
    with pytest.raises(CheckpointError, match="more than"):
        read_centres(tmp_path / "bomb.bin")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_centres(tmp_path / "none.bin")
    np.save(tmp_path / "objects.npy", np.array([[{}]], dtype=object))
    with pytest.raises(CheckpointError, match="no centres that can be read"):
        read_centres(tmp_path / "objects.npy")
