//! Routes and what stands before them, without sockets.
use super::admin::Admin;
use super::app::app;
use super::config::ModelFlags;
use super::limits::Limits;
use super::startup::Loader;
use super::state::AppState;
use crate::terminal::Terminal;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request};
use clap::Parser;
use serde_json::{Value, json};
use std::time::Duration;
use tower::ServiceExt;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    flags: ModelFlags,
}

fn admin(max_queued: usize) -> Admin {
    let terminal = Terminal { stdin: false, stdout: false, stderr: false, colour: false };
    let flags = Flags::parse_from(["flags", "--device", "cpu", "--kv-cache-tokens", "4K"]).flags;
    Admin { loader: Loader { max_queued, fault_after_steps: None, terminal }, flags }
}

/// A server with tiny-chat.
struct Server {
    state: AppState,
    admin: Admin,
}

impl Server {
    fn new(limits: Limits) -> Self {
        let (state, admin) = (AppState::new(limits), admin(8));
        let spec = super::config::LoadSpec {
            name: None,
            aliases: vec!["gpt-4o".into()],
            version: None,
            weight: 1,
            source: crate::model::ModelArgs { model: None },
            flags: admin.flags.clone(),
        };
        admin.loader.load(&state, &spec).unwrap();
        state.loaded();
        Server { state, admin }
    }

    async fn ask(&self, request: Request<Body>) -> (u16, HeaderMap, Value) {
        let response = app(&self.state, self.admin.clone()).oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, 1 << 24).await.unwrap();
        let json = serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into());
        (parts.status.as_u16(), parts.headers, json)
    }

    async fn get(&self, path: &str) -> (u16, HeaderMap, Value) {
        self.ask(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn post(&self, path: &str, body: Value) -> (u16, HeaderMap, Value) {
        let request = Request::post(path).header("content-type", "application/json");
        self.ask(request.body(body.to_string().into()).unwrap()).await
    }
}

fn chat(model: &str) -> Value {
    json!({ "model": model, "temperature": 0, "messages": [{ "role": "user", "content": "What is 12 plus 7?" }] })
}

/// All four fields of OpenAI's errors.
fn assert_shape(body: &Value) {
    let error = body["error"].as_object().unwrap_or_else(|| panic!("{body}"));
    assert!(["message", "type", "param", "code"].iter().all(|field| error.contains_key(*field)), "{body}");
    assert!(!error["message"].as_str().unwrap().is_empty(), "{body}");
}

#[tokio::test]
async fn every_refusal_has_openais_shape() {
    let server = Server::new(Limits { max_body: 1000, ..Limits::default() });
    let post = |path: &str, kind: &str, body: String| {
        Request::post(path).header("content-type", kind).body(Body::from(body)).unwrap()
    };
    let path = "/v1/chat/completions";
    for (status, request) in [
        (404, Request::get("/v2/nothing").body(Body::empty()).unwrap()),
        (405, Request::get(path).body(Body::empty()).unwrap()),
        (415, post(path, "text/plain", chat("tiny-chat").to_string())),
        (400, post(path, "application/json", "{".into())),
        (400, post(path, "application/json", json!({ "messages": 3 }).to_string())),
        (413, post(path, "application/json", " ".repeat(1001))),
        (404, post(path, "application/json", chat("nobody").to_string())),
        (403, Request::get("/admin/models").body(Body::empty()).unwrap()),
    ] {
        let asked = format!("{request:?}");
        let (found, headers, body) = server.ask(request).await;
        assert_eq!(found, status, "{asked}: {body}");
        assert_shape(&body);
        assert!(headers.contains_key("x-request-id"));
    }
    // As much as is promised, before it is sent.
    let huge = Request::post(path).header("content-length", "99999999999").body(Body::empty()).unwrap();
    assert_eq!(server.ask(huge).await.0, 413);
    let (status, _, body) = server.post(path, chat("gpt-4o")).await;
    assert_eq!((status, body["choices"][0]["message"]["content"].as_str()), (200, Some("19")), "{body}");
}

#[tokio::test]
async fn keys_are_asked_for_but_not_by_probes() {
    let server = Server::new(Limits { api_keys: vec!["secret".into()], admin: true, ..Limits::default() });
    for path in ["/health", "/metrics", "/version", "/openapi.json"] {
        assert_eq!(server.get(path).await.0, 200, "{path}");
    }
    for path in ["/v1/models", "/admin/models", "/live", "/nothing"] {
        let (status, headers, body) = server.get(path).await;
        assert_eq!(status, 401, "{path}");
        assert_eq!(headers["www-authenticate"], "Bearer");
        assert_shape(&body);
        let with = Request::get(path).header("authorization", "Bearer secret").body(Body::empty()).unwrap();
        assert_ne!(server.ask(with).await.0, 401, "{path}");
    }
}

#[tokio::test]
async fn head_tells_the_length_that_get_has() {
    let server = Server::new(Limits::default());
    let request = Request::head("/version").body(Body::empty()).unwrap();
    let (status, headers, body) = server.ask(request).await;
    let (_, _, whole) = server.get("/version").await;
    assert_eq!((status, body), (200, "".into()));
    assert_eq!(headers["content-length"], whole.to_string().len().to_string().as_str());
}

#[tokio::test]
async fn request_ids_come_back() {
    let server = Server::new(Limits::default());
    let with = Request::get("/version").header("x-request-id", "mine-7").body(Body::empty()).unwrap();
    assert_eq!(server.ask(with).await.1["x-request-id"], "mine-7");
    let ids = [server.get("/version").await.1, server.get("/version").await.1].map(|it| it["x-request-id"].clone());
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test]
async fn nothing_is_answered_before_loading_and_after_the_end() {
    let (state, admin) = (AppState::new(Limits::default()), admin(8));
    let loading = Server { state, admin };
    for server in [loading, Server::new(Limits::default())] {
        if server.state.phase() == super::state::Phase::Ready {
            assert_eq!(server.get("/health").await.2["status"], "ok");
            server.state.drain();
            assert_eq!(server.get("/health").await.2["status"], "draining");
        } else {
            assert_eq!(server.get("/health").await.2["status"], "loading");
        }
        assert_eq!(server.get("/health").await.0, 503);
        for path in ["/v1/models", "/v1/chat/completions"] {
            let (status, headers, body) = server.get(path).await;
            assert_eq!(status, 503, "{path}");
            assert!(headers.contains_key("retry-after"));
            assert_shape(&body);
        }
        assert_eq!(server.get("/version").await.0, 200);
    }
}

#[tokio::test]
async fn models_come_and_go() {
    let server = Server::new(Limits { admin: true, ..Limits::default() });
    for (version, weight) in [("a", 3), ("b", 1)] {
        let model =
            json!({ "name": "second", "version": version, "weight": weight, "engine": { "max-model-len": 256 } });
        let (status, _, body) = server.post("/admin/models/load", model).await;
        assert_eq!((status, &body["status"], &body["weight"]), (200, &json!("ready"), &json!(weight)), "{body}");
    }
    let names = server.get("/v1/models").await.2["data"].clone();
    let names: Vec<_> = names.as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["tiny-chat", "gpt-4o", "second", "second@a", "second@b"]);
    let mut answered = [0, 0];
    for _ in 0..8 {
        let (status, _, body) = server.post("/v1/chat/completions", chat("second")).await;
        assert_eq!(status, 200, "{body}");
        answered[usize::from(body["model"] == "second@b")] += 1;
    }
    assert!(answered[0] > answered[1] && answered[1] > 0, "{answered:?}");
    let weights = json!({ "model": "second", "weights": { "a": 0, "b": 1 } });
    assert_eq!(server.post("/admin/models/weights", weights).await.0, 200);
    assert_eq!(server.post("/v1/chat/completions", chat("second")).await.2["model"], "second@b");

    for wrong in [
        json!({ "name": "second", "version": "a" }),
        json!({ "name": "third", "path": "/nowhere/at/all" }),
        json!({ "name": "third", "engine": { "max-model-len": 1 << 30 } }),
        json!({ "name": "third", "engine": { "no-such-flag": 1 } }),
        json!({ "nam": "third" }),
    ] {
        let (status, _, body) = server.post("/admin/models/load", wrong.clone()).await;
        assert_eq!(status, 400, "{wrong}: {body}");
        assert_shape(&body);
    }
    let models = server.get("/admin/models").await.2;
    assert_eq!(models["models"].as_array().unwrap().len(), 3, "nothing is left of what failed: {models}");

    let (status, _, body) = server.post("/admin/models/unload", json!({ "model": "second@b" })).await;
    assert_eq!((status, &body["unloaded"]), (200, &json!("second@b")), "{body}");
    assert_eq!(server.post("/v1/chat/completions", chat("second@b")).await.0, 404);
    assert_eq!(server.post("/v1/chat/completions", chat("second")).await.2["model"], "second@a");
    assert_eq!(server.post("/admin/models/unload", json!({ "model": "second@b" })).await.0, 404);
}

/// Whatever an admin gets wrong is a refusal that says so, and nothing changes.
#[tokio::test]
async fn wrong_admin_requests_change_nothing() {
    let server = Server::new(Limits { admin: true, ..Limits::default() });
    let before = server.get("/admin/models").await.2;
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(1e300),
        json!(""),
        json!("\u{1f980}@\0"),
        json!("@"),
        json!([]),
        json!([{}]),
        json!({}),
        json!({ "": -1 }),
        json!({ "max-num-seqs": -1 }),
        json!({ "device": "\n" }),
    ];
    // A name that nobody has, so that no mistake names the model that is served.
    let fields: [(&str, Value, &[&str]); 3] = [
        (
            "load",
            json!({ "name": "x", "path": "./no/such/model" }),
            &["path", "name", "aliases", "version", "weight", "engine"],
        ),
        ("unload", json!({ "model": "x" }), &["model", "timeout"]),
        ("weights", json!({ "model": "x", "weights": { "a": 1 } }), &["model", "weights"]),
    ];
    for (endpoint, base, names) in fields {
        let path = format!("/admin/models/{endpoint}");
        let mut bodies: Vec<Value> = values.to_vec();
        for name in names {
            bodies.extend(values.iter().map(|value| {
                let mut body = base.clone();
                body[*name] = value.clone();
                body
            }));
        }
        for body in bodies {
            // Without a path it is tiny-chat that is loaded, and without versions there are no weights to change.
            let is_right = (endpoint == "load" && body.is_object() && body["path"].is_null())
                || (endpoint == "weights" && body["weights"] == json!({}));
            if is_right {
                continue;
            }
            let (status, _, answer) = server.post(&path, body.clone()).await;
            assert!((400..500).contains(&status), "{path} {body}: {status} {answer}");
            assert_shape(&answer);
        }
    }
    assert_eq!(server.get("/admin/models").await.2, before);
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let server = Server::new(Limits { admin: true, ..Limits::default() });
    let one = json!({ "name": "one", "engine": { "max-num-seqs": 1 } });
    assert_eq!(server.post("/admin/models/load", one).await.0, 200);
    // 1 runs, 8 wait.
    let served = server.state.model(Some("one")).unwrap();
    let endless = engine::SamplingParams { max_tokens: Some(400), ignore_eos: true, ..Default::default() };
    let open: Vec<_> = (0..9).map(|_| served.llm.generate("Wootz is", endless.clone()).unwrap()).collect();
    let (status, headers, body) = server.post("/v1/chat/completions", chat("one")).await;
    assert_eq!(status, 429, "{body}");
    assert_eq!(headers["retry-after"], "1");
    assert_shape(&body);
    drop(open);
    served.llm.handle().shutdown(Duration::from_secs(60)).unwrap();
}

/// An answer with a grammar that an unload cuts off is not the client's fault.
#[tokio::test]
async fn an_unload_is_no_bad_request() {
    let server = Server::new(Limits { admin: true, ..Limits::default() });
    assert_eq!(server.post("/admin/models/load", json!({ "name": "one" })).await.0, 200);
    let served = server.state.model(Some("one")).unwrap();
    let mut long = chat("one");
    long["structured_outputs"] = json!({ "regex": "(ab){900}" });
    let mut response = json!({ "model": "one", "input": "Say ab." });
    response["text"] =
        json!({ "format": { "type": "json_schema", "name": "ab", "schema": { "type": "string", "minLength": 1500 } } });
    let unload = async {
        while served.llm.handle().metrics().running < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.post("/admin/models/unload", json!({ "model": "one", "timeout": 0 })).await
    };
    let (chat, response, unloaded) =
        tokio::join!(server.post("/v1/chat/completions", long), server.post("/v1/responses", response), unload);
    assert_eq!(unloaded.0, 200, "{}", unloaded.2);
    for (status, headers, body) in [chat, response] {
        assert_eq!(status, 503, "{body}");
        assert!(headers.contains_key("retry-after"));
        assert_shape(&body);
    }
}

#[tokio::test]
async fn metrics_follow_a_request() {
    let server = Server::new(Limits::default());
    assert_eq!(server.post("/v1/chat/completions", chat("tiny-chat")).await.0, 200);
    let text = server.get("/metrics").await.2;
    let text = text.as_str().unwrap();
    let value = |series: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(series));
        line.unwrap_or_else(|| panic!("no {series} in\n{text}")).rsplit_once(' ').unwrap().1.parse().unwrap()
    };
    assert_eq!(value("wootz_request_success_total{model_name=\"tiny-chat\",finished_reason=\"stop\"}"), 1.0);
    assert_eq!(value("wootz_num_requests_running{model_name=\"tiny-chat\"}"), 0.0);
    assert_eq!(value("wootz_num_requests_waiting{model_name=\"tiny-chat\"}"), 0.0);
    assert_eq!(value("wootz_kv_cache_usage_perc{model_name=\"tiny-chat\"}"), 0.0);
    assert_eq!(value("wootz_time_to_first_token_seconds_count"), 1.0);
    assert_eq!(value("wootz_e2e_request_latency_seconds_count"), 1.0);
    assert!(value("wootz_prompt_tokens_total") > 5.0 && value("wootz_generation_tokens_total") >= 1.0);
    assert!(text.ends_with("# EOF\n"), "OpenMetrics ends so");
}

/// Every path of the document is there, and is what the document says.
#[tokio::test]
async fn the_openapi_document_lists_routes_that_are_there() {
    let server = Server::new(Limits { admin: true, ..Limits::default() });
    let (_, _, document) = server.get("/openapi.json").await;
    let paths = document["paths"].as_object().unwrap();
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/tokenize", "/health"] {
        assert!(paths.contains_key(path), "{path}");
    }
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys() {
            let concrete = path.replace("{model}", "tiny-chat");
            let other = if method == "get" { "DELETE" } else { "GET" };
            let request = Request::builder().method(other).uri(&concrete).body(Body::empty()).unwrap();
            assert_eq!(server.ask(request).await.0, 405, "{method} {path}");
        }
    }
}
