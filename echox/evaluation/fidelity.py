"""Similarity of a copy of speech to its recording, by PESQ and STOI."""

from __future__ import annotations

import importlib.metadata
import logging

from torch import Tensor

from echox.core.packages import PESQ, STOI, missing_text
from echox.data.audio import resampled

log = logging.getLogger(__name__)

RATE_HZ = 16_000
PACKAGES = {"PESQ": PESQ, "STOI": STOI}


def installed_measures() -> dict[str, str]:
    """Return measure -> package and version of those that are installed, and warn of the others."""
    installed = {name: package.name for name, package in PACKAGES.items() if package.is_installed()}
    if missing := [package for name, package in PACKAGES.items() if name not in installed]:
        log.warning("not measured: %s", missing_text(missing))
    # With the version, so that a report names what computed its numbers.
    return {
        name: f"{package}@{importlib.metadata.version(package)}"
        for name, package in installed.items()
    }


def fidelity(measure: str, recording: Tensor, copy: Tensor, rate_hz: int) -> float | None:
    """Measure a copy against its recording, both cut to the shorter.

    Timing counts: a copy at a pace of its own is as far from its recording as one of another text.

    Args:
        measure: "PESQ" or "STOI".
        recording: samples [T].
        copy: samples [T'].
        rate_hz: of both.

    Returns:
        the measure, or None where no speech is found in the clips.

    Raises:
        PackageError: the measure's package is not installed.

    Source: ITU-T P.862.2 (PESQ, wide band, 1 to 4.6); Taal et al. 2011 (STOI, 0 to 1).
    """
    length = min(len(recording), len(copy))
    pair = [
        resampled(clip[:length].float(), rate_hz, RATE_HZ).numpy() for clip in (recording, copy)
    ]
    return {"PESQ": _pesq, "STOI": _stoi}[measure](*pair)


def _pesq(recording, copy) -> float | None:
    pesq = PESQ.load()
    try:
        return float(pesq.pesq(RATE_HZ, recording, copy, "wb"))
    except pesq.PesqError:
        # Such as a clip in which it finds no utterance.
        return None


def _stoi(recording, copy) -> float | None:
    # Too short a clip gives 1e-5 and a warning, not an error.
    value = float(STOI.load().stoi(recording, copy, RATE_HZ))
    return None if value <= 1e-5 else value
