//! `/v1/responses`, without what needs a store: conversations are sent whole.
mod input;
mod object;
mod writer;

use crate::serve::error::ApiError;
use crate::serve::state::{AppState, Served};
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response as HttpResponse};
use axum::{Json, Router, routing::post};
use engine::SamplingParams;
use engine::async_llm::CompletionStream;
use engine::llm::Delta;
use engine::scheduler::FinishReason;
use futures_util::{Stream, StreamExt, stream};
use input::Problem;
use object::{InputDetails, Logprob, OutputDetails, Response, Status, TopLogprob, Usage};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
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
    /// The form of the answer: `{"format": {"type": "text"}}`.
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
    Json(request): Json<ResponseRequest>,
) -> Result<HttpResponse, ApiError> {
    let served = state.model(request.model.as_deref())?;
    check(&request).map_err(refused)?;
    let messages = input::messages(request.instructions.as_deref(), &request.input).map_err(refused)?;
    let params = params(&served, &request);
    let asker = served.clone();
    let asked = params.clone();
    // A long conversation takes milliseconds to tokenise.
    let completion = tokio::task::spawn_blocking(move || {
        let prompt = asker.llm.text_model().chat_prompt(&messages)?;
        let tokens = prompt.len();
        Ok::<_, ApiError>((asker.llm.generate(prompt, asked)?, tokens))
    });
    let (completion, input_tokens) = completion.await.map_err(|error| ApiError::internal(error.to_string()))??;
    let streams = request.stream == Some(true);
    let writer = Writer::new(response(&served, request, &params));
    let mut answer = Answering { served, completion, writer, input_tokens, output_tokens: 0, over: false };
    if streams {
        return Ok(Sse::new(answer.events())
            .keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
            .into_response());
    }
    while !answer.over {
        answer.step().await?;
    }
    Ok(Json(answer.writer.into_response()).into_response())
}

fn refused(problem: Problem) -> ApiError {
    ApiError::invalid(problem.message, Some(&problem.param))
}

/// Refuses what this server does not do.
fn check(request: &ResponseRequest) -> Result<(), Problem> {
    let stored = |field: &str| {
        let advice = "this server stores no responses: send the whole conversation as input";
        Err(Problem::new(field, format!("{field} is not supported: {advice}")))
    };
    if request.previous_response_id.is_some() {
        return stored("previous_response_id");
    }
    if request.conversation.is_some() {
        return stored("conversation");
    }
    if request.background == Some(true) {
        return stored("background");
    }
    if request.truncation.as_deref().is_some_and(|truncation| truncation != "disabled") {
        return Err(Problem::new("truncation", "truncation must be disabled: too long an input is an error here"));
    }
    if request.max_output_tokens == Some(0) {
        return Err(Problem::new("max_output_tokens", "max_output_tokens is 0, it must be at least 1"));
    }
    let kind = request.text.as_ref().map_or("text", |text| match text.get("format") {
        None | Some(Value::Null) => "text",
        Some(format) => format["type"].as_str().unwrap_or_default(),
    });
    if kind != "text" {
        return Err(Problem::new("text.format.type", format!("text.format.type is {kind:?}; there is text")));
    }
    if request.tools.as_ref().is_some_and(|tools| !tools.is_empty()) {
        return Err(Problem::new("tools", "tools are not supported here: use /v1/chat/completions"));
    }
    Ok(())
}

/// How tokens are chosen.
fn params(served: &Served, request: &ResponseRequest) -> SamplingParams {
    let makers = served.llm.text_model().generation_config();
    let wants = |what: &str| request.include.as_ref().is_some_and(|include| include.iter().any(|one| one == what));
    let logprobs = wants("message.output_text.logprobs").then(|| request.top_logprobs.unwrap_or(0));
    SamplingParams {
        max_tokens: request.max_output_tokens.map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX)),
        temperature: request.temperature.or(makers.temperature).unwrap_or(1.0),
        top_p: request.top_p.or(makers.top_p).unwrap_or(1.0),
        top_k: makers.top_k.unwrap_or(0),
        min_p: makers.min_p.unwrap_or(0.0),
        seed: random(),
        logprobs,
        ..SamplingParams::default()
    }
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

/// A response that is being made. Dropping it cancels the request.
struct Answering {
    served: Arc<Served>,
    completion: CompletionStream,
    writer: Writer,
    input_tokens: usize,
    output_tokens: usize,
    over: bool,
}

impl Answering {
    /// Takes in what the next token adds.
    async fn step(&mut self) -> Result<(), ApiError> {
        match self.completion.next().await {
            Some(Ok(delta)) => {
                self.output_tokens += usize::from(delta.token.is_some());
                let logprobs = self.logprobs(&delta);
                self.writer.text(&delta.text, logprobs);
                match delta.finish_reason {
                    Some(FinishReason::Abort) => Err(ApiError::from(engine::Error::ShuttingDown)),
                    Some(reason) => {
                        self.finish(reason == FinishReason::Length);
                        Ok(())
                    }
                    None => Ok(()),
                }
            }
            Some(Err(error)) => Err(error.into()),
            None => {
                if !self.over {
                    self.finish(false);
                }
                Ok(())
            }
        }
    }

    fn finish(&mut self, cut: bool) {
        self.over = true;
        let (input_tokens, output_tokens) = (self.input_tokens, self.output_tokens);
        self.writer.finish(
            cut,
            Usage {
                input_tokens,
                input_tokens_details: InputDetails::default(),
                output_tokens,
                output_tokens_details: OutputDetails::default(),
                total_tokens: input_tokens + output_tokens,
            },
        );
    }

    fn logprobs(&self, delta: &Delta) -> Vec<Logprob> {
        let (Some(token), Some(found)) = (delta.token, &delta.logprobs) else { return Vec::new() };
        let tokenizer = self.served.llm.text_model().tokenizer();
        let text = |token: u32| tokenizer.decode(&[token], false);
        let top = |(token, logprob): &(u32, f32)| {
            let token = text(*token);
            TopLogprob { bytes: token.clone().into_bytes(), token, logprob: *logprob }
        };
        let token = text(token);
        let top_logprobs = found.top.iter().map(top).collect();
        vec![Logprob { bytes: token.clone().into_bytes(), token, logprob: found.logprob, top_logprobs }]
    }

    /// All events, as they come.
    fn events(self) -> impl Stream<Item = Result<Event, Infallible>> {
        let steps = stream::unfold((self, true), |(mut answer, first)| async move {
            if answer.over && !first {
                return None;
            }
            if !first && let Err(error) = answer.step().await {
                answer.over = true;
                answer.writer.fail(error.to_string());
            }
            let events = answer.writer.take_events();
            Some((stream::iter(events), (answer, false)))
        });
        steps.flatten().map(|event| {
            let name = event.what.name();
            // Serialising what has only strings, numbers and lists does not fail.
            let data = serde_json::to_string(&event).unwrap_or_default();
            Ok(Event::default().event(name).data(data))
        })
    }
}
