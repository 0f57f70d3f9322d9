#!/usr/bin/env python3
"""Makes the golden checkpoints: tiny random models and what Hugging Face transformers says of them.

Usage:
    python tests/goldens/make.py                 write every case beside this script
    python tests/goldens/make.py --only qwen3    one case (repeatable)
    python tests/goldens/make.py --check         make them afresh and compare with what is committed

Wants transformers 5.17 and torch 2.11 (CPU). README.md beside this script says what is in a case.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

PROMPT_A = 150  # three pages of 64 tokens, the last one partly filled
PROMPT_B = 5
GENERATED = 24
POSITIONS = [0, 1, 15, 16, 63, 64, 127, 149]  # first, window edge, page edges, last
MAX_CASE_BYTES = 2_000_000
MIN_SENSITIVITY = 10.0  # leaving a feature out must move the logits by this many times the noise
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Ablation:
    """A mistake an engine could make, and whether the golden must be able to see it."""

    name: str
    config: Callable = lambda c: None
    model: Callable = lambda m: None
    required: bool = True


@dataclass
class Case:
    name: str
    about: str
    model: str  # class stem: Llama, Mistral …
    config: dict
    ablations: list
    dtype: str = "bfloat16"
    # "v4": the config keys that published checkpoints have (rope_theta, rope_scaling, torch_dtype);
    # "v5": what transformers 5 writes (rope_parameters, dtype).
    config_form: str = "v4"
    drop: tuple = ()  # config keys that published checkpoints of this kind lack
    embed_std: float = 0.3
    # Seeds of the two prompts, picked among 0 to 99 for wide margins and varied tokens when generating.
    prompt_seeds: tuple = (0, 0)
    shard: str | None = None
    extra: dict = field(default_factory=dict)  # keys added to config.json that must be ignored


# ---------------------------------------------------------------- mistakes

def set_rope(**kw):
    def f(c):
        c.rope_parameters = {**c.rope_parameters, **kw}
    return f


def plain_rope(c):
    c.rope_parameters = {"rope_type": "default", "rope_theta": c.rope_parameters["rope_theta"]}


def set_config(**kw):
    def f(c):
        for k, v in kw.items():
            setattr(c, k, v)
    return f


def zero_params(*ends):
    def f(m):
        hit = [p for n, p in m.named_parameters() if n.endswith(ends)]
        assert hit, f"no parameter ends with {ends}"
        for p in hit:
            p.data.zero_()
    return f


def unit_params(*ends):
    def f(m):
        for n, p in m.named_parameters():
            if n.endswith(ends):
                p.data.fill_(1.0)
    return f


def interleaved_rope(m):
    """RoPE over neighbouring dims equals half-split RoPE over rows put in even-then-odd order."""
    for layer in m.model.layers:
        a = layer.self_attn
        d = a.head_dim
        order = torch.cat([torch.arange(0, d, 2), torch.arange(1, d, 2)])
        for proj in (a.q_proj, a.k_proj):
            for p in proj.parameters():
                rows = p.data.view(-1, d, *p.shape[1:])
                p.data = rows[:, order].reshape(p.shape).clone()


def strided_groups(m):
    """Query head h reads KV head h % kv_heads instead of h / (heads / kv_heads)."""
    for layer in m.model.layers:
        a, c = layer.self_attn, m.config
        d, group = a.head_dim, c.num_attention_heads // c.num_key_value_heads
        heads = torch.arange(c.num_attention_heads).view(group, -1).T.reshape(-1)
        for p in a.q_proj.parameters():
            p.data = p.data.view(-1, d, *p.shape[1:])[heads].reshape(p.shape).clone()
        w = a.o_proj.weight
        w.data = w.data.view(w.shape[0], -1, d)[:, heads].reshape(w.shape).clone()


def no_qk_norm(m):
    for layer in m.model.layers:
        layer.self_attn.q_norm = torch.nn.Identity()
        layer.self_attn.k_norm = torch.nn.Identity()


class UncentredNorm(torch.nn.Module):
    def __init__(self, ln):
        super().__init__()
        self.ln = ln

    def forward(self, x):
        return x * (x.pow(2).mean(-1, keepdim=True) + self.ln.eps).rsqrt() * self.ln.weight + self.ln.bias


def rms_for_layer_norm(m):
    for layer in m.model.layers:
        layer.input_layernorm = UncentredNorm(layer.input_layernorm)
        layer.post_attention_layernorm = UncentredNorm(layer.post_attention_layernorm)
    m.model.norm = UncentredNorm(m.model.norm)


def norms_without_one(m):
    for n, p in m.named_parameters():
        if "norm" in n:
            p.data -= 1.0


def no_post_norms(m):
    for layer in m.model.layers:
        layer.post_attention_layernorm = torch.nn.Identity()
        layer.post_feedforward_layernorm = torch.nn.Identity()


def unscaled_embeddings(m):
    m.model.embed_tokens.embed_scale.fill_(1.0)


INTERLEAVED = Ablation("interleaved rope", model=interleaved_rope)
GROUPS = Ablation("kv head = h % kv_heads", model=strided_groups)
THETA = Ablation("rope_theta x2", set_rope(rope_theta=20000.0))
QKV_BIAS = [
    Ablation("no q bias", model=zero_params("q_proj.bias")),
    # One bias for all keys moves every score of a query alike wherever rope is slow, so it shows least.
    Ablation("no k bias", model=zero_params("k_proj.bias")),
    Ablation("no v bias", model=zero_params("v_proj.bias")),
]


def window(n):
    """The window counts the query itself; one more or one fewer must show."""
    return [
        Ablation("no window", set_config(sliding_window=None)),
        Ablation(f"window {n - 1}", set_config(sliding_window=n - 1)),
        Ablation(f"window {n + 1}", set_config(sliding_window=n + 1)),
    ]


# ------------------------------------------------------------------- cases

def sizes(hidden, inter, layers, heads, kv, head_dim=None, vocab=256):
    c = dict(hidden_size=hidden, intermediate_size=inter, num_hidden_layers=layers, num_attention_heads=heads,
             num_key_value_heads=kv, vocab_size=vocab, bos_token_id=1, eos_token_id=2)
    return c if head_dim is None else {**c, "head_dim": head_dim}


def rope(kind="default", theta=10000.0, **kw):
    return {"rope_type": kind, "rope_theta": theta, **kw}


CASES = [
    Case("llama2",
         "MHA, plain rope, untied head, eps 1e-5 that matters; head_dim and rope_theta left to their defaults",
         "Llama",
         dict(**sizes(128, 168, 2, 2, 2), rms_norm_eps=1e-5, max_position_embeddings=256,
              tie_word_embeddings=False, rope_parameters=rope()),
         [INTERLEAVED, THETA, Ablation("eps 1e-6", set_config(rms_norm_eps=1e-6)),
          Ablation("norm weights 1", model=unit_params("norm.weight"))],
         drop=("head_dim", "rope_theta", "attention_bias", "mlp_bias"), embed_std=0.004, prompt_seeds=(87, 98)),
    Case("llama31",
         "GQA 4:1, llama3 rope scaling with positions past the original context, tied embeddings, list of eos ids",
         "Llama",
         dict(**sizes(128, 136, 2, 8, 2, 64), rms_norm_eps=1e-5, max_position_embeddings=512, tie_word_embeddings=True,
              rope_parameters=rope("llama3", 500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                   original_max_position_embeddings=64)) | {"eos_token_id": [2, 3]},
         [INTERLEAVED, GROUPS, Ablation("no rope scaling", plain_rope),
          Ablation("all frequencies / 8", set_rope(rope_type="linear")),
          # Without the smooth band between the two wavelengths: only a few of the dims differ.
          Ablation("no smooth band", set_rope(low_freq_factor=1.0, high_freq_factor=1.0001))], prompt_seeds=(0, 9)),
    Case("llama_linear", "linear rope scaling, attention_bias (q, k, v, o) and mlp_bias (gate, up, down)",
         "Llama",
         dict(**sizes(128, 136, 2, 4, 2, 64), rms_norm_eps=1e-6, max_position_embeddings=512, tie_word_embeddings=False,
              attention_bias=True, mlp_bias=True, rope_parameters=rope("linear", factor=4.0)),
         [INTERLEAVED, GROUPS, Ablation("no rope scaling", plain_rope), *QKV_BIAS,
          Ablation("no o bias", model=zero_params("o_proj.bias")),
          Ablation("no gate bias", model=zero_params("gate_proj.bias")),
          Ablation("no up bias", model=zero_params("up_proj.bias")),
          Ablation("no down bias", model=zero_params("down_proj.bias"))],
         config_form="v5", prompt_seeds=(17, 56)),
    Case("mistral", "sliding window of 16, MQA, head_dim 128",
         "Mistral",
         dict(**sizes(128, 136, 2, 2, 1, 128), rms_norm_eps=1e-5, max_position_embeddings=512, tie_word_embeddings=False,
              sliding_window=16, rope_parameters=rope()),
         [INTERLEAVED, THETA, *window(16)], prompt_seeds=(20, 75)),
    Case("mistral_f16", "float16 weights, no sliding window (null), GQA 2:1",
         "Mistral",
         dict(**sizes(128, 136, 2, 4, 2, 64), rms_norm_eps=1e-5, max_position_embeddings=512, tie_word_embeddings=False,
              sliding_window=None, rope_parameters=rope(theta=1000000.0)),
         [INTERLEAVED, GROUPS, Ablation("rope_theta 10000", set_rope(rope_theta=10000.0))],
         dtype="float16", prompt_seeds=(2, 13)),
    Case("qwen2",
         "yarn rope scaling past the original context, its attention factor included; q, k, v biases, tied embeddings; "
         "3 layers; a sliding_window that use_sliding_window: false switches off",
         "Qwen2",
         dict(**sizes(128, 136, 3, 2, 1), rms_norm_eps=1e-6, max_position_embeddings=512, tie_word_embeddings=True,
              rope_parameters=rope("yarn", 10000.0, factor=4.0, original_max_position_embeddings=64)),
         [INTERLEAVED, Ablation("no rope scaling", plain_rope),
          Ablation("attention factor 1", set_rope(attention_factor=1.0)),
          Ablation("all frequencies / 4", set_rope(rope_type="linear")), *QKV_BIAS,
          Ablation("window 16 obeyed", set_config(use_sliding_window=True, sliding_window=16, max_window_layers=0,
                                                  layer_types=["sliding_attention"] * 3))],
         drop=("layer_types", "head_dim"),
         extra=dict(use_sliding_window=False, sliding_window=16, max_window_layers=3), prompt_seeds=(62, 48)),
    Case("qwen3", "q/k norm before rope, head_dim 128 with hidden 128 and 4 heads, GQA 2:1; three shards",
         "Qwen3",
         dict(**sizes(128, 136, 2, 4, 2, 128), rms_norm_eps=1e-6, max_position_embeddings=512, tie_word_embeddings=False,
              rope_parameters=rope(theta=1000000.0)),
         [INTERLEAVED, GROUPS, Ablation("no q/k norm", model=no_qk_norm),
          Ablation("q/k norm weights 1", model=unit_params("q_norm.weight", "k_norm.weight")),
          Ablation("rope_theta 10000", set_rope(rope_theta=10000.0))],
         config_form="v5", shard="450KB", prompt_seeds=(68, 29)),
    Case("starcoder2", "LayerNorm with bias, biases everywhere, GELU (tanh), sliding window of 24, tied, 3 heads",
         "Starcoder2",
         dict(**sizes(192, 256, 2, 3, 1), norm_epsilon=1e-5, max_position_embeddings=512, tie_word_embeddings=True,
              use_bias=True, sliding_window=24, hidden_act="gelu_pytorch_tanh", rope_parameters=rope(theta=100000.0),
              attention_dropout=0.0, residual_dropout=0.0, embedding_dropout=0.0),
         [INTERLEAVED, Ablation("rope_theta 10000", set_rope(rope_theta=10000.0)), *window(24), *QKV_BIAS,
          Ablation("no o bias", model=zero_params("o_proj.bias")),
          Ablation("no c_fc bias", model=zero_params("c_fc.bias")),
          Ablation("no c_proj bias", model=zero_params("c_proj.bias")),
          Ablation("no norm biases", model=zero_params("norm.bias")),
          Ablation("RMSNorm for LayerNorm", model=rms_for_layer_norm),
          Ablation("SiLU for GELU", set_config(hidden_act="silu")),
          # The two GELUs differ by at most 5e-4, below bf16's noise: shown, not required.
          Ablation("erf GELU", set_config(hidden_act="gelu"), required=False)],
         config_form="v5", prompt_seeds=(21, 2)),
    # As small as its features allow: two layers, 8 wide, a short vocabulary; in f16, for bf16 is too coarse for that few.
    Case("gemma2",
         "norms before and after each block, weights less 1; soft-caps of scores and logits; GeGLU; scaled embeddings, tied; "
         "head_dim 256, a query scale that is not its root; windows of 16 in every other layer",
         "Gemma2",
         dict(**sizes(8, 16, 2, 1, 1, 256, vocab=32), rms_norm_eps=1e-6, max_position_embeddings=256,
              tie_word_embeddings=True, query_pre_attn_scalar=144, sliding_window=16, attn_logit_softcapping=4.0,
              final_logit_softcapping=2.0, rope_parameters=rope()),
         [INTERLEAVED, THETA, *window(16)[1:],
          Ablation("no window", set_config(layer_types=["full_attention"] * 2)),
          Ablation("all layers slide", set_config(layer_types=["sliding_attention"] * 2)),
          Ablation("windows in the other layers", set_config(layer_types=["full_attention", "sliding_attention"])),
          Ablation("no soft-cap of scores", set_config(attn_logit_softcapping=None)),
          Ablation("no soft-cap of logits", set_config(final_logit_softcapping=None)),
          Ablation("scale 1/16", set_config(query_pre_attn_scalar=256)),
          Ablation("norm weights without the 1", model=norms_without_one),
          Ablation("no post-norms", model=no_post_norms),
          Ablation("embeddings not scaled", model=unscaled_embeddings)],
         dtype="float16", drop=("layer_types",), embed_std=0.2, prompt_seeds=(45, 48)),
]


# ----------------------------------------------------------------- weights

def seeded(*parts):
    """A generator that depends on the names alone, so that a new tensor does not move the others."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def weight_std(name, p, case):
    """Spread of a matrix: activations of std 1 to 3 throughout, attention scores of std about 1.5."""
    fan_in = p.shape[-1]
    if "embed_tokens" in name:
        return case.embed_std
    if "lm_head" in name:
        return 3.0 / fan_in**0.5  # logits of std about 3
    if "q_proj" in name or "k_proj" in name:
        return (1.4 / fan_in) ** 0.5
    # v, o and the MLP: the residual stream has to outgrow a tied embedding, or the model only repeats
    # its input, and neither attention nor the MLP may drown the other.
    gain = {"gate_proj": 1.5, "up_proj": 1.5, "down_proj": 1.5, "c_fc": 1.5, "c_proj": 3.0}
    return next((g for part, g in gain.items() if part in name), 2.0) / fan_in**0.5


def bias_std(name):
    """Large enough that leaving one out shows, small enough that the input still decides."""
    if "norm" in name:
        return 0.25
    return 0.6 if name.endswith(("o_proj.bias", "down_proj.bias", "c_proj.bias")) else 0.5


def norm_gain(name, case):
    """Mean of a norm's weights. Gemma's are stored less 1; its blocks' results must outgrow the embedding and its
    logits reach the cap."""
    if case.model != "Gemma2":
        return 1.0
    return 1.0 if name.startswith("model.norm") else 2.0 if "post_" in name else 0.0


def randomise(model, case):
    """Random weights, rounded to the checkpoint's dtype but kept in f32."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=seeded(case.name, name))
        if name.endswith("bias"):
            v = bias_std(name) * noise
        elif "_norm.weight" in name:  # q/k norm: scores of std about 1.5
            v = 1.2 + 0.35 * noise
        elif "norm" in name:
            v = norm_gain(name, case) + 0.25 * noise
        else:
            v = weight_std(name, p, case) * noise
        p.data = v.to(DTYPES[case.dtype]).float()
    model.tie_weights()


def build(case, ablation=None, state=None):
    """The f32 model of a case, with one mistake made if asked."""
    config = getattr(transformers, case.model + "Config")(**case.config)
    config._attn_implementation = "eager"
    if ablation:
        ablation.config(config)
    model = getattr(transformers, case.model + "ForCausalLM")(config).float().eval()
    if state is None:
        randomise(model, case)
    else:
        model.load_state_dict(state)
    if ablation:
        ablation.model(model)
    return model


# -------------------------------------------------------------------- runs

def logits_of(model, tokens):
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()


def draw_prompt(case, which, seed):
    length = {"a": PROMPT_A, "b": PROMPT_B}[which]
    rng = seeded(case.name, "prompt", which, seed)
    return torch.randint(4, case.config["vocab_size"], (length,), generator=rng).tolist()


def greedy(model, prompt):
    """Greedy continuation by full recomputation: no KV cache whose own bugs could enter."""
    tokens, margins = list(prompt), []
    for _ in range(GENERATED):
        top = logits_of(model, tokens)[-1].topk(2)
        tokens.append(top.indices[0].item())
        margins.append((top.values[0] - top.values[1]).item())
    return tokens[len(prompt):], margins


def layer_outputs(model, tokens):
    """[layers + 1, positions, hidden]: the embedding, then each layer's output, before the final norm.

    Hooks, because transformers' last `hidden_states` entry has the final norm applied.
    """
    rows = []

    def keep(_module, _args, out):
        rows.append((out[0] if isinstance(out, tuple) else out)[0, POSITIONS].float())

    hooks = [m.register_forward_hook(keep) for m in (model.model.embed_tokens, *model.model.layers)]
    logits_of(model, tokens)
    for h in hooks:
        h.remove()
    return torch.stack(rows)


def score_std(model, tokens):
    """Mean over layers, heads and rows of the std of the attention scores (before softmax)."""
    att = model(input_ids=torch.tensor([tokens]), use_cache=False, output_attentions=True).attentions
    stds = [a[0, :, row][:, a[0, 0, row] > 0].log().std(-1) for a in att for row in range(8, len(tokens))]
    return torch.cat(stds).mean().item()


def differences(a, b):
    d = (a - b).double()
    return d.abs().max().item(), d.pow(2).mean().sqrt().item()


# ------------------------------------------------------------------- files

def config_json(case, written):
    """config.json in the form asked for."""
    c = {k: v for k, v in written.items() if k not in ("_name_or_path", "_attn_implementation")}
    if case.config_form == "v4":
        r = dict(c.pop("rope_parameters"))
        c["rope_theta"] = r.pop("rope_theta")
        c["rope_scaling"] = None if r["rope_type"] == "default" else r
        if r["rope_type"] == "yarn":  # Qwen2.5's model cards say "type"
            r["type"] = r.pop("rope_type")
        c["torch_dtype"] = c.pop("dtype")
        c.pop("layer_types", None)
    for k in case.drop:
        c.pop(k, None)
    c.update(case.extra)
    return dict(sorted(c.items()))


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_checkpoint(case, model, out):
    half = build(case, state=model.state_dict()).to(DTYPES[case.dtype])
    half.config.dtype = case.dtype
    half.save_pretrained(out, max_shard_size=case.shard or "1GB")
    (out / "generation_config.json").unlink(missing_ok=True)
    write_json(out / "config.json", config_json(case, json.loads((out / "config.json").read_text())))


def reload(out, dtype):
    """The written folder as anybody else would load it."""
    m = AutoModelForCausalLM.from_pretrained(out, dtype=dtype, attn_implementation="eager").eval()
    # A bf16 inv_freq would be noise that no inference engine has.
    assert m.model.rotary_emb.inv_freq.dtype == torch.float32
    return m


def make_case(case, out):
    """Writes one case into `out` and returns its row of the table."""
    model = build(case)
    prompts = {which: draw_prompt(case, which, seed) for which, seed in zip("ab", case.prompt_seeds)}

    write_checkpoint(case, model, out)
    exact, rounded = reload(out, torch.float32), reload(out, DTYPES[case.dtype])
    tensors, wanted, noisy = {}, [], []
    for which, prompt in prompts.items():
        logits = logits_of(model, prompt)
        assert torch.equal(logits, logits_of(exact, prompt)), f"{case.name}: the written folder is another model"
        tokens, margins = greedy(model, prompt)
        # A special token would end an engine's answer.
        assert min(tokens) > 3, f"{case.name}: prompt {which} leads to a special token: pick another seed"
        wanted.append(logits)
        noisy.append(logits_of(rounded, prompt))
        tensors |= {
            f"prompt_{which}": torch.tensor(prompt, dtype=torch.int32),
            f"logits_{which}": logits.contiguous(),
            f"greedy_{which}": torch.tensor(tokens, dtype=torch.int32),
            f"margin_{which}": torch.tensor(margins),
        }
    tensors["layer_out"] = layer_outputs(model, prompts["a"])
    layer_noise = [differences(a, b)[1] for a, b in zip(tensors["layer_out"], layer_outputs(rounded, prompts["a"]))]
    noise_max, noise_rms = differences(torch.cat(wanted), torch.cat(noisy))
    logits_std = torch.cat(wanted).std().item()
    save_file(tensors, out / "golden.safetensors")

    sensitivity = {}
    for ab in case.ablations:
        changed = logits_of(build(case, ab, model.state_dict()), prompts["a"])
        d_max, d_rms = differences(tensors["logits_a"], changed)
        sensitivity[ab.name] = {"max": round(d_max / noise_max, 2), "rms": round(d_rms / noise_rms, 2)}
        if ab.required and d_rms < MIN_SENSITIVITY * noise_rms:
            print(f"{case.name}: '{ab.name}' moves the logits by only {d_rms / noise_rms:.1f} x noise", file=sys.stderr)
            FAILED.add((case.name, ab.name))

    margins = torch.cat([tensors["margin_a"], tensors["margin_b"]])
    write_json(out / "golden.json", {
        "case": case.name,
        "about": case.about,
        "architecture": case.model + "ForCausalLM",
        "dtype": case.dtype,
        "positions": POSITIONS,
        "noise": {"dtype": case.dtype, "max_abs": noise_max, "rms": noise_rms, "layer_rms": layer_noise},
        "logits_std": logits_std,
        "sensitivity": sensitivity,
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
    })
    generated = torch.cat([tensors["greedy_a"], tensors["greedy_b"]])
    return {
        "case": case.name,
        "kB": sum(f.stat().st_size for f in out.iterdir()) / 1000,
        "logits": logits_std,
        "noise max": noise_max,
        "noise rms": noise_rms,
        "scores": score_std(model, prompts["a"]),
        "sure": (margins > 2 * noise_max).float().mean().item(),
        "distinct": len(set(generated.tolist())),
        "sensitivity": sensitivity,
    }


FAILED = set()


def hashes(folder):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())}


def compare(committed, fresh, name):
    """Everything equal, or only f32 results that another CPU's summation order explains."""
    old, new = hashes(committed), hashes(fresh)
    assert old.keys() == new.keys(), f"{name}: files differ: {sorted(old.keys() ^ new.keys())}"
    differ = [f for f in old if old[f] != new[f]]
    if not differ:
        return "identical"
    assert set(differ) <= {"golden.safetensors", "golden.json"}, f"{name}: {differ} changed"
    a, b = load_file(committed / "golden.safetensors"), load_file(fresh / "golden.safetensors")
    for k in a:
        close = torch.equal(a[k], b[k]) if a[k].dtype == torch.int32 else torch.allclose(a[k], b[k], atol=1e-3)
        assert close, f"{name}: {k} changed"
    return "equal within 1e-3"


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--only", action="append", help="make this case only (repeatable)")
    args.add_argument("--check", action="store_true", help="compare with the committed files, write nothing")
    args.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the cases")
    args = args.parse_args()
    torch.set_num_threads(1)  # one summation order
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    print(f"{'case':13}{'kB':>7}{'logits':>8}{'noise max':>11}{'noise rms':>11}{'scores':>8}{'sure':>6}{'distinct':>9}")
    for case in CASES:
        if args.only and case.name not in args.only:
            continue
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            one, two = Path(one), Path(two)
            row = make_case(case, one)
            if args.check:
                verdict = compare(args.out / case.name, one, case.name)
            else:
                make_case(case, two)
                assert hashes(one) == hashes(two), f"{case.name}: two runs differ"
                verdict = "two runs identical"
            assert row["kB"] * 1000 <= MAX_CASE_BYTES, f"{case.name}: {row['kB']} kB"
            print(f"{row['case']:13}{row['kB']:7.0f}{row['logits']:8.2f}{row['noise max']:11.4f}{row['noise rms']:11.5f}"
                  f"{row['scores']:8.2f}{row['sure']:6.0%}{row['distinct']:9}   {verdict}")
            for name, s in row["sensitivity"].items():
                print(f"    {name:28} {s['rms']:7.1f} x noise (rms) {s['max']:7.1f} x (max)", flush=True)
            if not args.check and not FAILED:
                shutil.rmtree(args.out / case.name, ignore_errors=True)
                shutil.copytree(one, args.out / case.name)
    if FAILED:
        sys.exit(f"goldens blind to: {sorted(FAILED)}")


if __name__ == "__main__":
    main()
