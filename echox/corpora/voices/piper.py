"""Joe, a natural American man: a Piper (VITS) network in ONNX, spoken without its GPL program."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from echox.corpora.voices.base import Role, Voice
from echox.corpora.voices.espeak_alphabet import to_espeak
from echox.corpora.voices.hibari import engine
from echox.errors import AssetError
from echox.packages import HIBARI, ONNXRUNTIME

ASSET = "voice_joe"
BEGIN, PAD, END = "^", "_", "$"
PAUSE_S = 0.15

# The network draws its noise inside, where no seed reaches; without noise it is the same every time.
NOISE_SCALE, NOISE_WIDTH = 0.0, 0.0

# Speaker name to length scale: 1 is the recorded pace, larger is slower.
LENGTHS = {"joe": 1.0, "joe_slow": 1.2, "joe_fast": 0.85}


@lru_cache(maxsize=2)
def network(folder: Path):
    """Open a Piper network on one thread.

    Args:
        folder: holds one `*.onnx` and its `*.onnx.json`.
    Returns:
        (onnxruntime session, phoneme to list of ids).
    Raises:
        AssetError: the folder does not hold them.
    """
    onnxruntime = ONNXRUNTIME.load()
    found = sorted(Path(folder).rglob("*.onnx"))
    if not found or not Path(f"{found[0]}.json").is_file():
        raise AssetError(f"a Piper voice is an .onnx file beside its .onnx.json, and {folder} does not hold both; fetch it again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(found[0]), options, providers=["CPUExecutionProvider"])
    return session, json.loads(Path(f"{found[0]}.json").read_text(encoding="utf-8"))["phoneme_id_map"]


def phoneme_ids(phonemes: str, table: dict[str, list[int]]) -> list[int]:
    """Spell a sentence as Piper was trained to read it: begin, each phoneme followed by a pad, end.

    Args:
        phonemes: espeak IPA; characters the table lacks are left out.
        table: phoneme to ids, from the voice's json.
    Returns:
        ids, at least the begin, a pad and the end.
    """
    known = [BEGIN, *(symbol for symbol in phonemes.replace("—", ",") if symbol in table)]
    return [number for symbol in known for number in (*table[symbol], *table[PAD])] + table[END]


class JoeVoice(Voice):
    """A man's recorded voice at one of three paces; always held out of training."""

    rate_hz = 22_050
    packages = (HIBARI, ONNXRUNTIME)
    role = Role.TEST

    def __init__(self, name: str = "joe", folder: Path | None = None) -> None:
        """Name one of `LENGTHS`; `folder` holds the network, fetched as an asset at the first word when None."""
        self.name = name
        self.folder = folder

    def _render(self, text: str, seed: int) -> np.ndarray:
        session, table = network(self.folder or self._fetched())
        scales = np.asarray([NOISE_SCALE, LENGTHS[self.name], NOISE_WIDTH], np.float32)
        sentences = [phoneme_ids(to_espeak(phonemes), table) for phonemes in engine().phonemize(text)]
        pause = np.zeros(round(PAUSE_S * self.rate_hz), np.float32)
        parts = [part for ids in sentences for part in (spoken(session, ids, scales), pause)]
        return np.concatenate(parts[:-1]) if parts else np.zeros(0, np.float32)

    def _fetched(self) -> Path:
        from echox.assets import asset_folder

        self.folder = Path(asset_folder(ASSET))
        return self.folder


def spoken(session, ids: list[int], scales: np.ndarray) -> np.ndarray:
    """Samples [T] float32 of one sentence; scales are noise, length and duration noise."""
    inputs = {"input": np.asarray([ids], np.int64), "input_lengths": np.asarray([len(ids)], np.int64), "scales": scales}
    return session.run(None, inputs)[0].reshape(-1)
