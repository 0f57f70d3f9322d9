"""Trains one model from token shards on one GPU, for a given number of minutes, and exports it.

    python train.py tiny-chat --shards shards --tokenizer ../tiny-chat/tokenizer.json --checkpoint chat.pt --out ../tiny-chat

The learning rate follows the clock and not a step count, so that the run has always finished its decay when its
time is over. `--checkpoint` is written every minute; a run that finds one there goes on from it.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from export import export
from generator import LEARN
from model import CONFIGS, Llama

LONG_SHARE = 0.2  # of the time, at the end, is spent on rows of 2048 tokens
IGNORE = -100


def load_rows(folder: Path, kind: str, device: str) -> Tensor:
    """All shards of a kind as int16 [rows, length] on the device; negative entries are tokens to learn."""
    shards = [np.load(path) for path in sorted(folder.glob(f"{kind}-*.npy"))]
    if not shards:
        raise SystemExit(f"no {kind}-*.npy in {folder}: run generator.py first")
    return torch.from_numpy(np.concatenate(shards).view(np.int16)).to(device)


def batches(rows: Tensor, tokens: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless shuffled batches of (ids, targets), each [tokens / length, length]."""
    size, generator = max(1, tokens // rows.shape[1]), torch.Generator(rows.device).manual_seed(seed)
    while True:
        for picked in torch.randperm(len(rows), device=rows.device, generator=generator).split(size):
            if len(picked) < size:
                continue
            packed = rows[picked]
            ids = (packed & (LEARN - 1)).long()
            targets = torch.where(packed < 0, ids, IGNORE)
            yield ids, F.pad(targets[:, 1:], (0, 1), value=IGNORE)


def orthogonalize(gradients: Tensor) -> Tensor:
    """Moves the singular values of each matrix in [n, rows, columns] close to 1 (quintic Newton-Schulz iteration)."""
    tall = gradients.shape[1] > gradients.shape[2]
    x = (gradients.mT if tall else gradients).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized. One group per matrix shape, so that a step is a few batched products."""

    def __init__(self, matrices: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.05):
        shapes = sorted({tuple(p.shape) for p in matrices})
        super().__init__([{"params": [p for p in matrices if tuple(p.shape) == shape]} for shape in shapes],
                         {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            params, state = group["params"], self.state[group["params"][0]]
            gradients = torch.stack([p.grad for p in params]).float()
            buffer = state.setdefault("momentum", torch.zeros_like(gradients))
            buffer.lerp_(gradients, 1 - group["momentum"])
            update = orthogonalize(gradients.lerp(buffer, group["momentum"]))
            rows, columns = update.shape[1:]
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, list(update.float().unbind()), alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def rate(done: float) -> float:
    """Learning-rate factor at the given share of the run: short rise, plateau, straight fall to zero."""
    return min(1.0, done / 0.02, (1 - done) / 0.6)


class Run:
    """Model, optimizers and clock: all that a checkpoint holds."""

    def __init__(self, args: argparse.Namespace):
        torch.manual_seed(args.seed)
        self.args, self.step, self.elapsed = args, 0, 0.0
        self.model = Llama(CONFIGS[args.model]).to(args.device)
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.ndim != 2 or "embed" in n]
        self.optimizers = [Muon(matrices, lr=args.muon_lr),
                           torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]
        self.base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        if args.checkpoint.exists():
            saved = torch.load(args.checkpoint, map_location=args.device)
            self.model.load_state_dict(saved["model"])
            for optimizer, state in zip(self.optimizers, saved["optimizers"]):
                optimizer.load_state_dict(state)
            self.step, self.elapsed = saved["step"], saved["elapsed"]
            print(f"{args.model}: going on from step {self.step}, {self.elapsed:.0f} s", flush=True)
        self.compiled_loss = self.loss
        if args.compile:
            # Layer by layer: all layers share one compiled function, which is ready in seconds.
            for layer in self.model.model.layers:
                layer.compile(dynamic=False)
            self.compiled_loss = torch.compile(self.loss, dynamic=False)

    def save(self) -> None:
        partial = self.args.checkpoint.with_suffix(".partial")
        torch.save({"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers], "step": self.step,
                    "elapsed": self.elapsed}, partial)
        partial.replace(self.args.checkpoint)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.model.logits(hidden)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE)

    def train_step(self, ids: Tensor, targets: Tensor, factor: float) -> Tensor:
        with torch.autocast(ids.device.type, torch.bfloat16):
            loss = self.compiled_loss(self.model.hidden(ids), targets)
        loss.backward()
        for optimizer, rates in zip(self.optimizers, self.base_rates):
            for group, base in zip(optimizer.param_groups, rates):
                group["lr"] = base * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.detach()

    def compile_shapes(self, *sources: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Compiles for each row length before the clock starts, so that no time of the schedule is lost to it."""
        start = time.monotonic()
        for source in sources:
            ids, targets = next(source)
            with torch.autocast(ids.device.type, torch.bfloat16):
                self.compiled_loss(self.model.hidden(ids), targets).backward()
        self.model.zero_grad(set_to_none=True)
        if ids.is_cuda:
            torch.cuda.synchronize()
        print(f"{self.args.model}: compiled in {time.monotonic() - start:.0f} s", flush=True)

    def train(self) -> None:
        args = self.args
        budget = args.minutes * 60
        short, long = (batches(load_rows(args.shards, kind, args.device), args.batch_tokens, args.seed + self.step) for kind in ("short", "long"))
        if args.compile:
            self.compile_shapes(short, long)
        start, saved, logged, logged_step = time.monotonic() - self.elapsed, self.elapsed, self.elapsed, self.step
        while self.elapsed < budget:
            done = self.elapsed / budget
            loss = self.train_step(*next(long if done > 1 - LONG_SHARE else short), rate(done))
            if self.step % 8 == 0:
                loss.item()  # waits for the GPU, which keeps the clock honest
            self.elapsed = time.monotonic() - start
            if self.elapsed - logged >= 10:
                speed = (self.step - logged_step) * args.batch_tokens / (self.elapsed - logged) / 1e6
                print(f"{args.model}: {self.elapsed:4.0f} s  step {self.step}  loss {loss.item():.4f}  {speed:.2f} M tokens/s", flush=True)
                logged, logged_step = self.elapsed, self.step
            if self.elapsed - saved >= 60:
                self.save()
                saved = self.elapsed
        self.save()
        print(f"{args.model}: {self.step} steps, {self.step * args.batch_tokens / 1e6:.0f} million tokens, {self.elapsed:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=CONFIGS)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.4)
    parser.add_argument("--batch-tokens", type=int, default=65536)
    parser.add_argument("--muon-lr", type=float, default=0.01)
    parser.add_argument("--adam-lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    run = Run(args)
    run.train()
    export(run.model, args.tokenizer, args.out)


if __name__ == "__main__":
    main()
