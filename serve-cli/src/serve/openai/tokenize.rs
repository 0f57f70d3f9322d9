//! `/tokenize` and `/detokenize`, in vLLM's shapes.
use super::body::{Body, Read, fields};
use super::chat::messages;
use crate::serve::error::ApiError;
use crate::serve::state::AppState;
use axum::extract::State;
use axum::{Json, Router, routing::post};
use engine::chat_template::ChatInput;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// What is asked: a prompt or messages.
#[derive(Debug, Deserialize, ToSchema)]
pub struct TokenizeRequest {
    /// The model; by default the first that is served.
    pub model: Option<String>,
    /// A text.
    pub prompt: Option<String>,
    /// A conversation, as at `/v1/chat/completions`.
    #[schema(value_type = Option<Vec<Object>>)]
    pub messages: Option<Value>,
    /// Functions that the chat template tells of.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Value>>,
    /// Variables of the chat template.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Of a conversation: end with the header of the assistant's turn (default).
    pub add_generation_prompt: Option<bool>,
    /// Of a text: with the special tokens that the tokenizer adds (default).
    pub add_special_tokens: Option<bool>,
    /// Tell the tokens' texts, too.
    pub return_token_strs: Option<bool>,
}

/// The tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenizeResponse {
    /// How many.
    pub count: usize,
    /// Most tokens of prompt and answer.
    pub max_model_len: usize,
    /// The tokens.
    pub tokens: Vec<u32>,
    /// As the vocabulary writes them, if asked for.
    #[schema(required)]
    pub token_strs: Option<Vec<String>>,
}

/// What is asked.
#[derive(Debug, Deserialize, ToSchema)]
pub struct DetokenizeRequest {
    /// The model; by default the first that is served.
    pub model: Option<String>,
    /// Tokens.
    pub tokens: Vec<u32>,
}

/// The text.
#[derive(Debug, Serialize, ToSchema)]
pub struct DetokenizeResponse {
    /// The text, with special tokens.
    pub prompt: String,
}

impl Read for TokenizeRequest {
    fn read(body: &Value) -> Result<Self, ApiError> {
        fields(body)
    }
}

impl Read for DetokenizeRequest {
    fn read(body: &Value) -> Result<Self, ApiError> {
        fields(body)
    }
}

/// `POST /tokenize` and `/detokenize`.
pub fn routes() -> Router<AppState> {
    Router::new().route("/tokenize", post(tokenize)).route("/detokenize", post(detokenize))
}

/// The tokens of a text or of a conversation.
#[utoipa::path(post, path = "/tokenize", tag = "Tokens", request_body = TokenizeRequest, responses(
    (status = 200, description = "The tokens", body = TokenizeResponse),
    (status = "default", description = "What is wrong", body = crate::serve::error::ErrorBody),
))]
pub async fn tokenize(
    State(state): State<AppState>,
    Body(request): Body<TokenizeRequest>,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let served = state.model(request.model.as_deref())?;
    let work = tokio::task::spawn_blocking(move || {
        let text = served.llm.text_model();
        let tokens = match (&request.prompt, &request.messages) {
            (Some(prompt), None) if request.add_special_tokens == Some(false) => {
                text.tokenizer().encode(prompt, true)?
            }
            (Some(prompt), None) => text.text_prompt(prompt)?,
            (None, Some(conversation)) => {
                let input = ChatInput {
                    messages: messages::read(conversation)?,
                    tools: request.tools.filter(|tools| !tools.is_empty()),
                    add_generation_prompt: request.add_generation_prompt.unwrap_or(true),
                    variables: request.chat_template_kwargs.unwrap_or_default(),
                    ..ChatInput::default()
                };
                text.chat_tokens(&text.chat_text(&input)?)?
            }
            _ => return Err(ApiError::invalid("give either prompt or messages".into(), Some("prompt"))),
        };
        let token = |token: &u32| text.tokenizer().token(*token).unwrap_or_default();
        let token_strs = (request.return_token_strs == Some(true)).then(|| tokens.iter().map(token).collect());
        let max_model_len = served.llm.handle().admission().scheduler.max_len();
        Ok(Json(TokenizeResponse { count: tokens.len(), max_model_len, tokens, token_strs }))
    });
    work.await.map_err(|error| ApiError::internal(error.to_string()))?
}

/// The text of tokens.
#[utoipa::path(post, path = "/detokenize", tag = "Tokens", request_body = DetokenizeRequest, responses(
    (status = 200, description = "The text", body = DetokenizeResponse),
    (status = "default", description = "What is wrong", body = crate::serve::error::ErrorBody),
))]
pub async fn detokenize(
    State(state): State<AppState>,
    Body(request): Body<DetokenizeRequest>,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let served = state.model(request.model.as_deref())?;
    let vocab = served.llm.handle().admission().vocab;
    if let Some((i, token)) = request.tokens.iter().enumerate().find(|(_, token)| **token as usize >= vocab) {
        let problem = format!("tokens[{i}] is {token}, the vocabulary has {vocab}");
        return Err(ApiError::invalid(problem, Some("tokens")));
    }
    let work = tokio::task::spawn_blocking(move || served.llm.text_model().tokenizer().decode(&request.tokens, false));
    let prompt = work.await.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(Json(DetokenizeResponse { prompt }))
}
