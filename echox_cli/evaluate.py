"""`echox-evaluate`: score a finished run, compare ways to train, or score copies of speech.

echox-evaluate ...            score a finished run
echox-evaluate ablation ...   compare ways to train its Echo stage
echox-evaluate codec ...      copy speech through a codec
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from echox_cli import start

if __name__ == "__main__":  # python -m; first, because what follows takes seconds and may fail
    sys.exit(start.evaluate())

from echox.evaluation.codec_copy import CodecCopyConfig, copy_synthesis
from echox.evaluation.report import EvaluateConfig, evaluate
from echox.pipeline.ablation import AblationConfig, ablate
from echox.pipeline.subjects import Subject, installed_subjects
from echox_cli.command import run_command
from echox_cli.completion import Offers
from echox_cli.fields import entry_lines, summary
from echox_cli.offers import config_offers

PROGRAM = "echox-evaluate"
# Without a subject the command scores a run.
SUBJECTS = {
    "ablation": Subject(AblationConfig, ablate),
    "codec": Subject(CodecCopyConfig, copy_synthesis),
}


def _all_subjects() -> dict[str, Subject]:
    """Return the subjects of echox and those that installed packages add."""
    return {**SUBJECTS, **installed_subjects("evaluate", SUBJECTS)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `echox-evaluate` and return its exit code.

    Args:
        argv: the words after the program's name; None takes those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # A field or an option of the run comes first where there is no subject.
    has_subject = bool(words) and words[0].isidentifier()
    if has_subject and (subject := _all_subjects().get(words[0])) is not None:
        program, config_type = f"{PROGRAM} {words[0]}", subject.config_type
        return run_command(program, config_type, subject.function, words[1:], subject.positional)
    status = run_command(PROGRAM, EvaluateConfig, evaluate, words)
    # The help of a field, `--help run`, is not that of the command.
    if status == 0 and {"--help", "-h"} & set(words) and not any(map(str.isidentifier, words)):
        _print_subjects()
    return status


def _print_subjects() -> None:
    print(f"\nsubjects ({PROGRAM} SUBJECT --help explains one):")
    for name, subject in _all_subjects().items():
        print("\n".join(entry_lines(f"  {name}", summary(subject.config_type.__doc__), 16)))


def offers(before: Sequence[str]) -> Offers:
    """Return what may follow on a command line of `echox-evaluate`.

    Args:
        before: the finished words after the program's name.
    """
    subjects = _all_subjects()
    if before and before[0] in subjects:
        return config_offers(subjects[before[0]].config_type, before[1:])
    run = config_offers(EvaluateConfig, before)
    # A subject can only be the first word.
    return run if before else Offers([*subjects, *run.candidates], run.plain)
