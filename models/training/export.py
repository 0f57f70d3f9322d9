"""Writes a trained model as a Hugging Face folder."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from model import Llama
from tokenizer import SPECIAL

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] | trim }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def export(model: Llama, tokenizer: Path, folder: Path) -> None:
    """config.json, generation_config.json, model.safetensors (bf16), tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.to("cpu", torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", model.config.hugging_face())
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 2, "do_sample": False})
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": "<|end|>", "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False, "model_max_length": model.config.max_position_embeddings,
        "chat_template": CHAT_TEMPLATE,
        "added_tokens_decoder": {str(i): {"content": token, "special": True, "lstrip": False, "rstrip": False, "normalized": False,
                                          "single_word": False} for i, token in enumerate(SPECIAL)}})
    target = folder / "tokenizer.json"
    if tokenizer.resolve() != target.resolve():
        shutil.copyfile(tokenizer, target)


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
