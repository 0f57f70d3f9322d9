//! What `/v1/responses` answers: the response object and the events of its stream.
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A response.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ResponsesResponse)]
pub struct Response {
    /// `resp_…`.
    pub id: String,
    /// Always `response`.
    #[schema(example = "response")]
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: u64,
    /// How far it is.
    pub status: Status,
    /// Always false.
    pub background: bool,
    /// Why it failed.
    #[schema(required)]
    pub error: Option<Failure>,
    /// Why there is not more of it.
    #[schema(required)]
    pub incomplete_details: Option<Incomplete>,
    /// As in the request.
    #[schema(required)]
    pub instructions: Option<String>,
    /// As in the request.
    #[schema(required)]
    pub max_output_tokens: Option<u64>,
    /// The model's name.
    pub model: String,
    /// What the model said.
    pub output: Vec<Item>,
    /// As in the request.
    pub parallel_tool_calls: bool,
    /// Always null: nothing is stored.
    #[schema(required)]
    pub previous_response_id: Option<String>,
    /// As in the request.
    #[schema(value_type = Object)]
    pub reasoning: Value,
    /// Always false: nothing is stored.
    pub store: bool,
    /// The temperature that was used.
    pub temperature: f32,
    /// The form of the text, as in the request.
    #[schema(value_type = Object)]
    pub text: Value,
    /// As in the request.
    #[schema(value_type = Value)]
    pub tool_choice: Value,
    /// As in the request.
    #[schema(value_type = Vec<Object>)]
    pub tools: Vec<Value>,
    /// The top_p that was used.
    pub top_p: f32,
    /// Always `disabled`: too long an input is an error.
    #[schema(example = "disabled")]
    pub truncation: &'static str,
    /// Tokens, at the end.
    #[schema(required)]
    pub usage: Option<Usage>,
    /// As in the request.
    #[schema(required)]
    pub user: Option<String>,
    /// As in the request.
    pub metadata: BTreeMap<String, String>,
}

/// How far something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ResponsesStatus)]
pub enum Status {
    /// It grows.
    InProgress,
    /// It is whole.
    Completed,
    /// It was cut.
    Incomplete,
    /// The server could not go on.
    Failed,
}

/// Why a response failed.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ResponsesFailure)]
pub struct Failure {
    /// `server_error`.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

/// Why a response is not whole.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ResponsesIncomplete)]
pub struct Incomplete {
    /// `max_output_tokens`.
    pub reason: &'static str,
}

/// Tokens that a response took.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
#[schema(as = ResponsesUsage)]
pub struct Usage {
    /// Of the input.
    pub input_tokens: usize,
    /// What is known about them.
    pub input_tokens_details: InputDetails,
    /// Of the output.
    pub output_tokens: usize,
    /// What is known about them.
    pub output_tokens_details: OutputDetails,
    /// All together.
    pub total_tokens: usize,
}

/// About input tokens.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
#[schema(as = ResponsesInputDetails)]
pub struct InputDetails {
    /// Those that were in the prefix cache.
    pub cached_tokens: usize,
    /// Always 0: writing to the cache costs nothing here. The official Python client's type has it.
    pub cache_write_tokens: usize,
}

/// About output tokens.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
#[schema(as = ResponsesOutputDetails)]
pub struct OutputDetails {
    /// Those of the reasoning.
    pub reasoning_tokens: usize,
}

/// A part of the output.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = ResponsesItem)]
pub enum Item {
    /// What the model thinks.
    Reasoning {
        /// `rs_…`.
        id: String,
        /// Always empty.
        #[schema(value_type = Vec<Object>)]
        summary: [Value; 0],
        /// The text.
        content: Vec<Part>,
        /// How far it is.
        status: Status,
    },
    /// What it says.
    Message {
        /// `msg_…`.
        id: String,
        /// Always `assistant`.
        #[schema(example = "assistant")]
        role: &'static str,
        /// The text.
        content: Vec<Part>,
        /// How far it is.
        status: Status,
    },
    /// A function that it wants called.
    FunctionCall {
        /// `fc_…`.
        id: String,
        /// Names the call in the answer to it.
        call_id: String,
        /// The function.
        name: String,
        /// JSON.
        arguments: String,
        /// How far it is.
        status: Status,
    },
}

/// Text.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = ResponsesPart)]
pub enum Part {
    /// Of a message.
    OutputText {
        /// The text.
        text: String,
        /// Always empty.
        #[schema(value_type = Vec<Object>)]
        annotations: [Value; 0],
        /// Of every token, if asked for.
        logprobs: Vec<Logprob>,
    },
    /// Of the reasoning.
    ReasoningText {
        /// The text.
        text: String,
    },
}

impl Part {
    /// An empty text of a message.
    pub fn output() -> Self {
        Part::OutputText { text: String::new(), annotations: [], logprobs: Vec::new() }
    }

    /// An empty text of the reasoning.
    pub fn reasoning() -> Self {
        Part::ReasoningText { text: String::new() }
    }

    pub(super) fn text(&self) -> &str {
        match self {
            Part::OutputText { text, .. } | Part::ReasoningText { text } => text,
        }
    }

    pub(super) fn text_mut(&mut self) -> &mut String {
        match self {
            Part::OutputText { text, .. } | Part::ReasoningText { text } => text,
        }
    }
}

/// A token's log-probability.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = ResponsesLogprob)]
pub struct Logprob {
    /// The token's text.
    pub token: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens at its place.
    pub top_logprobs: Vec<TopLogprob>,
}

/// A token that was likely.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = ResponsesTopLogprob)]
pub struct TopLogprob {
    /// The token's text.
    pub token: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The natural logarithm of its probability.
    pub logprob: f32,
}

/// What a stream tells. Every event has its number, from 0.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ResponsesEvent)]
pub struct Event {
    /// What happened.
    #[serde(flatten)]
    pub what: What,
    /// The event's number.
    pub sequence_number: u64,
}

/// What happened.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type")]
#[schema(as = ResponsesWhat)]
pub enum What {
    /// The request is taken.
    #[serde(rename = "response.created")]
    Created {
        /// Empty yet.
        response: Box<Response>,
    },
    /// The model works.
    #[serde(rename = "response.in_progress")]
    InProgress {
        /// Empty yet.
        response: Box<Response>,
    },
    /// A part of the output begins.
    #[serde(rename = "response.output_item.added")]
    ItemAdded {
        /// Its place.
        output_index: usize,
        /// Empty yet.
        item: Item,
    },
    /// A text begins.
    #[serde(rename = "response.content_part.added")]
    PartAdded {
        /// Whose text.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The text's place in the item.
        content_index: usize,
        /// Empty yet.
        part: Part,
    },
    /// A message's text grows.
    #[serde(rename = "response.output_text.delta")]
    TextDelta {
        /// Whose text.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The text's place in the item.
        content_index: usize,
        /// What is added.
        delta: String,
        /// Of the tokens that are added, if asked for.
        logprobs: Vec<Logprob>,
    },
    /// A message's text is whole.
    #[serde(rename = "response.output_text.done")]
    TextDone {
        /// Whose text.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The text's place in the item.
        content_index: usize,
        /// All of it.
        text: String,
        /// Of all its tokens, if asked for.
        logprobs: Vec<Logprob>,
    },
    /// The reasoning grows.
    #[serde(rename = "response.reasoning_text.delta")]
    ReasoningDelta {
        /// Whose text.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The text's place in the item.
        content_index: usize,
        /// What is added.
        delta: String,
    },
    /// The reasoning is whole.
    #[serde(rename = "response.reasoning_text.done")]
    ReasoningDone {
        /// Whose text.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The text's place in the item.
        content_index: usize,
        /// All of it.
        text: String,
    },
    /// A text is whole.
    #[serde(rename = "response.content_part.done")]
    PartDone {
        /// Whose text.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The text's place in the item.
        content_index: usize,
        /// All of it.
        part: Part,
    },
    /// A function call's arguments grow.
    #[serde(rename = "response.function_call_arguments.delta")]
    ArgumentsDelta {
        /// The call.
        item_id: String,
        /// Its place.
        output_index: usize,
        /// What is added.
        delta: String,
    },
    /// A function call's arguments are whole.
    #[serde(rename = "response.function_call_arguments.done")]
    ArgumentsDone {
        /// The call.
        item_id: String,
        /// Its place.
        output_index: usize,
        /// The function.
        name: String,
        /// All of them.
        arguments: String,
    },
    /// A part of the output is whole.
    #[serde(rename = "response.output_item.done")]
    ItemDone {
        /// Its place.
        output_index: usize,
        /// All of it.
        item: Item,
    },
    /// The end.
    #[serde(rename = "response.completed")]
    Completed {
        /// All of it.
        response: Box<Response>,
    },
    /// The end, because of `max_output_tokens`.
    #[serde(rename = "response.incomplete")]
    Incomplete {
        /// What there is.
        response: Box<Response>,
    },
    /// The end, because the server could not go on.
    #[serde(rename = "response.failed")]
    Failed {
        /// What there is.
        response: Box<Response>,
    },
}

impl What {
    /// The event's name: its `type`.
    pub fn name(&self) -> &'static str {
        match self {
            What::Created { .. } => "response.created",
            What::InProgress { .. } => "response.in_progress",
            What::ItemAdded { .. } => "response.output_item.added",
            What::PartAdded { .. } => "response.content_part.added",
            What::TextDelta { .. } => "response.output_text.delta",
            What::TextDone { .. } => "response.output_text.done",
            What::ReasoningDelta { .. } => "response.reasoning_text.delta",
            What::ReasoningDone { .. } => "response.reasoning_text.done",
            What::PartDone { .. } => "response.content_part.done",
            What::ArgumentsDelta { .. } => "response.function_call_arguments.delta",
            What::ArgumentsDone { .. } => "response.function_call_arguments.done",
            What::ItemDone { .. } => "response.output_item.done",
            What::Completed { .. } => "response.completed",
            What::Incomplete { .. } => "response.incomplete",
            What::Failed { .. } => "response.failed",
        }
    }
}
