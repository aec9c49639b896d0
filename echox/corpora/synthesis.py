"""Speak many texts to files, in parallel, picking up where an earlier run stopped."""

import io
import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from echox.corpora.augmentation import Augment, AugmentConfig
from echox.data.resampling import resample
from echox.corpora.voices import voice
from echox.data.writing import appearing
from echox.disk import DISK_FULL
from echox.errors import ConfigError, EchoxError
from echox.progress import Bar

RATE_HZ = 16_000
FORMATS = (".wav", ".flac")
# Jobs handed to a process at once: enough to hide the hand-over, few enough to keep the progress bar alive.
BATCH_JOBS = 8


class Job(NamedTuple):
    """One file to be spoken."""

    text: str
    voice: str
    seed: int
    augment_seed: int | None  # None leaves the clip clean
    path: str | Path  # ends in .wav or .flac


class Outcome(NamedTuple):
    """What became of one job."""

    job: Job
    duration_s: float  # of the new file; 0 when there is none
    reason: str | None  # why there is no file; None when there is


@dataclass(slots=True)
class Report:
    """What a run did."""

    written: int = 0
    """Files written by this run."""
    skipped: int = 0
    """Files that were there before."""
    audio_s: float = 0.0
    """Seconds of audio written."""
    failures: list[tuple[Job, str]] = field(default_factory=list)
    """Jobs without a file, each with the reason."""


def synthesise(
    jobs: Iterable[Job], workers: int | None = None, progress: bool = True, augment: AugmentConfig | None = None
) -> Report:
    """Speak jobs to mono 16-bit files at 16 kHz.

    A file appears only when complete, and one that exists is never spoken again. Processes are spawned: a script that calls
    this with more than one worker needs an `if __name__ == "__main__":` guard.

    Args:
        jobs: (text, voice name, seed, augmentation seed or None, path) each.
        workers: processes; None for one per processor, 1 to stay in this one.
        progress: show a bar with seconds of audio made per second.
        augment: ranges of the augmentation; None for the defaults.
    Returns:
        counts and the failed jobs; a failure stops nothing else.
    Raises:
        ConfigError: two jobs would write the same path.
        OSError: the disk is full.
    """
    jobs = [Job(*job) for job in jobs]
    refuse_shared_paths(jobs)
    waiting = [job for job in jobs if not Path(job.path).exists()]
    report = Report(skipped=len(jobs) - len(waiting))
    workers = min(workers or os.cpu_count() or 1, max(1, len(waiting) // BATCH_JOBS))
    with Bar("speaking", len(jobs), unit="clip", initial=report.skipped, shows=progress) as bar:
        for outcome in outcomes(waiting, workers, augment):
            record(outcome, report)
            bar.update(note=f"{report.audio_s / max(bar.spent_s, 1e-3):.1f} s audio/s, {len(report.failures)} failed")
    return report


def refuse_shared_paths(jobs: list[Job]) -> None:
    """Raise ConfigError if two jobs share a path."""
    seen: set[Path] = set()
    for job in jobs:
        path = Path(job.path)
        if path in seen:
            raise ConfigError(f"each job writes its own file, but two would write {path}; give one another name")
        seen.add(path)


def record(outcome: Outcome, report: Report) -> None:
    """Add one outcome to the report."""
    if outcome.reason is not None:
        report.failures.append((outcome.job, outcome.reason))
        return
    report.written += 1
    report.audio_s += outcome.duration_s


def outcomes(jobs: list[Job], workers: int, augment: AugmentConfig | None) -> Iterator[Outcome]:
    """Run jobs here (one worker) or in spawned processes, yielding each outcome as it comes."""
    batches = [jobs[start : start + BATCH_JOBS] for start in range(0, len(jobs), BATCH_JOBS)]
    if workers == 1:
        for job in jobs:
            yield attempt(job, augment)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=leave_interrupts_to_parent)
    running = {pool.submit(attempt_all, batch, augment): batch for batch in batches}
    try:
        for future in as_completed(running):
            try:
                yield from future.result()
            except BrokenProcessPool:
                yield from (Outcome(job, 0.0, "a speaking process died; run again to resume") for job in running[future])
    finally:
        # Reached on Ctrl-C too: finish the batch in hand, drop the rest, leave no half-written file.
        pool.shutdown(wait=True, cancel_futures=True)


def leave_interrupts_to_parent() -> None:
    """Let Ctrl-C reach only the parent, which then winds the processes down."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def attempt_all(jobs: list[Job], augment: AugmentConfig | None) -> list[Outcome]:
    """Attempt a batch of jobs in this process."""
    return [attempt(job, augment) for job in jobs]


def attempt(job: Job, augment: AugmentConfig | None) -> Outcome:
    """Speak one job; whatever goes wrong becomes the outcome's reason, so that the others go on. A full disk ends them all.

    Raises:
        OSError: the disk, or the user's quota of it, is full.
    """
    try:
        return Outcome(job, write(job, augment), None)
    except EchoxError as error:
        return Outcome(job, 0.0, str(error))
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        return Outcome(job, 0.0, str(error.strerror or error))
    except Exception as error:
        return Outcome(job, 0.0, f"{type(error).__name__}: {error}")


def write(job: Job, augment: AugmentConfig | None) -> float:
    """Speak, augment and write one job.

    Returns:
        seconds of audio written.
    Raises:
        ConfigError: no such voice, or the path's ending is no format we write.
        SignalError, AssetError: the voice could not speak.
    """
    import soundfile

    path = Path(job.path)
    if path.suffix not in FORMATS:
        raise ConfigError(f"clips are written as {' or '.join(FORMATS)}, but the path is {path}; change its ending")
    samples = spoken(job, augment)
    # In memory first, because libsndfile calls any fault of the disk a "System error".
    content = io.BytesIO()
    soundfile.write(content, samples, RATE_HZ, subtype="PCM_16", format=path.suffix.removeprefix("."))
    with appearing(path) as unfinished:
        unfinished.write_bytes(content.getbuffer())
    return len(samples) / RATE_HZ


def spoken(job: Job, augment: AugmentConfig | None) -> np.ndarray:
    """Samples [T] float32 at 16 kHz of one job."""
    speaker = voice(job.voice)
    samples = speaker.speak(job.text, job.seed)
    samples = np.clip(resample(samples, RATE_HZ / speaker.rate_hz), -1.0, 1.0)
    if job.augment_seed is None:
        return samples
    return Augment(augment)(samples, RATE_HZ, np.random.default_rng(job.augment_seed))
