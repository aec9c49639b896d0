"""The voice Joe: a Piper (VITS) network of an American man in ONNX, run without its GPL program."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from echox.core.errors import AssetError
from echox.core.packages import HIBARI, ONNXRUNTIME
from echox.corpora.voices.base import Role, Voice
from echox.corpora.voices.espeak_alphabet import to_espeak
from echox.corpora.voices.hibari import engine

ASSET = "voice_joe"
BEGIN, PAD, END = "^", "_", "$"
PAUSE_S = 0.15  # between sentences

# The network draws its noise inside the graph, where no seed reaches; without noise its output is
# the same every time.
NOISE_SCALE, NOISE_WIDTH = 0.0, 0.0

# Voice name -> length scale: 1 is the recorded pace, larger is slower.
LENGTHS = {"joe": 1.0, "joe_slow": 1.2, "joe_fast": 0.85}


@lru_cache(maxsize=2)
def network(folder: Path):
    """Open a Piper network on one thread.

    Args:
        folder: holds one `*.onnx` and its `*.onnx.json`.

    Returns:
        session: of onnxruntime.
        table: phoneme -> ids.

    Raises:
        AssetError: the folder does not hold both files.
        PackageError: onnxruntime is not installed.
    """
    onnxruntime = ONNXRUNTIME.load()
    models = sorted(Path(folder).rglob("*.onnx"))
    if not models or not Path(f"{models[0]}.json").is_file():
        raise AssetError(
            f"a Piper voice is an .onnx file beside its .onnx.json, and {folder} does not hold "
            "both; fetch it again"
        )
    options = onnxruntime.SessionOptions()
    # One thread: clips are synthesized by one process per core.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(
        str(models[0]), options, providers=["CPUExecutionProvider"]
    )
    config = json.loads(Path(f"{models[0]}.json").read_text(encoding="utf-8"))
    return session, config["phoneme_id_map"]


def phoneme_ids(phonemes: str, table: dict[str, list[int]]) -> list[int]:
    """Encode a sentence as Piper was trained on it: begin, each phoneme followed by a pad, end.

    Args:
        phonemes: espeak IPA; characters the table lacks are left out.
        table: phoneme -> ids, from the voice's json.

    Returns:
        ids [N], at least the begin, a pad and the end.
    """
    # A dash is read with the pause of a comma.
    symbols = [BEGIN, *(symbol for symbol in phonemes.replace("—", ",") if symbol in table)]
    return [number for symbol in symbols for number in (*table[symbol], *table[PAD])] + table[END]


class JoeVoice(Voice):
    """A man's recorded voice at one of three paces, always held out of training.

    Clips are samples [T] at 22,050 Hz.

    Args:
        name: one of `LENGTHS`.
        folder: of the network; None fetches it as an asset with the first text.
    """

    rate_hz = 22_050
    packages = (HIBARI, ONNXRUNTIME)
    role = Role.TEST

    def __init__(self, name: str = "joe", folder: Path | None = None) -> None:
        self.name = name
        self.folder = folder

    def _render(self, text: str, seed: int) -> np.ndarray:
        session, table = network(self.folder or self._fetch())
        scales = np.asarray([NOISE_SCALE, LENGTHS[self.name], NOISE_WIDTH], np.float32)
        sentences = [
            phoneme_ids(to_espeak(phonemes), table) for phonemes in engine().phonemize(text)
        ]
        pause = np.zeros(round(PAUSE_S * self.rate_hz), np.float32)
        parts = [part for ids in sentences for part in (synthesize(session, ids, scales), pause)]
        # Without the pause after the last sentence.
        return np.concatenate(parts[:-1]) if parts else np.zeros(0, np.float32)

    def _fetch(self) -> Path:
        # Imported here: a list of voices needs no assets.
        from echox.assets import asset_folder

        self.folder = Path(asset_folder(ASSET))
        return self.folder


def synthesize(session, ids: list[int], scales: np.ndarray) -> np.ndarray:
    """Run the network on one sentence.

    Args:
        session: of onnxruntime.
        ids: [N] of `phoneme_ids`.
        scales: [3] float32: noise, length and noise of the durations.

    Returns:
        samples [T] float32 at `JoeVoice.rate_hz`.
    """
    inputs = {
        "input": np.asarray([ids], np.int64),
        "input_lengths": np.asarray([len(ids)], np.int64),
        "scales": scales,
    }
    return session.run(None, inputs)[0].reshape(-1)
