"""PyTorch's side of `wootz bench peers`: one JSON request a line on stdin, one JSON answer a line on stdout.

{"case": "sdpa", "batch": 1, "queries": 1, "context": 2048, "copies": 50}   prepares attention by cuDNN, 32 query and 8 KV
                                                                            heads of 128; causal where queries > 1
{"case": "add_rms_norm", "tokens": 2048, "width": 4096, "copies": 6}        prepares h = x + residual, norm(h), compiled
{"turn_us": 3000}                                                           times what was prepared: {"us": ...}

Every set of data is used in turn, so that what a launch reads is not in the cache; what is quick is replayed as a CUDA
graph.
"""

import json
import os
import sys

# Answers have a stdout of their own: what libraries print goes to stderr.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
GRAPH_LAUNCHES = 20


def attention(case):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    batch, queries, context, copies = (case[key] for key in ("batch", "queries", "context", "copies"))

    def random(heads, tokens):
        return torch.randn(batch, heads, tokens, HEAD_DIM, device="cuda", dtype=torch.bfloat16)

    sets = [(random(HEADS, queries), random(KV_HEADS, context), random(KV_HEADS, context)) for _ in range(copies)]

    def run(turn):
        q, k, v = sets[turn]
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=queries > 1, enable_gqa=True)

    return run


def add_rms_norm(case):
    tokens, width, copies = (case[key] for key in ("tokens", "width", "copies"))

    def random(*shape):
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    weight = random(width)
    sets = [(random(tokens, width), random(tokens, width)) for _ in range(copies)]

    @torch.compile(dynamic=False)
    def norm(x, residual):
        h = x + residual
        f = h.float()
        scale = torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-5)
        return (f * scale * weight.float()).to(torch.bfloat16), h

    return lambda turn: norm(*sets[turn])


class Prepared:
    """A graph that uses every set of data, as often as makes it last about a millisecond."""

    def __init__(self, run, copies):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for turn in range(min(copies, 3)):
                run(turn)
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(0)
        end.record()
        end.synchronize()
        estimate = max(start.elapsed_time(end) * 1e3, 1.0)
        wanted = min(max(1000.0 / estimate, GRAPH_LAUNCHES if estimate < 100 else 1), 256)
        self.works = copies * max(1, round(wanted / copies + 0.499))
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            # Kept, so that each work writes memory of its own: outputs that share some would stay in the cache.
            self.results = [run(work % copies) for work in range(self.works)]
        torch.cuda.synchronize()

    def time(self, turn_us):
        one = self.sample(1) * self.works
        return self.sample(max(1, min(1000, round(turn_us / one + 0.499))))

    def sample(self, repeats):
        """Microseconds a work. The replay before keeps the GPU busy while the host queues the others."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.graph.replay()
        start.record()
        for _ in range(repeats):
            self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3 / (repeats * self.works)


def answer(value):
    print(json.dumps(value), file=ANSWERS, flush=True)


def main():
    prepared = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "case" in request:
                # The old one's memory first.
                prepared = None
                torch.cuda.empty_cache()
                make = {"sdpa": attention, "add_rms_norm": add_rms_norm}[request["case"]]
                prepared = Prepared(make(request), request["copies"])
                answer({"ok": True})
            elif prepared is None:
                answer({"error": "nothing is prepared"})
            else:
                answer({"us": prepared.time(request["turn_us"])})
        except Exception as error:
            prepared = None
            answer({"error": f"{type(error).__name__}: {error}".splitlines()[0]})


try:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch sees no GPU")
    versions = {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}
except Exception as problem:
    answer({"error": f"{type(problem).__name__}: {problem}".splitlines()[0]})
    sys.exit(1)
answer(versions)
main()
