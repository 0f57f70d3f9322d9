//! The whole command against small servers of the tests' own.
use super::*;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::{get, post};
use clap::Parser;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: ServeBenchArgs,
}

/// Parsed flags.
pub fn args(flags: &[&str]) -> ServeBenchArgs {
    Command::try_parse_from(std::iter::once("bench").chain(flags.iter().copied())).unwrap().args
}

/// Answers with `max_tokens` pieces; every request whose number is a multiple of `breaks` breaks off without an end.
async fn server(breaks: usize) -> (String, Arc<AtomicUsize>) {
    let (now, most, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
    let seen = most.clone();
    let complete = async move |body: Bytes| {
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let broken = breaks > 0 && asked.fetch_add(1, Ordering::SeqCst) % breaks == breaks - 1;
        let body: Value = serde_json::from_slice(&body).unwrap();
        let (tokens, prompt) = (body["max_tokens"].as_u64().unwrap(), body["prompt"].as_array().unwrap().len());
        let now = now.clone();
        let pieces = (0..=tokens).map(move |i| {
            if i < tokens {
                return format!("data: {{\"choices\":[{{\"text\":\"t{i} \",\"finish_reason\":null}}]}}\n\n");
            }
            now.fetch_sub(1, Ordering::SeqCst);
            let usage = json!({ "choices": [], "usage": { "prompt_tokens": prompt, "completion_tokens": tokens } });
            if broken { String::new() } else { format!("data: {usage}\n\ndata: [DONE]\n\n") }
        });
        let stream = futures_util::stream::unfold(pieces, async |mut pieces| {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Some((Ok::<_, Infallible>(Bytes::from(pieces.next()?)), pieces))
        });
        Body::from_stream(stream)
    };
    let complete = Arc::new(complete);
    let models = json!({ "data": [{ "id": "a model" }] });
    let app = Router::new()
        .route("/health", get(async || "ok"))
        .route("/v1/models", get(async move || models.to_string()))
        .route(
            "/v1/completions",
            post(move |body: Bytes| {
                let complete = complete.clone();
                async move { complete(body).await }
            }),
        );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, seen)
}

fn quiet() -> Terminal {
    Terminal { stdin: false, stdout: false, stderr: false, colour: false }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn a_sweep_keeps_its_concurrency_and_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (json, svg) = (dir.path().join("r.json"), dir.path().join("r.svg"));
    runtime().block_on(async {
        let (url, seen) = server(0).await;
        let args = args(&[
            "--base-url",
            &url,
            "--random-input-len",
            "9",
            "--random-output-len",
            "4",
            "--num-prompts",
            "12",
            "--sweep",
            "1,3",
            "--plot",
            svg.to_str().unwrap(),
            "--output-json",
            json.to_str().unwrap(),
            "--save-detailed",
            "--goodput",
            "ttft:60000",
            "e2el:60000",
        ]);
        measure(&args, &args.levels().unwrap(), &quiet()).await.unwrap();
        assert_eq!(seen.load(Ordering::SeqCst), 3);
    });
    let value: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    for result in value["results"].as_array().unwrap() {
        assert_eq!((&result["completed"], &result["failed"]), (&json!(12), &json!(0)));
        assert_eq!((&result["total_input_tokens"], &result["total_output_tokens"]), (&json!(108), &json!(48)));
        assert_eq!(result["request_goodput"], result["request_throughput"]);
        assert_eq!((&result["model_id"], result["ttfts"].as_array().unwrap().len()), (&json!("a model"), 12));
    }
    assert!(std::fs::read_to_string(svg).unwrap().contains("3: p99"));
}

#[test]
fn broken_streams_are_counted_and_not_timed() {
    runtime().block_on(async {
        let (url, _) = server(3).await;
        let flags = [
            "--base-url",
            &url,
            "--random-input-len",
            "2",
            "--random-output-len",
            "3",
            "--num-prompts",
            "9",
            "--num-warmups",
            "0",
        ];
        let args = args(&flags);
        let target = Arc::new(args.target().await.unwrap());
        let (_, level) = args.levels().unwrap()[0].clone();
        let run = one(&args, &target, dataset::asks(&args, 0), &level, &Progress::new(&quiet(), "")).await.unwrap();
        let metrics = Metrics::of(&run, args.goals());
        assert_eq!((metrics.completed, metrics.failed), (6, 3));
        let error = run.sent.iter().find_map(|sent| sent.outcome.error.clone()).unwrap();
        assert!(error.contains("broke off after 3 pieces"), "{error}");
    });
}

#[test]
fn a_server_that_is_not_there() {
    runtime().block_on(async {
        // Taken and let go: nobody listens there.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let args = args(&["--base-url", &url, "--ready-check-timeout-sec", "0"]);
        let error = args.target().await.err().unwrap().to_string();
        assert!(error.contains("is not ready") && error.contains("wootz serve"), "{error}");
    });
}

#[test]
fn flags_that_cannot_be() {
    for flags in [
        &["--goodput", "itl:5"] as &[&str],
        &["--goodput", "ttft"],
        &["--request-rate", "0"],
        &["--metric-percentiles", "101"],
        &["--percentile-metrics", "ttfb"],
        &["--extra-body", "[]"],
        &["--base-url", "http://a", "--port", "1"],
    ] {
        assert!(Command::try_parse_from(std::iter::once("bench").chain(flags.iter().copied())).is_err(), "{flags:?}");
    }
    assert!(args(&["--sweep", "1.5,2"]).levels().is_err());
    assert_eq!(args(&["--sweep", "1.5,2", "--sweep-over", "rate"]).levels().unwrap()[0].1.rate, 1.5);
}
