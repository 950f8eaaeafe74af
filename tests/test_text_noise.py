"""Typing errors: what may happen to a text, how often, and that nothing else about the run decides it."""

import math
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import make_rows
from scipy.stats import chisquare

from kd_trainer.text_noise import LOOKALIKES, SIMILAR, add_noise, noisy_text

PROJECT = Path(__file__).parent.parent
KINDS = ("swap", "drop", "repeat", "replace")
# 400 characters that differ from each other, none with a look-alike, none of them "#".
DISTINCT = "".join(chr(code) for code in range(0x3400, 0x3400 + 400))


class Scripted:
    """A generator whose draws are given: numbers for `random`, anything that is on offer for `choice`."""

    def __init__(self, draws):
        self.draws, self.offered = list(draws), []

    def random(self):
        return self.draws.pop(0)

    def choice(self, options):
        self.offered.append(options)
        drawn = self.draws.pop(0)
        assert drawn in options
        return drawn


class Counting(random.Random):
    """Counts the kinds of error that it is asked for."""

    def __init__(self, seed):
        super().__init__(seed)
        self.kinds = Counter()

    def choice(self, options):
        drawn = super().choice(options)
        if options == KINDS:
            self.kinds[drawn] += 1
        return drawn


def fewest_errors(text, noisy, alphabet, may_keep=True):
    """How many errors, at least, make `noisy` out of `text`; infinity when the four kinds cannot."""
    # best[written]: fewest errors after the characters read so far, with so many characters of `noisy` written.
    best = {0: {0: 0}}
    for read in range(len(text)):
        for written, errors in best.pop(read, {}).items():
            character, pair = text[read], text[read : read + 2]
            steps = [(1, 0, 1)]  # dropped: characters read, written, errors
            if noisy[written : written + 1] == character and may_keep:
                steps.append((1, 1, 0))
            if noisy[written : written + 2] == 2 * character:
                steps.append((1, 2, 1))
            if len(pair) == 2 and noisy[written : written + 2] == pair[::-1]:
                steps.append((2, 2, 1))
            if noisy[written : written + 1] and noisy[written] in SIMILAR.get(character, alphabet):
                steps.append((1, 1, 1))
            for more_read, more_written, more in steps:
                cell = best.setdefault(read + more_read, {})
                cell[written + more_written] = min(cell.get(written + more_written, math.inf), errors + more)
    return best.get(len(text), {}).get(len(noisy), math.inf)


@pytest.mark.parametrize("seed", [0, 7])
def test_without_a_rate_texts_stay_as_they_are(seed):
    texts = [*make_rows(20)[0], "", "a", "己已巳", DISTINCT, "😀\u0301\ud800\n\t "]
    assert add_noise(texts, 0, seed) == texts
    assert add_noise([], 0.5, seed) == [] == add_noise([], 0, seed)


@pytest.mark.parametrize(
    ("text", "draws", "expected"),
    [
        ("abcd", [0.9, 0.9, 0.9, 0.9], "abcd"),
        ("abcd", [0.1, "swap", 0.9, 0.9], "bacd"),  # no draw for b: it has been moved
        ("abcd", [0.1, "swap", 0.1, "swap"], "badc"),
        ("abcd", [0.9, 0.1, "drop", 0.9, 0.9], "acd"),
        ("abcd", [0.9, 0.9, 0.1, "repeat", 0.9], "abccd"),
        ("xyz", [0.1, "replace", "#", 0.9, 0.9], "#yz"),
        ("xyz", [0.9, 0.9, 0.1, "swap", "#"], "xy#"),  # the last one has none to swap with: it is replaced
        ("x", [0.1, "drop"], ""),
        ("", [], ""),
        ("xy", [0.5, 0.5], "xy"),  # as probable as the rate says: random() < rate, never at it
    ],
)
def test_each_kind_of_error_does_what_it_says(text, draws, expected):
    generator = Scripted(draws)
    assert noisy_text(text, 0.5, "#", generator) == expected
    assert not generator.draws and all(options in (KINDS, "#") for options in generator.offered)


def test_a_character_with_look_alikes_is_replaced_by_one_of_them_alone():
    generator = Scripted([0.0, "replace", "巳", 0.0, "replace", "?"])
    assert noisy_text("己〇", 0.5, "?#", generator) == "巳?"
    assert [set(options) for options in generator.offered[1::2]] == [set("已巳"), set("?#")]


@pytest.mark.parametrize("rate", [0.05, 0.3, 1.0])
def test_nothing_but_the_four_kinds_of_error_happens(rate):
    texts = [*make_rows(60, length=(1, 12))[0], "己已巳末未土士" * 3, "0Oo1lI", "aaaa", DISTINCT[:50]]
    alphabet = set("".join(texts))
    noisy = add_noise(texts, rate, seed=3)
    for text, changed in zip(texts, noisy, strict=True):
        assert fewest_errors(text, changed, alphabet) <= len(text)
        assert len(changed) <= 2 * len(text)
    assert noisy != texts
    # The judge itself: what it must not explain by errors of these kinds.
    assert fewest_errors("xyz", "zyx", "#") == fewest_errors("己", "乙", "乙") == math.inf
    assert fewest_errors("xyz", "yx#", "#") == 2 and fewest_errors("xyz", "xz", "#") == 1


@pytest.mark.parametrize("seed", range(5))
def test_at_rate_1_no_character_is_spared(seed):
    noisy = noisy_text(DISTINCT, 1.0, "#", random.Random(seed))
    # Every character of the text differs from the others, so what was kept could not pass for anything else.
    assert fewest_errors(DISTINCT, noisy, "#", may_keep=False) < math.inf
    one_kept = noisy_text(DISTINCT[:200], 1.0, "#", random.Random(seed)) + DISTINCT[200]
    assert fewest_errors(DISTINCT[:201], one_kept, "#", may_keep=False) == math.inf


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 0.9])
def test_errors_are_as_frequent_as_the_rate_and_of_all_kinds_alike(rate):
    generator = Counting(11)
    text = DISTINCT * 50
    noisy = noisy_text(text, rate, "#", generator)
    errors = sum(generator.kinds.values())
    draws = len(text) - generator.kinds["swap"]  # a swap takes two characters at once
    assert abs(errors - rate * draws) < 4 * math.sqrt(draws * rate * (1 - rate))
    assert chisquare([generator.kinds[kind] for kind in KINDS]).pvalue > 1e-3
    # The length tells the same without looking at the draws: a drop takes one away, a repetition adds one.
    assert len(noisy) == len(text) - generator.kinds["drop"] + generator.kinds["repeat"]
    assert noisy.count("#") >= generator.kinds["replace"]


def test_a_text_is_changed_alike_whatever_stands_beside_it():
    # Only characters with look-alikes, for which the alphabet is not asked.
    text = "".join(LOOKALIKES)[:80]
    alone = add_noise([text], 0.4)[0]
    assert alone != text
    assert add_noise([text, "其他"], 0.4)[0] == add_noise([text, *DISTINCT], 0.4)[0] == alone
    # The same characters in all, split otherwise: what stands in the third row keeps its errors.
    assert add_noise(["ab", "cd", DISTINCT], 0.4)[2] == add_noise(["", "abcd", DISTINCT], 0.4)[2]


def test_equal_texts_have_errors_of_their_own():
    noisy = add_noise([DISTINCT] * 20, 0.1)
    assert len(set(noisy)) == 20


def test_the_seed_alone_decides():
    texts = make_rows(40)[0]
    state = random.getstate()
    first = add_noise(texts, 0.3, seed=1)
    random.seed(99)
    assert add_noise(texts, 0.3, seed=1) == first != add_noise(texts, 0.3, seed=2)
    assert add_noise(texts, 0.3) == add_noise(texts, 0.3, seed=0)
    random.seed(5)
    expected = random.random()
    random.seed(5)
    add_noise(texts, 0.3)
    assert random.random() == expected  # nobody else's draws are used up
    random.setstate(state)


def test_another_process_draws_the_same_errors():
    code = "from kd_trainer.text_noise import add_noise; print(ascii(add_noise(['股市大涨', '球队胜出' * 9], 0.5, 4)))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=PROJECT, env={**os.environ, "PYTHONHASHSEED": seed}, check=True,
            capture_output=True, text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert printed == {ascii(add_noise(["股市大涨", "球队胜出" * 9], 0.5, 4))}


def test_look_alikes_look_alike_both_ways_and_none_is_its_own():
    assert SIMILAR
    for character, others in SIMILAR.items():
        assert len(character) == 1 and others and character not in others
        assert len(set(others)) == len(others)  # else one would be drawn more often
        assert all(character in SIMILAR[other] for other in others)
        together = "".join(group for group in LOOKALIKES if character in group)
        assert set(others) | {character} == set(together)


@pytest.mark.parametrize("text", ["", "\ud800\udfff", "😀👩\u200d👩\u200d👧", "e\u0301a\u0308", "\x00\n\u2028", " "])
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_any_text_survives(text, rate):
    for seed in range(20):
        for texts in ([text], [text, ""]):
            noisy = add_noise(texts, rate, seed)
            assert len(noisy) == len(texts) and set("".join(noisy)) <= set(text) | {
                other for character in text for other in SIMILAR.get(character, "")
            }


@pytest.mark.parametrize("rate", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match="rate is .*in \\[0, 1\\]") as caught:
        add_noise(["股市大涨"], rate)
    assert "\n" not in str(caught.value)
