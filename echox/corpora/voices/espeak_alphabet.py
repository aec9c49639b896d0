"""Conversion of phonemes from the misaki alphabet to the IPA of espeak-ng's American English.

Piper voices were trained on espeak's phonemes; the pronunciations here come from hibari's lexicon
instead, so no GPL program is needed. Stress marks stand right before the vowel in both alphabets
and pass unchanged.

Source: the phoneme inventory of misaki's English (github.com/hexgrad/misaki, EN_PHONES.md) and
    espeak-ng's en-us voice.
"""

import re

VOWELS = "aeiouæɐɑɒɔəɚɛɜɪʊʌᵊᵻAIOQWY"
ANY_VOWEL = re.compile(f"[{VOWELS}]")

# Applied in order within one word; lengths come before diphthongs, whose letters must not be
# lengthened again.
REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (f"ɜɹ(?=[{VOWELS}])", "ɜːɹ"),
        ("ɜɹ", "ɜː"),
        # A schwa before a stressed syllable stays one ("around"); before an unstressed vowel the r
        # belongs to both syllables ("memory").
        (f"əɹ(?=[{VOWELS}])", "ɚɹ"),
        (f"əɹ(?![ˈˌ]?[{VOWELS}])", "ɚ"),
        ("ᵊ", "ə"),
        ("T", "ɾ"),
        # Affricates and diphthongs are one letter in misaki and two in espeak.
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
        # Where two rules have lengthened the same vowel.
        ("ːː", "ː"),
    )
)


def to_espeak(phonemes: str) -> str:
    """Convert one sentence.

    Args:
        phonemes: misaki-style, words separated by spaces, punctuation kept, e.g. 'ðə bˈɜɹd.'.

    Returns:
        the same sentence as espeak's en-us IPA, e.g. 'ðə bˈɜːd.'.
    """
    return " ".join(word_to_espeak(word) for word in phonemes.split(" "))


def word_to_espeak(word: str) -> str:
    """Convert one word from misaki's alphabet to espeak's."""
    # An i that is the only vowel is long although it bears no stress mark ("she", "be"); the last
    # one of "happy" is short.
    if len(ANY_VOWEL.findall(word)) == 1:
        word = word.replace("i", "iː")
    for pattern, replacement in REWRITES:
        word = pattern.sub(replacement, word)
    return word
