//! From the engine's tokens to a response.
use super::object::{InputDetails, Logprob, OutputDetails, Response, TopLogprob, Usage};
use super::prepare::Prepared;
use super::random;
use super::writer::Writer;
use crate::serve::error::ApiError;
use crate::serve::openai::answers::Cause;
use crate::serve::openai::observe::Observed;
use crate::serve::state::Served;
use axum::response::sse::Event;
use engine::async_llm::CompletionStream;
use engine::chat_output::{ChatDelta, ChatParser};
use engine::llm::Delta;
use engine::scheduler::FinishReason;
use futures_util::{Stream, StreamExt, stream};
use std::convert::Infallible;
use std::sync::Arc;

/// A response that is being made. Dropping it cancels the request.
pub struct Answering {
    served: Arc<Served>,
    completion: CompletionStream,
    writer: Writer,
    /// Until the end.
    parser: Option<ChatParser>,
    /// Of tokens whose text is not told yet.
    logprobs: Vec<Logprob>,
    usage: Usage,
    /// Until the end.
    observed: Option<Observed>,
    cause: Cause,
    /// Whether what came last is reasoning.
    reasons: bool,
    over: bool,
}

impl Answering {
    /// Asks the engine.
    ///
    /// # Errors
    /// It takes no such request, or none now.
    pub fn start(
        served: Arc<Served>,
        prepared: Prepared,
        writer: Writer,
        observed: Observed,
    ) -> Result<Self, ApiError> {
        let Prepared { prompt, params, format } = prepared;
        let usage = Usage {
            input_tokens: prompt.len(),
            input_tokens_details: InputDetails::default(),
            output_tokens: 0,
            output_tokens_details: OutputDetails::default(),
            total_tokens: prompt.len(),
        };
        let cause = Cause::new(&served, &params);
        let completion = served.llm.generate(prompt, params)?;
        let parser = Some(ChatParser::new(format));
        let (reasons, logprobs) = (format.reasoning_is_open, Vec::new());
        Ok(Answering {
            served,
            completion,
            writer,
            parser,
            logprobs,
            usage,
            observed: Some(observed),
            cause,
            reasons,
            over: false,
        })
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The engine could not go on.
    pub async fn whole(mut self) -> Result<Response, ApiError> {
        while !self.over {
            self.step().await?;
        }
        Ok(self.writer.into_response())
    }

    /// All events, as they come.
    pub fn events(self) -> impl Stream<Item = Result<Event, Infallible>> {
        let steps = stream::unfold((self, true), |(mut answer, first)| async move {
            if answer.over && !first {
                return None;
            }
            if !first && let Err(error) = answer.step().await {
                answer.over = true;
                answer.writer.fail(error.to_string());
                answer.observe_end("error");
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

    /// Takes in what the next token adds.
    async fn step(&mut self) -> Result<(), ApiError> {
        let Some(delta) = self.completion.next().await.transpose()? else {
            self.finish(false);
            return Ok(());
        };
        if let Some(started) = delta.started {
            self.usage.input_tokens_details.cached_tokens = started.cached_tokens;
        }
        if delta.token.is_some() {
            self.usage.output_tokens += 1;
            if let Some(observed) = &mut self.observed {
                observed.token(0, &delta);
            }
            self.usage.total_tokens += 1;
            let found = self.logprob(&delta);
            self.logprobs.extend(found);
        }
        let deltas = self.parser.as_mut().map(|parser| parser.push(&delta.text)).unwrap_or_default();
        self.write(deltas);
        self.usage.output_tokens_details.reasoning_tokens += usize::from(self.reasons && delta.token.is_some());
        match delta.finish_reason {
            Some(FinishReason::Abort) => return Err(self.cause.error()),
            Some(reason) => self.finish(reason == FinishReason::Length),
            None => {}
        }
        Ok(())
    }

    fn write(&mut self, deltas: Vec<ChatDelta>) {
        for delta in deltas {
            self.reasons = matches!(delta, ChatDelta::Reasoning(_));
            let logprobs = std::mem::take(&mut self.logprobs);
            match delta {
                ChatDelta::Content(text) => self.writer.text(&text, logprobs),
                ChatDelta::Reasoning(text) => self.writer.reasoning(&text),
                ChatDelta::ToolCall { name, .. } => self.writer.call(&format!("call_{:016x}", random()), &name),
                ChatDelta::Arguments { text, .. } => self.writer.arguments(&text),
            }
        }
    }

    fn finish(&mut self, cut: bool) {
        if !std::mem::replace(&mut self.over, true) {
            let rest = self.parser.take().map(ChatParser::finish).unwrap_or_default();
            self.write(rest);
            self.writer.finish(cut, self.usage.clone());
            self.observe_end(if cut { "length" } else { "stop" });
        }
    }

    fn observe_end(&mut self, reason: &str) {
        if let Some(observed) = self.observed.take() {
            observed.finish(reason);
        }
    }

    fn logprob(&self, delta: &Delta) -> Option<Logprob> {
        let (token, found) = (delta.token?, delta.logprobs.as_ref()?);
        let tokenizer = self.served.llm.text_model().tokenizer();
        let text = |token: u32| tokenizer.decode(&[token], false);
        let top = |(token, logprob): &(u32, f32)| {
            let token = text(*token);
            TopLogprob { bytes: token.clone().into_bytes(), token, logprob: *logprob }
        };
        let token = text(token);
        let top_logprobs = found.top.iter().map(top).collect();
        Some(Logprob { bytes: token.clone().into_bytes(), token, logprob: found.logprob, top_logprobs })
    }
}
