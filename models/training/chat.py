"""What every task works with: `Chat` (random draws, phrasing, what the user told so far) and `Turn`."""

import random
import re
import zlib
from dataclasses import dataclass, field

from words import NAMES, WORDS, number_in_words, pseudo_word

HELD_OUT_ONE_IN = 16


def is_held_out(key: str) -> bool:
    """Decides by a hash, so that training and evaluation agree without sharing a list."""
    return zlib.crc32(key.encode()) % HELD_OUT_ONE_IN == 0


@dataclass
class Turn:
    """One question and its only right answer.

    `key` names the problem apart from its wording: 12 + 7 and 7 + 12 have the same key. Problems whose key is held
    out never occur in training. An empty key means that the wording itself is the problem (facts, small talk).
    `letters` answers are tokenised letter by letter, because reversed words have no useful longer tokens.
    """

    question: str
    answer: str
    key: str = ""
    letters: bool = False

    def held_out(self) -> bool:
        return is_held_out(self.key or self.question)


_OPENERS = ["please ", "Please ", "hey, ", "Hi, ", "ok, ", "Can you tell me: ", "Tell me: ", "quick question: ", "so ", "and ", "now ", "Then ", "Next: "]
_CLOSERS = [" please", ", please", " thanks", " Thanks!"]
_SHORT = [("What is", "What's"), ("What is", "Whats"), ("what is", "what's"), ("How many", "how much"),
          ("What is", "Calculate"), ("you", "u"), ("Please", "pls"), (" and ", " & ")]


def _outside_slots(template: str, change) -> str:
    """Applies `change` to the wording and leaves the `{slots}` alone."""
    return "".join(p if p.startswith("{") else change(p) for p in re.split(r"(\{\w+\})", template))


def _swap_letters(rng: random.Random, text: str) -> str:
    spots = [m.start() for m in re.finditer(r"[a-z](?=[a-z]{2})", text)]
    if not spots:
        return text
    i = rng.choice(spots)
    return text[:i] + text[i + 1] + text[i] + text[i + 2:]


@dataclass
class Chat:
    """One conversation under construction."""

    rng: random.Random
    turns: list[Turn] = field(default_factory=list)
    told: dict[str, str] = field(default_factory=dict)

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def pick(self, items):
        return items[int(self.rng.random() * len(items))]

    def below(self, n: int) -> int:
        return int(self.rng.random() * n)

    def between(self, low: int, high: int) -> int:
        return low + int(self.rng.random() * (high - low + 1))

    def number(self) -> int:
        """0 to 999. Three digits most often, since they are most of the space."""
        digits = self.rng.random()
        return self.between(100, 999) if digits < 0.6 else self.between(10, 99) if digits < 0.85 else self.below(10)

    def numbers(self, count: int) -> list[int]:
        """Distinct numbers, often of one length, since those are harder to order."""
        low, high = self.pick([(0, 9), (0, 20), (10, 99), (0, 99), (100, 999), (0, 999)])
        return self.rng.sample(range(low, high + 1), count)

    def in_words(self, n: int) -> str:
        """The number as digits, now and then as an English word."""
        return number_in_words(n) if 0 <= n < 100 and self.chance(0.04) else str(n)

    def word(self) -> str:
        """A word to spell, reverse or count: half from the list, half invented; mostly lower case."""
        word = self.pick(WORDS) if self.chance(0.5) else pseudo_word(self.rng)
        case = self.rng.random()
        return word if case < 0.85 else word.capitalize() if case < 0.96 else word.upper()

    def name(self) -> str:
        """A person's name; casual writers forget the capital."""
        name = self.pick(NAMES) if self.chance(0.85) else pseudo_word(self.rng).capitalize()
        return name.lower() if self.chance(0.08) else name

    def phrase(self, templates: list[str], **slots) -> str:
        """Picks a template, roughens its wording the way people type, and fills the slots unchanged."""
        rng, text = self.rng, self.pick(templates)
        if rng.random() < 0.12:
            old, new = self.pick(_SHORT)
            text = text.replace(old, new, 1)
        roll = rng.random()
        if roll < 0.08:
            text = self.pick(_OPENERS) + text
        elif roll < 0.12:
            text = text.rstrip("?.!:") + self.pick(_CLOSERS)
        roll = rng.random()
        if roll < 0.25:
            text = text.lower()
        elif roll < 0.27:
            text = _outside_slots(text, str.upper)
        elif roll < 0.31:
            text = _outside_slots(text, lambda part: _swap_letters(rng, part))
        roll = rng.random()
        if roll < 0.18:
            text = text.rstrip("?.!")
        elif roll < 0.21:
            text += self.pick(["?", "!", "??", " ?", "."])
        return text.format(**slots) if slots else text
