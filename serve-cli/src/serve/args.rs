//! The flags of `wootz serve`.
use super::config::ModelFlags;
use super::limits::Limits;
use crate::parse;
use anyhow::{Result, ensure};
use axum::http::HeaderValue;
use clap::Args;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `wootz serve`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    wootz serve                                       the model in the binary on http://127.0.0.1:8000\n  \
    wootz serve Qwen/Qwen3-0.6B --served-model-name qwen gpt-4o\n  \
    wootz serve ./Llama-3.1-8B-Instruct --host 0.0.0.0 --api-key SECRET\n  \
    wootz serve --config wootz.toml                   several models, versions and their shares\n\n\
    Ask it as you would ask OpenAI:\n  \
    curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\\n    \
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"What is 12 plus 7?\"}]}'\n\n\
    SIGTERM or Ctrl-C: running answers end, then the process; a second one ends it at once.")]
pub struct ServeArgs {
    /// Model directories, or names on Hugging Face's hub (ORG/NAME, ORG/NAME@REVISION); by default tiny-chat
    #[arg(value_name = "MODEL", conflicts_with = "config")]
    pub models: Vec<PathBuf>,
    /// Models, versions and their shares of the requests, as a TOML file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What requests call the model; the first name is what answers say
    #[arg(long, value_name = "NAME", num_args = 1.., conflicts_with = "config")]
    pub served_model_name: Vec<String>,
    /// Address to listen on; 0.0.0.0 is all of them
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", value_parser = host)]
    pub host: IpAddr,
    /// Port to listen on; 0 is any free one
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// A key that requests must have (repeatable) [default: WOOTZ_API_KEY, if set]; /health, /metrics, /version and
    /// /openapi.json need none
    #[arg(long, value_name = "KEY", value_parser = key)]
    pub api_key: Vec<String>,
    /// Whose pages may ask from a browser: origins such as https://chat.example.com, or * for all
    #[arg(long, value_name = "ORIGIN,…", value_delimiter = ',', value_parser = origin)]
    pub allowed_origins: Vec<HeaderValue>,
    /// Load and unload models at /admin/models while serving; without --api-key on a loopback address only
    #[arg(long)]
    pub admin: bool,
    /// Most requests that wait for each model; more are refused with 429
    #[arg(long, value_name = "N", default_value = "1024", value_parser = parse::count_in(0..=1_000_000))]
    pub max_queued: usize,
    /// Largest body of a request
    #[arg(long, value_name = "BYTES", default_value = "32MiB", value_parser = parse::memory)]
    pub max_body_size: u64,
    /// Most connections at once; more are told 503, except probes and scrapers
    #[arg(long, value_name = "N", default_value = "4096", value_parser = parse::count_in(1..=1_000_000))]
    pub max_connections: usize,
    /// Seconds that a client may say nothing, between two requests, in a request's head, in its body, or read nothing
    #[arg(long, value_name = "SECONDS", default_value = "75", value_parser = some_seconds)]
    pub client_timeout: Duration,
    /// Seconds of silence after which a stream has a comment, which keeps proxies from closing it
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = some_seconds)]
    pub sse_keep_alive: Duration,
    /// Seconds that running answers have to end after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub shutdown_timeout: Duration,
    /// Seconds after which a step hangs and /health is 503
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    pub step_timeout: Duration,
    /// No line on stderr for each request
    #[arg(long)]
    pub no_access_log: bool,
    /// For tests: every engine fails after so many steps
    #[arg(long, value_name = "N", hide = true)]
    pub fault_after_steps: Option<u64>,
    #[command(flatten)]
    pub model: ModelFlags,
}

impl ServeArgs {
    /// What stands before every handler.
    pub fn limits(&self) -> Result<Limits> {
        let mut api_keys = self.api_key.clone();
        if let (true, Some(value)) =
            (api_keys.is_empty(), std::env::var_os("WOOTZ_API_KEY").filter(|it| !it.is_empty()))
        {
            let value = value.to_string_lossy();
            api_keys.push(key(&value).map_err(|problem| anyhow::anyhow!("WOOTZ_API_KEY: {problem}"))?);
        }
        ensure!(
            !self.admin || !api_keys.is_empty() || self.host.is_loopback(),
            "--admin on {} would let everybody load models: add --api-key, or listen on 127.0.0.1",
            self.host
        );
        Ok(Limits {
            api_keys,
            allowed_origins: self.allowed_origins.clone(),
            max_body: self.max_body_size as usize,
            client_timeout: self.client_timeout,
            sse_keep_alive: self.sse_keep_alive,
            step_timeout: self.step_timeout,
            access_log: !self.no_access_log,
            admin: self.admin,
        })
    }
}

fn host(text: &str) -> Result<IpAddr, String> {
    let text = if text == "localhost" { "127.0.0.1" } else { text };
    text.parse().map_err(|_| "expected an IP address, such as 0.0.0.0, or localhost".into())
}

fn origin(text: &str) -> Result<HeaderValue, String> {
    // As browsers write it: without a path.
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let is_origin = text == "*" || host.is_some_and(|host| !host.is_empty() && !host.contains(['/', ' ']));
    let value = HeaderValue::from_str(text).ok().filter(|_| is_origin);
    value.ok_or_else(|| "expected an origin, such as https://chat.example.com, or *".into())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected seconds, such as 30".to_owned())?;
    if (0.0..=1e6).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("must be from 0 to 1000000".into())
    }
}

/// Not none at all.
fn some_seconds(text: &str) -> Result<Duration, String> {
    seconds(text).and_then(|time| if time.is_zero() { Err("must be more than 0".into()) } else { Ok(time) })
}

/// A key that a header can hold.
fn key(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("a key has at least one character, all of them visible ASCII".into())
    }
}
