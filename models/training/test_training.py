"""python -m unittest test_training   (on the CPU, in seconds)"""

import itertools
import json
import random
import string
import unittest
from pathlib import Path

from chat import Chat, Turn
from generator import LEARN, SHORT_ROW, Conversation, Encoder, packed_rows, training_conversations
from tasks import TASKS

ENCODER = Encoder(Path(__file__).parent.parent / "tiny-chat" / "tokenizer.json")


class Tokenizer(unittest.TestCase):
    def test_any_text_survives(self):
        for text in ("What is 12 plus 7?", "naïve 東京 🦀", " two  spaces\n\ttab", "{\"a\": 1}"):
            self.assertEqual(ENCODER.tokenizer.decode(ENCODER.ids(text)), text)

    def test_digits_are_never_merged_and_letters_have_tokens(self):
        self.assertEqual(len(ENCODER.ids("9876543210")), 10)
        merged = [token for token in ENCODER.tokenizer.get_vocab() if len(token) > 1 and any(c in string.digits for c in token)]
        self.assertEqual(merged, [])
        self.assertTrue(all(ENCODER.letter[c] is not None for c in string.ascii_letters + string.digits))


class Split(unittest.TestCase):
    def test_training_holds_no_held_out_turn(self):
        for conversation in itertools.islice(training_conversations(random.Random(3), SHORT_ROW), 500):
            for turn in conversation.turns:
                self.assertFalse(turn.held_out(), turn)

    def test_every_task_has_both_kinds_of_problems(self):
        for name, task in TASKS.items():
            if name == "repeating":  # asks about the turn before, which an empty conversation lacks
                continue
            drawn = {task.make(Chat(random.Random(seed)))[-1].held_out() for seed in range(400)}
            self.assertEqual(drawn, {False, True}, name)


class Answers(unittest.TestCase):
    def test_sums_are_right_and_json_parses(self):
        for seed in range(300):
            chat = Chat(random.Random(seed))
            turn = TASKS["addition"].make(chat)[0]
            self.assertEqual(sum(map(int, turn.key.split()[1:])), int(turn.answer))
            json.loads(TASKS["writing_json"].make(chat)[0].answer)


class Rows(unittest.TestCase):
    def test_row_equals_the_chat_template_and_learns_the_answer_only(self):
        row, = ENCODER.encode([Conversation("Be brief.", [Turn("What is 12 plus 7?", "19")])], random.Random(0), SHORT_ROW)
        text = "<|bos|><|system|>Be brief.<|end|><|user|>What is 12 plus 7?<|end|><|assistant|>19<|end|>"
        self.assertEqual([token & (LEARN - 1) for token in row], ENCODER.ids(text))
        self.assertEqual([token & LEARN != 0 for token in row], [False] * (len(row) - 3) + [True] * 3)

    def test_same_seed_same_rows_of_full_length(self):
        draw = lambda: list(itertools.islice(packed_rows(ENCODER, random.Random(5), SHORT_ROW), 3))
        self.assertEqual(draw(), draw())
        self.assertEqual({len(row) for row in draw()}, {SHORT_ROW})


if __name__ == "__main__":
    unittest.main()
