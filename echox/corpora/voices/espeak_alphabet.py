"""Rewrite phonemes of the misaki alphabet as the IPA that espeak-ng writes for American English.

Piper voices were trained on espeak's phonemes; the pronunciations here come from hibari's lexicon instead, so no GPL program is
needed. Stress marks stand right before the vowel in both alphabets and pass unchanged.
Source: the phoneme inventory of misaki's English (github.com/hexgrad/misaki, EN_PHONES.md) and espeak-ng's en-us voice.
"""

import re

VOWELS = "aeiouæɐɑɒɔəɚɛɜɪʊʌᵊᵻAIOQWY"
ANY_VOWEL = re.compile(f"[{VOWELS}]")

# Applied in order within one word; lengths come before diphthongs, whose letters must not be lengthened again.
REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (f"ɜɹ(?=[{VOWELS}])", "ɜːɹ"),
        ("ɜɹ", "ɜː"),
        # A schwa before a stressed syllable stays one ("around"); before an unstressed vowel the r is heard twice ("memory").
        (f"əɹ(?=[{VOWELS}])", "ɚɹ"),
        (f"əɹ(?![ˈˌ]?[{VOWELS}])", "ɚ"),
        ("ᵊ", "ə"),
        ("T", "ɾ"),
        ("ʧ", "tʃ"),
        ("ʤ", "dʒ"),
        ("(?<=[ˈˌ])i", "iː"),
        ("u", "uː"),
        ("ɑ", "ɑː"),
        ("ɔ", "ɔː"),
        ("A", "eɪ"),
        ("I", "aɪ"),
        ("O", "oʊ"),
        ("Q", "əʊ"),
        ("W", "aʊ"),
        ("Y", "ɔɪ"),
        ("ːː", "ː"),
    )
)


def to_espeak(phonemes: str) -> str:
    """Rewrite one sentence.

    Args:
        phonemes: misaki-style, words parted by spaces, punctuation kept, e.g. 'ðə bˈɜɹd.'.
    Returns:
        the same sentence as espeak's en-us IPA, e.g. 'ðə bˈɜːd.'.
    """
    return " ".join(word_to_espeak(word) for word in phonemes.split(" "))


def word_to_espeak(word: str) -> str:
    """Rewrite one word; the vowel of 'she' or 'be' is long although it bears no mark, that of 'happy' is short."""
    if len(ANY_VOWEL.findall(word)) == 1:
        word = word.replace("i", "iː")
    for pattern, replacement in REWRITES:
        word = pattern.sub(replacement, word)
    return word
