//! The answers to a request's prompts as they grow, and their stream of events.
use super::body::refused;
use super::observe::{Observed, observe};
use super::types::Usage;
use crate::serve::error::ApiError;
use crate::serve::state::{AppState, Served};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use engine::async_llm::CompletionStream;
use engine::llm::Delta;
use engine::scheduler::FinishReason;
use engine::{AsyncLlm, SamplingParams};
use futures_util::stream::{self, BoxStream, SelectAll, StreamExt};
use serde::Serialize;
use std::convert::Infallible;
use std::time::{Duration, Instant};

/// The answers to all prompts. Dropping them cancels the requests.
pub struct Answers {
    streams: SelectAll<BoxStream<'static, (usize, engine::Result<Delta>)>>,
    /// Answers of each prompt.
    n: usize,
    /// Prompts whose cached tokens are counted.
    counted: Vec<bool>,
    usage: Usage,
    observed: Option<Observed>,
    reason: &'static str,
    /// For why the engine has aborted an answer.
    cause: Option<Cause>,
    /// Silence after which a stream has a comment.
    keep_alive: Duration,
}

/// What grows.
#[derive(Debug)]
pub struct Step {
    /// Which answer: those of the first prompt come first.
    pub choice: usize,
    /// By what.
    pub delta: Delta,
    /// All tokens until now.
    pub usage: Usage,
}

impl Answers {
    /// Asks for answers to prompts. It may compile a grammar: not on the runtime's threads.
    ///
    /// # Errors
    /// The engine refuses a prompt or the parameters; what was asked before is cancelled.
    pub fn ask(
        state: &AppState,
        served: &Served,
        prompts: Vec<Vec<u32>>,
        params: &SamplingParams,
        arrived: Instant,
    ) -> Result<Self, ApiError> {
        let (count, most) = (prompts.len(), served.llm.handle().max_open());
        if count > most {
            // Later there is no more room either.
            let problem = format!("prompt has {count} entries, this server takes {most} requests at once: send fewer");
            return Err(ApiError::invalid(problem, Some("prompt")));
        }
        let prompt_tokens = prompts.iter().map(Vec::len).sum();
        let (mut streams, counted) = (SelectAll::new(), vec![false; prompts.len()]);
        for (i, prompt) in prompts.into_iter().enumerate() {
            let answers: CompletionStream = served.llm.generate(prompt, params.clone()).map_err(refused)?;
            streams.push(answers.map(move |delta| (i, delta)).boxed());
        }
        Ok(Answers {
            streams,
            n: params.n,
            counted,
            usage: Usage::of_prompts(prompt_tokens),
            observed: Some(observe(state, served, prompt_tokens, arrived)),
            reason: "stop",
            cause: Some(Cause::new(served, params)),
            keep_alive: state.limits().sse_keep_alive,
        })
    }

    /// Without answers: what `max_tokens: 0` asks for.
    pub fn none(prompt_tokens: usize) -> Self {
        Answers {
            streams: SelectAll::new(),
            n: 1,
            counted: Vec::new(),
            usage: Usage::of_prompts(prompt_tokens),
            observed: None,
            reason: "length",
            cause: None,
            // Nothing keeps what has no answers waiting.
            keep_alive: Duration::from_secs(60),
        }
    }

    /// Tokens until now.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// What grows next; `None` after the end of all answers.
    ///
    /// # Errors
    /// The engine has failed or ends. Nothing comes after that.
    pub async fn next(&mut self) -> Result<Option<Step>, ApiError> {
        let Some((prompt, delta)) = self.streams.next().await else {
            let reason = self.reason;
            self.observed.take().into_iter().for_each(|observed| observed.finish(reason));
            return Ok(None);
        };
        let delta = match delta {
            Ok(delta) if delta.finish_reason == Some(FinishReason::Abort) => {
                Err(self.cause.as_ref().map_or_else(|| engine::Error::ShuttingDown.into(), Cause::error))
            }
            other => other.map_err(ApiError::from),
        };
        let delta = delta.inspect_err(|_| {
            self.streams.clear();
            self.observed.take().into_iter().for_each(|observed| observed.finish("error"));
        })?;
        let choice = prompt * self.n + delta.index as usize;
        if let Some(started) = delta.started.filter(|_| !std::mem::replace(&mut self.counted[prompt], true)) {
            self.usage.prompt_tokens_details.cached_tokens += started.cached_tokens;
        }
        if delta.token.is_some() {
            self.usage.completion_tokens += 1;
            self.usage.total_tokens += 1;
            if let Some(observed) = &mut self.observed {
                observed.token(choice, &delta);
            }
        }
        if delta.finish_reason == Some(FinishReason::Length) {
            self.reason = "length";
        }
        Ok(Some(Step { choice, delta, usage: self.usage }))
    }
}

/// What tells why an engine has ended an answer that is not whole.
pub struct Cause {
    llm: AsyncLlm,
    has_grammar: bool,
}

impl Cause {
    /// Of answers with these parameters.
    pub fn new(served: &Served, params: &SamplingParams) -> Self {
        Cause { llm: served.llm.clone(), has_grammar: params.grammar.is_some() }
    }

    /// An engine that ends, by a signal or because its model is unloaded, aborts all; one that goes on only what has no token left.
    pub fn error(&self) -> ApiError {
        if self.has_grammar && !self.llm.handle().health().closing {
            let problem = "no token is left that the answer's grammar allows: logit_bias may ban them all";
            return ApiError::invalid(problem.into(), None);
        }
        engine::Error::ShuttingDown.into()
    }
}

/// Turns answers into the chunks of a stream.
pub trait Writer: Send + 'static {
    /// A chunk.
    type Chunk: Serialize;

    /// An answer grows.
    fn step(&mut self, step: Step) -> Vec<Self::Chunk>;

    /// After all answers.
    fn end(&mut self, usage: Usage) -> Vec<Self::Chunk>;
}

/// The events of a stream: chunks, and `[DONE]` or an error.
pub fn events<W: Writer>(answers: Answers, writer: W) -> Response {
    let keep_alive = answers.keep_alive;
    let lines = stream::unfold((answers, writer, false), |(mut answers, mut writer, over)| async move {
        if over {
            return None;
        }
        let (lines, over) = match answers.next().await {
            Ok(Some(step)) => (json(writer.step(step)), false),
            Ok(None) => {
                let mut lines = json(writer.end(answers.usage()));
                lines.push("[DONE]".to_owned());
                (lines, true)
            }
            Err(error) => (json(vec![error.into_body()]), true),
        };
        Some((stream::iter(lines), (answers, writer, over)))
    });
    let events = lines.flatten().map(|line| Ok::<_, Infallible>(Event::default().data(line)));
    Sse::new(events).keep_alive(KeepAlive::new().interval(keep_alive)).into_response()
}

fn json<T: Serialize>(chunks: Vec<T>) -> Vec<String> {
    // Serialising what has only strings, numbers, lists and maps with string keys does not fail.
    chunks.iter().map(|chunk| serde_json::to_string(chunk).unwrap_or_default()).collect()
}

/// The name of an end.
pub fn finish_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::Stop | FinishReason::Abort => "stop",
    }
}
