//! Connections that say nothing, too many of them, and streams that wait or break.
use super::client::{Connection, Events, Server, until};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
/// Room for long answers.
const CACHE: &str = "--kv-cache-tokens=64K";

/// A stream of exactly so many tokens.
fn stream(server: &Server, path: &str, tokens: usize) -> Result<Events> {
    let mut body = json!({ "model": "tiny-chat", "max_tokens": tokens, "ignore_eos": true, "stream": true });
    match path {
        CHAT => body["messages"] = json!([{ "role": "user", "content": "Tell me a story." }]),
        COMPLETIONS => body["prompt"] = "Once".into(),
        _ => {
            body["temperature"] = 0.into();
            body["input"] = "Tell me a story.".into();
            body["max_output_tokens"] = tokens.into();
        }
    }
    Events::open(server.address(), path, &body)?.map_err(|answer| anyhow::anyhow!("{path}: {answer:?}"))
}

fn canary(server: &Server) -> Result<()> {
    let body = json!({ "prompt": "Once", "max_tokens": 4 });
    let answer = server.post(COMPLETIONS, &body)?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(())
}

/// A step that fails ends every stream with an event that says so, and with a whole body: no client waits for more, and
/// none takes what it has for all of it.
pub fn fault_in_streams() -> Result<()> {
    for path in [CHAT, COMPLETIONS, RESPONSES] {
        // All answers are longer.
        let mut server = Server::start(&["--fault-after-steps", "12", CACHE])?;
        let mut events = stream(&server, path, 1_900)?;
        let (mut last, mut count) = ((String::new(), String::new()), 0);
        while let Some(event) = events.next().with_context(|| format!("{path}: the body is cut"))? {
            (last, count) = (event, count + 1);
        }
        let event: Value = serde_json::from_str(&last.1).with_context(|| format!("{path}: {last:?}"))?;
        let error = if path == RESPONSES { &event["response"]["error"] } else { &event["error"] };
        let message = error["message"].as_str().with_context(|| format!("{path}: no error is last, but {last:?}"))?;
        ensure!(message.contains("a fault was planted"), "{path}: {message}");
        ensure!(path != RESPONSES || last.0 == "response.failed", "{last:?}");
        ensure!(count > 1, "{path}: nothing came before the fault");
        ensure!(server.ended()?.code().is_some_and(|code| code != 0), "the process ended well");
    }
    Ok(())
}

fn open<'a>(server: &Server, paths: &[&'a str], tokens: usize) -> Result<Vec<(&'a str, Events)>> {
    paths.iter().map(|path| Ok((*path, stream(server, path, tokens)?))).collect()
}

/// Streams that wait in the queue have comments meanwhile, and then their answers.
pub fn comments() -> Result<()> {
    let server = Server::start(&["--max-num-seqs", "1", "--sse-keep-alive", "0.02", CACHE])?;
    let mut running = stream(&server, CHAT, 1_900)?;
    running.next()?.context("a first event")?;
    let mut waiting = open(&server, &[CHAT, COMPLETIONS, RESPONSES], 4)?;
    until("three that wait", || Ok(server.metric("num_requests_waiting")? == 3.0))?;
    for (path, events) in &mut waiting {
        loop {
            let event = events.next_raw()?.with_context(|| format!("{path}: the end before a comment"))?;
            if event.starts_with(':') {
                break;
            }
            // A response says that it exists before it has a token.
            let early = ["response.created", "response.in_progress"];
            ensure!(early.iter().any(|name| event.contains(name)), "{path}: no comment before {event:?}");
        }
    }
    drop(running);
    for (path, events) in &mut waiting {
        let mut last = (String::new(), String::new());
        while let Some(event) = events.next()? {
            last = event;
        }
        ensure!(last.1 == "[DONE]" || last.0.starts_with("response."), "{path}: {last:?}");
        ensure!(last.0 != "response.failed", "{path}: {last:?}");
    }
    server.at_rest()
}

/// Clients that send half a head, half a body, or nothing at all are cut off, and harm nobody.
pub fn silent_clients() -> Result<()> {
    let server = Server::start(&["--client-timeout", "0.5", CACHE])?;
    let mut running = stream(&server, CHAT, 400)?;
    let halves: [&[u8]; 3] = [
        b"",
        b"POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-le",
        b"POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{",
    ];
    let mut silent = Vec::new();
    for half in halves.iter().cycle().take(60) {
        let mut connection = Connection::open(server.address())?;
        connection.send(half)?;
        silent.push((*half, connection));
    }
    canary(&server)?;
    for (half, connection) in silent {
        let rest = String::from_utf8_lossy(&connection.rest()?).into_owned();
        let expected = if half.ends_with(b"{") { rest.starts_with("HTTP/1.1 408 ") } else { rest.is_empty() };
        ensure!(expected, "{:?} was answered with {rest:?}", String::from_utf8_lossy(half));
    }
    // A stream that lasts longer than that is no silence.
    while let Some((_, data)) = running.next()? {
        if data == "[DONE]" {
            return server.at_rest();
        }
    }
    bail!("the stream was cut")
}

/// A client that asks and asks and reads nothing is cut off, and its place is free again.
pub fn deaf_clients() -> Result<()> {
    let server = Server::start(&["--client-timeout", "0.5", "--max-connections", "1"])?;
    let mut deaf = Connection::open(server.address())?;
    let ask = b"GET /openapi.json HTTP/1.1\r\nhost: test\r\n\r\n".repeat(1_000);
    // Some 50 KB each: more than any buffers hold. The server stops reading when nobody reads what it writes.
    let cut = std::iter::repeat_with(|| deaf.send(&ask)).take(1_000).find_map(Result::err);
    ensure!(cut.is_some(), "the server still listens");
    until("its place", || Ok(canary(&server).is_ok()))?;
    server.at_rest()
}

/// More connections than may be are told so; probes are answered all the same; when some close there is room again.
pub fn max_connections() -> Result<()> {
    let server = Server::start(&["--max-connections", "4"])?;
    let silent = |count: usize| -> Result<Vec<Connection>> {
        let open = || {
            let mut connection = Connection::open(server.address())?;
            connection.send(b"GET /health HTTP/1.1\r\nho")?;
            Ok(connection)
        };
        (0..count).map(|_| open()).collect()
    };
    let places = silent(4)?;
    let body = json!({ "prompt": "Once", "max_tokens": 4 });
    until("a full server", || Ok(server.post(COMPLETIONS, &body)?.status == 503))?;
    let answer = server.post(COMPLETIONS, &body)?;
    let message = answer.refused(503)?;
    ensure!(message.contains("--max-connections"), "{message}");
    ensure!(answer.header("retry-after").is_some() && answer.header("x-request-id").is_some(), "{answer:?}");
    for path in ["/health", "/metrics"] {
        ensure!(server.get(path)?.status == 200, "{path} of a full server");
    }
    // Far more than may be: who comes now is closed unread.
    let crowd = silent(200)?;
    drop((places, crowd));
    until("room", || Ok(server.post(COMPLETIONS, &body).is_ok_and(|answer| answer.status == 200)))?;
    server.at_rest()
}
