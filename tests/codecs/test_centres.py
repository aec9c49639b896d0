"""Centres from files that scikit-learn and joblib wrote, compressed or not, and hostile pickles."""

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
from echox.core.errors import CheckpointError

POINTS = np.random.RandomState(0).randn(200, 6).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    """A model as fairseq fits it, with the state of its random number generator inside."""
    model = MiniBatchKMeans(5, batch_size=64, n_init=2, random_state=0).fit(POINTS)
    return model.partial_fit(POINTS)


@pytest.fixture(
    params=[None, ("zlib", 3), ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)], ids=str
)
def compression(request):
    return request.param or 0


def test_fairseq_files_are_read(fitted, compression, tmp_path):
    joblib.dump(fitted, tmp_path / "km.bin", compress=compression)
    centres = read_centres(tmp_path / "km.bin")
    assert centres.dtype == torch.float32 and np.array_equal(
        centres.numpy(), fitted.cluster_centers_.astype(np.float32)
    )


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol_is_read(fitted, protocol, tmp_path):
    expected = fitted.cluster_centers_.astype(np.float32)
    joblib.dump(fitted, tmp_path / "km.bin", protocol=protocol)
    assert np.array_equal(read_centres(tmp_path / "km.bin").numpy(), expected)
    (tmp_path / "km.pkl").write_bytes(pickle.dumps(fitted, protocol))
    assert np.array_equal(read_centres(tmp_path / "km.pkl").numpy(), expected)


def test_kmeans_models_and_arrays_are_read(tmp_path):
    model = KMeans(4, n_init=1, random_state=np.random.RandomState(1)).fit(
        POINTS.astype(np.float64)
    )
    assert model.cluster_centers_.dtype == np.float64
    joblib.dump(model, tmp_path / "model.bin")
    assert np.allclose(read_centres(tmp_path / "model.bin").numpy(), model.cluster_centers_)
    for order in ("C", "F"):
        array = np.array(POINTS, order=order)
        joblib.dump(array, tmp_path / "array.bin")
        np.save(tmp_path / "array.npy", array)
        for name in ("array.bin", "array.npy"):
            assert np.array_equal(read_centres(tmp_path / name).numpy(), POINTS)
    joblib.dump(POINTS.astype(">f8"), tmp_path / "big_endian.bin")
    assert np.allclose(read_centres(tmp_path / "big_endian.bin").numpy(), POINTS)


def test_older_files_with_other_names_and_no_padding_are_read(fitted, tmp_path):
    """Old joblib does not pad; old scikit-learn and NumPy name other modules."""
    joblib.dump(fitted, tmp_path / "new.bin")
    old = (
        (tmp_path / "new.bin")
        .read_bytes()
        .replace(b"\x8c\x17sklearn.cluster._kmeans", b"\x8c\x18sklearn.cluster.k_means_")
    )
    assert old != (tmp_path / "new.bin").read_bytes()
    (tmp_path / "old.bin").write_bytes(_without_frames(old))
    assert np.array_equal(
        read_centres(tmp_path / "old.bin").numpy(), fitted.cluster_centers_.astype(np.float32)
    )
    file = _UnseekableFile()
    joblib.dump(fitted, file)
    (tmp_path / "unpadded.bin").write_bytes(file.getvalue())
    assert np.array_equal(
        read_centres(tmp_path / "unpadded.bin").numpy(), fitted.cluster_centers_.astype(np.float32)
    )


def _without_frames(content):
    """The same pickle without its frame headers, whose sizes are wrong after an edit."""
    parts, start = [], 0
    while (at := content.find(b"\x95", start)) >= 0 and int.from_bytes(
        content[at + 1 : at + 9], "little"
    ) < len(content):
        parts.append(content[start:at])
        start = at + 9
    return b"".join(parts) + content[start:]


class _UnseekableFile(BytesIO):
    """A file without a position, for which joblib writes arrays without padding, as before 1.2."""

    def tell(self):
        raise UnsupportedOperation


class Exploit:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "function",
    [os.mkdir, eval, print, joblib.load, np.load, getattr],
    ids=lambda function: function.__name__,
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_file_is_refused_by_name_and_not_run(function, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exploit = Exploit(function, "ran")
    for name, content in {
        "bare.bin": exploit,
        "inside.bin": {"cluster_centers_": POINTS, "labels_": exploit},
    }.items():
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(
            CheckpointError, match=f"{function.__name__}.*nothing of it was run"
        ) as caught:
            read_centres(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value)
    joblib.dump(exploit, tmp_path / "packed.bin", compress=("zlib", 1))
    with pytest.raises(CheckpointError, match=function.__name__):
        read_centres(tmp_path / "packed.bin")
    assert not (tmp_path / "ran").exists()


# A pickle can set attributes of any object that it names: here of the stand-in for NumPy's scalar,
# a function, and of the class of records.
@pytest.mark.parametrize("instruction", [b"cnumpy.core.multiarray\nscalar\n", b"cnumpy\nndarray\n"])
def test_stand_ins_cannot_be_changed(instruction):
    before = {name: dict(vars(stand)) for name, stand in STAND_INS.items()}
    with pytest.raises(CheckpointError, match="gives a state"):
        read_inert(instruction + b"N}X\x0c\x00\x00\x00__defaults__Ns\x86b.")
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
        # Cut off within the four bytes of a size.
        (pickle.dumps(POINTS, 2)[:2] + b"X\x01\x00", "no centres that can be read"),
        # A size of 2^40 bytes, which must not be allocated before they are read.
        (b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"x", "no centres that can be read"),
    ],
)
def test_files_without_centres_are_refused_in_one_sentence(content, message, tmp_path):
    (tmp_path / "km.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_centres(tmp_path / "km.bin")
    assert "\n" not in str(caught.value)


def test_decompression_bombs_and_missing_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("echox.codecs.quantization.centres.MAX_BYTES", 1000)
    (tmp_path / "bomb.bin").write_bytes(zlib.compress(bytes(100_000)))
    with pytest.raises(CheckpointError, match="more than"):
        read_centres(tmp_path / "bomb.bin")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_centres(tmp_path / "none.bin")
    np.save(tmp_path / "objects.npy", np.array([[{}]], dtype=object))
    with pytest.raises(CheckpointError, match="no centres that can be read"):
        read_centres(tmp_path / "objects.npy")
