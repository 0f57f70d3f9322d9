//! Chat and completions over sockets: streams come as they grow, and who hangs up is forgotten.
use super::client::{Connection, Events, Server, until};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// An answer that goes on until the context is full, unless somebody ends it.
fn endless(text: &str, stream: bool) -> Value {
    json!({ "model": "tiny-chat", "prompt": text, "stream": stream, "ignore_eos": true, "max_tokens": 100_000 })
}

fn open(server: &Server, path: &str, body: &Value) -> Result<Events> {
    Events::open(server.address(), path, body)?.map_err(|answer| anyhow::anyhow!("refused: {answer:?}"))
}

fn running(server: &Server) -> Result<f64> {
    server.metric("num_requests_running")
}

/// Chunks until the end: the text and the last finish_reason.
fn read(mut events: Events, text_of: fn(&Value) -> &Value) -> Result<(String, String)> {
    let (mut text, mut reason) = (String::new(), None);
    while let Some((_, data)) = events.next()? {
        if data == "[DONE]" {
            ensure!(events.next()?.is_none(), "something came after [DONE]");
            return Ok((text, reason.context("no finish_reason")?));
        }
        let chunk: Value = serde_json::from_str(&data).with_context(|| data.clone())?;
        text += text_of(&chunk["choices"][0]).as_str().unwrap_or_default();
        reason = chunk["choices"][0]["finish_reason"].as_str().map(str::to_owned).or(reason);
    }
    anyhow::bail!("the stream ended without [DONE]")
}

/// The same answers whole and in chunks; models, tokens and errors.
pub fn openai() -> Result<()> {
    let server = Server::start(&[])?;
    let models = server.get("/v1/models")?.json()?;
    ensure!(models["data"][0]["id"] == "tiny-chat", "{models}");
    let chat = json!({ "model": "tiny-chat", "temperature": 0,
        "messages": [{ "role": "user", "content": "What is 845 minus 367?" }] });
    let whole = server.post(CHAT, &chat)?.json()?;
    ensure!(whole["choices"][0]["message"]["content"] == "478", "{whole}");
    let mut streamed = chat.clone();
    streamed["stream"] = true.into();
    let chunks = read(open(&server, CHAT, &streamed)?, |choice| &choice["delta"]["content"])?;
    ensure!(chunks == ("478".into(), "stop".into()), "{chunks:?}");

    let mut text = json!({ "prompt": "Wootz is", "temperature": 0, "max_tokens": 12 });
    let whole = server.post(COMPLETIONS, &text)?.json()?;
    text["stream"] = true.into();
    let (chunks, reason) = read(open(&server, COMPLETIONS, &text)?, |choice| &choice["text"])?;
    ensure!(whole["choices"][0]["text"] == chunks && whole["choices"][0]["finish_reason"] == reason, "{whole}");

    let tokens = server.post("/tokenize", &json!({ "prompt": "Wootz is" }))?.json()?;
    let back = server.post("/detokenize", &json!({ "tokens": tokens["tokens"] }))?.json()?;
    ensure!(back["prompt"].as_str().is_some_and(|text| text.ends_with("Wootz is")), "{back}");

    let mut wrong = chat;
    wrong["temperature"] = "hot".into();
    let answer = server.post(CHAT, &wrong)?;
    answer.refused(400)?;
    ensure!(answer.json()?["error"]["param"] == "temperature", "{answer:?}");
    let long = json!({ "prompt": "wootz ".repeat(50_000) });
    let long = server.post(COMPLETIONS, &long)?.refused(400)?;
    ensure!(long.contains("at most"), "the limit is not named: {long}");

    let (queued, answered) =
        (server.metric("request_queue_time_seconds_count")?, server.metric("e2e_request_latency_seconds_count")?);
    ensure!(queued == answered && queued > 0.0, "{queued} requests have waited, {answered} are answered");
    Ok(())
}

/// Clients that hang up, streaming or not, leave nothing behind; others do not notice.
pub fn hang_up() -> Result<()> {
    let server = Server::start(&[])?;
    let mut streaming = open(&server, COMPLETIONS, &endless("Once", true))?;
    streaming.next()?.context("a chunk")?;
    let mut waiting = Connection::open(server.address())?;
    waiting.request("POST", COMPLETIONS, endless("Twice", false).to_string().as_bytes())?;
    until("two that run", || Ok(running(&server)? >= 2.0))?;
    drop(waiting);
    until("the end of who waited for all of it", || Ok(running(&server)? < 2.0))?;
    streaming.next()?.context("another chunk")?;
    drop(streaming);
    server.at_rest()
}
