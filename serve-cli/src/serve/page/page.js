"use strict";
const $ = (id) => document.getElementById(id);
const store = { key: sessionStorage.getItem("key") || "" };
const headers = () => (store.key ? { authorization: `Bearer ${store.key}` } : {});

/* ---- colours ---- */
const THEMES = { system: "◐", light: "○", dark: "●" };
const wide = matchMedia("(prefers-color-scheme: dark)");
let theme = localStorage.getItem("theme") || "system";
function paintTheme() {
  const dark = theme === "dark" || (theme === "system" && wide.matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = THEMES[theme];
  $("theme").setAttribute("aria-label", `Colours: ${theme === "system" ? "as the system" : theme}`);
  draw();
}
$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  theme = names[(names.indexOf(theme) + 1) % names.length];
  localStorage.setItem("theme", theme);
  paintTheme();
});
wide.addEventListener("change", paintTheme);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/* ---- views of a phone ---- */
function show(view) {
  document.body.dataset.view = view;
  $("show-chat").setAttribute("aria-pressed", String(view === "chat"));
  $("show-engine").setAttribute("aria-pressed", String(view === "engine"));
  draw();
}
$("show-chat").addEventListener("click", () => show("chat"));
$("show-engine").addEventListener("click", () => show("engine"));

/* ---- requests ---- */
class Refused extends Error {}
async function ask(path, options = {}) {
  const { key } = store;
  const response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try { message = (await response.json()).error.message || message; } catch { /* no JSON: the status says it */ }
  if (response.status === 401) {
    // What the server says is for programs: how to send a key.
    message = "needs a key";
    // An answer that was late says nothing about the key of now.
    if (key === store.key) askForKey();
  }
  throw new Refused(message);
}
function askForKey() {
  if (!$("key").hidden) return;
  $("key").hidden = false;
  if (store.key) $("key-note").textContent = "that one was refused";
  $("key-value").focus();
}
$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  store.key = $("key-value").value.trim();
  sessionStorage.setItem("key", store.key);
  $("key-value").value = "";
  $("key").hidden = true;
  loadModels();
  $("prompt").focus();
});
async function loadModels() {
  try {
    const { data } = await (await ask("v1/models")).json();
    const chosen = $("model").value;
    $("model").replaceChildren(...data.map(({ id }) => new Option(id, id, false, id === chosen)));
  } catch (error) {
    link("bad", error instanceof Refused ? error.message : "no connection");
  }
}

/* ---- chat ---- */
let messages = [];
let running = null;
const scroll = $("scroll");
const pinned = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}
/** Text with fenced and inline code as elements; never as HTML. */
function render(body, text) {
  body.replaceChildren();
  text.split(/^```/m).forEach((part, i) => {
    if (i % 2) {
      const pre = make("pre");
      pre.append(make("code", "", part.replace(/^[^\n]*\n?/, "").replace(/\n$/, "")));
      body.append(pre);
    } else {
      // The block has its own distance from what follows.
      if (i) part = part.replace(/^\n/, "");
      part.split(/`([^`\n]+)`/).forEach((piece, j) => body.append(j % 2 ? make("code", "", piece) : piece));
    }
  });
}
function bubble(role) {
  $("empty").hidden = true;
  const item = make("li", role);
  item.append(make("span", "hidden", role === "user" ? "You: " : "Answer: "));
  const body = item.appendChild(make("div", "body"));
  $("log").append(item);
  return { item, body };
}
function think(view, text) {
  if (!view.thought) {
    view.thought = make("details", "thought");
    view.thought.append(make("summary", "", "Reasoning"), make("div"));
    view.item.insertBefore(view.thought, view.body);
  }
  view.thought.lastChild.textContent = text;
}
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Refused(event.error.message);
      yield event;
    }
  }
}
function body() {
  const system = $("system").value.trim();
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  return JSON.stringify({
    model: $("model").value || undefined,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    temperature: number("temperature"),
    max_completion_tokens: number("max-tokens"),
    stream: true,
    stream_options: { include_usage: true },
  });
}
/** Where the focus goes after an answer: on a phone not to the message box, which brings up the keyboard over the answer. */
const rest = () => (matchMedia("(pointer: coarse)").matches ? scroll : $("prompt")).focus();
function busy(on) {
  // A button that hides takes the focus with it, and whoever uses the keyboard would start over.
  const focused = document.activeElement;
  $("send").hidden = on;
  $("stop").hidden = !on;
  if (on && focused === $("send")) $("stop").focus();
  if (!on && focused === $("stop")) rest();
  $("hint").textContent = on ? "Esc stops" : "Enter sends";
}
async function send() {
  const text = $("prompt").value.trim();
  if (!text || running) return;
  $("prompt").value = "";
  grow();
  messages.push({ role: "user", content: text });
  bubble("user").body.textContent = text;
  const view = bubble("assistant");
  view.item.classList.add("busy");
  scroll.scrollTop = scroll.scrollHeight;
  busy(true);
  $("say").textContent = "Answering";
  running = new AbortController();
  const answer = { text: "", reasoning: "", first: 0, last: 0, chunks: 0, usage: null, reason: null };
  const start = performance.now();
  let problem = null;
  let dirty = false;
  const paint = () => {
    dirty = false;
    const stay = pinned();
    render(view.body, answer.text);
    if (answer.reasoning) think(view, answer.reasoning);
    if (stay) scroll.scrollTop = scroll.scrollHeight;
  };
  try {
    const options = { method: "POST", body: body(), headers: { "content-type": "application/json" }, signal: running.signal };
    for await (const event of events(await ask("v1/chat/completions", options))) {
      if (event.usage) answer.usage = event.usage;
      const choice = event.choices?.[0];
      if (!choice) continue;
      const { content, reasoning_content: reasoning } = choice.delta ?? {};
      if (content || reasoning) {
        answer.last = performance.now();
        answer.first ||= answer.last;
        answer.chunks += 1;
        answer.text += content ?? "";
        answer.reasoning += reasoning ?? "";
        if (!dirty) { dirty = true; requestAnimationFrame(paint); }
      }
      if (choice.finish_reason) answer.reason = choice.finish_reason;
    }
    if (!answer.reason) problem = "The answer broke off: the connection was lost.";
  } catch (error) {
    if (error.name === "AbortError") answer.reason = "stopped";
    else problem = error instanceof Refused ? error.message : "No connection to the server.";
  }
  paint();
  running = null;
  view.item.classList.remove("busy");
  if (problem) {
    const line = make("p", "error", problem);
    line.setAttribute("role", "alert");
    view.item.append(line);
  }
  if (answer.text) messages.push({ role: "assistant", content: answer.text });
  else if (problem) messages.pop();
  if (answer.first) view.item.append(make("div", "foot", footer(answer, start)));
  $("say").textContent = problem ? "" : answer.reason === "stopped" ? "Stopped" : `Answer: ${answer.text}`;
  busy(false);
  if (pinned()) scroll.scrollTop = scroll.scrollHeight;
}
function footer({ first, last, chunks, usage, reason }, start) {
  const tokens = usage?.completion_tokens ?? chunks;
  const parts = [`${tokens} ${tokens === 1 ? "token" : "tokens"}`, `first after ${seconds((first - start) / 1e3)}`];
  // Few chunks come in one read, at no speed worth telling.
  if (chunks > 4 && last - first >= 10) parts.push(`${short(((tokens - 1) * 1e3) / (last - first))} tokens/s`);
  if (reason === "stopped") parts.push("stopped");
  if (reason === "length") parts.push("cut at the most tokens");
  return parts.join(" · ");
}
function grow() {
  const area = $("prompt");
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
  $("send").disabled = !area.value.trim();
}
function stop() {
  running?.abort();
  rest();
}
$("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("prompt").addEventListener("input", grow);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
$("stop").addEventListener("click", stop);
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && running) stop(); });
$("fresh").addEventListener("click", () => {
  running?.abort();
  messages = [];
  $("log").replaceChildren();
  $("empty").hidden = false;
  $("say").textContent = "New chat";
  $("prompt").focus();
});

/* ---- the engine, live ---- */
const PERIOD = 250;
let live = null;
let rates = [];
let before = null;
function link(state, text) {
  $("dot").className = `dot ${state}`;
  $("link").textContent = text;
}
const short = (x) => (x >= 1e4 ? `${(x / 1e3).toFixed(1)}k` : x >= 100 ? x.toFixed(0) : x.toFixed(x >= 10 || x === 0 ? 0 : 1));
const seconds = (s) => (s < 1e-3 ? `${(s * 1e6).toFixed(0)} µs` : s < 1 ? `${Number((s * 1e3).toPrecision(2))} ms` : `${Number(s.toPrecision(2))} s`);
async function poll() {
  let wait = PERIOD;
  if (document.hidden) {
    wait = 1000;
  } else if (store.key || $("key").hidden) {
    try {
      const name = $("model").value;
      take(await (await ask(`live${name ? `?model=${encodeURIComponent(name)}` : ""}`)).json());
      link("good", "live");
    } catch (error) {
      link("bad", error instanceof Refused ? error.message : "no connection");
      wait = 2000;
    }
  }
  setTimeout(poll, wait);
}
function take(next) {
  const now = performance.now();
  if (before && before.model === next.model && next.tokens.generated >= before.generated) {
    rates.push({ at: now, rate: ((next.tokens.generated - before.generated) * 1e3) / (now - before.at) });
  } else {
    rates = [];
  }
  rates = rates.filter(({ at }) => now - at < 60e3);
  before = { at: now, model: next.model, generated: next.tokens.generated };
  live = next;
  draw();
}
function draw() {
  if (!live || !$("engine").clientWidth) return;
  const { pages } = live;
  const recent = rates.slice(-4);
  const rate = recent.reduce((sum, { rate }) => sum + rate, 0) / (recent.length || 1);
  $("running").textContent = live.running;
  $("waiting").textContent = live.waiting;
  $("rate").textContent = short(rate);
  $("usage").textContent = `${pages.total ? Math.round((100 * pages.used) / pages.total) : 0} %`;
  drawSpark(rate);
  drawMap();
  drawHistogram("ttft", live.latency.first_token, live.latency.bounds, "Time to first token");
  drawHistogram("itl", live.latency.inter_token, live.latency.bounds, "Time between tokens");
  drawSequences();
}
function canvas(id) {
  const element = $(id);
  const ratio = devicePixelRatio || 1;
  const [width, height] = [element.clientWidth, element.clientHeight];
  if (element.width !== Math.round(width * ratio) || element.height !== Math.round(height * ratio)) {
    element.width = Math.round(width * ratio);
    element.height = Math.round(height * ratio);
  }
  const context = element.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}
function drawSpark(rate) {
  const { context, width, height } = canvas("spark");
  const most = Math.max(1, ...rates.map(({ rate }) => rate));
  const now = performance.now();
  const x = (at) => width - ((now - at) / 60e3) * width;
  const y = (rate) => height - 2 - (rate / most) * (height - 6);
  context.strokeStyle = colour("--line");
  context.beginPath();
  context.moveTo(0, height - 1.5);
  context.lineTo(width, height - 1.5);
  context.stroke();
  if (rates.length > 1) {
    context.beginPath();
    rates.forEach(({ at, rate }) => context.lineTo(x(at), y(rate)));
    context.strokeStyle = colour("--accent");
    context.lineWidth = 1.6;
    context.lineJoin = "round";
    context.stroke();
    context.lineTo(x(rates.at(-1).at), height - 2);
    context.lineTo(x(rates[0].at), height - 2);
    context.globalAlpha = 0.12;
    context.fillStyle = colour("--accent");
    context.fill();
    context.globalAlpha = 1;
  }
  $("spark").setAttribute("aria-label", `Tokens per second: ${short(rate)} now, at most ${short(most)} in the last minute`);
}
/** Hues far apart for numbers that follow each other. */
const hue = (group) => (28 + group * 137.508) % 360;
function drawMap() {
  const { total, used, cached, tokens_per_page: size, per_cell: perCell, map } = live.pages;
  const cells = map.reduce((sum, [count]) => sum + count, 0);
  const width = $("map").clientWidth;
  // As large as lets all cells be seen in 260 points of height; a cell has a gap of 1 where it is 4 wide or more.
  let side = 14;
  while (side > 2 && Math.ceil(cells / Math.floor(width / side)) * side > 260) side -= 1;
  const columns = Math.max(1, Math.floor(width / side));
  const gap = side >= 4 ? 1 : 0;
  $("map").style.height = `${Math.max(1, Math.ceil(cells / columns)) * side}px`;
  const { context } = canvas("map");
  const shared = new Set(map.filter(([, kind, refs]) => kind === 2 && refs > 1).map(([, , , group]) => group));
  const [light, chroma, tint] = ["--light", "--chroma", "--tint"].map(colour);
  const [free, idle, own] = ["--free", "--cached", "--steel"].map(colour);
  let at = 0;
  let common = 0;
  for (const [count, kind, refs, group] of map) {
    const many = kind === 2 && refs > 1;
    if (many) common += count;
    const tone = many ? light : tint;
    context.fillStyle = kind === 0 ? free : kind > 0 && shared.has(group) ? `hsl(${hue(group)} ${chroma} ${tone})` : kind === 1 ? idle : own;
    for (const end = at + count; at < end; at += 1) {
      context.fillRect((at % columns) * side, Math.floor(at / columns) * side, side - gap, side - gap);
    }
  }
  const pages = (count) => `${count} ${count === 1 ? "page" : "pages"}`;
  const text = `${pages(used)} of ${total} in use, ${common * perCell} of them shared by several sequences; ${cached} cached for later prompts.`;
  $("pages-note").textContent = `${size} tokens each${perCell > 1 ? `, ${perCell} a cell` : ""}`;
  const { queries, hits } = live.prefix;
  $("pages-text").textContent = text + (queries ? ` ${Math.round((100 * hits) / queries)} % of prompt tokens were found in the cache.` : "");
  $("map").setAttribute("aria-label", `Map of KV pages: ${text}`);
}
function quantile(counts, bounds, q) {
  const rank = q * counts.reduce((sum, count) => sum + count, 0);
  let sum = 0;
  const at = counts.findIndex((count) => (sum += count) >= rank && sum > 0);
  return at < bounds.length ? bounds[at] : bounds.at(-1);
}
function drawHistogram(id, counts, bounds, name) {
  const { context, width, height } = canvas(id);
  const total = counts.reduce((sum, count) => sum + count, 0);
  const floor = height - 16;
  context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  context.textBaseline = "bottom";
  if (!total) {
    context.fillStyle = colour("--soft");
    context.fillText("nothing yet", 0, height - 2);
    $(`${id}-text`).textContent = "";
    $(id).setAttribute("aria-label", `${name}: nothing yet`);
    return;
  }
  // The buckets that are used and two more on each side, at least 14.
  let from = Math.max(0, counts.findIndex((count) => count) - 2);
  let to = Math.min(counts.length, counts.findLastIndex((count) => count) + 3);
  while (to - from < 14) { if (from) from -= 1; if (to < counts.length) to += 1; }
  const step = width / (to - from);
  const most = Math.max(...counts);
  for (let i = from; i < to; i += 1) {
    // A bucket with anything in it is seen.
    const tall = counts[i] ? Math.max(2, (counts[i] / most) * (floor - 2)) : 0;
    context.fillStyle = colour("--accent");
    context.globalAlpha = 0.85;
    context.fillRect((i - from) * step + 0.5, floor - tall, step - 1, tall);
    context.globalAlpha = 1;
  }
  context.fillStyle = colour("--line");
  context.fillRect(0, floor, width, 1);
  context.fillStyle = colour("--soft");
  const marks = Math.max(1, Math.ceil(58 / step));
  for (let i = from; i < Math.min(to, bounds.length); i += 1) {
    if (i % marks || (i - from) * step + 50 > width) continue;
    // The bucket's upper bound is the bar's right edge.
    context.fillText(seconds(bounds[i]), (i - from) * step, height - 2);
  }
  const text = `p50 ≤ ${seconds(quantile(counts, bounds, 0.5))} · p99 ≤ ${seconds(quantile(counts, bounds, 0.99))}`;
  $(`${id}-text`).textContent = text;
  $(id).setAttribute("aria-label", `${name}: ${text}, ${total} counted since the start`);
}
function drawSequences() {
  const views = live.sequences.slice(0, 24);
  const list = $("sequences");
  const all = live.running + live.waiting;
  $("sequences-note").textContent = all > views.length ? `${views.length} of ${all}` : all ? "" : "none at present";
  while (list.children.length > views.length) list.lastChild.remove();
  while (list.children.length < views.length) {
    const item = make("li");
    const bar = make("div", "bar");
    bar.append(make("i"));
    item.append(make("span"), bar, make("small"));
    list.append(item);
  }
  views.forEach((view, i) => {
    const [name, bar, state] = list.children[i].children;
    const prefill = view.computed < view.prompt;
    name.textContent = view.index ? `#${view.request}.${view.index}` : `#${view.request}`;
    bar.firstChild.style.width = `${(100 * (prefill ? view.computed / view.prompt : (view.tokens - view.prompt) / (view.total - view.prompt))).toFixed(1)}%`;
    state.textContent = !view.running ? "waiting" : prefill ? `prompt ${view.computed}` : `${view.tokens - view.prompt} tokens`;
  });
}
addEventListener("resize", draw);

paintTheme();
grow();
busy(false);
loadModels().then(poll);
