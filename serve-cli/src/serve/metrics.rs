//! `/metrics`: what Prometheus scrapes, with vLLM's names and meanings under the prefix `wootz_`.
//!
//! Counts of tokens, pages and drafts are the scheduler's own, read at each scrape; times come from requests
//! ([`Metrics::request`]).
use super::registry::Registry as Models;
use super::state::AppState;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::get};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Model {
    model_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Finished {
    model_name: String,
    finished_reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Position {
    model_name: String,
    position: u32,
}

/// Upper ends of buckets.
#[derive(Clone, Copy, Debug)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

type Histograms = Family<Model, Histogram, Buckets>;

/// vLLM's, in seconds.
const TTFT: Buckets = Buckets(&[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
]);
/// vLLM's begin at 10 ms, which tells nothing of a fast GPU.
const ITL: Buckets = Buckets(&[
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0,
]);
/// vLLM's.
const E2E: Buckets = Buckets(&[
    0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
]);
/// vLLM's: 1, 2, 5 of each decade.
const TOKENS: Buckets =
    Buckets(&[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5]);

/// All metrics of the server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    series: Arc<Series>,
}

/// What requests report.
#[derive(Debug)]
struct Series {
    success: Family<Finished, Counter>,
    ttft: Histograms,
    itl: Histograms,
    tpot: Histograms,
    e2e: Histograms,
    queue: Histograms,
    prefill: Histograms,
    decode: Histograms,
    inference: Histograms,
    prompt: Histograms,
    generation: Histograms,
}

impl Metrics {
    /// For what `models` serves.
    pub fn new(models: &Arc<Models>) -> Self {
        let series = Series {
            success: Family::default(),
            ttft: Histograms::new_with_constructor(TTFT),
            itl: Histograms::new_with_constructor(ITL),
            tpot: Histograms::new_with_constructor(ITL),
            e2e: Histograms::new_with_constructor(E2E),
            queue: Histograms::new_with_constructor(TTFT),
            prefill: Histograms::new_with_constructor(TTFT),
            decode: Histograms::new_with_constructor(E2E),
            inference: Histograms::new_with_constructor(E2E),
            prompt: Histograms::new_with_constructor(TOKENS),
            generation: Histograms::new_with_constructor(TOKENS),
        };
        let mut registry = Registry::with_prefix("wootz");
        let mut histogram = |name: &str, help: &str, family: &Histograms| registry.register(name, help, family.clone());
        histogram("time_to_first_token_seconds", "From the request's arrival to its first token", &series.ttft);
        histogram("inter_token_latency_seconds", "Between two tokens of an answer", &series.itl);
        histogram(
            "request_time_per_output_token_seconds",
            "Of a request: after its first token, per token",
            &series.tpot,
        );
        histogram("e2e_request_latency_seconds", "From the request's arrival to its end", &series.e2e);
        let help = "From the request's arrival to the planning of its first step";
        histogram("request_queue_time_seconds", help, &series.queue);
        histogram("request_prefill_time_seconds", "From its first step's planning to its first token", &series.prefill);
        histogram("request_inference_time_seconds", "From its first step's planning to its end", &series.inference);
        histogram("request_decode_time_seconds", "From the request's first token to its last", &series.decode);
        histogram("request_prompt_tokens", "Tokens of a request's prompt", &series.prompt);
        histogram("request_generation_tokens", "Tokens of a request's answers", &series.generation);
        registry.register("request_success", "Requests that have ended, by why", series.success.clone());
        registry.register_collector(Box::new(Engines(models.clone())));
        Metrics { registry, series: Arc::new(series) }
    }

    /// A request that begins now. Tell it of tokens and of the end; dropped before that it counts as aborted.
    pub fn request(&self, model: &str, prompt_tokens: usize) -> RequestMetrics {
        let label = Model { model_name: model.to_owned() };
        RequestMetrics {
            series: self.series.clone(),
            label,
            prompt_tokens,
            start: Instant::now(),
            scheduled: None,
            first: None,
            last: Vec::new(),
            tokens: 0,
            finished: false,
        }
    }

    /// OpenMetrics' text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string fails only if a metric's own encoding does: then what there is has to do.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

/// What one request tells of itself.
#[derive(Debug)]
pub struct RequestMetrics {
    series: Arc<Series>,
    label: Model,
    prompt_tokens: usize,
    start: Instant,
    scheduled: Option<Instant>,
    first: Option<Instant>,
    /// Of each answer.
    last: Vec<Option<Instant>>,
    tokens: usize,
    finished: bool,
}

impl RequestMetrics {
    /// The request began earlier than [`Metrics::request`] was called.
    pub fn started(&mut self, at: Instant) {
        self.start = at;
    }

    /// The first step of the request, or of the first of its prompts, was planned.
    pub fn scheduled(&mut self, at: Instant) {
        if self.scheduled.is_none() {
            self.scheduled = Some(at);
            observe(&self.series.queue, &self.label, at.saturating_duration_since(self.start));
        }
    }

    /// A token of one of the answers, and when the engine had it.
    pub fn answer_token(&mut self, index: usize, at: Instant) {
        if self.last.len() <= index {
            self.last.resize(index + 1, None);
        }
        self.tokens += 1;
        if self.first.is_none() {
            self.first = Some(at);
            observe(&self.series.ttft, &self.label, at.saturating_duration_since(self.start));
            if let Some(scheduled) = self.scheduled {
                observe(&self.series.prefill, &self.label, at.saturating_duration_since(scheduled));
            }
        }
        if let Some(last) = self.last[index].replace(at) {
            observe(&self.series.itl, &self.label, at.saturating_duration_since(last));
        }
    }

    /// The request's end: `stop`, `length`, `tool_calls`, `error`…
    pub fn finish(mut self, reason: &str) {
        self.end(reason);
    }

    fn end(&mut self, reason: &str) {
        self.finished = true;
        let (series, label) = (&self.series, &self.label);
        let finished = Finished { model_name: label.model_name.clone(), finished_reason: reason.to_owned() };
        series.success.get_or_create(&finished).inc();
        observe(&series.e2e, label, self.start.elapsed());
        if let Some(scheduled) = self.scheduled {
            observe(&series.inference, label, scheduled.elapsed());
        }
        series.prompt.get_or_create(label).observe(self.prompt_tokens as f64);
        series.generation.get_or_create(label).observe(self.tokens as f64);
        // Answers of a request run side by side: per token of one of them.
        let answers = self.last.iter().flatten().count();
        let end = self.last.iter().flatten().max();
        if let (Some(first), Some(end)) = (self.first, end) {
            let time = end.saturating_duration_since(first);
            observe(&series.decode, label, time);
            if self.tokens > answers {
                let gaps = (self.tokens - answers) as f64 / answers as f64;
                series.tpot.get_or_create(label).observe(time.as_secs_f64() / gaps);
            }
        }
    }
}

impl Drop for RequestMetrics {
    fn drop(&mut self) {
        if !self.finished {
            self.end("abort");
        }
    }
}

fn observe(family: &Histograms, label: &Model, time: Duration) {
    family.get_or_create(label).observe(time.as_secs_f64());
}

/// The schedulers' counts, read when somebody asks.
#[derive(Debug)]
struct Engines(Arc<Models>);

/// The scheduler's counts of each model.
type Counts = Vec<(Model, engine::scheduler::SchedulerMetrics)>;

impl Collector for Engines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counts: Counts =
            self.0.served().iter().map(|it| (Model { model_name: it.id.clone() }, it.llm.handle().metrics())).collect();
        let encoder = &mut encoder;
        gauge(encoder, &counts, "num_requests_running", "Sequences that run", |m| m.running as f64)?;
        gauge(encoder, &counts, "num_requests_waiting", "Requests and preempted sequences that wait", |m| {
            m.waiting as f64
        })?;
        gauge(
            encoder,
            &counts,
            "kv_cache_usage_perc",
            "Share of the KV cache's pages that sequences hold, 0 to 1",
            |m| m.used_pages as f64 / m.pages.max(1) as f64,
        )?;
        counter(encoder, &counts, "prefix_cache_queries", "Prompt tokens looked up in the prefix cache", |m| {
            m.prefix_queries
        })?;
        counter(encoder, &counts, "prefix_cache_hits", "Of these, tokens that were found", |m| m.prefix_hits)?;
        counter(encoder, &counts, "prompt_tokens", "Prompt tokens, computed or found in the prefix cache", |m| {
            m.prompt_tokens + m.prefix_hits
        })?;
        counter(encoder, &counts, "generation_tokens", "Tokens that were generated", |m| m.generated_tokens)?;
        counter(encoder, &counts, "num_preemptions", "Sequences that lost their pages and started over", |m| {
            m.preemptions
        })?;
        drafts(encoder, &counts)
    }
}

fn drafts(encoder: &mut DescriptorEncoder<'_>, counts: &Counts) -> Result<(), std::fmt::Error> {
    let sum = |of: &[u64]| of.iter().sum();
    counter(encoder, counts, "spec_decode_num_drafts", "Steps that checked drafts", |m| m.drafted[0])?;
    counter(encoder, counts, "spec_decode_num_draft_tokens", "Tokens that were drafted", |m| sum(&m.drafted))?;
    counter(encoder, counts, "spec_decode_num_accepted_tokens", "Drafted tokens that were accepted", |m| {
        sum(&m.accepted)
    })?;
    let help = "Drafted tokens that were accepted, by their place in the draft";
    let metric = ConstCounter::new(0u64);
    let mut family =
        encoder.encode_descriptor("spec_decode_num_accepted_tokens_per_pos", help, None, metric.metric_type())?;
    for (model, m) in counts {
        for (position, accepted) in m.accepted.iter().enumerate().filter(|(at, _)| m.drafted[*at] > 0) {
            let label = Position { model_name: model.model_name.clone(), position: position as u32 };
            ConstCounter::new(*accepted).encode(family.encode_family(&label)?)?;
        }
    }
    Ok(())
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    counts: &Counts,
    name: &str,
    help: &str,
    value: impl Fn(&engine::scheduler::SchedulerMetrics) -> f64,
) -> Result<(), std::fmt::Error> {
    let metric = ConstGauge::new(0.0);
    let mut family = encoder.encode_descriptor(name, help, None, metric.metric_type())?;
    counts.iter().try_for_each(|(model, m)| ConstGauge::new(value(m)).encode(family.encode_family(model)?))
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    counts: &Counts,
    name: &str,
    help: &str,
    value: impl Fn(&engine::scheduler::SchedulerMetrics) -> u64,
) -> Result<(), std::fmt::Error> {
    let metric = ConstCounter::new(0u64);
    let mut family = encoder.encode_descriptor(name, help, None, metric.metric_type())?;
    counts.iter().try_for_each(|(model, m)| ConstCounter::new(value(m)).encode(family.encode_family(model)?))
}

/// `GET /metrics`.
pub fn routes() -> Router<AppState> {
    Router::new().route("/metrics", get(metrics))
}

/// Counts, gauges and histograms for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "Operation", responses(
    (status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text"),
))]
pub async fn metrics(State(state): State<AppState>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], state.metrics().text()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_their_ends() {
        let metrics = Metrics::new(&Arc::default());
        let start = Instant::now();
        let mut whole = metrics.request("m", 7);
        whole.started(start);
        whole.scheduled(start + Duration::from_millis(4));
        whole.scheduled(start + Duration::from_millis(7));
        for i in 1..=3 {
            whole.answer_token(0, start + Duration::from_millis(10 * i));
        }
        whole.finish("stop");
        drop(metrics.request("m", 1));
        let text = metrics.text();
        let has = |line: &str| assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        has("wootz_request_queue_time_seconds_sum{model_name=\"m\"} 0.004");
        has("wootz_request_prefill_time_seconds_sum{model_name=\"m\"} 0.006");
        has("wootz_request_success_total{model_name=\"m\",finished_reason=\"stop\"} 1");
        has("wootz_request_success_total{model_name=\"m\",finished_reason=\"abort\"} 1");
        has("wootz_inter_token_latency_seconds_count{model_name=\"m\"} 2");
        // From 10 ms to 30 ms after the start; the request that was dropped had no token.
        has("wootz_request_decode_time_seconds_count{model_name=\"m\"} 1");
        has("wootz_request_decode_time_seconds_sum{model_name=\"m\"} 0.02");
        has("wootz_time_to_first_token_seconds_bucket{le=\"0.01\",model_name=\"m\"} 1");
        has("wootz_request_prompt_tokens_sum{model_name=\"m\"} 8.0");
        has("wootz_request_generation_tokens_sum{model_name=\"m\"} 3.0");
    }
}
