// Drives `wootz serve` with OpenAI's official JavaScript client, unmodified: node openai_client.mjs URL KEY, in a folder with the
// package. Each function is a theme; what passed is printed, the first failure ends the script.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

// From the working directory: this file's folder has no packages.
const OpenAI = createRequire(`${process.cwd()}/`)("openai");

const [url, apiKey] = process.argv.slice(2);
const model = "tiny-chat";
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, timeout: 60e3 });

const SUM = "What is 845 minus 367?";
const PERSON = "Turn this into JSON: Anna is 31 and lives in Oslo.";
const schema = {
  type: "object",
  properties: { name: { type: "string", maxLength: 20 }, age: { type: "integer", minimum: 0, maximum: 150 } },
  required: ["name", "age"],
  additionalProperties: false,
};
const tool = (name, properties) => ({
  type: "function",
  function: {
    name,
    description: name,
    strict: true,
    parameters: { type: "object", properties, required: Object.keys(properties), additionalProperties: false },
  },
});
const TOOLS = [
  tool("weather", { city: { type: "string", maxLength: 12 }, unit: { type: "string", enum: ["C", "F"] } }),
  tool("add", { a: { type: "integer", minimum: 0, maximum: 99 }, b: { type: "integer", minimum: 0, maximum: 99 } }),
];
/** Goes on until the context is full, unless somebody ends it. */
const ENDLESS = { max_tokens: 1900, ignore_eos: true, stream: true };

const asking = (text, options) => ({ model, messages: [{ role: "user", content: text }], temperature: 0, ...options });
const chat = (text, options, more) => client.chat.completions.create(asking(text, options), more);
async function all(stream) {
  const items = [];
  for await (const item of await stream) items.push(item);
  return items;
}
const contents = (chunks, index = 0) =>
  chunks.flatMap((chunk) => chunk.choices).filter((choice) => choice.index === index).map(({ delta }) => delta.content ?? "").join("");

async function refused(kind, asked, fields = {}) {
  try {
    await asked;
  } catch (error) {
    assert.equal(error.constructor, kind, error.stack);
    assert.ok(error.error.message && error.requestID, JSON.stringify(error));
    for (const [name, wanted] of Object.entries(fields)) assert.equal(error[name], wanted, `${name} of ${error}`);
    return error.message;
  }
  assert.fail(`an answer instead of ${kind.name}`);
}
async function metric(name, label = "") {
  const lines = (await (await fetch(`${url}/metrics`)).text()).split("\n");
  const found = lines.filter((line) => line.startsWith(`wootz_${name}`) && line.includes(label));
  return found.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
}
async function until(what, done) {
  for (const end = Date.now() + 60e3; !(await done()); await sleep(20)) assert.ok(Date.now() < end, `${what} did not come`);
}

async function models() {
  assert.deepEqual((await all(client.models.list())).map(({ id }) => id), [model]);
  assert.equal((await client.models.retrieve(model)).object, "model");
}

async function chats() {
  const { choices: [choice], usage } = await chat(SUM);
  assert.equal(choice.message.content, "478");
  assert.equal(choice.finish_reason, "stop");
  assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
  const { data, response, request_id: id } = await chat(SUM).withResponse();
  assert.equal(data.choices[0].message.content, "478");
  assert.equal(response.headers.get("x-request-id"), id);
}

async function streams() {
  const question = "Tell me about Wootz.";
  const whole = await chat(question);
  const chunks = await all(chat(question, { stream: true, stream_options: { include_usage: true } }));
  assert.ok(chunks.length > 10, `${chunks.length} chunks`);
  assert.equal(contents(chunks), whole.choices[0].message.content);
  assert.deepEqual(chunks.at(-1).usage, whole.usage);
  assert.deepEqual(chunks.at(-1).choices, []);
  const runner = client.chat.completions.stream(asking(question));
  let grown = "";
  runner.on("content", (delta) => (grown += delta));
  assert.equal(await runner.finalContent(), whole.choices[0].message.content);
  assert.equal(grown, whole.choices[0].message.content);
}

async function tools() {
  for (const [text, choice] of [
    ["What is the weather in Oslo?", "required"],
    ["What is 12 plus 7?", { type: "function", function: { name: "add" } }],
  ]) {
    const options = { tools: TOOLS, tool_choice: choice, parallel_tool_calls: false };
    const { choices: [{ message, finish_reason: reason }] } = await chat(text, options);
    assert.equal(message.tool_calls.length, 1);
    const { name, arguments: written } = message.tool_calls[0].function;
    const wanted = TOOLS.find((one) => one.function.name === name).function.parameters;
    const parsed = JSON.parse(written);
    assert.deepEqual(Object.keys(parsed).sort(), [...wanted.required].sort());
    if (name === "add") assert.ok(Object.values(parsed).every((n) => Number.isInteger(n) && n >= 0 && n <= 99), written);
    else assert.ok(parsed.city.length <= 12 && ["C", "F"].includes(parsed.unit), written);
    if (choice !== "required") assert.equal(name, choice.function.name);
    // The client puts the pieces of the stream together.
    const streamed = (await client.chat.completions.stream(asking(text, options)).finalChatCompletion()).choices[0];
    const call = streamed.message.tool_calls[0].function;
    assert.deepEqual([call.name, call.arguments, streamed.finish_reason], [name, written, reason]);
    assert.deepEqual(call.parsed_arguments, parsed);
  }
}

async function jsonSchema() {
  const options = { response_format: { type: "json_schema", json_schema: { name: "person", schema, strict: true } }, max_tokens: 100 };
  const whole = (await chat(PERSON, options)).choices[0].message.content;
  const { name, age, ...more } = JSON.parse(whole);
  assert.deepEqual([typeof name, Number.isInteger(age), more], ["string", true, {}]);
  assert.equal(contents(await all(chat(PERSON, { ...options, stream: true }))), whole);
  // The client's own helper, with a format that parses.
  const format = Object.defineProperties({ ...options.response_format }, {
    $brand: { value: "auto-parseable-response-format" },
    $parseRaw: { value: JSON.parse },
  });
  const { parsed } = (await client.chat.completions.parse(asking(PERSON, { ...options, response_format: format }))).choices[0].message;
  assert.deepEqual(parsed, JSON.parse(whole));
}

async function logprobs() {
  const options = { logprobs: true, top_logprobs: 3 };
  const { logprobs: { content: tokens }, message } = (await chat(SUM, options)).choices[0];
  assert.equal(Buffer.from(tokens.flatMap(({ bytes }) => bytes)).toString(), message.content);
  for (const { token, logprob, top_logprobs: tops } of tokens) {
    assert.equal(tops.length, 3);
    assert.deepEqual([tops[0].token, tops[0].logprob], [token, logprob]);
    const sum = tops.reduce((sum, top) => sum + Math.exp(top.logprob), 0);
    assert.ok(sum > 0 && sum <= 1.0001, `${sum}`);
  }
  const chunks = await all(chat(SUM, { ...options, stream: true }));
  const streamed = chunks.flatMap(({ choices: [choice] }) => choice.logprobs?.content ?? []);
  assert.deepEqual(streamed.map(({ token }) => token), tokens.map(({ token }) => token));
}

async function several() {
  const options = { n: 3, temperature: 1, seed: 7, max_tokens: 20 };
  const { choices } = await chat("Tell me a story.", options);
  assert.deepEqual(choices.map(({ index }) => index), [0, 1, 2]);
  const chunks = await all(chat("Tell me a story.", { ...options, stream: true }));
  for (const { index, message } of choices) assert.equal(contents(chunks, index), message.content);
}

async function stops() {
  for (const [stop, wanted] of [["-d", "g-a-r"], [["e", "-r"], "g-a"]]) {
    const { message, finish_reason: reason } = (await chat("Spell the word garden", { stop })).choices[0];
    assert.deepEqual([message.content, reason], [wanted, "stop"]);
    assert.equal(contents(await all(chat("Spell the word garden", { stop, stream: true }))), wanted);
  }
}

async function errors() {
  await refused(OpenAI.NotFoundError, chat(SUM, { model: "gpt-none" }), { status: 404, code: "model_not_found", param: "model" });
  for (const [param, value] of [["temperature", -1], ["top_p", 2], ["n", 0], ["messages", []]]) {
    const fields = { status: 400, param, type: "invalid_request_error" };
    await refused(OpenAI.BadRequestError, chat(SUM, { [param]: value }), fields);
    await refused(OpenAI.BadRequestError, chat(SUM, { [param]: value, stream: true }), fields);
  }
  const message = await refused(OpenAI.BadRequestError, chat("Wootz ".repeat(20_000)), { code: "context_length_exceeded" });
  assert.match(message.replaceAll(",", ""), /2047/);
  const stranger = client.withOptions({ apiKey: "wrong" });
  await refused(OpenAI.AuthenticationError, stranger.chat.completions.create(asking(SUM)), { status: 401, code: "invalid_api_key" });
}

async function cancels() {
  const aborted = () => metric("request_success_total", 'finished_reason="abort"');
  const before = await aborted();
  // Three ways to leave a stream, and one to leave an answer that has not come.
  const stream = await chat("Tell me a story.", ENDLESS);
  for await (const _ of stream) break;
  const other = await chat("Tell me a story.", ENDLESS);
  const read = assert.doesNotReject(async () => {
    for await (const _ of other) other.controller.abort();
  });
  const controller = new AbortController();
  const third = await chat("Tell me a story.", ENDLESS, { signal: controller.signal });
  await third[Symbol.asyncIterator]().next();
  controller.abort();
  await read;
  await until("an idle engine", async () => (await metric("num_requests_running")) === 0);
  const fourth = new AbortController();
  const whole = assert.rejects(chat("Tell me a story.", { ...ENDLESS, stream: false }, { signal: fourth.signal }), OpenAI.APIUserAbortError);
  await until("an answer that grows", async () => (await metric("num_requests_running")) > 0);
  fourth.abort();
  await whole;
  await until("the end of four that were left", async () => (await aborted()) === before + 4);
  await until("an idle engine", async () => (await metric("num_requests_running")) === 0);
}

async function completions() {
  const options = { model, prompt: "Wootz is", temperature: 0, max_tokens: 12 };
  const { choices: [{ text }] } = await client.completions.create(options);
  const chunks = await all(client.completions.create({ ...options, stream: true }));
  assert.equal(chunks.map(({ choices }) => choices[0].text).join(""), text);
  assert.equal((await client.completions.create({ ...options, echo: true })).choices[0].text, `Wootz is${text}`);
  const { logprobs: found } = (await client.completions.create({ ...options, logprobs: 2 })).choices[0];
  assert.equal(found.tokens.join(""), text);
  assert.equal((await client.completions.create({ ...options, n: 1, best_of: 3, temperature: 1 })).choices.length, 1);
}

async function embeddings() {
  const input = ["Wootz is a steel", "What is 12 plus 7?"];
  // The client asks for base64 by itself and decodes it.
  const decoded = await client.embeddings.create({ model, input });
  const floats = await client.embeddings.create({ model, input, encoding_format: "float" });
  assert.equal(decoded.data.length, 2);
  decoded.data.forEach(({ embedding, index }, i) => {
    assert.deepEqual([index, embedding.length], [i, 256]);
    assert.ok(embedding.every((x, at) => Math.abs(x - floats.data[i].embedding[at]) < 1e-5));
    assert.ok(Math.abs(embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-3);
  });
}

async function responses() {
  const asked = { model, input: SUM, temperature: 0 };
  const whole = await client.responses.create(asked);
  assert.deepEqual([whole.output_text, whole.status], ["478", "completed"]);
  const events = await all(client.responses.create({ ...asked, stream: true }));
  const deltas = events.filter(({ type }) => type === "response.output_text.delta");
  assert.equal(deltas.map(({ delta }) => delta).join(""), "478");
  assert.deepEqual(events.at(-1).response.usage, whole.usage);
  assert.equal((await client.responses.stream(asked).finalResponse()).output_text, "478");
  const text = { format: { type: "json_schema", name: "person", schema, strict: true } };
  const person = await client.responses.parse({ ...asked, input: PERSON, text, max_output_tokens: 100 });
  assert.deepEqual(Object.keys(person.output_parsed ?? JSON.parse(person.output_text)).sort(), ["age", "name"]);
}

async function manyAtOnce() {
  const one = async (_, i) => contents(await all(chat(`What is ${i} plus 7?`, { stream: true })));
  const answers = await Promise.all(Array.from({ length: 16 }, one));
  assert.deepEqual(answers, answers.map((_, i) => String(i + 7)));
}

const THEMES = [models, chats, streams, tools, jsonSchema, logprobs, several, stops, errors, cancels, completions, embeddings,
  responses, manyAtOnce];
for (const theme of THEMES) {
  process.stdout.write(`${theme.name} `);
  await theme();
  console.log("ok");
}
