"""Greedy exact match per task on held-out problems, from an exported folder.

    python evaluate.py ../tiny-chat --per-task 300 --report accuracy.json

Half of the problems are asked at once, three in eight after one to five exchanges, one in eight at the end of a long
conversation of up to 1900 tokens; those over 512 tokens are also reported by themselves. Three in ten have a system prompt.
"""

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch

from chat import Chat
from generator import Conversation, Encoder, exchange, system_prompt
from model import Llama
from tasks import TASKS, Task

LONG_PROMPT, MAX_ANSWER = 1900, 100


@dataclass
class Problem:
    task: str
    question: str
    answer: str
    prompt: list[int]
    generated: list[int]
    long: bool = False


def held_out_conversation(rng: random.Random, task: Task, earlier: int) -> Conversation:
    """A conversation whose last turn is a held-out problem of the task."""
    while True:
        chat = Chat(rng)
        system = system_prompt(chat)
        context = rng.choices(list(TASKS.values()), k=earlier)
        if task.make.__name__ == "recalling" and chat.chance(0.85):
            context.insert(0, TASKS["telling"])
        if task.make.__name__ == "repeating" and not context:
            context.append(rng.choice(list(TASKS.values())))
        for other in context:
            chat.turns += other.make(chat)
        for _ in range(50):
            told = dict(chat.told)
            turns = task.make(chat)
            if turns[-1].held_out():
                return Conversation(system, chat.turns + turns)
            chat.told = told


def problems(encoder: Encoder, per_task: int, seed: int) -> list[Problem]:
    found = []
    for name, task in TASKS.items():
        rng = random.Random(f"evaluation {seed} {name}")
        for number in range(per_task):
            earlier = rng.randint(15, 45) if number % 8 == 7 else 0 if number % 2 == 0 else rng.randint(1, 5)
            prompt = [0] * (LONG_PROMPT + 1)
            while len(prompt) > LONG_PROMPT:
                conversation = held_out_conversation(rng, task, earlier)
                last = conversation.turns.pop()
                prompt = encoder.prompt(conversation, last.question)
            found.append(Problem(name, last.question, last.answer, prompt, [], len(prompt) > 512))
    return found


@torch.inference_mode()
def generate(model: Llama, batch: list[Problem], encoder: Encoder, device: str) -> None:
    """Greedy answers, recomputing the whole prefix each step: simple, and fast enough at this size. Padding is on the
    right, where a causal model does not see it."""
    open_problems = list(batch)
    while open_problems:
        rows = [p.prompt + p.generated for p in open_problems]
        width = -(-max(map(len, rows)) // 64) * 64
        ids = torch.tensor([row + [encoder.pad] * (width - len(row)) for row in rows], device=device)
        last = torch.tensor([len(row) - 1 for row in rows], device=device)
        with torch.autocast(device, torch.bfloat16):
            hidden = model.hidden(ids)[torch.arange(len(rows), device=device), last]
        tokens = model.logits(hidden.float()).argmax(-1).tolist()
        for problem, token in zip(open_problems, tokens):
            problem.generated.append(token)
        open_problems = [p for p in open_problems if p.generated[-1] != encoder.end and len(p.generated) < MAX_ANSWER]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--per-task", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--show-wrong", type=int, default=0, help="print so many wrong answers per task")
    args = parser.parse_args()
    encoder = Encoder(args.folder / "tokenizer.json")
    model = Llama.load(args.folder, args.device)
    asked = sorted(problems(encoder, args.per_task, args.seed), key=lambda p: len(p.prompt))
    for start in range(0, len(asked), 256):
        generate(model, asked[start:start + 256], encoder, args.device)

    groups = {name: [p for p in asked if p.task == name] for name in TASKS}
    report = {}
    for name, group in [*groups.items(), ("over 512 tokens of context", [p for p in asked if p.long]), ("all", asked)]:
        wrong = [p for p in group if p.generated[-1] != encoder.end or encoder.tokenizer.decode(p.generated) != p.answer]
        report[name] = {"asked": len(group), "correct": len(group) - len(wrong)}
        print(f"{name:28} {len(group) - len(wrong):5} of {len(group):5}  {100 * (1 - len(wrong) / max(1, len(group))):6.2f} %")
        for p in wrong[:args.show_wrong if name in groups else 0]:
            print(f"    {p.question!r} -> {encoder.tokenizer.decode(p.generated)!r}, not {p.answer!r} ({len(p.prompt)} tokens)")
    if args.report:
        args.report.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
