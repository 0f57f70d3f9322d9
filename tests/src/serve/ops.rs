//! How an operator starts, guards, changes and ends a server.
use super::client::{Answer, Connection, Events, Server, until};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

const CHAT: &str = "/v1/chat/completions";
/// Room for long answers.
const CACHE: &str = "--kv-cache-tokens=64K";

fn ask(model: &str) -> Value {
    let messages = json!([{ "role": "user", "content": "What is 12 plus 7?" }]);
    json!({ "model": model, "messages": messages, "temperature": 0, "max_tokens": 16 })
}

fn endless() -> Value {
    let messages = json!([{ "role": "user", "content": "Tell me a story." }]);
    json!({ "model": "tiny-chat", "messages": messages, "max_tokens": 1_900, "ignore_eos": true, "stream": true })
}

fn stream(server: &Server) -> Result<Events> {
    let mut events = match Events::open(server.address(), CHAT, &endless())? {
        Ok(events) => events,
        Err(answer) => anyhow::bail!("{answer:?}"),
    };
    events.next()?.context("a first event")?;
    Ok(events)
}

fn with_headers(server: &Server, method: &str, path: &str, headers: &str, body: &Value) -> Result<Answer> {
    let mut connection = Connection::open(server.address())?;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n{headers}\r\n",
        body.len()
    );
    connection.send((head + &body).as_bytes())?;
    connection.answer()
}

/// A model that cannot be loaded, a port that is taken, flags that contradict: one line, code 1, and no server.
pub fn failed_starts() -> Result<()> {
    let server = Server::start(&[])?;
    let port = server.address().port().to_string();
    for (args, problem) in [
        (vec!["./no/such/directory", "--port", "0"], "no/such/directory"),
        (vec!["--port", &port], "cannot listen on 127.0.0.1"),
        (vec!["--port", "0", "--admin", "--host", "0.0.0.0"], "--api-key"),
        (vec!["--port", "0", "--config", "no-such.toml"], "no-such.toml"),
        (vec!["--port", "0", "--max-model-len", "1G"], "--max-model-len"),
        (vec!["--port", "0", "--served-model-name", "mine", "makers/model"], "give MODEL before"),
    ] {
        let output = Command::new(std::env::current_exe()?)
            .args(["wootz-cli", "serve", "--device", "cpu"])
            .args(&args)
            .env_remove("WOOTZ_API_KEY")
            .stdin(Stdio::null())
            .output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<_> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        ensure!(output.status.code() == Some(1), "{args:?}: {:?} {stderr}", output.status);
        ensure!(errors.len() == 1 && errors[0].contains(problem), "{args:?}: {stderr}");
    }
    Ok(())
}

/// Keys from the environment, request ids, and the line of each request.
pub fn keys_and_log() -> Result<()> {
    let server = Server::start(&["--api-key", "KEY-A", "--api-key", "KEY-B"])?;
    server.post(CHAT, &ask("tiny-chat"))?.refused(401)?;
    for (key, id) in [("KEY-A", "mine-first"), ("KEY-B", "mine-second")] {
        let headers = format!("authorization: Bearer {key}\r\nx-request-id: {id}\r\n");
        let answer = with_headers(&server, "POST", CHAT, &headers, &ask("tiny-chat"))?;
        ensure!(answer.status == 200, "{answer:?}");
        ensure!(answer.header("x-request-id") == Some(id), "{answer:?}");
    }
    until("the access log", || Ok(server.stderr().contains("mine-second")))?;
    let log = server.stderr();
    let line = log.lines().find(|line| line.contains("mine-second")).context("a line")?;
    ensure!(line.contains("127.0.0.1 \"POST /v1/chat/completions\" 200 "), "{line}");
    ensure!(log.lines().any(|line| line.contains("\"POST /v1/chat/completions\" 401 ")), "{log}");
    // Of probes and scrapers, which come every few seconds, only what is refused.
    for path in ["/health", "/metrics", "/version"] {
        ensure!(server.get(path)?.status == 200, "{path} without a key");
    }
    server.get("/live")?.refused(401)?;
    let with = with_headers(&server, "GET", "/live", "authorization: Bearer KEY-A\r\n", &Value::Null)?;
    ensure!(with.status == 200 && with.json()?["model"] == "tiny-chat", "{with:?}");
    until("the access log", || Ok(server.stderr().contains("\"GET /live\" 401 ")))?;
    let log = server.stderr();
    for path in ["/health", "/metrics", "/live"] {
        ensure!(!log.contains(&format!("\"GET {path}\" 200 ")), "{path}: {log}");
    }
    ensure!(!log.contains("KEY-") && !log.contains("Bearer"), "keys are not logged: {log}");
    let quiet = Server::start(&["--no-access-log"])?;
    ensure!(quiet.post(CHAT, &ask("tiny-chat"))?.status == 200, "an answer");
    ensure!(!quiet.stderr().contains("POST"), "{}", quiet.stderr());
    Ok(())
}

/// Pages of the origins that are named may ask from a browser, and read refusals; others are not answered as such.
pub fn origins() -> Result<()> {
    const OWN: &str = "https://chat.example";
    let server = Server::start(&["--allowed-origins", "http://localhost:3000,https://chat.example", "--api-key", "K"])?;
    let ask = |method: &str, origin: &str, more: &str| {
        with_headers(&server, method, CHAT, &format!("origin: {origin}\r\n{more}"), &ask("tiny-chat"))
    };
    let asks = "access-control-request-method: POST\r\naccess-control-request-headers: authorization\r\n";
    let leave = ask("OPTIONS", OWN, asks)?;
    ensure!(leave.status == 200 && leave.header("access-control-allow-origin") == Some(OWN), "{leave:?}");
    ensure!(leave.header("access-control-allow-headers") == Some("authorization"), "{leave:?}");
    let answer = ask("POST", OWN, "authorization: Bearer K\r\n")?;
    ensure!(answer.status == 200 && answer.header("access-control-allow-origin") == Some(OWN), "{answer:?}");
    let refused = ask("POST", OWN, "")?;
    ensure!(refused.status == 401 && refused.header("access-control-allow-origin") == Some(OWN), "{refused:?}");
    let other = ask("POST", "https://evil.example", "authorization: Bearer K\r\n")?;
    ensure!(other.header("access-control-allow-origin").is_none(), "{other:?}");
    let all = Server::start(&["--allowed-origins", "*"])?;
    let answer = with_headers(&all, "GET", "/v1/models", "origin: http://x\r\n", &Value::Null)?;
    ensure!(answer.header("access-control-allow-origin") == Some("*"), "{answer:?}");
    let none = Server::start(&[])?;
    let answer = with_headers(&none, "GET", "/v1/models", "origin: http://x\r\n", &Value::Null)?;
    ensure!(answer.status == 200 && answer.header("access-control-allow-origin").is_none(), "{answer:?}");
    Ok(())
}

/// A queue of one place behind one that runs.
pub fn full_queue() -> Result<()> {
    let server = Server::start(&["--host", "localhost", "--max-num-seqs", "1", "--max-queued", "1", CACHE])?;
    // More than there will ever be room for: to ask again would not help.
    let many = server.post("/v1/completions", &json!({ "prompt": vec!["a"; 9], "max_tokens": 1 }))?.refused(400)?;
    ensure!(many.contains("9 entries"), "{many}");
    let running = stream(&server)?;
    let waiting = {
        // Waits for the first: its head comes with its first token, or before.
        let mut connection = Connection::open(server.address())?;
        connection.request("POST", CHAT, endless().to_string().as_bytes())?;
        connection
    };
    until("a waiting request", || Ok(server.metric("num_requests_waiting")? == 1.0))?;
    let answer = server.post(CHAT, &ask("tiny-chat"))?;
    answer.refused(429)?;
    ensure!(answer.header("retry-after").is_some(), "{answer:?}");
    ensure!(server.get("/health")?.status == 200, "a full server is healthy");
    drop((running, waiting));
    server.at_rest()?;
    ensure!(server.post(CHAT, &ask("tiny-chat"))?.status == 200, "an answer when there is room");
    Ok(())
}

/// A second signal ends what runs at once.
pub fn second_signal() -> Result<()> {
    let mut server = Server::start(&["--shutdown-timeout", "600", CACHE])?;
    let _running = (stream(&server)?, stream(&server)?);
    server.signal("TERM")?;
    until("the end of service", || Ok(server.get("/health").map_or(true, |answer| answer.status == 503)))?;
    server.signal("INT")?;
    let status = server.ended()?;
    ensure!(status.code() == Some(130) || status.success(), "{status:?}: {}", server.stderr());
    Ok(())
}

/// Several models and versions from a file, changed while serving.
pub fn models() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("wootz.toml");
    let text = "[[model]]\nname = \"first\"\naliases = [\"gpt-4o\"]\n\n[[model]]\nname = \"split\"\n\
                engine = { max-model-len = 512 }\n\
                [[model.version]]\nname = \"a\"\nweight = 3\n[[model.version]]\nname = \"b\"\nweight = 1\n";
    std::fs::write(&path, text)?;
    let server = Server::start(&["--admin", "--config", path.to_str().context("a path")?])?;
    let mut counts = [0, 0];
    for _ in 0..40 {
        let answer = server.post(CHAT, &ask("split"))?;
        ensure!(answer.status == 200, "{answer:?}");
        counts[usize::from(answer.json()?["model"] == "split@b")] += 1;
    }
    ensure!(counts[0] >= 28 && counts[1] >= 8, "3 to 1 became {counts:?}");
    ensure!(server.post(CHAT, &ask("gpt-4o"))?.json()?["model"] == "first", "an alias");
    // Its own limit, not the first model's.
    let long = json!({ "model": "split", "prompt": "steel ".repeat(600), "max_tokens": 1 });
    let message = server.post("/v1/completions", &long)?.refused(400)?;
    ensure!(message.contains("511"), "{message}");

    let load = json!({ "name": "third", "engine": { "max-num-seqs": 2 } });
    ensure!(server.post("/admin/models/load", &load)?.status == 200, "load");
    ensure!(server.post(CHAT, &ask("third"))?.status == 200, "the new model answers");
    // What runs ends as it would have; nothing new is found.
    let mut body = endless();
    (body["model"], body["max_tokens"]) = (json!("third"), json!(300));
    let mut events = Events::open(server.address(), CHAT, &body)?.map_err(|answer| anyhow::anyhow!("{answer:?}"))?;
    events.next()?;
    let answer = server.post("/admin/models/unload", &json!({ "model": "third", "timeout": 60 }))?;
    ensure!(answer.status == 200, "{answer:?}");
    server.post(CHAT, &ask("third"))?.refused(404)?;
    let mut last = String::new();
    while let Some((_, data)) = events.next()? {
        last = data;
    }
    ensure!(last == "[DONE]", "the stream of an unloaded model ended with {last}");
    let metrics = String::from_utf8(server.get("/metrics")?.body)?;
    ensure!(
        metrics.contains("model_name=\"split@a\"") && !metrics.contains("num_requests_running{model_name=\"third\""),
        "{metrics}"
    );
    server.at_rest()
}

/// From the first line on the server answers, and says 503 until the model is there.
pub fn loading() -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["wootz-cli", "serve", "--device", "cpu", "--port", "0"])
        .env_remove("WOOTZ_API_KEY")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let outcome = (|| {
        let mut lines = BufReader::new(child.stderr.take().context("stderr")?).lines();
        let first = lines.next().context("a line")??;
        let address = first.split("http://").nth(1).context("an address")?.trim().parse()?;
        let mut seen = Vec::new();
        until("a ready server", || {
            let answer = Connection::open(address)?.ask("GET", "/health", b"")?;
            let status = answer.json()?["status"].as_str().unwrap_or_default().to_owned();
            ensure!((answer.status == 200) == (status == "ok"), "{answer:?}");
            ensure!(["ok", "loading"].contains(&status.as_str()), "{answer:?}");
            seen.push(status);
            Ok(seen.last().is_some_and(|status| status == "ok"))
        })?;
        let ready = lines.find_map(|line| line.ok().filter(|line| line.starts_with("Ready: tiny-chat on CPU")));
        ensure!(ready.is_some(), "no line says that the model is ready");
        Ok(())
    })();
    let _ = (child.kill(), child.wait());
    outcome
}
