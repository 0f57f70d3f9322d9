"""Writes goldens.json: what transformers' apply_chat_template makes of every template and conversation.

    python make.py        (transformers 5.17, jinja2 3.1)

The templates are in the manner of the models whose names they bear, not copies of theirs.
"""

import datetime
import json
import pathlib

import jinja2
import transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).parent
NOW = datetime.datetime(2026, 3, 7, 15, 4, 5)


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat_template_utils.datetime = Clock

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather at a place & time, in \"plain\" words <b>",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Città, 都市"},
                "days": {"type": "array", "items": {"type": "integer"}, "default": []},
                "scale": {"type": "number", "default": 1.0},
            },
            "required": ["place"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "now", "description": "Time", "parameters": {}}}


def m(role, content, **more):
    return {"role": role, "content": content, **more}


CHATS = {
    "one": [m("user", "What is 12 plus 7?")],
    "system": [m("system", "  Be brief.\n"), m("user", "Hi ")],
    "turns": [
        m("user", "Hello there.\nHow are  you?"),
        m("assistant", " Fine — 你好 👩🏽 \n"),
        m("user", "\n<b>Bold</b> & 'quotes' \"double\" \\ \t tab"),
    ],
    "two users": [m("user", "a"), m("user", "b")],
    "thoughts": [
        m("user", "a"),
        m("assistant", "<think>\n\nfirst\n</think>\n\nanswer"),
        m("user", "b"),
        m("assistant", "plain", reasoning_content="\nwhy\n"),
        m("user", "<tool_response>5</tool_response>"),
        m("assistant", "<think>x</think>y</think>\nz"),
    ],
    "tool call": [
        m("system", "Use tools."),
        m("user", "Weather?"),
        m("assistant", "", tool_calls=[{"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": {"place": "Zürich", "days": [1, 2], "scale": 0.5}}}]),
        m("tool", "sunny \"22\" °C", name="get_weather"),
        m("tool", "wind"),
        m("assistant", "It is sunny."),
        m("user", "Thanks"),
    ],
    "two calls": [
        m("user", "Both"),
        m("assistant", "", tool_calls=[{"function": {"name": "a", "arguments": {}}}, {"name": "b", "arguments": {"x": None}}]),
    ],
    "odd shapes": [
        m("user", "Hello, wörld. ", name="Ann"),
        m("skip", "x"),
        m("user", {"b": 1, "a": [True, None, 2.0], "items": "method or key?"}),
        m("user", [{"type": "image"}, {"type": "text", "text": "look"}, {"type": "text", "text": "here"}]),
        m("user", []),
        m("user", None),
        m("user", "a\r\nb\x0bc\x1c d\u2028e o o"),
        m("stop", "y"),
        m("user", "never"),
    ],
}

CASES = []
for template in ["chatml", "llama31", "qwen25", "thinking", "mistral", "gemma2", "pythonisms"]:
    for chat in CHATS:
        if chat == "odd shapes" and template != "pythonisms":
            continue
        for prompt in (True, False):
            CASES.append((template, chat, {"add_generation_prompt": prompt}))
        if template != "gemma2":  # which knows none
            CASES.append((template, chat, {"add_generation_prompt": True, "tools": [WEATHER, CLOCK]}))
CASES += [
    ("llama31", "system", {"tools": [WEATHER], "tools_go_to_user": False, "today": "1 Jan 2025"}),
    ("thinking", "one", {"add_generation_prompt": True, "enable_thinking": False}),
]


def golden(template, chat, options):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>", chat_template=template
    )
    try:
        return {"text": tokenizer.apply_chat_template(chat, tokenize=False, **options)}
    except jinja2.exceptions.TemplateError as error:
        kind = "refused" if type(error) is jinja2.exceptions.TemplateError else "error"
        return {kind: str(error)}
    except TypeError as error:
        return {"error": str(error)}


def main():
    cases = []
    for name, chat, options in CASES:
        source = (HERE / f"{name}.jinja").read_text()
        cases.append({"template": name, "chat": chat, "options": options, **golden(source, CHATS[chat], options)})
    out = {
        "made_by": f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}",
        "now": int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp()),
        "chats": CHATS,
        "cases": cases,
    }
    (HERE / "goldens.json").write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n")


main()
