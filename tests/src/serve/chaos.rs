//! What clients, networks and operators do to a server: nothing leaks, everybody gets an answer or an error, nobody is
//! slowed by somebody slow, and the process ends as it promised.
use super::client::{Answer, Connection, Events, Server, until};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";
/// Room for all that a test runs at once: nobody waits for another's end.
const CACHE: &str = "--kv-cache-tokens=64K";

/// A question whose answer is known, greedily.
fn canary(stream: bool) -> Value {
    let messages = json!([{ "role": "user", "content": "What is 12 plus 7?" }]);
    json!({ "model": "tiny-chat", "messages": messages, "temperature": 0, "max_tokens": 16, "stream": stream })
}

/// A stream of exactly so many tokens.
fn long(i: usize, tokens: usize) -> Value {
    let messages = json!([{ "role": "user", "content": format!("Tell me a story about the number {i}.") }]);
    json!({ "model": "tiny-chat", "messages": messages, "temperature": 1, "seed": i, "max_tokens": tokens,
            "ignore_eos": true, "stream": true })
}

/// The canary sings as ever.
fn sings(server: &Server) -> Result<()> {
    let answer = server.post(CHAT, &canary(false))?;
    ensure!(answer.status == 200, "{answer:?}");
    ensure!(answer.json()?["choices"][0]["message"]["content"] == "19", "{:?}", answer.json()?);
    Ok(())
}

/// How a stream ended.
#[derive(Debug, PartialEq)]
enum End {
    /// With its last event; the finish_reason.
    Whole(String),
    /// With an error in the stream.
    Error(String),
    /// Refused, with a status.
    Refused(u16),
}

/// Reads a stream to its end, with a pause after each event.
fn read(events: &mut Events, pause: Duration) -> Result<End> {
    let mut reason = None;
    while let Some((_, data)) = events.next()? {
        if data == "[DONE]" {
            return Ok(End::Whole(reason.context("no finish_reason before [DONE]")?));
        }
        let event: Value = serde_json::from_str(&data).with_context(|| data.clone())?;
        if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
            return Ok(End::Error(error["message"].as_str().context("a message")?.to_owned()));
        }
        if let Some(text) = event["choices"][0]["finish_reason"].as_str() {
            reason = Some(text.to_owned());
        }
        std::thread::sleep(pause);
    }
    bail!("the body ended without [DONE] or an error")
}

/// Refusals that a busy server may give, in their shape and with a time to come back.
fn busy(answer: &Answer) -> Result<End> {
    ensure!([429, 503].contains(&answer.status), "{answer:?}");
    answer.refused(answer.status)?;
    ensure!(answer.header("retry-after").is_some(), "{answer:?} does not say when to come back");
    Ok(End::Refused(answer.status))
}

fn stream(address: SocketAddr, body: &Value, pause: Duration) -> Result<End> {
    match Events::open(address, CHAT, body)? {
        Ok(mut events) => read(&mut events, pause),
        Err(answer) => busy(&answer),
    }
}

/// Runs something on so many threads at once; all errors, with who made them.
fn at_once(threads: usize, run: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let run = &run;
    let errors: Vec<String> = std::thread::scope(|scope| {
        let spawn = |i| {
            let thread = std::thread::Builder::new().stack_size(256 << 10);
            thread.spawn_scoped(scope, move || run(i)).map(|handle| (i, handle))
        };
        let handles: Vec<_> = (0..threads).map(spawn).collect();
        let end = |handle: std::io::Result<(usize, std::thread::ScopedJoinHandle<'_, Result<()>>)>| match handle {
            Ok((i, handle)) => match handle.join() {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("client {i}: {error:#}")),
                Err(_) => Some(format!("client {i} panicked")),
            },
            Err(error) => Some(format!("no thread: {error}")),
        };
        handles.into_iter().filter_map(end).collect()
    });
    ensure!(errors.is_empty(), "{} of {threads} clients: {}", errors.len(), errors.join("; "));
    Ok(())
}

/// 200 clients at once of all kinds.
pub fn crowd() -> Result<()> {
    let server = Server::start(&["--max-num-seqs", "64"])?;
    sings(&server)?;
    let address = server.address();
    at_once(200, |i| client(address, i))?;
    server.at_rest()?;
    sings(&server)?;
    ensure!(server.get("/health")?.status == 200, "/health");
    // A second wave finds all of it as it was.
    at_once(50, |i| client(address, i))?;
    server.at_rest()?;
    sings(&server)
}

fn client(address: SocketAddr, i: usize) -> Result<()> {
    match i % 10 {
        // Leaves in the middle.
        5 | 6 => {
            let Ok(mut events) = Events::open(address, CHAT, &long(i, 400))? else { return Ok(()) };
            for _ in 0..i % 17 {
                events.next()?;
            }
            Ok(())
        }
        // Reads slowly.
        7 => {
            let end = stream(address, &long(i, 24), Duration::from_millis(40))?;
            ensure!(
                matches!(&end, End::Whole(reason) if reason == "length") || matches!(end, End::Refused(_)),
                "{end:?}"
            );
            Ok(())
        }
        // Sends what nobody understands.
        8 => garbage(address, i),
        // Does not want the answer: closes before, or after having asked for one that does not stream.
        9 => {
            let mut connection = Connection::open(address)?;
            let mut body = long(i, 400);
            body["stream"] = json!(false);
            if i % 20 == 9 {
                connection.request("POST", CHAT, body.to_string().as_bytes())?;
            } else {
                connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-le")?;
            }
            std::thread::sleep(Duration::from_millis((i % 50) as u64));
            Ok(())
        }
        _ => {
            let end = stream(address, &long(i, 8 + i % 32), Duration::ZERO)?;
            ensure!(
                matches!(&end, End::Whole(reason) if reason == "length") || matches!(end, End::Refused(_)),
                "{end:?}"
            );
            Ok(())
        }
    }
}

/// Bodies and heads that are wrong are refused, in OpenAI's shape where HTTP is understood at all.
fn garbage(address: SocketAddr, i: usize) -> Result<()> {
    let ask = |body: &[u8]| Connection::open(address)?.ask("POST", CHAT, body);
    match (i / 10) % 8 {
        0 => drop(ask(b"{\"messages\": [")?.refused(400)?),
        1 => drop(ask(&[0xff, 0xfe, 0x00, b'{'])?.refused(400)?),
        2 => drop(ask(b"{\"model\": \"tiny-chat\", \"messages\": 3}")?.refused(400)?),
        3 => drop(ask("[".repeat(100_000).as_bytes())?.refused(400)?),
        4 => {
            let unknown = json!({ "model": "no-such-model", "messages": [{ "role": "user", "content": "hi" }] });
            drop(ask(unknown.to_string().as_bytes())?.refused(404)?);
        }
        5 => {
            let mut connection = Connection::open(address)?;
            connection.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 no HTTP at all\r\n\r\n")?;
            // An answer or a closed connection, and no hang.
            let _ = connection.answer();
        }
        6 => {
            // A promise of more than comes.
            let mut connection = Connection::open(address)?;
            connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{}")?;
            connection.close_sending()?;
            let _ = connection.answer();
        }
        _ => {
            let mut connection = Connection::open(address)?;
            connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n")?;
            let _ = connection.answer();
        }
    }
    Ok(())
}

/// Bodies beyond the limit, and prompts beyond the context: refused with the limit's name, and nothing is left of them.
pub fn huge() -> Result<()> {
    let server = Server::start(&[])?;
    let address = server.address();
    // Announced: refused before it is sent.
    let mut connection = Connection::open(address)?;
    connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n")?;
    connection.answer()?.refused(413)?;
    // Not announced: cut while it comes.
    let mut connection = Connection::open(address)?;
    connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")?;
    let chunk = [format!("{:x}\r\n", 1 << 20).into_bytes(), vec![b' '; 1 << 20], b"\r\n".to_vec()].concat();
    // Until the server has had enough of it.
    let sent = (0..512).take_while(|_| connection.send(&chunk).is_ok()).count();
    ensure!(sent < 512, "half a gigabyte was read");
    let prompt = "steel ".repeat(200_000);
    let body = json!({ "model": "tiny-chat", "messages": [{ "role": "user", "content": prompt }] });
    let message = server.post(CHAT, &body)?.refused(400)?;
    ensure!(message.contains("tokens") && message.contains("at most"), "{message}");
    server.at_rest()?;
    sings(&server)
}

/// Who does not read at all keeps nobody from reading, and finds its answer later.
pub fn slow_reader() -> Result<()> {
    let server = Server::start(&["--max-num-seqs", "8", CACHE])?;
    let address = server.address();
    let mut slow = Vec::new();
    for i in 0..4 {
        match Events::open(address, CHAT, &long(i, 400))? {
            Ok(events) => slow.push(events),
            Err(answer) => bail!("{answer:?}"),
        }
    }
    at_once(40, |i| {
        let end = stream(address, &long(i, 20), Duration::ZERO)?;
        ensure!(end == End::Whole("length".into()), "{end:?}");
        Ok(())
    })?;
    // Their blocks are given back although nobody has read their answers.
    server.at_rest()?;
    for events in &mut slow {
        let end = read(events, Duration::ZERO)?;
        ensure!(end == End::Whole("length".into()), "{end:?}");
    }
    Ok(())
}

/// Opens streams and reads each one's first event.
fn running(server: &Server, count: usize, tokens: usize) -> Result<Vec<Events>> {
    let mut streams = Vec::new();
    for i in 0..count {
        match Events::open(server.address(), CHAT, &long(i, tokens))? {
            Ok(mut events) => {
                events.next()?.context("a first event")?;
                streams.push(events);
            }
            Err(answer) => bail!("{answer:?}"),
        }
    }
    Ok(streams)
}

/// SIGTERM: what runs goes on to its end, nothing new starts, and the process ends by itself with code 0.
pub fn drain() -> Result<()> {
    let mut server = Server::start(&["--shutdown-timeout", "60", CACHE])?;
    let mut streams = running(&server, 20, 200)?;
    server.signal("TERM")?;
    until("the end of service", || {
        Ok(match server.get("/health") {
            Ok(answer) => answer.status == 503,
            Err(_) => true,
        })
    })?;
    if let Ok(answer) = server.post(CHAT, &canary(false)) {
        answer.refused(503)?;
    }
    for events in &mut streams {
        let end = read(events, Duration::ZERO)?;
        ensure!(end == End::Whole("length".into()), "{end:?}");
    }
    drop(streams);
    let status = server.ended()?;
    ensure!(status.code() == Some(0), "{status:?}: {}", server.stderr());
    Ok(())
}

/// SIGTERM with more to do than there is time for: the rest is told that it ends.
pub fn drain_in_vain() -> Result<()> {
    let mut server = Server::start(&["--shutdown-timeout", "0", CACHE])?;
    let mut streams = running(&server, 8, 1_900)?;
    server.signal("TERM")?;
    for events in &mut streams {
        // An end that is no natural one, or an error, or no end at all: but never a whole answer, and never a hang.
        let end = read(events, Duration::ZERO);
        ensure!(!matches!(&end, Ok(End::Whole(reason)) if reason == "stop" || reason == "length"), "{end:?}");
    }
    drop(streams);
    let status = server.ended()?;
    ensure!(status.code().is_some(), "{status:?}: {}", server.stderr());
    Ok(())
}

/// SIGKILL under load: clients see a broken connection and not a short answer, and the next process has the port and
/// answers the same.
pub fn killed() -> Result<()> {
    let mut server = Server::start(&[CACHE])?;
    let port = server.address().port().to_string();
    let mut streams = running(&server, 20, 1_900)?;
    server.signal("KILL")?;
    for events in &mut streams {
        let end = read(events, Duration::ZERO);
        ensure!(end.is_err(), "{end:?} after SIGKILL");
    }
    server.ended()?;
    let server = Server::start_on(&port, &[])?;
    sings(&server)?;
    server.at_rest()
}

/// A step that fails: everybody hears of it, /health says so, and the process ends with an error.
pub fn fault() -> Result<()> {
    let mut server = Server::start(&["--fault-after-steps", "200", CACHE])?;
    sings(&server)?;
    let address = server.address();
    at_once(20, |i| {
        let end = match Events::open(address, CHAT, &long(i, 1_900)) {
            Ok(Ok(mut events)) => read(&mut events, Duration::ZERO),
            Ok(Err(answer)) => answer.refused(503).map(|_| End::Refused(503)),
            // The process has ended already.
            Err(_) => return Ok(()),
        };
        // With the process the last bytes may be lost; an answer that looks whole is never given.
        ensure!(!matches!(end, Ok(End::Whole(_))), "{end:?}");
        Ok(())
    })?;
    if let Ok(answer) = server.get("/health") {
        ensure!(answer.status == 503, "/health is {} with a dead engine", answer.status);
    }
    let status = server.ended()?;
    ensure!(status.code().is_some_and(|code| code != 0), "{status:?}: {}", server.stderr());
    ensure!(server.stderr().contains("error: "), "{}", server.stderr());
    Ok(())
}
