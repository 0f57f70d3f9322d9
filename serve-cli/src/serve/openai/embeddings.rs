//! `/v1/embeddings`.
use super::body::{Body, Read, fields};
use super::observe::observe;
use super::prompts::{PromptInput, prompt_tokens, read_prompts};
use crate::serve::error::ApiError;
use crate::serve::state::{AppState, Served};
use axum::extract::State;
use axum::{Json, Router, routing::post};
use engine::Pooling;
use engine::llm::Prompt;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use std::time::Instant;
use utoipa::ToSchema;

/// Inputs of one request that are in the engine's queue at once: enough for full steps, and others come between.
const AT_ONCE: usize = 32;

/// What is asked.
#[derive(Debug, Deserialize, ToSchema)]
pub struct EmbeddingRequest {
    /// The model.
    pub model: Option<String>,
    /// A text, or tokens; or an array of them.
    #[schema(value_type = PromptInput)]
    pub input: Value,
    /// How vectors are written.
    #[serde(default)]
    pub encoding_format: EncodingFormat,
    /// Numbers of a vector. This server cannot shorten vectors: anything but the model's own is refused.
    pub dimensions: Option<u64>,
    /// How tokens' states become a vector: `mean` or `last`.
    #[serde(default)]
    pub pooling: PoolingName,
    /// Whether vectors have length 1, as at OpenAI.
    #[serde(default = "yes")]
    pub normalize: bool,
    /// Ignored.
    #[allow(dead_code, reason = "known, and of no effect")]
    pub user: Option<String>,
}

fn yes() -> bool {
    true
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    /// JSON numbers.
    #[default]
    Float,
    /// The f32s' bytes, little-endian, in base64.
    Base64,
}

/// How tokens' states become a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PoolingName {
    /// Their mean.
    #[default]
    Mean,
    /// The last token's.
    Last,
}

/// The answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingResponse {
    /// Always `list`.
    #[schema(example = "list")]
    pub object: &'static str,
    /// In the inputs' order.
    pub data: Vec<EmbeddingObject>,
    /// The model's name.
    pub model: String,
    /// Tokens.
    pub usage: EmbeddingUsage,
}

/// One vector.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingObject {
    /// Always `embedding`.
    #[schema(example = "embedding")]
    pub object: &'static str,
    /// Its input's place.
    pub index: usize,
    /// The numbers.
    pub embedding: Numbers,
}

/// Numbers, as they were asked for.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Numbers {
    /// JSON numbers.
    Float(Vec<f32>),
    /// Base64.
    Base64(String),
}

/// Tokens that a request took.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingUsage {
    /// Of all inputs.
    pub prompt_tokens: usize,
    /// The same.
    pub total_tokens: usize,
}

impl Read for EmbeddingRequest {
    fn read(body: &Value) -> Result<Self, ApiError> {
        fields(body)
    }
}

/// `POST /v1/embeddings`.
pub fn routes() -> Router<AppState> {
    Router::new().route("/v1/embeddings", post(create))
}

/// Vectors of texts or tokens.
#[utoipa::path(post, path = "/v1/embeddings", tag = "OpenAI", request_body = EmbeddingRequest, responses(
    (status = 200, description = "One vector for each input", body = EmbeddingResponse),
    (status = "default", description = "What is wrong", body = crate::serve::error::ErrorBody),
))]
pub async fn create(
    State(state): State<AppState>,
    Body(request): Body<EmbeddingRequest>,
) -> Result<Json<EmbeddingResponse>, ApiError> {
    let arrived = Instant::now();
    let served = state.model(request.model.as_deref())?;
    let width = served.llm.embedding_size();
    if request.dimensions.is_some_and(|dimensions| dimensions != width as u64) {
        let problem =
            format!("{} has vectors of {width} numbers and cannot shorten them: leave dimensions out", served.id);
        return Err(ApiError::invalid(problem, Some("dimensions")));
    }
    let prompts = tokens(&served, inputs(&request.input)?).await?;
    let pooling = match request.pooling {
        PoolingName::Mean => Pooling::Mean,
        PoolingName::Last => Pooling::Last,
    };
    let prompt_tokens: usize = prompts.iter().map(Vec::len).sum();
    let observed = observe(&state, &served, prompt_tokens, arrived);
    // The first that fails ends all the others: they are dropped with the stream.
    let embeddings = stream::iter(prompts).map(|tokens| {
        let pending = served.llm.embed(tokens, pooling, request.normalize);
        async move { pending?.await }
    });
    let embeddings: Vec<_> = embeddings.buffered(AT_ONCE).try_collect().await?;
    observed.finish("stop");
    let data = embeddings.into_iter().enumerate().map(|(index, embedding)| EmbeddingObject {
        object: "embedding",
        index,
        embedding: match request.encoding_format {
            EncodingFormat::Float => Numbers::Float(embedding.values),
            EncodingFormat::Base64 => Numbers::Base64(base64(&embedding.values)),
        },
    });
    Ok(Json(EmbeddingResponse {
        object: "list",
        data: data.collect(),
        model: served.id.clone(),
        usage: EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens },
    }))
}

/// Reads the inputs: of nothing there is no vector.
fn inputs(input: &Value) -> Result<Vec<Prompt>, ApiError> {
    let inputs = read_prompts(input, "input")?;
    let empty = inputs.iter().position(|input| match input {
        Prompt::Text(text) => text.is_empty(),
        Prompt::Tokens(tokens) => tokens.is_empty(),
    });
    match empty {
        Some(i) => Err(ApiError::invalid(format!("input[{i}] is empty"), Some("input"))),
        None => Ok(inputs),
    }
}

/// Tokens of all prompts, each checked before any is computed.
async fn tokens(served: &Arc<Served>, prompts: Vec<Prompt>) -> Result<Vec<Vec<u32>>, ApiError> {
    let served = served.clone();
    let all = tokio::task::spawn_blocking(move || {
        let one = |(i, prompt): (usize, Prompt)| {
            let tokens = prompt_tokens(&served, prompt)?;
            served
                .llm
                .check_embed(&tokens)
                .map_err(|error| ApiError::invalid(format!("input[{i}]: {error}"), Some("input")))?;
            Ok(tokens)
        };
        prompts.into_iter().enumerate().map(one).collect::<Result<Vec<_>, ApiError>>()
    });
    all.await.map_err(|error| ApiError::internal(error.to_string()))?
}

/// The numbers' bytes, little-endian, in base64 with padding.
fn base64(values: &[f32]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for i in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= three.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_in_base64() {
        // As Python's base64.b64encode(struct.pack("<f", 1.0)) and so on.
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(base64(&[0.1, 0.2, 0.3]), "zczMPc3MTD6amZk+");
        assert_eq!(base64(&[]), "");
    }

    #[test]
    fn no_input_is_empty() {
        assert_eq!(inputs(&json!(["a", "b"])).unwrap().len(), 2);
        for (empty, place) in
            [(json!(""), "input[0]"), (json!([[1], []]), "input[1]"), (json!(["a", "", ""]), "input[1]")]
        {
            assert!(inputs(&empty).unwrap_err().to_string().starts_with(place), "{empty}");
        }
    }
}
