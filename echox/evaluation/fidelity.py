"""How near a copy of speech is to the recording, by two measures that hear both."""

from __future__ import annotations

import importlib.metadata
import logging

from torch import Tensor

from echox.data.audio import resampled
from echox.packages import PESQ, STOI, missing_text

log = logging.getLogger(__name__)

RATE_HZ = 16_000
PACKAGES = {"PESQ": PESQ, "STOI": STOI}


def known_measures() -> dict[str, str]:
    """Measure -> package and version, of those that are installed; a sentence where one is not."""
    found = {name: package.name for name, package in PACKAGES.items() if package.is_installed()}
    if missing := [package for name, package in PACKAGES.items() if name not in found]:
        log.warning("not measured: %s", missing_text(missing))
    return {name: f"{package}@{importlib.metadata.version(package)}" for name, package in found.items()}


def fidelity(measure: str, recording: Tensor, copy: Tensor, rate_hz: int) -> float | None:
    """One measure of a copy [T] against its recording [T'], both cut to the shorter; None where it cannot be told (no speech is found).

    Timing counts: a copy that speaks at a pace of its own is as far from its recording as one that says something else.

    Source: ITU-T P.862.2 (PESQ, wide band, 1 to 4.6); Taal et al. 2011 (STOI, 0 to 1).
    """
    length = min(len(recording), len(copy))
    pair = [resampled(clip[:length].float(), rate_hz, RATE_HZ).numpy() for clip in (recording, copy)]
    return {"PESQ": _pesq, "STOI": _stoi}[measure](*pair)


def _pesq(recording, copy) -> float | None:
    pesq = PESQ.load()
    try:
        return float(pesq.pesq(RATE_HZ, recording, copy, "wb"))
    except pesq.PesqError:
        return None


def _stoi(recording, copy) -> float | None:
    # Too short a clip gives 1e-5 and a warning, not an error.
    value = float(STOI.load().stoi(recording, copy, RATE_HZ))
    return None if value <= 1e-5 else value
