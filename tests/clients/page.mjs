// Uses the page of `wootz serve` in headless Chromium as people do: node page.mjs URL KEYED_URL KEY CHROMIUM, in a folder with
// playwright-core. The server at URL has tiny-chat and `babble`, whose answers do not end by themselves; the one at KEYED_URL asks for KEY.
// With WOOTZ_SCREENSHOTS=DIR it leaves pictures there; a fifth argument picks themes.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";

// From the working directory: this file's folder has no packages.
const { chromium } = createRequire(`${process.cwd()}/`)("playwright-core");

const [url, keyedUrl, key, executablePath, only = ""] = process.argv.slice(2);
const WIDE = { width: 1280, height: 800 };
const PHONE = { width: 360, height: 740 };
const PATIENCE = 60e3;

// Without a sandbox: in containers Chromium runs as root. Nothing of it asks the network for anything of its own.
const args = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath, args, headless: true });

/** The page that is open, to be looked at where a theme fails. */
let current = null;

/** A page, and what went wrong on it: errors on the console, exceptions, requests without a good answer. */
async function open(viewport, options = {}) {
  const context = await browser.newContext({ viewport, colorScheme: "light", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  const problems = [];
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && problems.push(message.text()));
  page.on("pageerror", (error) => problems.push(String(error)));
  // Stopping an answer aborts its request.
  page.on("requestfailed", (request) => request.failure().errorText === "net::ERR_ABORTED" || problems.push(`${request.url()} failed`));
  page.on("response", (answer) => answer.status() < 400 || problems.push(`${answer.url()}: ${answer.status()}`));
  page.on("request", (request) => request.url().startsWith(new URL(url).origin) || request.url().startsWith(keyedUrl)
    || request.url().startsWith("data:") || problems.push(`asks for ${request.url()}`));
  await page.goto(options.at ?? url);
  page.problems = problems;
  current = page;
  return page;
}
async function close(page, expected = []) {
  const left = page.problems.filter((problem) => !expected.some((part) => problem.includes(part)));
  assert.deepEqual(left, [], "the page complains");
  await page.context().close();
}
async function picture(page, name) {
  const folder = process.env.WOOTZ_SCREENSHOTS;
  if (folder) await page.screenshot({ path: join(folder, `${name}-${page.viewportSize().width}.png`) });
}
async function until(what, done) {
  const end = Date.now() + PATIENCE;
  for (;;) {
    const found = await done();
    if (found) return found;
    assert.ok(Date.now() < end, `${what} did not come`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
const text = (page, selector) => page.locator(selector).textContent();
const number = async (page, id) => Number.parseFloat(await text(page, id)) * ((await text(page, id)).endsWith("k") ? 1e3 : 1);
const answers = (page) => page.locator("#log .assistant .body");
const pick = async (page, model) => {
  await page.locator(`#model option[value="${model}"]`).waitFor({ state: "attached" });
  await page.selectOption("#model", model);
};
const idle = (page) => page.locator("#send").waitFor({ state: "visible" });
async function send(page, message) {
  await page.fill("#prompt", message);
  await page.press("#prompt", "Enter");
}
async function ask(page, message) {
  await send(page, message);
  await page.locator("#log li:last-child .foot").waitFor();
  await idle(page);
  return answers(page).last().textContent();
}
const running = async (model) => (await (await fetch(`${url}/live?model=${model}`)).json()).running;
const show = (page, view) => (page.viewportSize().width < 700 ? page.click(`#show-${view}`) : undefined);

/** Turns of a conversation, and a new one. */
async function chat(viewport) {
  const page = await open(viewport);
  const said = await page.evaluateHandle(() => {
    const said = [];
    new MutationObserver(() => said.push(document.getElementById("say").textContent))
      .observe(document.getElementById("say"), { childList: true });
    return said;
  });
  const asked = [];
  page.on("request", (request) => request.method() === "POST" && asked.push(JSON.parse(request.postData())));
  await pick(page, "tiny-chat");
  await picture(page, "empty");
  assert.equal(await ask(page, "What is 12 plus 7?"), "19");
  assert.equal(await ask(page, "and plus 5?"), "24");
  assert.deepEqual(asked[1].messages.map(({ role, content }) => `${role}: ${content}`),
    ["user: What is 12 plus 7?", "assistant: 19", "user: and plus 5?"]);
  await ask(page, "Tell me about Wootz.");
  await ask(page, "Turn this into JSON: Anna is 31 and lives in Oslo.");
  assert.match(await text(page, "#log li:nth-child(2) .foot"), /^2 tokens · first after [\d.]+ m?s/);
  // Screen readers hear each change of the live region.
  assert.deepEqual((await said.jsonValue()).slice(0, 4), ["Answering", "Answer: 19", "Answering", "Answer: 24"]);
  assert.equal(await page.locator("#log li").count(), 8);
  await picture(page, "chat");
  await page.click("#fresh");
  assert.equal(await page.locator("#log li").count(), 0);
  assert.ok(await page.locator("#empty").isVisible());
  assert.equal(await ask(page, "What is 12 plus 7?"), "19");
  assert.equal(asked.at(-1).messages.length, 1, "a new chat knows nothing of the last");
  await page.click("#settings summary");
  await page.fill("#system", "Be brief.");
  await page.fill("#temperature", "0.5");
  await page.fill("#max-tokens", "1");
  await picture(page, "settings");
  await ask(page, "Tell me about Wootz.");
  const { messages: [system], temperature, max_completion_tokens: most } = asked.at(-1);
  assert.deepEqual([system, temperature, most], [{ role: "system", content: "Be brief." }, 0.5, 1]);
  assert.match(await page.locator(".foot").last().textContent(), /^1 token .*cut at the most tokens$/);
  await close(page);
}

/** An answer grows; the button and Esc stop it, and the server with it. */
async function streaming(viewport) {
  const page = await open(viewport);
  await pick(page, "babble");
  for (const stop of [() => page.click("#stop"), () => page.keyboard.press("Escape")]) {
    await send(page, "Tell me a story.");
    const lengths = new Set();
    await until("an answer that grows", async () => lengths.add((await answers(page).last().textContent()).length).size >= 8);
    assert.ok((await running("babble")) >= 1, "nothing runs");
    assert.ok(await page.locator("#send").isHidden());
    await stop();
    await idle(page);
    assert.match(await page.locator(".foot").last().textContent(), /stopped$/);
    assert.equal(await text(page, "#say"), "Stopped");
    assert.equal(await page.evaluate(() => document.activeElement.id), "prompt");
    await until("an idle engine", async () => (await running("babble")) === 0);
    const length = (await answers(page).last().textContent()).length;
    assert.ok(length >= Math.max(...lengths), "stopping took text away");
    await page.waitForTimeout(200);
    assert.equal((await answers(page).last().textContent()).length, length, "it goes on growing");
  }
  // A new chat stops what runs, too.
  await send(page, "Tell me a story.");
  await until("an answer", async () => (await answers(page).last().textContent()).length > 20);
  await page.click("#fresh");
  await until("an idle engine", async () => (await running("babble")) === 0);
  await idle(page);
  assert.equal(await page.locator("#log li").count(), 0, "the stopped answer is back");
  await close(page);
}

/** Whether a canvas has pixels that are far from grey; everything but shared prefixes is near it. */
function colourful(canvas) {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < data.length; at += 4) {
    const [r, g, b, a] = data.subarray(at, at + 4);
    if (a && Math.max(r, g, b) - Math.min(r, g, b) > 90) return true;
  }
  return false;
}

/** The engine's view moves while something runs. */
async function live(viewport) {
  const page = await open(viewport);
  await pick(page, "babble");
  const pixels = (id) => page.locator(id).evaluate((canvas) => canvas.toDataURL());
  await show(page, "engine");
  await until("an engine at rest", async () => (await text(page, "#running")) === "0" && (await text(page, "#link")) === "live");
  const [map, spark] = [await pixels("#map"), await pixels("#spark")];
  await show(page, "chat");
  await send(page, "Tell me a story.");
  await show(page, "engine");
  await until("one that runs", async () => (await number(page, "#running")) >= 1);
  await until("tokens per second", async () => (await number(page, "#rate")) > 0);
  await until("pages in use", async () => (await pixels("#map")) !== map);
  await until("a curve", async () => (await pixels("#spark")) !== spark);
  await until("a sequence", async () => (await page.locator("#sequences li").count()) === 1);
  const grown = await text(page, "#sequences small");
  await until("another count of tokens", async () => (await text(page, "#sequences small")) !== grown);
  for (const id of ["#ttft", "#itl"]) {
    await until("a histogram", async () => /p50 ≤ .* · p99 ≤ /.test(await text(page, `${id}-text`)));
    assert.match(await page.locator(id).getAttribute("aria-label"), /counted since the start$/);
  }
  assert.match(await text(page, "#pages-text"), /^[1-9]\d* pages? of \d+ in use/);
  // Three answers to one prompt of several pages: they share all but their last.
  const hurry = new AbortController();
  const body = JSON.stringify({ model: "babble", prompt: "Wootz is a steel. ".repeat(40), n: 3, max_tokens: 1000, stream: true });
  const headers = { "content-type": "application/json" };
  await fetch(`${url}/v1/completions`, { method: "POST", headers, body, signal: hurry.signal });
  await until("shared pages", async () => /[1-9]\d* of them shared/.test(await text(page, "#pages-text")));
  assert.match(await page.locator("#map").getAttribute("aria-label"), /^Map of KV pages: [1-9]\d* pages of \d+ in use/);
  assert.ok(await page.locator("#map").evaluate(colourful), "shared prefixes have no colour");
  await picture(page, "engine");
  await page.emulateMedia({ colorScheme: "dark" });
  await page.locator(':root[data-theme="dark"]').waitFor();
  await picture(page, "engine-dark");
  await page.emulateMedia({ colorScheme: "light" });
  hurry.abort();
  await show(page, "chat");
  await page.click("#stop");
  await show(page, "engine");
  await until("an engine at rest", async () => (await text(page, "#running")) === "0" && (await page.locator("#sequences li").count()) === 0);
  assert.match(await text(page, "#pages-text"), /^0 pages/);
  await close(page);
}

/** Nothing is cut off or too small to hit, and a phone shows one thing at a time. */
async function layout(viewport) {
  const page = await open(viewport, { hasTouch: viewport === PHONE });
  await pick(page, "tiny-chat");
  const isPhone = viewport === PHONE;
  const fits = async (what) => {
    const { wanted, given } = await page.evaluate(() => ({ wanted: document.documentElement.scrollWidth, given: innerWidth }));
    assert.ok(wanted <= given, `${what} is ${wanted} wide on ${given}`);
    const small = await page.evaluate(() => [...document.querySelectorAll("button, select, input, textarea, summary, a")].flatMap((element) => {
      const { width, height, left, right, top, bottom } = element.getBoundingClientRect();
      if (!element.checkVisibility({ visibilityProperty: true }) || element.className === "skip") return [];
      const whole = left >= 0 && right <= innerWidth && top >= 0 && bottom <= innerHeight;
      return width >= 24 && height >= 24 && whole ? [] : [`${element.id || element.textContent}: ${width}×${height} at ${left}, ${top}`];
    }));
    assert.deepEqual(small, [], `${what}: too small, or outside the window`);
  };
  await fits("the empty page");
  assert.equal(await page.locator("#engine").isVisible(), !isPhone);
  await ask(page, "Turn this into JSON: Anna is 31 and lives in Oslo.");
  const word = "Donaudampfschifffahrtsgesellschaft".repeat(8);
  await ask(page, `\`\`\`\n${word}\n\`\`\`\n${word}`);
  await fits("a chat with long words");
  await page.click("#settings summary");
  await fits("the settings");
  await page.fill("#prompt", "a line\n".repeat(40));
  await fits("a long message");
  await page.fill("#prompt", "");
  if (isPhone) {
    await page.tap("#show-engine");
    assert.ok(await page.locator("#engine").isVisible() && await page.locator("#chat").isHidden());
    assert.equal(await page.getAttribute("#show-engine", "aria-pressed"), "true");
    await fits("the engine");
    await page.tap("#show-chat");
    assert.ok(await page.locator("#engine").isHidden() && await page.locator("#chat").isVisible());
  }
  await close(page);
}

/** Everything without a mouse. */
async function keyboard(viewport) {
  const page = await open(viewport);
  await pick(page, "tiny-chat");
  const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.className || document.activeElement.tagName);
  assert.equal(await focused(), "prompt", "one can type at once");
  await page.keyboard.type("first");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("second");
  assert.equal(await page.inputValue("#prompt"), "first\nsecond");
  assert.equal(await page.locator("#log li").count(), 0, "Shift+Enter sends");
  const back = [];
  while (back.at(-1) !== "skip" && back.length < 20) {
    await page.keyboard.press("Shift+Tab");
    back.push(await focused());
  }
  const skip = page.locator(".skip");
  assert.ok((await skip.boundingBox()).y >= 0, "the skip link is not seen");
  await picture(page, "skip");
  const order = ["skip"];
  while (order.at(-1) !== "fresh" && order.length < 20) {
    await page.keyboard.press("Tab");
    order.push(await focused());
  }
  const views = viewport === PHONE ? ["show-chat", "show-engine"] : [];
  assert.deepEqual(order, ["skip", "model", ...views, "theme", "scroll", "SUMMARY", "prompt", "send", "fresh"]);
  while ((await focused()) !== "skip") await page.keyboard.press("Shift+Tab");
  await page.keyboard.press("Enter");
  assert.equal(await focused(), "prompt", "the skip link leads elsewhere");
  await page.fill("#prompt", "");
  await page.keyboard.type("What is 12 plus 7?");
  await page.keyboard.press("Tab");
  assert.equal(await focused(), "send");
  assert.notEqual(await page.locator("#send").evaluate((button) => getComputedStyle(button).outlineStyle), "none", "focus is not seen");
  await page.keyboard.press("Enter");
  await page.locator(".foot").waitFor();
  assert.equal(await answers(page).textContent(), "19");
  await idle(page);
  assert.equal(await focused(), "prompt", "focus is lost with the button");
  await close(page);
}

/** What a screen reader is told. */
async function screenReader(viewport) {
  const page = await open(viewport);
  await pick(page, "tiny-chat");
  assert.equal(await page.getAttribute("html", "lang"), "en");
  await ask(page, "What is 12 plus 7?");
  await page.click("#settings summary");
  const cdp = await page.context().newCDPSession(page);
  const { nodes } = await cdp.send("Accessibility.getFullAXTree");
  const named = nodes.filter(({ ignored }) => !ignored).map(({ role, name }) => [role?.value, name?.value?.trim()]);
  const roles = ["button", "textbox", "combobox", "link", "spinbutton", "DisclosureTriangle", "img", "image", "heading", "region", "navigation"];
  const nameless = named.filter(([role, name]) => !name && roles.includes(role));
  assert.deepEqual(nameless, [], "elements without a name");
  const tree = await page.locator("body").ariaSnapshot();
  const views = viewport === PHONE
    ? [/navigation "View"/, /button "Chat" \[pressed\]/, /button "Engine"/]
    : [/img "Map of KV pages: /, /heading "Sequences/];
  for (const part of [/link "Skip to the message box"/, /heading "Wootz" \[level=1\]/, /combobox "Model"/, /region "Chat"/,
    /region "Conversation"/, /textbox "Message"/, /spinbutton "Temperature"/, /textbox "System prompt"/,
    /button "Colours: as the system"/, /status: "Answer: 19"/, ...views]) {
    assert.match(tree, part);
  }
  assert.deepEqual(await page.locator("#log li").allInnerTexts().then((all) => all.map((one) => one.split("\n")[0])), ["You:", "Answer:"]);
  await close(page);
}

/** Both palettes can be read; the choice is kept. */
async function colours(viewport) {
  const page = await open(viewport);
  await pick(page, "tiny-chat");
  await ask(page, "Tell me about Wootz.");
  const poor = () => page.evaluate(() => {
    const style = getComputedStyle(document.documentElement);
    const light = (name) => {
      const hex = style.getPropertyValue(name).trim().slice(1);
      const channels = [0, 2, 4].map((at) => Number.parseInt(hex.slice(at, at + 2), 16) / 255);
      const [r, g, b] = channels.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const pairs = [];
    for (const ink of ["--ink", "--soft", "--accent", "--bad"]) for (const paper of ["--paper", "--card", "--mine"]) pairs.push([ink, paper]);
    pairs.push(["--on-accent", "--accent"]);
    return pairs.flatMap(([ink, paper]) => {
      const [low, high] = [light(ink), light(paper)].sort((a, b) => a - b);
      const contrast = (high + 0.05) / (low + 0.05);
      return contrast >= 4.5 ? [] : [`${ink} on ${paper}: ${contrast.toFixed(2)}`];
    });
  });
  const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const day = await paper();
  assert.deepEqual(await poor(), []);
  await page.emulateMedia({ colorScheme: "dark" });
  await until("the other palette", async () => (await paper()) !== day);
  const night = await paper();
  assert.deepEqual(await poor(), []);
  await picture(page, "dark");
  const button = page.locator("#theme");
  await button.click();
  assert.deepEqual([await button.getAttribute("aria-label"), await paper()], ["Colours: light", day]);
  await page.reload();
  assert.equal(await paper(), day, "the choice is forgotten");
  await button.click();
  await page.emulateMedia({ colorScheme: "light" });
  assert.equal(await button.getAttribute("aria-label"), "Colours: dark");
  await page.waitForTimeout(100);
  assert.equal(await paper(), night, "the system's colours win over the choice");
  await close(page);
}

/** A server that asks for a key gets it from the banner. */
async function keys(viewport) {
  const page = await open(viewport, { at: keyedUrl });
  const banner = page.locator("#key");
  await banner.waitFor({ state: "visible" });
  assert.equal(await page.evaluate(() => document.activeElement.id), "key-value");
  await picture(page, "key");
  await page.keyboard.type("wrong");
  const asked = page.waitForResponse((answer) => answer.url().endsWith("/v1/models"));
  await page.keyboard.press("Enter");
  assert.equal((await asked).status(), 401);
  await until("the refusal", async () => (await text(page, "#key-note")) === "that one was refused" && (await banner.isVisible()));
  assert.equal(await page.evaluate(() => document.activeElement.id), "key-value");
  await page.fill("#key-value", key);
  await page.keyboard.press("Enter");
  await banner.waitFor({ state: "hidden" });
  await pick(page, "tiny-chat");
  assert.equal(await ask(page, "What is 12 plus 7?"), "19");
  await until("a live view", async () => (await text(page, "#link")) === "live");
  await page.reload();
  await pick(page, "tiny-chat");
  assert.ok(await banner.isHidden(), "the key is forgotten");
  await close(page, ["401"]);
}

/** Errors are told where they happen, and the next message works. */
async function errors(viewport) {
  const page = await open(viewport);
  await pick(page, "tiny-chat");
  await send(page, "Wootz ".repeat(5000));
  const alert = page.getByRole("alert");
  await alert.waitFor();
  assert.match(await alert.textContent(), /2047|2,047/);
  await idle(page);
  await alert.scrollIntoViewIfNeeded();
  await picture(page, "error");
  assert.equal(await ask(page, "What is 12 plus 7?"), "19");
  await close(page, ["400"]);
}

const THEMES = [chat, streaming, live, layout, keyboard, screenReader, colours, keys, errors];
for (const theme of THEMES.filter(({ name }) => name.includes(only))) {
  for (const viewport of [WIDE, PHONE]) {
    process.stdout.write(`${theme.name} ${viewport.width} `);
    const start = performance.now();
    try {
      await theme(viewport);
    } catch (error) {
      await picture(current, "failed");
      const seen = (await current.locator("body").innerText()).slice(-1500);
      console.log(`FAILED\n${error.stack}\nThe page complains: ${JSON.stringify(current.problems)}\nIt shows: …${seen}`);
      await browser.close();
      process.exit(1);
    }
    console.log(`ok ${((performance.now() - start) / 1e3).toFixed(1)} s`);
  }
}
await browser.close();
