//! `/v1/completions`.
mod object;

use super::answers::{Answers, Step, Writer, events, finish_name};
use super::body::{Body, Read, fields, refuse_unknown};
use super::prompts::{MAX_PROMPTS, PromptInput, prompt_tokens, read_prompts};
use super::sampling::SamplingFields;
use super::structured::{self, StructuredFields};
use super::types::{ChunkUsage, Usage, id, now};
use crate::serve::error::ApiError;
use crate::serve::state::{AppState, Served};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::post};
use engine::SamplingParams;
use engine::llm::Prompt;
use object::{Choice, Completion, Logprobs, LogprobsBuilder};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;
use std::time::Instant;
use utoipa::ToSchema;

/// What is asked. Unknown fields are ignored.
#[derive(Debug, ToSchema)]
pub struct CompletionRequest {
    /// Its own.
    #[serde(flatten)]
    pub own: CompletionFields,
    /// How answers are generated.
    #[serde(flatten)]
    pub sampling: SamplingFields,
    /// What answers must be.
    #[serde(flatten)]
    pub guided: StructuredFields,
}

/// What completions alone are asked.
#[derive(Debug, Deserialize, ToSchema)]
pub struct CompletionFields {
    /// A text, or tokens; or an array of them.
    #[schema(value_type = PromptInput)]
    pub prompt: Value,
    /// Most tokens of an answer. With 0 and `echo` there are only the prompts.
    #[serde(default = "sixteen")]
    #[schema(default = 16)]
    pub max_tokens: Option<u64>,
    /// Answers that are generated; the `n` with the greatest mean log-probability are told.
    #[schema(minimum = 1)]
    pub best_of: Option<usize>,
    /// Tells the log-probabilities of tokens, and of so many likely ones at each place.
    #[schema(maximum = 20)]
    pub logprobs: Option<u32>,
    /// Begin answers with the prompt.
    pub echo: Option<bool>,
    /// Refused: this server does not fill in.
    pub suffix: Option<String>,
    /// Tell the tokens, too.
    pub return_token_ids: Option<bool>,
    /// What answers must be.
    #[schema(value_type = Option<structured::ResponseFormat>)]
    pub response_format: Option<Value>,
}

fn sixteen() -> Option<u64> {
    Some(16)
}

impl Read for CompletionRequest {
    fn read(body: &Value) -> Result<Self, ApiError> {
        refuse_unknown(body)?;
        Ok(CompletionRequest { own: fields(body)?, sampling: fields(body)?, guided: fields(body)? })
    }
}

/// `POST /v1/completions`.
pub fn routes() -> Router<AppState> {
    Router::new().route("/v1/completions", post(create))
}

/// Continues prompts.
#[utoipa::path(post, path = "/v1/completions", tag = "OpenAI", request_body = CompletionRequest, responses(
    (status = 200, description = "The answers; with `stream` their chunks", content(
        (Completion = "application/json"), (Completion = "text/event-stream"),
    )),
    (status = "default", description = "What is wrong", body = crate::serve::error::ErrorBody),
))]
pub async fn create(
    State(state): State<AppState>,
    Body(request): Body<CompletionRequest>,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let served = state.model(request.sampling.model.as_deref())?;
    let streams = request.sampling.stream == Some(true);
    let usage = ChunkUsage::from(request.sampling.stream_options);
    // Long prompts take milliseconds to tokenise, and large grammars tens of them to compile.
    let asked = tokio::task::spawn_blocking(move || ask(&state, &served, &request, arrived));
    let (mut answers, mut writing) = asked.await.map_err(|error| ApiError::internal(error.to_string()))??;
    if streams {
        return Ok(events(answers, Chunks { writing, usage }));
    }
    while let Some(step) = answers.next().await? {
        writing.push(step);
    }
    Ok(Json(writing.whole(answers.usage())).into_response())
}

/// Checks a request and begins with it.
fn ask(
    state: &AppState,
    served: &Arc<Served>,
    request: &CompletionRequest,
    arrived: Instant,
) -> Result<(Answers, Writing), ApiError> {
    let own = &request.own;
    let wrong = |field: &str, problem: &str| Err(ApiError::invalid(format!("{field} {problem}"), Some(field)));
    let echo = own.echo == Some(true);
    if own.suffix.as_deref().is_some_and(|suffix| !suffix.is_empty()) {
        return wrong("suffix", "is not supported: leave it out");
    }
    if echo && own.logprobs.is_some() {
        return wrong("logprobs", "of the prompt are not known: leave out echo or logprobs");
    }
    let mut params = request.sampling.params(served, own.max_tokens, own.best_of)?;
    let text = served.llm.text_model();
    let outputs = request.sampling.structured_outputs.as_ref();
    params.grammar = structured::grammar(text, own.response_format.as_ref(), outputs, &request.guided)?;
    let n = request.sampling.n.unwrap_or(1);
    let ranked = params.n > n;
    if ranked && request.sampling.stream == Some(true) {
        return wrong("best_of", "must be n in a stream: the best answer is known at the end");
    }
    params.logprobs = own.logprobs.or(ranked.then_some(0));
    let prompts = read_prompts(&own.prompt, "prompt")?;
    if prompts.len().saturating_mul(params.n) > MAX_PROMPTS {
        return wrong("n", &format!("times the number of prompts must be at most {MAX_PROMPTS}"));
    }
    let echoes: Vec<String> = prompts
        .iter()
        .map(|prompt| match prompt {
            _ if !echo => String::new(),
            Prompt::Text(text) => text.clone(),
            Prompt::Tokens(tokens) => text.tokenizer().decode(tokens, false),
        })
        .collect();
    let tokens =
        prompts.into_iter().map(|prompt| prompt_tokens(served, prompt)).collect::<Result<Vec<_>, ApiError>>()?;
    let writing = Writing::new(served, own, echoes, &tokens, &params, n)?;
    if params.max_tokens == Some(0) && echo {
        for prompt in &tokens {
            served.llm.check_embed(prompt)?;
        }
        return Ok((Answers::none(tokens.iter().map(Vec::len).sum()), writing));
    }
    Ok((Answers::ask(state, served, tokens, &params, arrived)?, writing))
}

/// A completion that is being made.
struct Writing {
    head: Completion,
    choices: Vec<Growing>,
    /// Answers of each prompt that are told.
    n: usize,
    /// Of each prompt that are generated.
    of: usize,
    tells_logprobs: bool,
    tells_tokens: bool,
}

/// An answer that is being made.
struct Growing {
    /// Whether the stream has told the prompt.
    begun: bool,
    choice: Choice,
    logprobs: Option<LogprobsBuilder>,
    /// Sum and number of log-probabilities.
    score: (f64, u32),
}

impl Growing {
    /// What a stream tells before the answer's first token: the prompt, if asked for.
    fn begin(&mut self) -> Option<Choice> {
        let first = !std::mem::replace(&mut self.begun, true);
        let told = !self.choice.text.is_empty() || self.choice.prompt_token_ids.is_some();
        (first && told).then(|| self.choice.clone())
    }
}

impl Writing {
    fn new(
        served: &Served,
        own: &CompletionFields,
        echoes: Vec<String>,
        tokens: &[Vec<u32>],
        params: &SamplingParams,
        n: usize,
    ) -> Result<Self, ApiError> {
        let tells_tokens = own.return_token_ids == Some(true);
        let head = Completion {
            id: id("cmpl-"),
            object: "text_completion",
            created: now(),
            model: served.id.clone(),
            choices: Vec::new(),
            usage: None,
        };
        let mut choices = Vec::new();
        for (echo, prompt) in echoes.iter().zip(tokens) {
            for _ in 0..params.n {
                let choice = Choice {
                    index: choices.len(),
                    text: echo.clone(),
                    logprobs: own.logprobs.map(|_| Logprobs::default()),
                    finish_reason: None,
                    prompt_token_ids: tells_tokens.then(|| prompt.clone()),
                    token_ids: tells_tokens.then(Vec::new),
                };
                let logprobs = params.logprobs.map(|_| LogprobsBuilder::new(served.llm.text_model())).transpose()?;
                choices.push(Growing { begun: false, choice, logprobs, score: (0.0, 0) });
            }
        }
        Ok(Writing { head, choices, n, of: params.n, tells_logprobs: own.logprobs.is_some(), tells_tokens })
    }

    /// Takes in a step; what it adds, as a choice of a chunk.
    fn push(&mut self, step: Step) -> Option<Choice> {
        let Step { choice, delta, .. } = step;
        let growing = self.choices.get_mut(choice)?;
        let logprobs = match (&mut growing.logprobs, delta.token, &delta.logprobs) {
            (Some(builder), Some(token), Some(found)) => {
                growing.score = (growing.score.0 + f64::from(found.logprob), growing.score.1 + 1);
                Some(builder.token(token, found))
            }
            _ => None,
        };
        let logprobs = logprobs.filter(|_| self.tells_logprobs);
        let finish_reason = delta.finish_reason.map(finish_name);
        let whole = &mut growing.choice;
        whole.text.push_str(&delta.text);
        whole.finish_reason = finish_reason;
        if let Some(all) = &mut whole.token_ids {
            all.extend(delta.token);
        }
        if let Some(more) = &logprobs {
            whole.logprobs.get_or_insert_with(Logprobs::default).extend(more);
        }
        let token_ids = self.tells_tokens.then(|| delta.token.into_iter().collect());
        Some(Choice { index: choice, text: delta.text, logprobs, finish_reason, prompt_token_ids: None, token_ids })
    }

    /// The completion, once all answers have ended: of each prompt the best.
    fn whole(self, usage: Usage) -> Completion {
        let Writing { head, choices, n, of, .. } = self;
        let mut told = Vec::new();
        let mut choices = choices.into_iter().peekable();
        while choices.peek().is_some() {
            let mut some: Vec<Growing> = choices.by_ref().take(of).collect();
            if of > n {
                let mean = |it: &Growing| it.score.0 / f64::from(it.score.1.max(1));
                some.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
            }
            for Growing { choice, .. } in some.into_iter().take(n) {
                let finish_reason = choice.finish_reason.or(Some("length"));
                told.push(Choice { index: told.len(), finish_reason, ..choice });
            }
        }
        Completion { choices: told, usage: Some(Some(usage)), ..head }
    }
}

/// A completion as chunks.
struct Chunks {
    writing: Writing,
    usage: ChunkUsage,
}

impl Chunks {
    fn chunk(&self, choices: Vec<Choice>, usage: Option<Option<Usage>>) -> Completion {
        Completion { choices, usage, ..self.writing.head.clone() }
    }
}

impl Writer for Chunks {
    type Chunk = Completion;

    fn step(&mut self, step: Step) -> Vec<Completion> {
        let usage = self.usage.of(step.usage);
        let first = self.writing.choices.get_mut(step.choice).and_then(Growing::begin);
        let choices: Vec<_> = first.into_iter().chain(self.writing.push(step)).collect();
        choices.into_iter().map(|choice| self.chunk(vec![choice], usage)).collect()
    }

    fn end(&mut self, usage: Usage) -> Vec<Completion> {
        // Without a token to generate nothing has ended, or begun.
        let open = self.writing.choices.iter_mut().filter(|growing| growing.choice.finish_reason.is_none());
        let ends: Vec<_> = open
            .flat_map(|growing| {
                let end = Choice {
                    text: String::new(),
                    prompt_token_ids: None,
                    finish_reason: Some("length"),
                    ..growing.choice.clone()
                };
                growing.begin().into_iter().chain([end])
            })
            .collect();
        let each = self.usage.of(usage);
        let mut chunks: Vec<_> = ends.into_iter().map(|choice| self.chunk(vec![choice], each)).collect();
        chunks.extend(self.usage.last.then(|| self.chunk(Vec::new(), Some(Some(usage)))));
        chunks
    }
}
