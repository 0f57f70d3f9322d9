"""Trains the tokenizer of both models: byte-level BPE with 2048 tokens, so that every string can be encoded.

    python tokenizer.py --out ../tiny-chat/tokenizer.json
"""

import argparse
import itertools
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from generator import SHORT_ROW, training_conversations

SPECIAL = ["<|bos|>", "<|end|>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>"]


def train(conversations: int, seed: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    # Splitting at each digit first keeps digits out of all merges: place value is then visible to the model.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=2048, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    source = itertools.islice(training_conversations(random.Random(seed), SHORT_ROW), conversations)
    texts = (text for c in source for text in (c.system, *(t for turn in c.turns for t in (turn.question, turn.answer))))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.token_to_id("<|bos|>"))])
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--conversations", type=int, default=60_000)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    train(args.conversations, args.seed).save(str(args.out))


if __name__ == "__main__":
    main()
