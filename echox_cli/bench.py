"""`echox-bench SUBJECT ...`: speed of kernels, spoken answers, manifests, unit encoding."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from echox_cli import start

if __name__ == "__main__":  # python -m; first, because what follows takes seconds and may fail
    sys.exit(start.bench())

from echox.bench.decode import DecodeBenchConfig, bench_decode
from echox.bench.latency import LatencyBenchConfig, bench_latency
from echox.bench.load import LoadBenchConfig, bench_load
from echox.bench.loss import LossBenchConfig, bench_loss
from echox.bench.manifest import ManifestBenchConfig, bench_manifest
from echox.bench.units import UnitsBenchConfig, bench_units
from echox.core.config import near
from echox.core.errors import ConfigError
from echox_cli.arguments import OPTIONS, split
from echox_cli.command import answered_at_once, run_command
from echox_cli.completion import Offers
from echox_cli.fields import entry_lines, summary
from echox_cli.guard import guarded
from echox_cli.offers import config_offers

PROGRAM = "echox-bench"
# Subject -> config, function, and the field that words without `=` belong to.
SUBJECTS: dict[str, tuple[type, Callable[[Any], object], str | None]] = {
    "loss": (LossBenchConfig, bench_loss, "shapes"),
    "decode": (DecodeBenchConfig, bench_decode, "shapes"),
    "latency": (LatencyBenchConfig, bench_latency, "questions"),
    "load": (LoadBenchConfig, bench_load, None),
    "manifest": (ManifestBenchConfig, bench_manifest, "rows"),
    "units": (UnitsBenchConfig, bench_units, None),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `echox-bench` and return its exit code.

    Args:
        argv: the words after the program's name; None takes those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in SUBJECTS:
        config_type, function, positional = SUBJECTS[words[0]]
        return run_command(f"{PROGRAM} {words[0]}", config_type, function, words[1:], positional)
    return guarded(PROGRAM, lambda: _without_subject(words))


def _without_subject(words: list[str]) -> None:
    """Print the list of subjects, whether it was asked for or no subject was given."""
    arguments = split(words, takes_recipe=False)
    if answered_at_once(PROGRAM, arguments):
        return
    if faulty := [*arguments.words, *arguments.overrides]:
        raise ConfigError(
            f"no subject {faulty[0]!r}{near(faulty[0], SUBJECTS)}; "
            f"subjects are {', '.join(SUBJECTS)}"
        )
    print(
        "Measure kernels, spoken answers, manifests, the making of units, and a busy machine.\n\n"
        f"usage: {PROGRAM} SUBJECT [field=value ...]\n\n"
        f"subjects ({PROGRAM} SUBJECT --help explains one):"
    )
    for name, (config_type, _, _) in SUBJECTS.items():
        print("\n".join(entry_lines(f"  {name}", summary(config_type.__doc__), 12)))


def offers(before: Sequence[str]) -> Offers:
    """Return what may follow on a command line of `echox-bench`.

    Args:
        before: the finished words after the program's name.
    """
    if before and before[0] in SUBJECTS:
        return config_offers(SUBJECTS[before[0]][0], before[1:])
    return Offers([*SUBJECTS, *OPTIONS])
