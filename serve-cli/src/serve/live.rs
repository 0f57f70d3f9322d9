//! `GET /live`: a model's engine at this moment, for the page. Asked for a few times per second.
use super::error::{ApiError, ErrorBody};
use super::state::AppState;
use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use engine::scheduler::{Cell, CellRun, SequenceView, Snapshot};
use engine::worker::{Latencies, LatencyHistogram};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// The routes.
pub fn routes() -> Router<AppState> {
    Router::new().route("/live", get(live))
}

/// Which engine.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LiveQuery {
    /// The model; may be left out where there is one.
    model: Option<String>,
}

/// An engine at one moment.
#[derive(Serialize, ToSchema)]
pub struct Live {
    /// The model.
    model: String,
    /// Sequences that run.
    running: usize,
    /// Requests and preempted sequences that wait.
    waiting: usize,
    /// Tokens since the start.
    tokens: Tokens,
    /// Tokens of prompts that were looked for in the cache since the start.
    prefix: Prefix,
    /// The KV cache.
    pages: Pages,
    /// Sequences in the order of service, the first 256.
    sequences: Vec<Sequence>,
    /// How long clients have waited for tokens, since the start.
    latency: Latency,
}

/// Tokens since the start.
#[derive(Serialize, ToSchema)]
struct Tokens {
    /// Of prompts, computed.
    prompt: u64,
    /// Of answers.
    generated: u64,
}

/// Tokens of prompts that were looked for in the cache.
#[derive(Serialize, ToSchema)]
struct Prefix {
    /// Looked for.
    queries: u64,
    /// Found.
    hits: u64,
}

/// The KV cache.
#[derive(Serialize, ToSchema)]
struct Pages {
    /// Pages in all.
    total: usize,
    /// Pages that sequences hold.
    used: usize,
    /// Pages kept for later prompts that nobody uses at present.
    cached: usize,
    /// Tokens of a page.
    tokens_per_page: usize,
    /// Pages that one cell of `map` stands for.
    per_cell: usize,
    /// Runs of cells in the order of the pages' numbers: `[cells, kind, sequences, group]`. Kind is 0 free, 1 cached,
    /// 2 in use; pages of one group belong to prompts that start alike.
    map: Vec<[u32; 4]>,
}

/// One sequence.
#[derive(Serialize, ToSchema)]
struct Sequence {
    /// Which request: they are counted from 0.
    request: u64,
    /// Which of its answers.
    index: u32,
    /// Whether it runs; it waits otherwise.
    running: bool,
    /// Tokens of the prompt.
    prompt: usize,
    /// Tokens of prompt and answer so far.
    tokens: usize,
    /// Of these, computed.
    computed: usize,
    /// Most tokens of prompt and answer.
    total: usize,
    /// Pages that it holds.
    pages: usize,
    /// As in the map.
    #[schema(required)]
    group: Option<u32>,
}

/// Histograms.
#[derive(Serialize, ToSchema)]
struct Latency {
    /// Upper bounds of the buckets, in seconds; one more bucket holds what takes longer.
    bounds: Vec<f64>,
    /// From a request to its first token.
    first_token: Vec<u64>,
    /// From each token of an answer to the next.
    inter_token: Vec<u64>,
}

/// A model's engine at this moment.
#[utoipa::path(get, path = "/live", tag = "Engine", params(LiveQuery), responses(
    (status = 200, description = "The engine", body = Live),
    (status = "4XX", description = "No such model", body = ErrorBody),
    (status = "5XX", description = "The engine has ended", body = ErrorBody),
))]
pub async fn live(State(state): State<AppState>, Query(query): Query<LiveQuery>) -> Result<Json<Live>, ApiError> {
    let served = state.model(query.model.as_deref())?;
    let snapshot = served.llm.handle().snapshot().await?;
    Ok(Json(Live::new(served.id.clone(), snapshot.scheduler, &snapshot.latencies)))
}

impl Live {
    fn new(model: String, snapshot: Snapshot, latencies: &Latencies) -> Self {
        let metrics = snapshot.metrics;
        Live {
            model,
            running: metrics.running,
            waiting: metrics.waiting,
            tokens: Tokens { prompt: metrics.prompt_tokens, generated: metrics.generated_tokens },
            prefix: Prefix { queries: metrics.prefix_queries, hits: metrics.prefix_hits },
            pages: Pages {
                total: metrics.pages,
                used: metrics.used_pages,
                cached: metrics.cached_pages,
                tokens_per_page: snapshot.page_tokens,
                per_cell: snapshot.pages_per_cell,
                map: snapshot.map.into_iter().map(run).collect(),
            },
            sequences: snapshot.sequences.into_iter().map(Sequence::from).collect(),
            latency: Latency {
                bounds: LatencyHistogram::bounds().collect(),
                first_token: latencies.first_token.counts().to_vec(),
                inter_token: latencies.inter_token.counts().to_vec(),
            },
        }
    }
}

fn run(run: CellRun) -> [u32; 4] {
    match run.cell {
        Cell::Free => [run.cells, 0, 0, 0],
        Cell::Cached { group } => [run.cells, 1, 0, group],
        Cell::Used { refs, group } => [run.cells, 2, refs, group],
    }
}

impl From<SequenceView> for Sequence {
    fn from(view: SequenceView) -> Self {
        let SequenceView { request, index, running, prompt, tokens, computed, total, pages, group } = view;
        Sequence { request, index, running, prompt, tokens, computed, total, pages, group }
    }
}
