//! A model for many callers: requests from any thread or task, answers as streams.
//!
//! ```
//! use engine::{AsyncLlm, Pooling, SamplingParams, message};
//!
//! # pollster::block_on(async {
//! let llm = AsyncLlm::load("tiny-chat")?;
//! let mut stream = llm.chat(&[message("user", "What is 845 minus 367?")], SamplingParams::default())?;
//! let mut text = String::new();
//! while let Some(delta) = stream.next().await {
//!     text += &delta?.text;
//! }
//! assert_eq!(text, "478");
//!
//! // Dropping a stream cancels its request; collecting it waits for all of it.
//! let both = SamplingParams { n: 2, temperature: 1.0, max_tokens: Some(8), ..SamplingParams::default() };
//! let completion = llm.generate("Wootz is", both)?.completion().await?;
//! assert_eq!(completion.answers.len(), 2);
//!
//! let embedding = llm.embed("Wootz is a steel", Pooling::Mean, true)?.await?;
//! assert_eq!(embedding.values.len(), 256);
//! llm.handle().shutdown(std::time::Duration::from_secs(10))
//! # }).unwrap();
//! ```
use crate::error::Result;
use crate::llm::{Completion, Delta, Growth, Llm, Prompt, SamplingParams, TextModel};
use crate::pooling::{PendingEmbedding, Pooling};
use crate::scheduler::SequenceRequest;
use crate::source::ModelSource;
use crate::worker::{EngineHandle, MAX_OPEN_REQUESTS, TokenStream, block_on};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// A model whose engine has a thread of its own. Clones share it. Tokenising and detokenising is the caller's work.
#[derive(Clone)]
pub struct AsyncLlm {
    engine: EngineHandle,
    text: Arc<TextModel>,
}

impl AsyncLlm {
    /// Loads a model as [`Llm::load`] does; [`LlmBuilder::load_async`](crate::llm::LlmBuilder::load_async) with other
    /// settings.
    ///
    /// # Errors
    /// As [`Llm::load`].
    pub fn load(source: impl Into<ModelSource>) -> Result<Self> {
        AsyncLlm::new(Llm::load(source)?)
    }

    /// Starts a thread for a loaded model, with at most [`MAX_OPEN_REQUESTS`] open at once.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn new(llm: Llm) -> Result<Self> {
        let (engine, text) = llm.into_parts();
        Ok(AsyncLlm::over(EngineHandle::spawn(engine, MAX_OPEN_REQUESTS)?, text))
    }

    /// Over an engine that runs already.
    pub fn over(engine: EngineHandle, text: Arc<TextModel>) -> Self {
        AsyncLlm { engine, text }
    }

    /// The engine's thread: its health, its counts, its end.
    pub fn handle(&self) -> &EngineHandle {
        &self.engine
    }

    /// Name, tokenizer, chat template and recommendations.
    pub fn text_model(&self) -> &TextModel {
        &self.text
    }

    /// Continues a prompt.
    ///
    /// # Errors
    /// The request can never run, or none is taken now ([`EngineHandle::submit`]).
    pub fn generate(&self, prompt: impl Into<Prompt>, params: SamplingParams) -> Result<CompletionStream> {
        let prompt = self.text.encode(prompt.into())?;
        let request = self.text.request(prompt, &params)?;
        self.engine.admission().check(&request)?;
        let growth = Growth::new(self.text.tokenizer(), &request.prompt, &params)?;
        Ok(CompletionStream { tokens: self.engine.submit(request)?, growth })
    }

    /// A prompt's embedding, of length one if `normalize`. It is computed as a prompt is that somebody wants continued: in
    /// the same queue and steps.
    ///
    /// # Errors
    /// As [`AsyncLlm::generate`].
    pub fn embed(&self, prompt: impl Into<Prompt>, pooling: Pooling, normalize: bool) -> Result<PendingEmbedding> {
        let prompt = self.text.encode(prompt.into())?;
        let tokens = prompt.len();
        let request = SequenceRequest { prompt, pooling: Some(pooling), ..SequenceRequest::default() };
        Ok(PendingEmbedding::new(self.engine.submit(request)?, tokens, normalize))
    }

    /// Whether tokens can be embedded.
    ///
    /// # Errors
    /// There are none, too many, or one that the vocabulary lacks.
    pub fn check_embed(&self, tokens: &[u32]) -> Result<()> {
        let request =
            SequenceRequest { prompt: tokens.to_vec(), pooling: Some(Pooling::Mean), ..SequenceRequest::default() };
        self.engine.admission().check(&request)
    }

    /// Numbers of an embedding.
    pub fn embedding_size(&self) -> usize {
        self.engine.admission().hidden_size
    }

    /// Answers a conversation of [`message`](crate::message)s.
    ///
    /// # Errors
    /// As [`AsyncLlm::generate`]; or the model does not chat.
    pub fn chat(&self, messages: &[serde_json::Value], params: SamplingParams) -> Result<CompletionStream> {
        self.generate(self.text.chat_prompt(messages)?, params)
    }
}

/// The answers to a prompt as they grow. Dropping it cancels the request. It is a [`Stream`](futures_core::Stream), too.
#[must_use = "dropping the stream cancels the request"]
pub struct CompletionStream {
    tokens: TokenStream,
    growth: Growth,
}

impl CompletionStream {
    /// What the next token adds; `None` once all answers have ended.
    ///
    /// # Errors
    /// The request could not be queued, or the engine has failed; nothing comes after that.
    pub async fn next(&mut self) -> Option<Result<Delta>> {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// As [`CompletionStream::next`], for threads.
    ///
    /// # Errors
    /// As [`CompletionStream::next`].
    pub fn recv(&mut self) -> Option<Result<Delta>> {
        block_on(self.next())
    }

    /// Waits for the end, and returns all of it: also what the stream has told before.
    ///
    /// # Errors
    /// As [`CompletionStream::next`].
    pub async fn completion(mut self) -> Result<Completion> {
        while let Some(delta) = self.next().await {
            delta?;
        }
        Ok(self.into_completion())
    }

    /// As [`CompletionStream::completion`], for threads.
    ///
    /// # Errors
    /// As [`CompletionStream::next`].
    pub fn wait(self) -> Result<Completion> {
        block_on(self.completion())
    }

    /// Ends the request: what there is by now.
    pub fn into_completion(self) -> Completion {
        self.growth.finish()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Delta>>> {
        loop {
            if self.growth.is_over() {
                return Poll::Ready(None);
            }
            let event = match ready!(self.tokens.poll(cx)) {
                Some(Ok(event)) => event,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            };
            let ended = event.progress.finished.is_some();
            event.started.into_iter().for_each(|started| self.growth.start(started));
            let Some(delta) = self.growth.push(event.progress, event.at) else { continue };
            // A stop string: the engine does not know it.
            if delta.finish_reason.is_some() && !ended {
                self.tokens.cancel_answer(delta.index);
            }
            return Poll::Ready(Some(Ok(delta)));
        }
    }
}

impl futures_core::Stream for CompletionStream {
    type Item = Result<Delta>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll(cx)
    }
}
