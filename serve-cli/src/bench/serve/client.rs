//! Requests to a server with OpenAI's API over HTTP, and when the pieces of their answers came.
use anyhow::{Context, Result, anyhow, bail, ensure};
use axum::body::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::{Method, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::Write;
use std::time::{Duration, Instant};

use super::Backend;
use super::dataset::Ask;

/// How often a server that is not ready is asked again.
const READY_POLL: Duration = Duration::from_millis(250);

/// A server, and how it is asked. Connections are kept and shared among requests.
pub struct Target {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
    endpoint: String,
    api_key: Option<String>,
    backend: Backend,
    /// The model's name.
    pub model: String,
    /// Whether answers go on after end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Fields of every request's body.
    pub extra: serde_json::Map<String, Value>,
}

/// What became of one request; times in seconds since it was sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Tokens of the prompt, by the server's count where it tells.
    pub input: usize,
    /// Tokens of the answer, by the server's count where it tells, else pieces.
    pub output: usize,
    /// When each piece came.
    pub pieces: Vec<f64>,
    /// Why there is no answer.
    pub error: Option<String>,
}

impl Target {
    /// For the server at `base`, such as `http://127.0.0.1:8000`.
    ///
    /// # Errors
    /// It is no address of HTTP without TLS.
    pub fn new(base: &str, endpoint: &str, api_key: Option<String>, backend: Backend) -> Result<Self> {
        let uri: Uri = base.parse().with_context(|| format!("--base-url {base} is no address"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => bail!(
                "--base-url {base}: bench serve speaks HTTP without TLS only, whose cost would be measured with the \
                 server's; name the server behind the proxy, such as http://127.0.0.1:8000"
            ),
            _ => bail!("--base-url {base} must begin with http://"),
        }
        ensure!(endpoint.starts_with('/'), "--endpoint {endpoint} must begin with /");
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        // As OpenAI's clients write it.
        let base = base.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).to_owned();
        let (model, endpoint, extra) = (String::new(), endpoint.to_owned(), serde_json::Map::new());
        Ok(Target { client, base, endpoint, api_key, backend, model, ignore_eos: false, extra })
    }

    fn request(&self, method: Method, path: &str, body: Vec<u8>) -> Result<hyper::Request<Full<Bytes>>> {
        let mut request = hyper::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(CONTENT_TYPE, "application/json");
        if let Some(key) = &self.api_key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        Ok(request.body(Full::new(body.into()))?)
    }

    /// Waits until `/health` is 200; servers without one are ready when they answer.
    ///
    /// # Errors
    /// They are not within `patience`.
    pub async fn ready(&self, patience: Duration) -> Result<()> {
        let (start, mut told) = (Instant::now(), false);
        loop {
            let problem = match self.client.request(self.request(Method::GET, "/health", Vec::new())?).await {
                Ok(answer) if answer.status().is_success() || answer.status() == StatusCode::NOT_FOUND => return Ok(()),
                Ok(answer) => format!("/health says {}", answer.status()),
                Err(error) => chain(&error),
            };
            if !std::mem::replace(&mut told, true) && !patience.is_zero() {
                let _ = writeln!(std::io::stderr(), "Waiting for {}: {problem}", self.base);
            }
            if start.elapsed() >= patience {
                bail!(
                    "{} is not ready after {} s: {problem}; start it with `wootz serve`, or raise \
                     --ready-check-timeout-sec",
                    self.base,
                    patience.as_secs()
                );
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// The first model that the server has.
    ///
    /// # Errors
    /// It lists none.
    pub async fn first_model(&self) -> Result<String> {
        let answer = self.client.request(self.request(Method::GET, "/v1/models", Vec::new())?).await?;
        let (status, body) = (answer.status(), answer.into_body().collect().await?.to_bytes());
        let list: Value = serde_json::from_slice(&body).unwrap_or_default();
        let first = list["data"][0]["id"].as_str().map(str::to_owned);
        first.ok_or_else(|| anyhow!("{}/v1/models lists no model ({status}): name one with --model", self.base))
    }

    fn body(&self, ask: &Ask) -> Vec<u8> {
        let mut body = json!({
            "model": self.model,
            "temperature": 0.0,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        match self.backend {
            Backend::Openai => {
                body["prompt"] = json!(ask.prompt);
                body["max_tokens"] = json!(ask.output);
            }
            Backend::OpenaiChat => {
                body["messages"] = json!([{ "role": "user", "content": ask.text() }]);
                body["max_completion_tokens"] = json!(ask.output);
            }
        }
        if self.ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        for (key, value) in &self.extra {
            body[key] = value.clone();
        }
        body.to_string().into_bytes()
    }

    /// Sends a request and reads its answer to the end.
    pub async fn ask(&self, ask: &Ask) -> Outcome {
        let mut outcome = Outcome { input: ask.prompt.len(), ..Outcome::default() };
        if let Err(error) = self.read(ask, &mut outcome).await {
            outcome.error = Some(format!("{error:#}"));
        }
        outcome
    }

    async fn read(&self, ask: &Ask, outcome: &mut Outcome) -> Result<()> {
        let request = self.request(Method::POST, &self.endpoint, self.body(ask))?;
        outcome.pieces.reserve(ask.output);
        let start = Instant::now();
        let answer = self.client.request(request).await.map_err(|error| anyhow!("{}", chain(&error)))?;
        let status = answer.status();
        let mut body = answer.into_body();
        if !status.is_success() {
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let value: Value = serde_json::from_slice(&body).unwrap_or_default();
            let message = value["error"]["message"].as_str().map(str::to_owned);
            bail!("{status}: {}", message.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned()));
        }
        let mut events = Events::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| anyhow!("the stream broke off: {}", chain(&error)))?;
            let Some(bytes) = frame.data_ref() else { continue };
            events.push(bytes, start.elapsed().as_secs_f64(), outcome)?;
        }
        ensure!(events.done, "the stream broke off after {} pieces, without [DONE]", outcome.pieces.len());
        Ok(())
    }
}

/// An error with its causes, which `hyper` does not show.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Server-sent events as they come in, cut anywhere.
#[derive(Default)]
pub struct Events {
    rest: Vec<u8>,
    /// `[DONE]` has come.
    pub done: bool,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    delta: Option<Delta>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: usize,
    #[serde(default)]
    completion_tokens: usize,
}

impl Choice {
    fn has_text(&self) -> bool {
        let delta = self.delta.as_ref();
        let texts = [
            self.text.as_deref(),
            delta.and_then(|delta| delta.content.as_deref()),
            delta.and_then(|delta| delta.reasoning_content.as_deref()),
        ];
        texts.into_iter().flatten().any(|text| !text.is_empty())
    }
}

impl Events {
    /// Bytes that came at `now`.
    ///
    /// # Errors
    /// An event is no JSON, or the server's own error.
    pub fn push(&mut self, bytes: &[u8], now: f64, outcome: &mut Outcome) -> Result<()> {
        self.rest.extend_from_slice(bytes);
        let mut from = 0;
        while let Some(length) = self.rest[from..].iter().position(|byte| *byte == b'\n') {
            let line = &self.rest[from..from + length];
            from += length + 1;
            let Some(data) = line.strip_prefix(b"data:") else { continue };
            let data = data.trim_ascii();
            if data == b"[DONE]" {
                self.done = true;
                continue;
            }
            let chunk: Chunk = serde_json::from_slice(data)
                .with_context(|| format!("an event is no chunk of OpenAI's: {}", String::from_utf8_lossy(data)))?;
            if let Some(error) = chunk.error {
                bail!("{}", error["message"].as_str().unwrap_or("an error without a message"));
            }
            if chunk.choices.iter().any(Choice::has_text) {
                outcome.pieces.push(now);
                outcome.output += 1;
            }
            if let Some(usage) = chunk.usage {
                (outcome.input, outcome.output) = (usage.prompt_tokens, usage.completion_tokens);
            }
        }
        self.rest.drain(..from);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n: a comment\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\r\n\r\n\
        data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"stop\"}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n";

    #[test]
    fn events_may_be_cut_anywhere() {
        for size in [1, 2, 7, 64, STREAM.len()] {
            let (mut events, mut outcome) = (Events::default(), Outcome::default());
            for (i, bytes) in STREAM.as_bytes().chunks(size).enumerate() {
                events.push(bytes, i as f64, &mut outcome).unwrap();
            }
            assert!(events.done);
            assert_eq!((outcome.pieces.len(), outcome.input, outcome.output), (2, 7, 3), "{size}");
        }
    }

    #[test]
    fn errors_in_a_stream_are_the_requests() {
        let (mut events, mut outcome) = (Events::default(), Outcome::default());
        let error = events.push(b"data: {\"error\":{\"message\":\"a fault\"}}\n", 0.0, &mut outcome).unwrap_err();
        assert_eq!(error.to_string(), "a fault");
        assert!(events.push(b"data: {nonsense\n", 0.0, &mut outcome).is_err());
    }

    #[test]
    fn tls_is_refused_with_a_reason() {
        let of = |base: &str| Target::new(base, "/v1/completions", None, Backend::Openai).err().map(|e| e.to_string());
        assert_eq!(of("http://127.0.0.1:8000/"), None);
        assert!(of("https://example.com").unwrap().contains("without TLS"));
        assert!(of("127.0.0.1:8000").unwrap().contains("http://"));
    }
}
