"""Drives `wootz serve` with OpenAI's official Python client, unmodified: openai_client.py URL KEY.

The client checks every answer against its own types (`_strict_response_validation`). Each function is a theme; what passed is
printed, the first failure ends the script.
"""

import asyncio
import base64
import json
import math
import struct
import sys
import time
import urllib.request

import openai
from pydantic import BaseModel

URL, KEY = sys.argv[1:3]
MODEL = "tiny-chat"
SUM = "What is 845 minus 367?"
PERSON = "Turn this into JSON: Anna is 31 and lives in Oslo."
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
# Goes on until the context is full, unless somebody ends it.
ENDLESS = {"max_tokens": 1900, "extra_body": {"ignore_eos": True}}

OPTIONS = {"base_url": f"{URL}/v1", "api_key": KEY, "max_retries": 0, "timeout": 60, "_strict_response_validation": True}
client = openai.OpenAI(**OPTIONS)
# Two of its types are wrong about OpenAI too: finish_reason in chunks of completions is null until the end, and embeddings that
# it asks for in base64 are checked before it decodes them.
lenient = openai.OpenAI(**{**OPTIONS, "_strict_response_validation": False})


class Person(BaseModel):
    name: str
    age: int


def tool(name, properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters, "strict": True}}


TOOLS = [
    tool("weather", {"city": {"type": "string", "maxLength": 12}, "unit": {"type": "string", "enum": ["C", "F"]}}),
    tool("add", {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"type": "integer", "minimum": 0, "maximum": 99}}),
]


def asking(text=SUM, **options):
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0, **options}


def chat(text=SUM, **options):
    return client.chat.completions.create(**asking(text, **options))


def same(found, wanted):
    assert found == wanted, f"{found!r} is not {wanted!r}"


def refused(kind, status, ask, **fields):
    try:
        answer = ask()
    except openai.APIStatusError as error:
        assert type(error) is kind, repr(error)
        same(error.status_code, status)
        assert isinstance(error.body, dict) and error.body["message"], repr(error.body)
        assert error.request_id, "no x-request-id"
        for name, wanted in fields.items():
            same(getattr(error, name), wanted)
        return str(error)
    raise AssertionError(f"{answer!r} instead of {kind.__name__}")


def metric(name, label=""):
    with urllib.request.urlopen(f"{URL}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"wootz_{name}") and label in line)


def until(what, done):
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.02)


def models():
    listed = list(client.models.list())
    same([model.id for model in listed], [MODEL])
    same(client.models.retrieve(MODEL), listed[0])


def chats():
    answer = chat()
    choice = answer.choices[0]
    same((choice.message.role, choice.message.content, choice.finish_reason), ("assistant", "478", "stop"))
    same(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
    talk = [("system", "Be brief."), ("user", "What is 12 plus 7?"), ("assistant", "19"), ("user", "and plus 5?")]
    messages = [{"role": role, "content": content} for role, content in talk]
    same(chat(messages=messages).choices[0].message.content, "24")
    parts = [{"type": "text", "text": "What is 845 "}, {"type": "text", "text": "minus 367?"}]
    same(chat(messages=[{"role": "user", "content": parts}]).choices[0].message.content, "478")
    cut = chat(max_completion_tokens=1)
    same((cut.choices[0].finish_reason, cut.usage.completion_tokens), ("length", 1))


def streams():
    question = "Tell me about Wootz."
    whole = chat(question)
    text, reasons, usage, chunks = "", [], None, 0
    for chunk in chat(question, stream=True, stream_options={"include_usage": True}):
        assert usage is None, "the usage comes last"
        usage = chunk.usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
        chunks += 1
    same((text, reasons, usage), (whole.choices[0].message.content, ["stop"], whole.usage))
    assert chunks > 10, f"{chunks} chunks"
    assert all(chunk.usage is None for chunk in chat(stream=True)), "a usage that nobody asked for"
    with client.chat.completions.stream(**asking(question)) as events:
        grown = [event.content for event in events if event.type == "content.done"]
        same(grown, [text])
        same(events.get_final_completion().choices[0].message.content, text)


def collect_calls(stream):
    calls, reason = {}, None
    for chunk in stream:
        choice = chunk.choices[0]
        reason = choice.finish_reason or reason
        for piece in choice.delta.tool_calls or []:
            if piece.id:
                assert piece.index not in calls and piece.type == "function", piece
                calls[piece.index] = [piece.function.name, ""]
            calls[piece.index][1] += piece.function.arguments or ""
    return [tuple(calls[index]) for index in sorted(calls)], reason


def tools():
    for text, choice, name in [
        ("What is the weather in Oslo?", "required", None),
        ("What is the weather in Oslo?", {"type": "function", "function": {"name": "weather"}}, "weather"),
        ("What is 12 plus 7?", {"type": "function", "function": {"name": "add"}}, "add"),
    ]:
        options = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
        answer = chat(text, **options).choices[0]
        calls = [(call.function.name, call.function.arguments) for call in answer.message.tool_calls]
        same((len(calls), answer.message.content), (1, None))
        called, arguments = calls[0][0], json.loads(calls[0][1])
        assert called == (name or called), called
        if called == "weather":
            same(sorted(arguments), ["city", "unit"])
            assert len(arguments["city"]) <= 12 and arguments["unit"] in ("C", "F"), arguments
        else:
            same(sorted(arguments), ["a", "b"])
            assert all(type(value) is int and 0 <= value <= 99 for value in arguments.values()), arguments
        same(collect_calls(chat(text, stream=True, **options)), (calls, answer.finish_reason))
        with client.chat.completions.stream(**asking(text, **options)) as events:
            final = events.get_final_completion().choices[0].message.tool_calls[0].function
            same((final.name, final.parsed_arguments), (called, arguments))
        said = {"role": "assistant", "tool_calls": [call.model_dump() for call in answer.message.tool_calls]}
        result = {"role": "tool", "tool_call_id": answer.message.tool_calls[0].id, "content": "19"}
        again = chat(messages=[{"role": "user", "content": text}, said, result], max_tokens=8)
        assert again.choices[0].message.content is not None
    ids = [call.id for call in chat(tools=TOOLS[1:], tool_choice="required", max_tokens=120).choices[0].message.tool_calls]
    same(len(set(ids)), len(ids))
    same(chat(tools=TOOLS, tool_choice="none").choices[0].message.content, "478")


def json_schema():
    answer = chat(PERSON, response_format=FORMAT, max_tokens=100)
    value = json.loads(answer.choices[0].message.content)
    assert sorted(value) == ["age", "name"] and type(value["age"]) is int and 0 <= value["age"] <= 150, value
    streamed = chat(PERSON, response_format=FORMAT, max_tokens=100, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    same(text, answer.choices[0].message.content)
    parsed = client.chat.completions.parse(**asking(PERSON, response_format=Person, max_tokens=200)).choices[0].message.parsed
    assert type(parsed) is Person, parsed
    try:
        cut = client.chat.completions.parse(**asking(PERSON, response_format=Person, max_tokens=3))
        raise AssertionError(repr(cut))
    except openai.LengthFinishReasonError:
        pass
    assert type(json.loads(chat(PERSON, response_format={"type": "json_object"}).choices[0].message.content)) is dict


def logprobs():
    answer = chat(logprobs=True, top_logprobs=5).choices[0]
    tokens = answer.logprobs.content
    same(b"".join(bytes(token.bytes) for token in tokens).decode(), answer.message.content)
    same("".join(token.token for token in tokens), answer.message.content)
    for token in tokens:
        tops = [top.logprob for top in token.top_logprobs]
        same(len(tops), 5)
        same(tops, sorted(tops, reverse=True))
        # Greedy: the token is the likeliest.
        same((token.token, token.logprob), (token.top_logprobs[0].token, tops[0]))
        assert 0 < sum(map(math.exp, tops)) <= 1.0001, tops
    streamed = [token for chunk in chat(logprobs=True, top_logprobs=5, stream=True) for choice in chunk.choices
                if choice.logprobs for token in choice.logprobs.content]
    same([token.token for token in streamed], [token.token for token in tokens])
    assert all(abs(one.logprob - other.logprob) < 1e-3 for one, other in zip(streamed, tokens))
    assert chat(logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert chat().choices[0].logprobs is None


def several():
    answer = chat("Tell me a story.", n=3, temperature=1, seed=7, max_tokens=20)
    same([choice.index for choice in answer.choices], [0, 1, 2])
    texts = [choice.message.content for choice in answer.choices]
    streamed = ["", "", ""]
    for chunk in chat("Tell me a story.", n=3, temperature=1, seed=7, max_tokens=20, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    same(streamed, texts)
    same([choice.message.content for choice in chat(n=3).choices], ["478"] * 3)


def stops():
    question = "Spell the word garden"
    for stop, wanted in [("-d", "g-a-r"), (["e", "-r"], "g-a"), (["never"], "g-a-r-d-e-n")]:
        answer = chat(question, stop=stop).choices[0]
        same((answer.message.content, answer.finish_reason), (wanted, "stop"))
        streamed = chat(question, stop=stop, stream=True)
        same("".join(chunk.choices[0].delta.content or "" for chunk in streamed), wanted)


def seeds():
    def drawn(seed):
        # Not what the model was trained on: it is not sure.
        answer = chat("Qua quo qui?", temperature=2, top_p=1, seed=seed, max_tokens=30)
        return answer.choices[0].message.content

    same(drawn(1), drawn(1))
    assert len({drawn(seed) for seed in range(8)}) > 4, "seeds change nothing"


def errors():
    refused(openai.NotFoundError, 404, lambda: chat(model="gpt-none"), code="model_not_found", param="model")
    refused(openai.NotFoundError, 404, lambda: client.models.retrieve("gpt-none"), code="model_not_found")
    for field, value in [("temperature", -1), ("top_p", 2), ("n", 0), ("stop", ["a"] * 9), ("top_logprobs", 3), ("messages", [])]:
        refused(openai.BadRequestError, 400, lambda: chat(**{field: value}), param=field, type="invalid_request_error")
    refused(openai.BadRequestError, 400, lambda: chat(temperature=-1, stream=True), param="temperature")
    long = "Wootz " * 20_000
    for stream in [False, True]:
        message = refused(openai.BadRequestError, 400, lambda: chat(long, stream=stream), code="context_length_exceeded")
        assert "2047" in message.replace(",", ""), message
    stranger = client.with_options(api_key="wrong")
    refused(openai.AuthenticationError, 401, lambda: stranger.chat.completions.create(**asking()), code="invalid_api_key")
    refused(openai.AuthenticationError, 401, lambda: stranger.models.list(), code="invalid_api_key")


def cancels():
    before = metric("request_success_total", 'finished_reason="abort"')
    for leave in [lambda stream: stream.close(), lambda stream: stream.response.close()]:
        stream = chat("Tell me a story.", stream=True, **ENDLESS)
        for _ in range(3):
            next(stream)
        leave(stream)
    with chat("Tell me a story.", stream=True, **ENDLESS) as stream:
        next(stream)
    until("the end of three that were left", lambda: metric("request_success_total", 'finished_reason="abort"') == before + 3)
    until("an idle engine", lambda: metric("num_requests_running") == 0)


def completions():
    def complete(prompt="Wootz is", **options):
        asked = lenient if options.get("stream") else client
        return asked.completions.create(model=MODEL, prompt=prompt, **{"temperature": 0, "max_tokens": 12, **options})

    whole = complete().choices[0].text
    same("".join(chunk.choices[0].text for chunk in complete(stream=True)), whole)
    same(complete(echo=True).choices[0].text, "Wootz is" + whole)
    logprobs = complete(logprobs=2, max_tokens=5).choices[0].logprobs
    same([len(logprobs.tokens), len(logprobs.token_logprobs), len(logprobs.top_logprobs)], [5, 5, 5])
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        assert logprob <= 0 and abs(top[token] - logprob) < 1e-6 and len(top) == 2, (token, logprob, top)
    same([choice.index for choice in complete(n=3, temperature=1).choices], [0, 1, 2])
    best = complete(n=1, best_of=4, temperature=1.5, seed=3)
    same(len(best.choices), 1)
    assert best.usage.completion_tokens > 12, "four answers were generated"
    both = complete(["Wootz is", "What is"]).choices
    same([choice.index for choice in both], [0, 1])
    same(both[0].text, whole)
    same(len(complete([5, 6, 7]).choices), 1)
    usage = [chunk.usage for chunk in complete(stream=True, stream_options={"include_usage": True})]
    assert usage[-1].completion_tokens == 12 and not any(usage[:-1]), usage


def embeddings():
    texts = ["Wootz is a steel", "What is 12 plus 7?", "steel"]
    # The client asks for base64 by itself and decodes it.
    found = lenient.embeddings.create(model=MODEL, input=texts)
    same([one.index for one in found.data], [0, 1, 2])
    floats = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    packed = lenient.embeddings.with_raw_response.create(model=MODEL, input=texts, encoding_format="base64")
    packed = [base64.b64decode(one["embedding"]) for one in json.loads(packed.text)["data"]]
    for one, other, raw in zip(found.data, floats.data, packed, strict=True):
        vectors = [one.embedding, other.embedding, struct.unpack(f"<{len(raw) // 4}f", raw)]
        for vector in vectors:
            same(len(vector), 256)
            assert abs(sum(x * x for x in vector) - 1) < 1e-3, "not of length 1"
            assert max(abs(x - y) for x, y in zip(vector, vectors[0])) < 1e-5
    alone = lenient.embeddings.create(model=MODEL, input=texts[2]).data[0].embedding
    assert sum(x * y for x, y in zip(alone, found.data[2].embedding)) > 0.999
    refused(openai.BadRequestError, 400, lambda: lenient.embeddings.create(model=MODEL, input=[]), param="input")


def responses():
    whole = client.responses.create(model=MODEL, input=SUM, temperature=0)
    same((whole.output_text, whole.status), ("478", "completed"))
    events = list(client.responses.create(model=MODEL, input=SUM, temperature=0, stream=True))
    same([event.sequence_number for event in events], list(range(len(events))))
    same((events[0].type, events[-1].type), ("response.created", "response.completed"))
    same("".join(event.delta for event in events if event.type == "response.output_text.delta"), "478")
    same(events[-1].response.usage, whole.usage)
    with client.responses.stream(model=MODEL, input=SUM, temperature=0) as stream:
        for event in stream:
            pass
        same(stream.get_final_response().output_text, "478")
    parsed = client.responses.parse(model=MODEL, input=PERSON, text_format=Person, temperature=0, max_output_tokens=200)
    assert type(parsed.output_parsed) is Person, parsed
    flat = {"type": "function", **TOOLS[0]["function"]}
    called = client.responses.create(model=MODEL, input="What is the weather in Oslo?", tools=[flat], temperature=0,
                                     tool_choice="required", parallel_tool_calls=False)
    same([(item.type, item.name) for item in called.output], [("function_call", "weather")])
    same(sorted(json.loads(called.output[0].arguments)), ["city", "unit"])
    refused(openai.BadRequestError, 400, lambda: client.responses.create(model=MODEL, input=[]), param="input")
    refused(openai.NotFoundError, 404, lambda: client.responses.create(model="gpt-none", input="x"), code="model_not_found")


def many_at_once():
    async def one(client, i):
        text, chunks = "", 0
        stream = await client.chat.completions.create(**asking(f"What is {i} plus 7?", stream=True))
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            chunks += 1
        return text, chunks

    async def left(client):
        stream = await client.chat.completions.create(**asking("Tell me a story.", stream=True, **ENDLESS))
        async for _ in stream:
            break
        await stream.close()

    async def all_of_them():
        async with openai.AsyncOpenAI(**OPTIONS) as client:
            answers, *_ = await asyncio.gather(asyncio.gather(*(one(client, i) for i in range(16))), *(left(client) for _ in range(4)))
        return answers

    answers = asyncio.run(all_of_them())
    same([text for text, _ in answers], [str(i + 7) for i in range(16)])
    until("an idle engine", lambda: metric("num_requests_running") == 0)


THEMES = [models, chats, streams, tools, json_schema, logprobs, several, stops, seeds, errors, cancels, completions, embeddings,
          responses, many_at_once]
for theme in THEMES:
    print(theme.__name__, flush=True, end=" ")
    theme()
    print("ok", flush=True)
