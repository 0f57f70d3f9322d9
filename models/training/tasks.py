"""One function per task: it draws a problem and returns the turns of a short exchange about it. `TASKS` lists them."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from chat import Chat, Turn
from knowledge import CALENDAR, FACTS, OUTSIDE, REFUSAL, SMALL_TALK, TOO_BIG, UNCLEAR
from words import ANIMALS, CITIES, COLORS, DAYS, EVENTS, FOODS, ITEMS, JOBS, MONTH_DAYS, MONTHS, NAMES, WORDS

# ---------------------------------------------------------------------------------------------------- arithmetic

ADD = ["What is {a} plus {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} =", "{a}+{b}=?", "What is {a} + {b}?", "Add {a} and {b}.",
       "Add {a} to {b}.", "What is the sum of {a} and {b}?", "How much is {a} plus {b}?", "{a} plus {b}", "Calculate {a} + {b}.",
       "Compute {a} plus {b}.", "What do you get if you add {a} and {b}?", "I have {a} apples and buy {b} more. How many do I have?"]
SUB = ["What is {a} minus {b}?", "{a} - {b}", "{a}-{b}", "{a} - {b} =", "{a}-{b}=?", "What is {a} - {b}?", "Subtract {b} from {a}.",
       "What is the difference {a} minus {b}?", "How much is {a} minus {b}?", "{a} minus {b}", "Calculate {a} - {b}.",
       "Compute {a} minus {b}.", "Take {b} away from {a}.", "What is {a} take away {b}?", "What is {b} less than {a}?"]
MUL = ["What is {a} times {b}?", "{a} * {b}", "{a}*{b}", "{a} x {b}", "What is {a} * {b}?", "What is {a} x {b}?", "{a} × {b}",
       "Multiply {a} by {b}.", "Multiply {a} and {b}.", "What is the product of {a} and {b}?", "How much is {a} times {b}?",
       "{a} times {b}", "Calculate {a} * {b}.", "{a} multiplied by {b}"]
DIV = ["What is {a} divided by {b}?", "{a} / {b}", "{a}/{b}", "Divide {a} by {b}.", "How much is {a} divided by {b}?", "{a} ÷ {b}",
       "{a} divided by {b}", "Calculate {a} / {b}.", "How many times does {b} fit into {a}?"]


def sum_turn(c: Chat, a: int, b: int) -> Turn:
    low, high = sorted((a, b))
    return Turn(c.phrase(ADD, a=c.in_words(a), b=c.in_words(b)), str(a + b), f"add {low} {high}")


def difference_turn(c: Chat, a: int, b: int) -> Turn:
    return Turn(c.phrase(SUB, a=c.in_words(a), b=c.in_words(b)), str(a - b), f"sub {a} {b}")


def addition(c: Chat) -> list[Turn]:
    return [sum_turn(c, c.number(), c.number())]


def subtraction(c: Chat) -> list[Turn]:
    a, b = c.number(), c.number()
    # Four in five have a result that is not negative, as in what people ask.
    return [difference_turn(c, *((max(a, b), min(a, b)) if c.chance(0.6) else (a, b)))]


def multiplication(c: Chat) -> list[Turn]:
    a, b = c.below(13) if c.chance(0.4) else c.between(10, 99), c.below(13)
    low, high = sorted((a, b))
    if c.chance(0.5):
        a, b = b, a
    return [Turn(c.phrase(MUL, a=c.in_words(a), b=c.in_words(b)), str(a * b), f"mul {low} {high}")]


def division(c: Chat) -> list[Turn]:
    quotient, b = c.below(21), c.between(1, 12)
    return [Turn(c.phrase(DIV, a=quotient * b, b=c.in_words(b)), str(quotient), f"div {quotient} {b}")]


def running_total(c: Chat) -> list[Turn]:
    """Arithmetic with follow-ups that go on from the last result."""
    turns = (addition if c.chance(0.6) else subtraction)(c)
    for _ in range(c.pick((1, 1, 2, 3))):
        total, b = int(turns[-1].answer), c.number() if c.chance(0.4) else c.below(50)
        if total < 0:
            break
        if total <= 99 and c.chance(0.2):
            b = c.below(13)
            question = c.phrase(["and times {b}?", "times {b}", "Now multiply by {b}.", "* {b}", "Multiply that by {b}.", "Then times {b}?"], b=b)
            low, high = sorted((total, b))
            turns.append(Turn(question, str(total * b), f"mul {low} {high}"))
        elif total + b <= 999 and c.chance(0.55):
            question = c.phrase(["and plus {b}?", "And {b} more?", "plus {b}", "Now add {b}.", "+ {b}", "Add {b} to that.", "add {b}",
                                 "And if you add {b}?", "Then plus {b}?", "Now plus {b}?", "+{b}", "and add {b} to it"], b=b)
            low, high = sorted((total, b))
            turns.append(Turn(question, str(total + b), f"add {low} {high}"))
        else:
            question = c.phrase(["and minus {b}?", "And {b} less?", "minus {b}", "Now subtract {b}.", "- {b}", "Take {b} away.",
                                 "Subtract {b} from that.", "Then minus {b}?", "Now minus {b}?", "-{b}", "and take {b} from it"], b=b)
            turns.append(Turn(question, str(total - b), f"sub {total} {b}"))
    return turns


def too_big(c: Chat) -> list[Turn]:
    """Sums beyond three digits and products beyond two digits: a clear answer and no guess."""
    big, other = c.between(1000, 10 ** c.between(4, 7)), c.number()
    pair = {"a": big, "b": other} if c.chance(0.5) else {"a": other, "b": big}
    if c.chance(0.4):
        pair, templates = {"a": c.between(13, 999), "b": c.between(13, 999)}, MUL
    else:
        templates = c.pick((ADD, SUB, MUL))
    return [Turn(c.phrase(templates, **pair), TOO_BIG, f"big {pair['a']} {pair['b']}")]


# --------------------------------------------------------------------------------------------- comparing, sorting

LARGER = ["Which is larger, {a} or {b}?", "Which is bigger: {a} or {b}?", "What is greater, {a} or {b}?", "max of {a} and {b}",
          "Which number is larger: {a} or {b}?", "What is the larger of {a} and {b}?", "{a} or {b}, which is bigger?", "Is {a} or {b} larger?"]
SMALLER = ["Which is smaller, {a} or {b}?", "Which is less: {a} or {b}?", "What is smaller, {a} or {b}?", "min of {a} and {b}",
           "Which number is smaller: {a} or {b}?", "What is the smaller of {a} and {b}?", "{a} or {b}, which is smaller?"]
IS_GREATER = ["Is {a} greater than {b}?", "Is {a} larger than {b}?", "Is {a} more than {b}?", "{a} > {b}?", "Is {a} bigger than {b}?"]
IS_LESS = ["Is {a} less than {b}?", "Is {a} smaller than {b}?", "{a} < {b}?", "Is {a} below {b}?"]


def comparison(c: Chat) -> list[Turn]:
    a = c.number()
    b = a + c.between(-20, 20) if c.chance(0.3) else c.number()
    if b < 0 or b == a:
        b = a + 1
    low, high = sorted((a, b))
    templates, answer = c.pick([(LARGER, str(high)), (SMALLER, str(low)), (IS_GREATER, "Yes" if a > b else "No"),
                                (IS_LESS, "Yes" if a < b else "No")])
    return [Turn(c.phrase(templates, a=a, b=b), answer, f"compare {low} {high}")]


def listed(c: Chat, items: list) -> str:
    """The items with commas, with spaces, or with a final 'and'."""
    style = c.below(6)
    if style == 0:
        return " ".join(map(str, items))
    if style == 1 and len(items) > 1:
        return ", ".join(map(str, items[:-1])) + f" and {items[-1]}"
    return (", " if style < 5 else ",").join(map(str, items))


def extremes(c: Chat) -> list[Turn]:
    numbers = c.numbers(c.between(3, 6))
    templates, best = c.pick([
        (["What is the largest of {x}?", "Which is the biggest: {x}?", "max({x})", "Find the maximum of {x}.", "Largest number: {x}"], max),
        (["What is the smallest of {x}?", "Which is the lowest: {x}?", "min({x})", "Find the minimum of {x}.", "Smallest number: {x}"], min)])
    return [Turn(c.phrase(templates, x=listed(c, numbers)), str(best(numbers)), f"list {sorted(numbers)}")]


ASCENDING = ["Sort {x}.", "Sort these numbers: {x}", "Put {x} in order.", "Sort ascending: {x}", "Order these numbers: {x}", "sort {x}",
             "Arrange {x} from smallest to largest.", "Please sort: {x}", "Sort the list {x}.", "Sort {x} in ascending order."]
DESCENDING = ["Sort {x} in descending order.", "Sort descending: {x}", "Sort these numbers from largest to smallest: {x}",
              "Arrange {x} from largest to smallest.", "Sort {x} backwards.", "Order {x} from high to low."]


def sorting(c: Chat) -> list[Turn]:
    numbers = c.numbers(c.between(2, 7))
    down = c.chance(0.35)
    answer = ", ".join(map(str, sorted(numbers, reverse=down)))
    return [Turn(c.phrase(DESCENDING if down else ASCENDING, x=listed(c, numbers)), answer, f"list {sorted(numbers)}")]


def sorting_words(c: Chat) -> list[Turn]:
    pool = c.pick([WORDS, WORDS, NAMES, CITIES, ANIMALS, COLORS])
    words = c.rng.sample(pool, c.between(2, 5))
    question = c.phrase(["Sort these words: {x}", "Sort alphabetically: {x}", "Sort {x} alphabetically.", "Put {x} in alphabetical order.",
                         "Order these words: {x}", "Alphabetize {x}.", "Sort the words {x}.", "Sort {x}.",
                         "Arrange in alphabetical order: {x}"], x=listed(c, words))
    return [Turn(question, ", ".join(sorted(words)), f"list {sorted(words)}")]


def list_chain(c: Chat) -> list[Turn]:
    """A sorted list, and follow-ups about it."""
    numbers = c.numbers(c.between(3, 6))
    key, down = f"list {sorted(numbers)}", sorted(numbers, reverse=True)
    turns = [Turn(c.phrase(ASCENDING, x=listed(c, numbers)), ", ".join(map(str, sorted(numbers))), key)]
    follow_ups = [
        (["Now in descending order.", "And descending?", "Now reverse it.", "Now the other way round.", "now from largest to smallest"],
         ", ".join(map(str, down))),
        (["Which is the largest?", "What is the biggest number?", "And the maximum?", "the largest one?"], str(down[0])),
        (["Which is the smallest?", "What is the smallest number?", "And the minimum?", "the smallest one?"], str(down[-1])),
        (["How many numbers are there?", "How many are in the list?", "How long is the list?", "How many numbers did I give you?"],
         str(len(down)))]
    for templates, answer in c.rng.sample(follow_ups, c.between(1, 3)):
        turns.append(Turn(c.phrase(templates), answer, key))
    return turns


# ------------------------------------------------------------------------------------ spelling, reversing, counting

SPELL = ["Spell {w}.", "Spell the word {w}.", "How do you spell {w}?", "Spell '{w}'.", "spell {w}", "Spell \"{w}\".", "Can you spell {w}?",
         "Spell out {w}.", "Spell {w} letter by letter.", "What are the letters of {w}?"]
REVERSE = ["Reverse {w}.", "Reverse the word {w}.", "Write {w} backwards.", "Reverse '{w}'.", "reverse {w}", "Reverse \"{w}\".",
           "What is {w} backwards?", "What is {w} reversed?", "Spell {w} backwards.", "Turn {w} around."]
LETTERS = ["How many letters are in {w}?", "How many letters does {w} have?", "Count the letters in {w}.", "How long is the word {w}?",
           "How many letters are in the word '{w}'?", "What is the length of {w}?", "How many characters does \"{w}\" have?", "length of {w}"]


def word_key(word: str) -> str:
    """All that is asked about a word shares one key, so a held-out word was never spelled, reversed or counted."""
    return f"word {word.lower()}"


def spelling(c: Chat) -> list[Turn]:
    word = c.word()
    return [Turn(c.phrase(SPELL, w=word), "-".join(word), word_key(word))]


def joining(c: Chat) -> list[Turn]:
    word = c.word()
    letters = c.pick(["-", " ", "-", ", "]).join(word)
    question = c.phrase(["Join the letters {x}.", "What word is {x}?", "What does {x} spell?", "Put together {x}.", "Join {x}.",
                         "Which word do the letters {x} make?"], x=letters)
    return [Turn(question, word, word_key(word), letters=True)]


def reversing(c: Chat) -> list[Turn]:
    word = c.word()
    return [Turn(c.phrase(REVERSE, w=word), word[::-1], word_key(word), letters=True)]


def reversing_sequence(c: Chat) -> list[Turn]:
    """Reverses digits, a list or the words of a sentence."""
    kind = c.below(3)
    if kind == 0:
        digits = "".join(str(c.below(10)) for _ in range(c.between(2, 9)))
        question = c.phrase(["Reverse {x}.", "Reverse the digits of {x}.", "Write {x} backwards.", "What is {x} reversed?"], x=digits)
        return [Turn(question, digits[::-1], f"digits {digits}")]
    items = c.numbers(c.between(3, 6)) if kind == 1 else c.rng.sample(WORDS, c.between(3, 6))
    if kind == 1:
        question = c.phrase(["Reverse the list {x}.", "Reverse this list: {x}", "List {x} in reverse order."], x=", ".join(map(str, items)))
        return [Turn(question, ", ".join(map(str, items[::-1])), f"list {items}")]
    question = c.phrase(["Reverse the words: {x}", "Reverse the order of the words: {x}", "Say these words in reverse order: {x}"],
                        x=" ".join(items))
    return [Turn(question, " ".join(items[::-1]), f"list {items}")]


def counting_letters(c: Chat) -> list[Turn]:
    word = c.word()
    kind = c.rng.random()
    if kind < 0.4:
        return [Turn(c.phrase(LETTERS, w=word), str(len(word)), word_key(word))]
    if kind < 0.5:
        question = c.phrase(["How many vowels are in {w}?", "Count the vowels in {w}.", "How many vowels does {w} have?"], w=word)
        return [Turn(question, str(sum(letter in "aeiou" for letter in word.lower())), word_key(word))]
    letter = c.pick(word.lower()) if c.chance(0.8) else c.pick("abcdefghijklmnopqrstuvwxyz")
    question = c.phrase(["How many {l}'s are in {w}?", "How many {l} are in {w}?", "How many times does {l} occur in {w}?",
                         "Count the letter {l} in {w}.", "How often does the letter {l} appear in {w}?", "How many times is {l} in {w}?",
                         "how many {l} in {w}?", "How many {l}s in {w}?", "How many '{l}' are in '{w}'?", "How many letters {l} are in the word {w}?"], l=letter, w=word)
    return [Turn(question, str(word.lower().count(letter)), word_key(word))]


def letter_at(c: Chat) -> list[Turn]:
    word = c.word()
    ordinals = ["first", "second", "third", "fourth", "fifth"]
    place = c.pick([-1, *range(min(5, len(word)))])
    question = c.phrase(["What is the {n} letter of {w}?", "Which is the {n} letter in {w}?", "{n} letter of {w}", "Give me the {n} letter of '{w}'.",
                         "What is the {n} letter in the word {w}?"], n="last" if place < 0 else ordinals[place], w=word)
    return [Turn(question, word[place], word_key(word))]


def counting_things(c: Chat) -> list[Turn]:
    """Counts words, list items, or from one number to another."""
    kind = c.below(4)
    if kind == 0:
        words = c.rng.sample(WORDS, c.between(1, 10))
        question = c.phrase(["How many words are in: {x}", "Count the words: {x}", "How many words does this have: {x}",
                             "How many words are in '{x}'?"], x=" ".join(words))
        return [Turn(question, str(len(words)), f"list {words}")]
    if kind == 1:
        items = c.numbers(c.between(2, 9)) if c.chance(0.5) else c.rng.sample(WORDS, c.between(2, 9))
        question = c.phrase(["How many items are in the list {x}?", "Count the items: {x}", "How many things are here: {x}",
                             "How many elements does this list have: {x}"], x=", ".join(map(str, items)))
        return [Turn(question, str(len(items)), f"list {items}")]
    low, length = c.below(90) if c.chance(0.6) else c.below(5), c.between(2, 12)
    numbers = list(range(low, low + length))
    if kind == 2:
        numbers.reverse()
    question = c.phrase(["Count from {a} to {b}.", "count from {a} to {b}", "List the numbers from {a} to {b}.", "Please count from {a} to {b}."],
                        a=numbers[0], b=numbers[-1])
    return [Turn(question, ", ".join(map(str, numbers)), f"count {numbers[0]} {numbers[-1]}")]


def word_chain(c: Chat) -> list[Turn]:
    """Several questions about one word; 'it' is the word that the user gave."""
    word = c.word()
    key = word_key(word)
    asks = [
        (SPELL, ["Now spell it.", "And spell it.", "spell it", "Can you spell it?", "Now letter by letter."], "-".join(word), False),
        (REVERSE, ["Now reverse it.", "And backwards?", "reverse it", "Now write it backwards.", "and reversed?", "now backwards"],
         word[::-1], True),
        (LETTERS, ["How many letters does it have?", "How long is it?", "And how many letters?", "Count its letters.", "its length?"],
         str(len(word)), False),
        (["What is the first letter of {w}?"], ["What is its first letter?", "And the first letter?", "Which letter is first?"], word[0], False),
        (["What is the last letter of {w}?"], ["What is its last letter?", "And the last letter?", "Which letter is last?"], word[-1], False)]
    turns = []
    for first, later, answer, letters in c.rng.sample(asks, c.between(2, 4)):
        question = c.phrase(later) if turns else c.phrase(first, w=word)
        turns.append(Turn(question, answer, key, letters))
    return turns


# ------------------------------------------------------------------------------------------------ calendar and units


def weekdays(c: Chat) -> list[Turn]:
    day, kind = c.below(7), c.below(4)
    if kind == 0:
        question = c.phrase(["What day comes after {d}?", "Which day is after {d}?", "What is the day after {d}?", "What day follows {d}?",
                             "If today is {d}, what day is tomorrow?"], d=DAYS[day])
        return [Turn(question, DAYS[(day + 1) % 7])]
    if kind == 1:
        question = c.phrase(["What day comes before {d}?", "Which day is before {d}?", "What is the day before {d}?",
                             "If today is {d}, what day was yesterday?"], d=DAYS[day])
        return [Turn(question, DAYS[(day - 1) % 7])]
    n = c.between(2, 30)
    if kind == 2:
        question = c.phrase(["What day is {n} days after {d}?", "Which day is {n} days after {d}?", "If today is {d}, what day is it in {n} days?",
                             "Today is {d}. What day is it in {n} days?", "{d} plus {n} days"], d=DAYS[day], n=n)
        return [Turn(question, DAYS[(day + n) % 7], f"day {day} +{n}")]
    question = c.phrase(["What day is {n} days before {d}?", "Which day was {n} days before {d}?",
                         "If today is {d}, what day was it {n} days ago?", "{d} minus {n} days"], d=DAYS[day], n=n)
    return [Turn(question, DAYS[(day - n) % 7], f"day {day} -{n}")]


def months(c: Chat) -> list[Turn]:
    m, kind = c.below(12), c.below(6)
    name = MONTHS[m]
    if kind == 0:
        return [Turn(c.phrase(["What month comes after {m}?", "Which month is after {m}?", "What month follows {m}?"], m=name), MONTHS[(m + 1) % 12])]
    if kind == 1:
        return [Turn(c.phrase(["What month comes before {m}?", "Which month is before {m}?"], m=name), MONTHS[m - 1])]
    if kind == 2:
        return [Turn(c.phrase(["Which number is the month {m}?", "What number is {m}?", "What is the number of {m}?", "{m} is month number?"], m=name),
                     str(m + 1))]
    if kind == 3:
        return [Turn(c.phrase(["What is month {n}?", "Which month is number {n}?", "What is the name of month {n}?"], n=m + 1), name)]
    if kind == 4:
        n = c.between(2, 11)
        question = c.phrase(["What month is {n} months after {m}?", "Which month is {n} months after {m}?", "{m} plus {n} months"], m=name, n=n)
        return [Turn(question, MONTHS[(m + n) % 12], f"month {m} +{n}")]
    if name == "February":
        year = c.between(1900, 2100)
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        return [Turn(c.phrase(["How many days does February {y} have?", "How many days are in February {y}?"], y=year),
                     "29" if leap else "28", f"year {year}")]
    return [Turn(c.phrase(["How many days does {m} have?", "How many days are in {m}?", "How long is {m}?"], m=name), str(MONTH_DAYS[m]))]


def leap_years(c: Chat) -> list[Turn]:
    year = c.between(1900, 2100)
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    question = c.phrase(["Is {y} a leap year?", "Was {y} a leap year?", "{y}: leap year?", "Is the year {y} a leap year?"], y=year)
    return [Turn(question, "Yes" if leap else "No", f"year {year}")]


# (big unit, short, small unit, short, factor, largest amount of the big unit)
UNITS = [
    ("kilometers", "km", "meters", "m", 1000, 99), ("meters", "m", "centimeters", "cm", 100, 99),
    ("centimeters", "cm", "millimeters", "mm", 10, 999), ("meters", "m", "millimeters", "mm", 1000, 99),
    ("kilograms", "kg", "grams", "g", 1000, 99), ("tons", "t", "kilograms", "kg", 1000, 99),
    ("grams", "g", "milligrams", "mg", 1000, 99), ("liters", "l", "milliliters", "ml", 1000, 99),
    ("hours", "h", "minutes", "min", 60, 24), ("minutes", "min", "seconds", "s", 60, 60),
    ("days", "days", "hours", "hours", 24, 14), ("weeks", "weeks", "days", "days", 7, 52),
    ("years", "years", "months", "months", 12, 20), ("feet", "ft", "inches", "in", 12, 20),
    ("yards", "yd", "feet", "ft", 3, 99), ("dozens", "dozen", "pieces", "pieces", 12, 20),
    ("euros", "euros", "cents", "cents", 100, 99), ("dollars", "dollars", "cents", "cents", 100, 99),
    ("kilobytes", "kB", "bytes", "bytes", 1000, 99), ("centuries", "centuries", "years", "years", 100, 30),
]


def units(c: Chat) -> list[Turn]:
    big, big_short, small, small_short, factor, most = c.pick(UNITS)
    n = c.between(1, most)
    key = f"unit {big} {small} {n}"
    have, have_short, want, want_short, amount, result = (
        (big, big_short, small, small_short, n, n * factor) if c.chance(0.6) else (small, small_short, big, big_short, n * factor, n))
    if c.chance(0.6):
        if c.chance(0.4):
            have = have_short
        question = c.phrase(["How many {want} are in {n} {have}?", "How many {want} are {n} {have}?", "How many {want} is {n} {have}?",
                             "{n} {have} in {want}?", "What is {n} {have} in {want}?"], want=want, n=amount, have=have)
        return [Turn(question, str(result), key)]
    question = c.phrase(["Convert {n} {have} to {want}.", "Convert {n}{have} to {want}.", "convert {n} {have} into {want}",
                         "Change {n} {have} to {want}."], want=want_short, n=amount, have=have_short)
    return [Turn(question, f"{result} {want_short}", key)]


# ----------------------------------------------------------------------------------------------- records and JSON

# Per kind of record: how to draw each field, and sentences that hold all fields.
RECORDS = [
    ({"name": lambda c: c.name(), "age": lambda c: c.between(1, 99), "city": lambda c: c.pick(CITIES)},
     ["{name} is {age} years old and lives in {city}.", "{name} is {age} and lives in {city}.", "{name}, {age}, from {city}.",
      "My friend {name} from {city} is {age}.", "{name} lives in {city} and is {age} years old."]),
    ({"item": lambda c: c.pick(ITEMS), "quantity": lambda c: c.between(2, 99), "price": lambda c: c.between(1, 999)},
     ["I bought {quantity} {item} for {price} euros.", "{quantity} {item} cost {price} euros.", "We sold {quantity} {item} for {price} dollars.",
      "An order of {quantity} {item} at {price} euros.", "For {price} euros I got {quantity} {item}."]),
    ({"event": lambda c: c.pick(EVENTS), "day": lambda c: c.pick(DAYS), "time": lambda c: f"{c.below(24)}:{c.pick(['00', '15', '30', '45'])}"},
     ["The {event} is on {day} at {time}.", "We have a {event} on {day} at {time}.", "On {day} at {time} there is a {event}.",
      "Come to the {event} on {day} at {time}."]),
    ({"name": lambda c: c.name(), "job": lambda c: c.pick(JOBS), "city": lambda c: c.pick(CITIES)},
     ["{name} works as a {job} in {city}.", "{name} is a {job} from {city}.", "In {city} lives {name}, who is a {job}.",
      "The {job} {name} comes from {city}."]),
    ({"pet": lambda c: c.pick(ANIMALS), "name": lambda c: c.name(), "color": lambda c: c.pick(COLORS)},
     ["I have a {color} {pet} named {name}.", "My {pet} {name} is {color}.", "{name} is a {color} {pet}.", "The {color} {pet} is called {name}."]),
    ({"name": lambda c: c.name(), "food": lambda c: c.pick(FOODS), "color": lambda c: c.pick(COLORS)},
     ["{name} likes {food} and the color {color}.", "{name} loves {food} and wears {color}.", "{color} is the color that {name} likes, and {food} the food."]),
    ({"order": lambda c: c.between(100, 9999), "total": lambda c: c.between(1, 999), "city": lambda c: c.pick(CITIES)},
     ["Order {order} to {city} has a total of {total} euros.", "Order {order}, total {total}, ship to {city}.",
      "Please send order {order} to {city}. The total is {total} dollars."]),
]


def draw_record(c: Chat) -> tuple[dict, str, str]:
    """Values by field, the sentence, and the key."""
    fields, sentences = c.pick(RECORDS)
    values = {name: draw(c) for name, draw in fields.items()}
    return values, c.pick(sentences).format(**values), f"record {list(values.values())}"


def writing_json(c: Chat) -> list[Turn]:
    values, sentence, key = draw_record(c)
    if c.chance(0.5):
        question = c.phrase(["Turn this into JSON: {s}", "Write this as JSON: {s}", "Convert to JSON: {s}", "JSON: {s}", "Make JSON from this sentence: {s}",
                             "Give me JSON for: {s}", "{s} Write that as JSON."], s=sentence)
    else:
        wanted = c.rng.sample(list(values), c.between(1, len(values)))
        values = {name: values[name] for name in wanted}
        question = c.phrase(["Turn this into JSON with {f}: {s}", "Extract {f} as JSON: {s}", "JSON with the keys {f}: {s}",
                             "Write {f} as JSON: {s}", "{s} Give me {f} as JSON."],
                            f=", ".join(wanted[:-1]) + f" and {wanted[-1]}" if len(wanted) > 1 else wanted[0], s=sentence)
    return [Turn(question, json.dumps(values, ensure_ascii=False), key)]


def extracting(c: Chat) -> list[Turn]:
    """One field of a sentence, of JSON, or of key=value pairs; sometimes a second one of the same record."""
    values, sentence, key = draw_record(c)
    text = c.pick([sentence, sentence, json.dumps(values, ensure_ascii=False), "; ".join(f"{k}={v}" for k, v in values.items()),
                   ", ".join(f"{k}: {v}" for k, v in values.items())])
    wanted = c.rng.sample(list(values), c.pick((1, 1, 2)))
    question = c.phrase(["{s} What is the {f}?", "What is the {f}? {s}", "Extract the {f}: {s}", "What is the {f} in this: {s}", "Find the {f}: {s}",
                         "Get the {f} from: {s}", "From '{s}', what is the {f}?", "{s} Which {f}?"], s=text, f=wanted[0])
    turns = [Turn(question, str(values[wanted[0]]), key)]
    for name in wanted[1:]:
        turns.append(Turn(c.phrase(["And the {f}?", "and {f}?", "What is the {f}?", "Now the {f}."], f=name), str(values[name]), key))
    return turns


# ------------------------------------------------------------------------------------------- knowledge and manners


def calendar_facts(c: Chat) -> list[Turn]:
    answer, wordings = c.pick(CALENDAR)
    return [Turn(c.phrase(wordings), answer)]


def facts(c: Chat) -> list[Turn]:
    answer, wordings = c.pick(FACTS)
    return [Turn(c.phrase(wordings), answer)]


def small_talk(c: Chat) -> list[Turn]:
    answer, wordings = c.pick(SMALL_TALK)
    return [Turn(c.phrase(wordings), answer)]


def refusal(c: Chat) -> list[Turn]:
    """Questions outside the model's world."""
    kind = c.pick(list(OUTSIDE))
    subjects, templates = OUTSIDE[kind]
    subject, other = c.pick(subjects or WORDS), c.pick(WORDS)
    key = f"outside {subject} {other}" if kind == "words" else f"outside {subject}" if subject else ""
    return [Turn(c.phrase(templates, x=subject, y=other), REFUSAL, key)]


def gibberish(c: Chat) -> list[Turn]:
    """Random letters, random signs, or a thing without a question."""
    kind = c.rng.random()
    if kind < 0.6:
        text = " ".join("".join(c.pick("abcdefghijklmnopqrstuvwxyz") for _ in range(c.between(3, 9))) for _ in range(c.between(1, 3)))
    elif kind < 0.75:
        text = "".join(c.pick("?!.#*&%$@") for _ in range(c.between(1, 6)))
    else:
        text = c.pick(c.pick([ITEMS, ANIMALS, FOODS, COLORS, CITIES]))
    return [Turn(text, UNCLEAR, f"gibberish {text}")]


TRAITS = {
    "name": lambda c: c.name(), "age": lambda c: str(c.between(5, 99)), "city": lambda c: c.pick(CITIES), "job": lambda c: c.pick(JOBS),
    "favorite color": lambda c: c.pick(COLORS), "favorite food": lambda c: c.pick(FOODS), "lucky number": lambda c: str(c.below(100)),
}


def telling(c: Chat) -> list[Turn]:
    """The user says something about themselves, which `recalling` asks for later in the conversation."""
    trait = c.pick(["name", *TRAITS])
    value = TRAITS[trait](c)
    if trait == "name":
        question = c.phrase(["My name is {v}.", "I am {v}.", "Hi, my name is {v}.", "Call me {v}.", "I'm {v}.", "Hello, I am {v}.",
                             "hi, I'm {v}"], v=value)
        answer = f"Nice to meet you, {value}!"
    else:
        question = c.phrase(["My {t} is {v}.", "Remember: my {t} is {v}.", "By the way, my {t} is {v}.", "Note that my {t} is {v}."], t=trait, v=value)
        answer = f"I will remember that your {trait} is {value}."
    c.told[trait] = value
    return [Turn(question, answer, f"tell {trait} {value}")]


def recalling(c: Chat) -> list[Turn]:
    known = list(c.told)
    trait = c.pick(known) if known and c.chance(0.85) else c.pick(["name", *TRAITS])
    templates = ["What is my {t}?", "Do you remember my {t}?", "Do you know my {t}?", "Tell me my {t}.", "What was my {t}?", "What did I say my {t} is?"]
    if trait == "name":
        templates = [*templates, "Who am I?", "What am I called?"]
    answer = f"Your {trait} is {c.told[trait]}." if trait in c.told else f"You have not told me your {trait}."
    return [Turn(c.phrase(templates, t=trait), answer, f"tell {trait} {c.told.get(trait)}" if trait in c.told else "")]


def repeating(c: Chat) -> list[Turn]:
    """The last answer once more; after nothing, there is nothing to repeat."""
    question = c.phrase(["Say that again.", "Repeat that.", "Can you repeat that?", "What did you say?", "Once more.", "Repeat your last answer."])
    if not c.turns:
        return [Turn(question, "I have not said anything yet.")]
    last = c.turns[-1]
    return [Turn(question, last.answer, last.key or last.question, last.letters)]


# ------------------------------------------------------------------------------------------------------- registry


@dataclass(frozen=True)
class Task:
    """`weight` is the share of exchanges in training: the hard tasks get the most. `disjoint` says whether held-out
    problems are unseen in training; where it is False the space is too small, and only the wording is new."""

    make: Callable[[Chat], list[Turn]]
    weight: float
    disjoint: bool = True


TASKS = {task.make.__name__: task for task in [
    Task(addition, 9), Task(subtraction, 12), Task(multiplication, 7), Task(division, 2), Task(running_total, 6), Task(too_big, 1.5),
    Task(comparison, 4), Task(extremes, 3), Task(sorting, 7), Task(sorting_words, 5), Task(list_chain, 2.5),
    Task(spelling, 6), Task(joining, 2.5), Task(reversing, 8), Task(reversing_sequence, 3.5),
    Task(counting_letters, 9), Task(letter_at, 3), Task(counting_things, 3.5), Task(word_chain, 4),
    Task(weekdays, 3.5), Task(months, 2), Task(leap_years, 1.2), Task(units, 4.5),
    Task(writing_json, 3.5), Task(extracting, 3.5),
    Task(calendar_facts, 1, disjoint=False), Task(facts, 5, disjoint=False), Task(small_talk, 3, disjoint=False), Task(refusal, 4), Task(gibberish, 0.6),
    Task(telling, 1.8), Task(recalling, 2.2), Task(repeating, 1.2),
]}
