"""Writes the training text: conversations out of the tasks in `tasks.py`, packed into token shards.

    python generator.py --tokenizer ../tiny-chat/tokenizer.json --out shards --workers 16

Each worker writes two NumPy files of uint16 rows: `short-NN.npy` with rows of 512 tokens and `long-NN.npy` with rows of
2048 tokens (long conversations). Bit 15 marks the tokens to learn, which are the assistant's. Same seed, same shards.
"""

import argparse
import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from chat import Chat, Turn, is_held_out
from knowledge import SYSTEM_PROMPTS
from tasks import TASKS, Task

LEARN = 0x8000  # set on tokens that carry loss
SHORT_ROW, LONG_ROW = 512, 2048


@dataclass
class Conversation:
    system: str
    turns: list[Turn]


def exchange(chat: Chat, task: Task, accept) -> list[Turn]:
    """Draws from the task until `accept` likes the turns; what the user told in rejected ones is forgotten."""
    told = dict(chat.told)
    while True:
        turns = task.make(chat)
        if accept(turns):
            return turns
        chat.told = dict(told)


def system_prompt(chat: Chat) -> str:
    """None for most conversations; now and then it names the user."""
    if chat.chance(0.7):
        return ""
    prompt = chat.pick(SYSTEM_PROMPTS)
    name = chat.name()
    if chat.chance(0.2) and not is_held_out(f"tell name {name}"):
        chat.told["name"] = name
        prompt += f" The user's name is {name}."
    return prompt


def training_conversations(rng: random.Random, row: int) -> Iterator[Conversation]:
    """Endless; no turn in them is a held-out problem."""
    tasks = list(TASKS.values())
    cumulative = np.cumsum([task.weight for task in tasks]).tolist()
    while True:
        chat = Chat(rng)
        system = system_prompt(chat)
        if row == LONG_ROW:
            length = chat.between(10, 80)
        else:
            length = 1 if chat.chance(0.35) else chat.between(2, 4) if chat.chance(0.55) else chat.between(5, 16)
        for task in rng.choices(tasks, cum_weights=cumulative, k=length):
            chat.turns += exchange(chat, task, lambda turns: not any(turn.held_out() for turn in turns))
        yield Conversation(system, chat.turns)


class Encoder:
    """Turns conversations into rows of token ids, as the chat template does."""

    def __init__(self, tokenizer: Path):
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        ids = self.tokenizer.token_to_id
        self.bos, self.end, self.pad = ids("<|bos|>"), ids("<|end|>"), ids("<|endoftext|>")
        self.system, self.user, self.assistant = ids("<|system|>"), ids("<|user|>"), ids("<|assistant|>")
        self.letter = {chr(code): ids(chr(code)) for code in range(33, 127)}

    def encode(self, conversations: list[Conversation], rng: random.Random, limit: int) -> list[list[int]]:
        """One row per conversation, cut after the last turn that fits into `limit` tokens."""
        texts = [text for c in conversations for text in (c.system, *(t for turn in c.turns for t in (turn.question, turn.answer)))]
        pieces = iter([e.ids for e in self.tokenizer.encode_batch(texts, add_special_tokens=False)])
        rows = []
        for conversation in conversations:
            system = next(pieces)
            row = [self.bos, *([self.system, *system, self.end] if system else [])]
            full = False
            for turn in conversation.turns:
                tokens = [self.user, *next(pieces), self.end, self.assistant, *self.answer(turn, next(pieces), rng)]
                full = full or len(row) + len(tokens) > limit
                if not full:
                    row += tokens
            rows.append(row)
        return rows

    def prompt(self, conversation: Conversation, question: str) -> list[int]:
        """What an engine is given before it answers the question: everything encoded whole, from the start."""
        turns = [token for turn in conversation.turns for token in (
            self.user, *self.ids(turn.question), self.end, self.assistant, *self.ids(turn.answer), self.end)]
        system = [self.system, *self.ids(conversation.system), self.end] if conversation.system else []
        return [self.bos, *system, *turns, self.user, *self.ids(question), self.end, self.assistant]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def answer(self, turn: Turn, ids: list[int], rng: random.Random) -> list[int]:
        """The answer's tokens, marked to be learnt. Letter answers are learnt letter by letter; some are given whole and
        unmarked instead, since that is how an engine encodes them again in the next turn's history."""
        if turn.letters:
            if rng.random() < 0.3:
                return [*ids, self.end]
            ids = [self.letter[letter] for letter in turn.answer]
        return [*(token | LEARN for token in ids), self.end | LEARN]


def packed_rows(encoder: Encoder, rng: random.Random, length: int) -> Iterator[list[int]]:
    """Fills each row with whole conversations, first fit out of a pool, and pads what is left."""
    source = training_conversations(rng, length)
    pool: list[list[int]] = []
    while True:
        row: list[int] = []
        while True:
            while len(pool) < 64:
                pool += encoder.encode([next(source) for _ in range(256 if length == SHORT_ROW else 16)], rng, length)
            fit = next((i for i in range(64) if len(pool[i]) <= length - len(row)), None)
            if fit is None:
                break
            row += pool.pop(fit)
        yield row + [encoder.pad] * (length - len(row))


def write_shard(worker: int, args: argparse.Namespace) -> None:
    encoder = Encoder(args.tokenizer)
    for name, length, count in (("short", SHORT_ROW, args.short_rows), ("long", LONG_ROW, args.long_rows)):
        rng = random.Random(f"{args.seed} {name} {worker}")
        shard = np.empty((count // args.workers, length), dtype=np.uint16)
        for row, tokens in zip(shard, packed_rows(encoder, rng, length)):
            row[:] = tokens
        np.save(args.out / f"{name}-{worker:02}.npy", shard)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--short-rows", type=int, default=400_000)
    parser.add_argument("--long-rows", type=int, default=30_000)
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    workers = [multiprocessing.Process(target=write_shard, args=(worker, args)) for worker in range(args.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker failed; see its message above")
    tokens = args.short_rows * SHORT_ROW + args.long_rows * LONG_ROW
    print(f"{tokens / 1e6:.0f} million tokens in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
