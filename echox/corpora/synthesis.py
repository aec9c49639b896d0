"""Synthesis of many texts to audio files, in parallel and resumable."""

import io
import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from echox.core.errors import ConfigError, DiskError, EchoxError
from echox.core.files import atomic_write
from echox.core.processes import spawn_context
from echox.core.progress import Bar
from echox.corpora.augmentation import Augment, AugmentConfig
from echox.corpora.voices import voice
from echox.data.resampling import resample

RATE_HZ = 16_000
FORMATS = (".wav", ".flac")
# Jobs handed to a process at once: enough to hide the transfer, few enough to keep the progress
# bar moving.
BATCH_JOBS = 8


class Job(NamedTuple):
    """One clip to be synthesized."""

    text: str
    voice: str
    seed: int
    augment_seed: int | None  # None leaves the clip clean
    path: str | Path  # ends in .wav or .flac


class Outcome(NamedTuple):
    """The result of one job."""

    job: Job
    duration_s: float  # of the new file; 0 when there is none
    reason: str | None  # why there is no file; None when there is


@dataclass(slots=True)
class Report:
    """Counts of a run."""

    written: int = 0
    """Files written by this run."""
    skipped: int = 0
    """Files that existed before."""
    audio_s: float = 0.0
    """Seconds of audio written."""
    failures: list[tuple[Job, str]] = field(default_factory=list)
    """Jobs without a file, each with the reason."""


def synthesize(
    jobs: Iterable[Job],
    workers: int | None = None,
    progress: bool = True,
    augment: AugmentConfig | None = None,
) -> Report:
    """Synthesize jobs to mono 16-bit files at 16 kHz.

    A file appears only when it is complete, and one that exists is not synthesized again. Processes
    are spawned: a script that calls this with more than one worker needs an
    `if __name__ == "__main__":` guard.

    Args:
        jobs: (text, voice name, seed, augmentation seed or None, path) each.
        workers: processes; None for one per processor, 1 to stay in this one.
        progress: show a bar with seconds of audio synthesized per second.
        augment: ranges of the augmentation; None for the defaults.

    Returns:
        counts, seconds of audio, and the failed jobs; a failure stops nothing else.

    Raises:
        ConfigError: two jobs would write the same path.
        OSError: the disk is full.
    """
    jobs = [Job(*job) for job in jobs]
    refuse_shared_paths(jobs)
    # Files are complete once they exist (`write_clip`), so existence is enough to resume.
    waiting = [job for job in jobs if not Path(job.path).exists()]
    report = Report(skipped=len(jobs) - len(waiting))
    # No more processes than batches: each imports the synthesizers before its first clip.
    workers = min(workers or os.cpu_count() or 1, max(1, len(waiting) // BATCH_JOBS))
    with Bar("speaking", len(jobs), unit="clip", initial=report.skipped, shows=progress) as bar:
        for outcome in run_jobs(waiting, workers, augment):
            add_outcome(outcome, report)
            pace = report.audio_s / max(bar.spent_s, 1e-3)
            bar.update(note=f"{pace:.1f} s audio/s, {len(report.failures)} failed")
    return report


def refuse_shared_paths(jobs: list[Job]) -> None:
    """Refuse jobs that would overwrite each other's files.

    Raises:
        ConfigError: two jobs have the same path.
    """
    seen: set[Path] = set()
    for job in jobs:
        path = Path(job.path)
        if path in seen:
            raise ConfigError(
                f"each job writes its own file, but two would write {path}; give one another name"
            )
        seen.add(path)


def add_outcome(outcome: Outcome, report: Report) -> None:
    """Add one outcome to the counts of a report."""
    if outcome.reason is not None:
        report.failures.append((outcome.job, outcome.reason))
        return
    report.written += 1
    report.audio_s += outcome.duration_s


def run_jobs(jobs: list[Job], workers: int, augment: AugmentConfig | None) -> Iterator[Outcome]:
    """Run jobs here (one worker) or in spawned processes, yielding each outcome as it comes.

    Raises:
        OSError: the disk is full.
    """
    if workers == 1:
        for job in jobs:
            yield run_job(job, augment)
        return
    batches = [jobs[start : start + BATCH_JOBS] for start in range(0, len(jobs), BATCH_JOBS)]
    # Spawned, not forked: a fork after PyTorch has started its threads may hang.
    pool = ProcessPoolExecutor(
        workers, mp_context=spawn_context(), initializer=leave_interrupts_to_parent
    )
    futures = {pool.submit(run_batch, batch, augment): batch for batch in batches}
    try:
        for future in as_completed(futures):
            try:
                yield from future.result()
            except BrokenProcessPool:
                reason = "a synthesis process died; run again to resume"
                yield from (Outcome(job, 0.0, reason) for job in futures[future])
    finally:
        # Reached on Ctrl-C too: running batches are finished, so no file is left half-written.
        pool.shutdown(wait=True, cancel_futures=True)


def leave_interrupts_to_parent() -> None:
    """Ignore Ctrl-C in this process, so that the parent alone ends the run."""
    # A terminal sends Ctrl-C to all processes; each would print a traceback of its own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_batch(jobs: list[Job], augment: AugmentConfig | None) -> list[Outcome]:
    """Run a batch of jobs in this process.

    Raises:
        OSError: the disk is full.
    """
    return [run_job(job, augment) for job in jobs]


def run_job(job: Job, augment: AugmentConfig | None) -> Outcome:
    """Run one job; an error becomes the outcome's reason, so that the other jobs go on.

    Raises:
        DiskError: the disk is full or cannot be written, which ends all jobs.
    """
    try:
        return Outcome(job, write_clip(job, augment), None)
    except DiskError:
        raise
    except EchoxError as error:
        return Outcome(job, 0.0, str(error))
    except OSError as error:
        return Outcome(job, 0.0, str(error.strerror or error))
    except Exception as error:
        # Third-party engines raise anything; one text must not cost a corpus of thousands.
        return Outcome(job, 0.0, f"{type(error).__name__}: {error}")


def write_clip(job: Job, augment: AugmentConfig | None) -> float:
    """Synthesize, augment and write one clip.

    Returns:
        seconds of audio written.

    Raises:
        ConfigError: there is no such voice, or the path's ending is no supported format.
        SignalError: the text cannot be synthesized.
        AssetError: the voice's engine or weights cannot be had.
    """
    # Imported here: whoever only plans a corpus does not need it.
    import soundfile

    path = Path(job.path)
    if path.suffix not in FORMATS:
        raise ConfigError(
            f"clips are written as {' or '.join(FORMATS)}, but the path is {path}; "
            "change its ending"
        )
    samples = render(job, augment)
    # In memory first, because libsndfile calls any fault of the disk a "System error".
    content = io.BytesIO()
    file_format = path.suffix.removeprefix(".")
    soundfile.write(content, samples, RATE_HZ, subtype="PCM_16", format=file_format)
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(content.getbuffer())
    return len(samples) / RATE_HZ


def render(job: Job, augment: AugmentConfig | None) -> np.ndarray:
    """Synthesize and augment the samples [T] float32 at 16 kHz of one job.

    Raises:
        ConfigError: there is no such voice.
        SignalError: the text cannot be synthesized.
        AssetError: the voice's engine or weights cannot be had.
    """
    engine = voice(job.voice)
    samples = engine.synthesize(job.text, job.seed)
    # The resampling filter overshoots at steep edges.
    samples = np.clip(resample(samples, RATE_HZ / engine.rate_hz), -1.0, 1.0)
    if job.augment_seed is None:
        return samples
    return Augment(augment)(samples, RATE_HZ, np.random.default_rng(job.augment_seed))
