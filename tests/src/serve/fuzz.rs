//! Every operation of the OpenAPI document, asked with bodies that fit their schema and with bodies that nearly do: the
//! server never fails, and every answer is one that the document promises.
use super::client::{Answer, Connection, Server};
use super::schema::{Document, Random, damage};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// Clients at once.
const CLIENTS: u64 = 8;
/// Requests of each client to each operation.
const REQUESTS: usize = 40;

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
    let operations = operations(&document)?;
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

/// All that can be asked without changing what is served.
fn operations(document: &Document) -> Result<Vec<Operation<'_>>> {
    let paths = document.0["paths"].as_object().context("paths")?;
    let mut operations = Vec::new();
    for (path, methods) in paths.iter().filter(|(path, _)| !path.starts_with("/admin")) {
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
