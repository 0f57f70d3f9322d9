//! Every operation of the OpenAPI document, asked with bodies that fit their schema and with bodies that nearly do: the
//! server never fails, and every answer is one that the document promises.
use super::client::{Answer, Connection, Server};
use super::schema::{Document, Random, damage};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Clients at once.
const CLIENTS: u64 = 8;
/// Requests of each client to each operation.
const REQUESTS: usize = 40;
/// Of the server that may be changed.
const KEY: &str = "fuzz";

/// An operation of the document.
struct Operation<'a> {
    method: String,
    path: &'a str,
    /// Of its body.
    body: Option<&'a Value>,
    responses: &'a Value,
}

/// All operations, each by several clients at once.
pub fn openapi() -> Result<()> {
    let server = Server::start(&["--max-num-seqs", "16"])?;
    let document = Document(server.get("/openapi.json")?.json()?);
    let operations = operations(&document, "")?;
    for path in ["/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/health"]
    {
        ensure!(operations.iter().any(|operation| operation.path == path), "the document lacks {path}");
    }
    let (address, document, operations) = (server.address(), &document, &operations);
    let problems: Vec<String> = std::thread::scope(|scope| {
        let client = |seed| scope.spawn(move || client(address, document, operations, seed));
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap_or_else(|_| vec!["a panic".into()])).collect()
    });
    let some = problems[..problems.len().min(8)].join("\n  ");
    ensure!(problems.is_empty(), "{} answers are wrong, such as\n  {some}", problems.len());
    server.at_rest()?;
    ensure!(server.get("/health")?.status == 200, "/health");
    Ok(())
}

/// The operations that change what is served, with a key and without: what is wrong in a request is never the server's
/// fault, and the model that nobody named answers as ever.
pub fn admin() -> Result<()> {
    let server = Server::start(&["--admin", "--api-key", KEY, "--kv-cache-tokens", "4K"])?;
    let document = Document(server.get("/openapi.json")?.json()?);
    let operations = operations(&document, "/admin")?;
    ensure!(operations.len() >= 4, "the document lacks routes of /admin");
    let (mut random, mut statuses) = (Random::new(7), BTreeMap::new());
    for round in 0..60 {
        for operation in &operations {
            let mut body = operation.body.map(|schema| document.generate(schema, &mut random, 0));
            if let Some(body) = &mut body {
                if round % 2 == 0 {
                    tame_admin(body, &mut random);
                }
                if round % 3 == 1 {
                    damage(body, &mut random);
                }
                stay_here(body);
            }
            let text = body.map_or_else(String::new, |body| body.to_string());
            // One in eight without a key.
            let key = (random.below(8) > 0).then_some(KEY);
            let answer = ask_with(&server, operation, key, &text)?;
            let asked = || format!("{} {} {text}", operation.method, operation.path);
            check(&document, operation, &answer).with_context(asked)?;
            ensure!(answer.status < 500, "{}: {}", asked(), String::from_utf8_lossy(&answer.body));
            ensure!((answer.status == 401) == key.is_none(), "{}: {}", asked(), answer.status);
            *statuses.entry((operation.path, answer.status)).or_insert(0) += 1;
        }
    }
    // Otherwise nothing but refusals was tested.
    for path in ["/admin/models/load", "/admin/models/unload", "/admin/models/weights"] {
        ensure!(statuses.contains_key(&(path, 200)), "no request to {path} was accepted: {statuses:?}");
    }
    let canary = Operation { method: "POST".into(), path: "/v1/completions", body: None, responses: &Value::Null };
    let body = json!({ "model": "tiny-chat", "prompt": "Once", "max_tokens": 4 }).to_string();
    let answer = ask_with(&server, &canary, Some(KEY), &body)?;
    ensure!(answer.status == 200, "{answer:?}");
    server.at_rest()
}

/// Names that may meet, and an engine that is small.
fn tame_admin(body: &mut Value, random: &mut Random) {
    let Some(object) = body.as_object_mut() else { return };
    if object.contains_key("weights") || object.contains_key("model") {
        object.insert("model".into(), json!(random.pick::<&str>(&["one", "one@a", "one@b", "two", "nobody"])));
    } else {
        object.insert("name".into(), json!(random.pick::<&str>(&["one", "one", "two"])));
        object.insert("version".into(), random.pick(&[json!("a"), json!("b"), Value::Null]).clone());
        object.insert("path".into(), Value::Null);
        object.insert("aliases".into(), random.pick(&[json!([]), json!(["other"])]).clone());
        let sizes = [json!({}), json!({ "max-num-seqs": 2 }), json!({ "max_model_len": 128 }), json!({ "no-such": 1 })];
        object.insert("engine".into(), random.pick(&sizes).clone());
    }
    if object.contains_key("weights") {
        object.insert("model".into(), json!("one"));
        let weights = [json!({}), json!({ "a": 2 }), json!({ "a": 1, "b": 0 }), json!({ "c": 1 })];
        object.insert("weights".into(), random.pick(&weights).clone());
    }
}

/// No name of the hub: a test asks no network. And nobody waits for long.
fn stay_here(body: &mut Value) {
    let Some(object) = body.as_object_mut() else { return };
    if let Some(path) = object.get_mut("path").filter(|path| path.is_string()) {
        *path = json!(format!("./{}", path.as_str().unwrap_or_default()));
    }
    if object.get("timeout").and_then(Value::as_f64).is_some_and(|seconds| seconds > 1.0) {
        object.insert("timeout".into(), json!(1));
    }
}

fn ask_with(server: &Server, operation: &Operation<'_>, key: Option<&str>, body: &str) -> Result<Answer> {
    let key = key.map_or_else(String::new, |key| format!("authorization: Bearer {key}\r\n"));
    let mut connection = Connection::open(server.address())?;
    let head = format!(
        "{} {} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n{key}\r\n",
        operation.method,
        operation.path,
        body.len()
    );
    connection.send((head + body).as_bytes())?;
    connection.answer()
}

/// Those below a path, or without one all others: what can be asked without changing what is served.
fn operations<'a>(document: &'a Document, below: &str) -> Result<Vec<Operation<'a>>> {
    let paths = document.0["paths"].as_object().context("paths")?;
    let mut operations = Vec::new();
    let wanted = |path: &str| if below.is_empty() { !path.starts_with("/admin") } else { path.starts_with(below) };
    for (path, methods) in paths.iter().filter(|(path, _)| wanted(path)) {
        for (method, operation) in methods.as_object().context("methods")? {
            if ["get", "post", "put", "delete"].contains(&method.as_str()) {
                operations.push(Operation {
                    method: method.to_uppercase(),
                    path,
                    body: operation["requestBody"]["content"]["application/json"].get("schema"),
                    responses: &operation["responses"],
                });
            }
        }
    }
    Ok(operations)
}

/// One client's problems.
fn client(address: SocketAddr, document: &Document, operations: &[Operation<'_>], seed: u64) -> Vec<String> {
    let mut random = Random::new(seed);
    let mut problems = Vec::new();
    for round in 0..REQUESTS {
        for operation in operations {
            let mut body = operation.body.map(|schema| document.generate(schema, &mut random, 0));
            if let Some(body) = &mut body {
                // One in two fits.
                if round % 2 == 1 {
                    damage(body, &mut random);
                }
                tame(body, &mut random);
            }
            let text = body.map_or_else(String::new, |body| body.to_string());
            let mut path = operation.path.to_owned();
            if let (Some(from), Some(to)) = (path.find('{'), path.find('}')) {
                path.replace_range(from..=to, random.pick::<&str>(&["tiny-chat", "nobody", "%F0%9F%A6%80"]));
            }
            let asked = Connection::open(address).and_then(|it| it.ask(&operation.method, &path, text.as_bytes()));
            if let Err(problem) = asked.and_then(|answer| check(document, operation, &answer)) {
                problems.push(format!("{} {path} {text}: {problem:#}", operation.method));
            }
        }
    }
    problems
}

/// Bodies that would otherwise ask for what nobody has, or for more than a test has time for.
fn tame(body: &mut Value, random: &mut Random) {
    let Some(object) = body.as_object_mut() else { return };
    if random.below(8) > 0 {
        object.insert("model".into(), json!("tiny-chat"));
    }
    for (name, most) in
        [("max_tokens", 8), ("max_completion_tokens", 8), ("max_output_tokens", 8), ("n", 3), ("best_of", 3)]
    {
        if object.get(name).is_none_or(|value| value.is_null() || value.as_f64().is_some_and(|value| value > 8.0)) {
            object.insert(name.into(), json!(most));
        }
    }
}

/// An answer is what the document says.
fn check(document: &Document, operation: &Operation<'_>, answer: &Answer) -> Result<()> {
    let text = String::from_utf8_lossy(&answer.body);
    let status = answer.status;
    ensure!(status < 500 || status == 503, "{status}: {text}");
    let class = format!("{}XX", status / 100);
    let mut known = [status.to_string(), class, "default".into()].into_iter();
    let response = known.find_map(|key| operation.responses.get(key)).map(|response| document.resolve(response));
    let response = response.with_context(|| format!("the document does not know {status}: {text}"))?;
    let Some(content) = response["content"].as_object().filter(|content| !content.is_empty()) else { return Ok(()) };
    let media = answer.header("content-type").unwrap_or_default().split(';').next().unwrap_or_default();
    let schema = content.get(media).with_context(|| format!("{status} has no {media:?}: {text}"))?.get("schema");
    let fits = |value: &Value| match schema.and_then(|schema| document.misfit(schema, value, "body")) {
        Some(problem) => bail!("{status}: {problem}: {value}"),
        None => Ok(()),
    };
    match media {
        "application/json" => fits(&answer.json()?),
        "text/event-stream" => {
            let data = text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim);
            for data in data.filter(|data| *data != "[DONE]") {
                let event: Value = serde_json::from_str(data).with_context(|| format!("{data:?} is no JSON"))?;
                // An error may end a stream.
                if event["error"]["message"].is_null() {
                    fits(&event)?;
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
