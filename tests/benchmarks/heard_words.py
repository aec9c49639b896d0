"""Words of a report that were misheard, by how many training clips hold them and by test voice.

Run on a finished run of the demo and the corpus that it trained on:

    python tests/benchmarks/heard_words.py runs/echo_small runs/cache/corpora/small open
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import jiwer

# Occurrences in the training clips, from the first number on.
CLASSES = (0, 1, 5, 20, 100)
TRAINED = ("questions.train.jsonl", "free.train.jsonl", "heard.train.jsonl")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.findall(r"[a-z0-9']+", text.lower())


def trained_words(corpus: Path) -> Counter[str]:
    """Count the words of all training clips of a demo corpus."""
    counts: Counter[str] = Counter()
    for path in (corpus / name for name in TRAINED):
        for line in path.read_text("utf-8").split("\n")[:-1]:
            counts.update(words_of(json.loads(line)["conversations"][-1]["transcription"]))
    return counts


def outcomes(question: str, heard: str) -> tuple[list[tuple[str, bool]], int]:
    """Align what was heard with a question.

    Returns:
        each word of the question, and whether it was misheard; and the number of inserted words.
    """
    words = words_of(question)
    # jiwer takes no empty hypothesis; one word that is none counts as a substitution.
    output = jiwer.process_words(" ".join(words), " ".join(words_of(heard)) or "-")
    misheard = [False] * len(words)
    inserted = 0
    for chunk in output.alignments[0]:
        if chunk.type == "insert":
            inserted += chunk.hyp_end_idx - chunk.hyp_start_idx
        elif chunk.type != "equal":
            misheard[chunk.ref_start_idx : chunk.ref_end_idx] = [True] * (
                chunk.ref_end_idx - chunk.ref_start_idx
            )
    return list(zip(words, misheard)), inserted


def lines(records: list[dict], trained: Counter[str]) -> Iterator[str]:
    """Yield the lines of the two tables."""
    by_class: dict[int, list[bool]] = defaultdict(list)
    by_voice: dict[str, list[int]] = defaultdict(lambda: [0, 0])  # errors, words
    all_inserted = 0
    for record in records:
        results, inserted = outcomes(record["question"], record["heard"])
        for word, is_misheard in results:
            by_class[max(limit for limit in CLASSES if trained[word] >= limit)].append(is_misheard)
        all_inserted += inserted
        by_voice[record["voice"]][0] += inserted + sum(is_misheard for _, is_misheard in results)
        by_voice[record["voice"]][1] += len(results)
    yield "| training clips with the word | words | misheard |\n|---|---|---|"
    for limit, following in zip(CLASSES, [*CLASSES[1:], None]):
        span = f"{limit} or more" if following is None else str(limit)
        span = f"{limit} to {following - 1}" if following and following - 1 > limit else span
        results = by_class[limit]
        share = f"{100 * sum(results) / len(results):.1f} %" if results else "-"
        yield f"| {span} | {len(results)} | {share} |"
    yield f"\nwords inserted: {all_inserted}\n\n| voice | words | WER |\n|---|---|---|"
    for voice, (errors, words) in sorted(by_voice.items()):
        yield f"| {voice} | {words} | {100 * errors / words:.1f} % |"


def main(run: str, corpus: str, section: str) -> None:
    """Print the tables of one section of a run's report."""
    path = Path(run) / "report" / "sections" / f"{section}.json"
    print(
        "\n".join(
            lines(json.loads(path.read_text("utf-8"))["records"], trained_words(Path(corpus)))
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
