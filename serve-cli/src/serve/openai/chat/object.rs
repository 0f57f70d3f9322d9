//! What `/v1/chat/completions` answers.
use crate::serve::openai::types::{Usage, logprob};
use engine::detokenize::Detokenizer;
use engine::scheduler::TokenLogprobs;
use serde::Serialize;
use utoipa::ToSchema;

/// Answers to a conversation.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatCompletion {
    /// `chatcmpl-…`.
    pub id: String,
    /// Always `chat.completion`.
    #[schema(example = "chat.completion")]
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// The answers.
    pub choices: Vec<ChatChoice>,
    /// Tokens.
    pub usage: Usage,
}

/// An answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    /// Which one.
    pub index: usize,
    /// What the model said.
    pub message: ChatMessage,
    /// If asked for.
    #[schema(required)]
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: &'static str,
}

/// What the model said.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatMessage {
    /// Always `assistant`.
    #[schema(example = "assistant")]
    pub role: &'static str,
    /// The text; null where there are only tool calls.
    #[schema(required)]
    pub content: Option<String>,
    /// Always null.
    #[schema(required)]
    pub refusal: Option<String>,
    /// The reasoning before the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls of functions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// A call of a function.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ToolCall {
    /// To be given back with the result.
    pub id: String,
    /// Always `function`.
    #[schema(example = "function")]
    pub r#type: &'static str,
    /// The function.
    pub function: FunctionCall,
}

/// A function's name and arguments.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FunctionCall {
    /// The name.
    pub name: String,
    /// JSON.
    pub arguments: String,
}

/// A chunk of answers.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatChunk {
    /// The same in all chunks.
    pub id: String,
    /// Always `chat.completion.chunk`.
    #[schema(example = "chat.completion.chunk")]
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// What is added; nothing in the chunk that tells the usage.
    pub choices: Vec<ChunkChoice>,
    /// As `stream_options` wants it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
}

/// What is added to an answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChunkChoice {
    /// Which one.
    pub index: usize,
    /// What.
    pub delta: Delta,
    /// If asked for: of the tokens of this chunk.
    #[schema(required)]
    pub logprobs: Option<ChatLogprobs>,
    /// In an answer's last chunk.
    #[schema(required)]
    pub finish_reason: Option<&'static str>,
}

/// What is added to a message.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Delta {
    /// In the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Reasoning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls: a first delta of each has id and name, others have more of the arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// What is added to a call.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ToolCallDelta {
    /// Which call.
    pub index: usize,
    /// In its first delta.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// In its first delta: `function`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<&'static str>,
    /// The function.
    pub function: FunctionDelta,
}

/// What is added to a call's function.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FunctionDelta {
    /// In the first delta.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the JSON.
    pub arguments: String,
}

/// Log-probabilities of an answer's tokens.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// Of all tokens that the model generated.
    pub content: Vec<ChatLogprob>,
    /// Always null.
    #[schema(required)]
    pub refusal: Option<Vec<ChatLogprob>>,
}

/// A token's.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatLogprob {
    /// The token's text.
    pub token: String,
    /// Its log-probability.
    pub logprob: f32,
    /// The text's bytes: a token may be a part of a character.
    pub bytes: Vec<u8>,
    /// The most likely tokens at its place.
    pub top_logprobs: Vec<TopLogprob>,
}

/// A likely token's.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TopLogprob {
    /// The token's text.
    pub token: String,
    /// Its log-probability.
    pub logprob: f32,
    /// The text's bytes.
    pub bytes: Vec<u8>,
}

impl ChatLogprob {
    /// Of a token that was chosen.
    pub fn new(detokenizer: &Detokenizer, token: u32, found: &TokenLogprobs) -> Self {
        let text = |token: u32| {
            let bytes = detokenizer.token_bytes(token);
            (String::from_utf8_lossy(&bytes).into_owned(), bytes)
        };
        let top = |(token, found): &(u32, f32)| {
            let (token, bytes) = text(*token);
            TopLogprob { token, logprob: logprob(*found), bytes }
        };
        let top_logprobs = found.top.iter().map(top).collect();
        let (token, bytes) = text(token);
        ChatLogprob { token, logprob: logprob(found.logprob), bytes, top_logprobs }
    }
}
