//! `/v1/chat/completions`.
pub mod messages;
mod object;
mod tools;
mod writing;

use super::answers::{Answers, events};
use super::body::{Body, Read, fields, refuse_unknown};
use super::prompts::chat_tokens;
use super::sampling::SamplingFields;
use super::structured::{self, StructuredFields};
use super::types::ChunkUsage;
use crate::serve::error::ApiError;
use crate::serve::state::{AppState, Served};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::post};
use engine::chat_output::{ChatFormat, ReasoningFormat};
use engine::chat_template::ChatInput;
use engine::detokenize::Detokenizer;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Instant;
use utoipa::ToSchema;
use writing::{Style, Writing};

/// What is asked. Unknown fields are ignored.
#[derive(Debug, ToSchema)]
pub struct ChatRequest {
    /// Its own.
    #[serde(flatten)]
    pub own: ChatFields,
    /// How answers are generated.
    #[serde(flatten)]
    pub sampling: SamplingFields,
    /// What answers must be.
    #[serde(flatten)]
    pub guided: StructuredFields,
}

/// What chats alone are asked.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ChatFields {
    /// The conversation.
    #[schema(value_type = Vec<Object>, min_items = 1)]
    pub messages: Value,
    /// Most tokens of an answer; as many as fit, if not given.
    #[schema(minimum = 1)]
    pub max_completion_tokens: Option<u64>,
    /// The same by its former name.
    #[schema(minimum = 1)]
    pub max_tokens: Option<u64>,
    /// Whether to tell the log-probabilities of tokens.
    pub logprobs: Option<bool>,
    /// With `logprobs`: those of so many likely tokens at each place.
    #[schema(maximum = 20)]
    pub top_logprobs: Option<u32>,
    /// What answers must be.
    #[schema(value_type = Option<structured::ResponseFormat>)]
    pub response_format: Option<Value>,
    /// Functions that the model may call.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Value>,
    /// `none`, `auto` (default with tools), `required`, or a function's name in an object.
    #[schema(value_type = Option<tools::ToolChoiceField>)]
    pub tool_choice: Option<Value>,
    /// Whether several functions may be called at once (default).
    pub parallel_tool_calls: Option<bool>,
    /// Refused: `tools` came for them.
    #[schema(value_type = Option<Vec<Object>>)]
    pub functions: Option<Value>,
    /// For chat templates that know it.
    pub reasoning_effort: Option<String>,
    /// Whether reasoning is told (default).
    pub include_reasoning: Option<bool>,
    /// Variables of the chat template, such as `enable_thinking`.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Documents for the chat template.
    #[schema(value_type = Option<Vec<Object>>)]
    pub documents: Option<Vec<Value>>,
    /// End the prompt with the header of the assistant's turn (default).
    pub add_generation_prompt: Option<bool>,
}

impl Read for ChatRequest {
    fn read(body: &Value) -> Result<Self, ApiError> {
        refuse_unknown(body)?;
        Ok(ChatRequest { own: fields(body)?, sampling: fields(body)?, guided: fields(body)? })
    }
}

/// `POST /v1/chat/completions`.
pub fn routes() -> Router<AppState> {
    Router::new().route("/v1/chat/completions", post(create))
}

/// Answers a conversation.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "OpenAI", request_body = ChatRequest, responses(
    (status = 200, description = "The answers; with `stream` their chunks", content(
        (object::ChatCompletion = "application/json"), (object::ChatChunk = "text/event-stream"),
    )),
    (status = "default", description = "What is wrong", body = crate::serve::error::ErrorBody),
))]
pub async fn create(State(state): State<AppState>, Body(request): Body<ChatRequest>) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let served = state.model(request.sampling.model.as_deref())?;
    let streams = request.sampling.stream == Some(true);
    // Long conversations take milliseconds to tokenise, and large grammars tens of them to compile.
    let asked = tokio::task::spawn_blocking(move || ask(&state, &served, request, arrived));
    let (mut answers, mut writing) = asked.await.map_err(|error| ApiError::internal(error.to_string()))??;
    if streams {
        return Ok(events(answers, writing));
    }
    while let Some(step) = answers.next().await? {
        writing.push(&step);
    }
    Ok(Json(writing.whole(answers.usage())).into_response())
}

/// Checks a request and begins with it.
fn ask(
    state: &AppState,
    served: &Arc<Served>,
    request: ChatRequest,
    arrived: Instant,
) -> Result<(Answers, Writing), ApiError> {
    let ChatRequest { own, sampling, guided } = request;
    let wrong = |field: &str, problem: &str| Err(ApiError::invalid(format!("{field} {problem}"), Some(field)));
    if own.functions.as_ref().is_some_and(|functions| !functions.is_null()) {
        return wrong("functions", "is not supported: use tools");
    }
    let logprobs = own.logprobs == Some(true);
    if own.top_logprobs.is_some_and(|top| top > 0) && !logprobs {
        return wrong("top_logprobs", "needs logprobs: set it to true");
    }
    if own.top_logprobs.is_some_and(|top| top > engine::sampling::MAX_LOGPROBS) {
        return wrong("top_logprobs", &format!("must be at most {}", engine::sampling::MAX_LOGPROBS));
    }
    let mut params = sampling.params(served, own.max_completion_tokens.or(own.max_tokens), None)?;
    params.logprobs = logprobs.then(|| own.top_logprobs.unwrap_or(0));
    let text = served.llm.text_model();
    let outputs = sampling.structured_outputs.as_ref();
    params.grammar = structured::grammar(text, own.response_format.as_ref(), outputs, &guided)?;
    let marks: Vec<String> = text.chat_template().into_iter().flat_map(|template| template.sources()).collect();
    let tools = tools::read(&own, &marks, params.grammar.is_some())?;
    let input = ChatInput {
        messages: messages::read(&own.messages)?,
        tools: (!tools.told.is_empty()).then_some(tools.told),
        documents: own.documents,
        add_generation_prompt: own.add_generation_prompt.unwrap_or(true),
        variables: {
            let mut variables = own.chat_template_kwargs.unwrap_or_default();
            if let Some(effort) = own.reasoning_effort {
                variables.entry("reasoning_effort").or_insert_with(|| effort.into());
            }
            variables
        },
        ..ChatInput::default()
    };
    let prompt = text.chat_text(&input).map_err(|error| match error {
        error @ engine::Error::NoChatTemplate { .. } => ApiError::from(error),
        error => ApiError::invalid(error.to_string(), Some("messages")),
    })?;
    let reasoning = ReasoningFormat::of_templates(&marks);
    let open = reasoning.is_some_and(|reasoning| reasoning.is_open_in(&prompt));
    let format = ChatFormat { tools: tools.format, reasoning, reasoning_is_open: open };
    // Models that reason do so before they answer what they must.
    let grammar = tools.grammar.or(params.grammar);
    params.grammar = grammar.map(|grammar| match reasoning {
        Some(reasoning) => grammar.after_reasoning(reasoning, open),
        None => grammar,
    });
    let special =
        tools.format.is_some_and(|format| format.marks_are_special()) || reasoning == Some(ReasoningFormat::Mistral);
    params.skip_special_tokens &= !special;
    let style = Style {
        format,
        parallel: own.parallel_tool_calls.unwrap_or(true),
        reasoning: own.include_reasoning.unwrap_or(true),
        usage: ChunkUsage::from(sampling.stream_options),
    };
    let detokenizer = logprobs.then(|| Detokenizer::new(text.tokenizer(), false)).transpose()?;
    let prompt = chat_tokens(served, &prompt)?;
    // The engine checks n: a million answers are refused before anything is made for them.
    let answers = Answers::ask(state, served, vec![prompt], &params, arrived)?;
    Ok((answers, Writing::new(served.id.clone(), style, detokenizer, params.n)))
}
