//! `/v1/responses`, without what needs a store: conversations are sent whole.
mod answering;
mod input;
mod object;
mod prepare;
mod writer;

use super::body::{Body, Read, fields};
use super::observe::observe;
use crate::serve::error::ApiError;
use crate::serve::state::{AppState, Served};
use answering::Answering;
use axum::extract::State;
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response as HttpResponse};
use axum::{Json, Router, routing::post};
use engine::SamplingParams;
use input::Problem;
use object::{Response, Status};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use utoipa::ToSchema;
use writer::Writer;

/// What is asked. Unknown fields are ignored.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ResponseRequest {
    /// The model.
    pub model: Option<String>,
    /// A text, or the items of a conversation: messages, function calls and their outputs.
    #[schema(value_type = ResponseInput)]
    pub input: Value,
    /// A system prompt.
    pub instructions: Option<String>,
    /// Whether events come as the answer grows.
    #[serde(default)]
    pub stream: Option<bool>,
    /// Most tokens of the answer.
    #[schema(minimum = 1)]
    pub max_output_tokens: Option<u64>,
    /// Divides the logits; 0 is greedy.
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f32>,
    /// Only the most likely tokens that together have this probability.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Likely tokens to report at each place; takes `include: ["message.output_text.logprobs"]`.
    #[schema(minimum = 0, maximum = 20)]
    pub top_logprobs: Option<u32>,
    /// Only `message.output_text.logprobs` does anything.
    pub include: Option<Vec<String>>,
    /// The form of the answer: `{"format": {"type": "text"}}`, `json_object`, or `json_schema` with a `schema`.
    #[schema(value_type = Option<Object>)]
    pub text: Option<Value>,
    /// Functions that the model may call.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Value>>,
    /// Which of them.
    #[schema(value_type = Option<Value>)]
    pub tool_choice: Option<Value>,
    /// Whether several may be called at once.
    pub parallel_tool_calls: Option<bool>,
    /// Accepted; this server stores nothing, and answers with `store: false`.
    #[allow(dead_code, reason = "known, and of no effect")]
    pub store: Option<bool>,
    /// Refused: nothing is stored.
    pub previous_response_id: Option<String>,
    /// Refused: nothing is stored.
    #[schema(value_type = Option<Value>)]
    pub conversation: Option<Value>,
    /// Refused if true: nothing is stored.
    pub background: Option<bool>,
    /// `disabled`: too long an input is an error.
    pub truncation: Option<String>,
    /// Given back.
    #[schema(value_type = Option<Object>)]
    pub reasoning: Option<Value>,
    /// Given back.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Given back.
    pub user: Option<String>,
}

/// The forms of an input, for the OpenAPI document: requests are read by hand, for errors that say where.
#[derive(Debug, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "a schema only")]
pub enum ResponseInput {
    /// A text.
    Text(String),
    /// Messages, function calls and their outputs.
    #[schema(value_type = Vec<Object>)]
    Items(Vec<Value>),
}

impl Read for ResponseRequest {
    fn read(body: &Value) -> Result<Self, ApiError> {
        fields(body)
    }
}

/// `POST /v1/responses`.
pub fn routes() -> Router<AppState> {
    Router::new().route("/v1/responses", post(create))
}

/// An answer to a conversation.
#[utoipa::path(post, path = "/v1/responses", tag = "OpenAI", request_body = ResponseRequest, responses(
    (status = 200, description = "The response; with `stream` its events", content(
        (Response = "application/json"), (object::Event = "text/event-stream"),
    )),
    (status = "default", description = "What is wrong", body = crate::serve::error::ErrorBody),
))]
pub async fn create(
    State(state): State<AppState>,
    Body(request): Body<ResponseRequest>,
) -> Result<HttpResponse, ApiError> {
    let arrived = Instant::now();
    let keep_alive = KeepAlive::new().interval(state.limits().sse_keep_alive);
    let served = state.model(request.model.as_deref())?;
    let streams = request.stream == Some(true);
    // A long conversation takes milliseconds to tokenise, a large schema to compile.
    let answer = tokio::task::spawn_blocking(move || {
        let prepared = prepare::prepare(&served, &request)?;
        let observed = observe(&state, &served, prepared.prompt.len(), arrived);
        let writer = Writer::new(response(&served, request, &prepared.params));
        Answering::start(served, prepared, writer, observed)
    });
    let answer = answer.await.map_err(|error| ApiError::internal(error.to_string()))??;
    if streams {
        return Ok(Sse::new(answer.events()).keep_alive(keep_alive).into_response());
    }
    Ok(Json(answer.whole().await?).into_response())
}

fn refused(problem: Problem) -> ApiError {
    ApiError::invalid(problem.message, Some(&problem.param))
}

/// Another number each time.
fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

/// The response before the model has said anything.
fn response(served: &Served, request: ResponseRequest, params: &SamplingParams) -> Response {
    Response {
        id: format!("resp_{:016x}{:016x}", random(), random()),
        object: "response",
        created_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        status: Status::InProgress,
        background: false,
        error: None,
        incomplete_details: None,
        instructions: request.instructions,
        max_output_tokens: request.max_output_tokens,
        model: served.id.clone(),
        output: Vec::new(),
        parallel_tool_calls: request.parallel_tool_calls.unwrap_or(true),
        previous_response_id: None,
        reasoning: request.reasoning.unwrap_or_else(|| json!({ "effort": null, "summary": null })),
        store: false,
        temperature: params.temperature,
        text: request.text.unwrap_or_else(|| json!({ "format": { "type": "text" } })),
        tool_choice: request.tool_choice.unwrap_or_else(|| "auto".into()),
        tools: request.tools.unwrap_or_default(),
        top_p: params.top_p,
        truncation: "disabled",
        usage: None,
        user: request.user,
        metadata: request.metadata.unwrap_or_default(),
    }
}
