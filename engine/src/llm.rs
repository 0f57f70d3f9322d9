//! A model with its tokenizer and chat template: text in, text out.
//!
//! ```
//! use engine::Device;
//! use engine::chat_template::message;
//! use engine::engine::EngineConfig;
//! use engine::llm::{GenerateOptions, Llm};
//! use engine::source::ModelSource;
//! use std::ops::ControlFlow;
//!
//! let mut llm = Llm::load(&ModelSource::default(), &Device::cpu(), &EngineConfig::default(), &|_, _| ())?;
//! let prompt = llm.chat_prompt(&[message("user", "What is 12 plus 7?")])?;
//! let answers = llm.generate(&[prompt], &GenerateOptions::default(), |_, _| ControlFlow::Continue(()))?;
//! assert_eq!(answers[0].text, "19");
//! # Ok::<(), engine::Error>(())
//! ```
use crate::chat_template::{ChatInput, ChatTemplate};
use crate::detokenize::Detokenizer;
use crate::engine::{Engine, EngineConfig};
use crate::error::{Error, Result};
use crate::generation_config::GenerationConfig;
use crate::model::{LoadProgress, WeightSource};
use crate::sampling::SamplingParams;
use crate::scheduler::{FinishReason, Progress, RequestId, SequenceRequest};
use crate::source::ModelSource;
use crate::stop::StopStrings;
use crate::tokenizer::Tokenizer;
use kernels_host::Device;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What a generation may do.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// Most tokens; `None`: as many as fit.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Strings that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Go on after end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Looked at before every step, a long prompt's too: once it is true, all answers end as they are.
    pub cancel: Option<Arc<AtomicBool>>,
}

/// One finished answer.
#[derive(Clone, Debug)]
pub struct Completion {
    /// The text.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Why it ended; `None` if the caller stopped it.
    pub finish_reason: Option<FinishReason>,
    /// Until the first token (TTFT).
    pub time_to_first_token: Duration,
    /// Until the last.
    pub total_time: Duration,
}

impl Completion {
    /// Tokens per second after the first; `None` for fewer than two tokens.
    pub fn decode_rate(&self) -> Option<f64> {
        let steps = self.tokens.len().checked_sub(1).filter(|steps| *steps > 0)?;
        let time = (self.total_time - self.time_to_first_token).as_secs_f64();
        (time > 0.0).then(|| steps as f64 / time)
    }
}

/// A model that answers.
pub struct Llm {
    engine: Engine,
    tokenizer: Tokenizer,
    /// A base model has none: an error only when somebody chats.
    template: Option<ChatTemplate>,
    generation: GenerationConfig,
    name: String,
}

impl Llm {
    /// Loads a model onto a device.
    pub fn load(
        source: &ModelSource,
        device: &Device,
        config: &EngineConfig,
        progress: &LoadProgress<'_>,
    ) -> Result<Self> {
        let model = source.config()?;
        let tokenizer = source.tokenizer(&model)?;
        let template = source.chat_template()?;
        let generation = source.generation_config(&model, &tokenizer, template.as_ref())?;
        let checkpoint = source.checkpoint()?;
        let engine = Engine::load(device, &model, WeightSource::Checkpoint(&checkpoint), config, progress)?;
        Ok(Llm { engine, tokenizer, template, generation, name: source.name() })
    }

    /// The model's name for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The engine below.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The engine below, to run tokens without text.
    pub fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What the model's makers recommend.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation
    }

    /// Prompt tokens of a conversation, ready for the assistant's turn.
    pub fn chat_prompt(&self, messages: &[serde_json::Value]) -> Result<Vec<u32>> {
        let template = self.template.as_ref().ok_or_else(|| Error::NoChatTemplate { origin: self.name.clone() })?;
        let text = template.render(&ChatInput {
            messages: messages.to_vec(),
            add_generation_prompt: true,
            ..Default::default()
        })?;
        // The template writes the special tokens itself.
        self.tokenizer.encode(&text, true)
    }

    /// Prompt tokens of plain text, with the special tokens that the tokenizer adds.
    pub fn text_prompt(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode_prompt(text)
    }

    /// Answers several prompts in one batch. `on_text(i, piece)` sees prompt i's answer as it grows and may stop it.
    pub fn generate(
        &mut self,
        prompts: &[Vec<u32>],
        options: &GenerateOptions,
        mut on_text: impl FnMut(usize, &str) -> ControlFlow<()>,
    ) -> Result<Vec<Completion>> {
        let start = Instant::now();
        let mut answers = Vec::new();
        for prompt in prompts {
            let request = SequenceRequest {
                prompt: prompt.clone(),
                max_tokens: options.max_tokens.unwrap_or(usize::MAX),
                stop_tokens: if options.ignore_eos { Vec::new() } else { self.generation.eos_token_ids.clone() },
                sampling: options.sampling.clone(),
                ..SequenceRequest::default()
            };
            match self.engine.add(request).and_then(|id| Answer::new(id, &self.tokenizer, prompt, options)) {
                Ok(answer) => answers.push(answer),
                Err(error) => {
                    answers.iter().for_each(|answer| self.engine.cancel(answer.id));
                    return Err(error);
                }
            }
        }
        while self.engine.has_work() {
            if options.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                answers.iter().for_each(|answer| self.engine.cancel(answer.id));
                break;
            }
            for progress in self.engine.step()? {
                let Some(at) = answers.iter().position(|answer| answer.id == progress.id) else { continue };
                let answer = &mut answers[at];
                let piece = answer.advance(&progress, start.elapsed());
                let stop = !piece.is_empty() && on_text(at, &piece).is_break();
                if (stop || answer.completion.finish_reason.is_some()) && progress.finished.is_none() {
                    self.engine.cancel(progress.id);
                }
            }
        }
        Ok(answers.into_iter().map(|answer| answer.completion).collect())
    }
}

/// An answer as it grows.
struct Answer {
    id: RequestId,
    /// Taken at the end.
    text: Option<(Detokenizer, StopStrings)>,
    completion: Completion,
}

impl Answer {
    fn new(id: RequestId, tokenizer: &Tokenizer, prompt: &[u32], options: &GenerateOptions) -> Result<Self> {
        let mut detokenizer = Detokenizer::new(tokenizer, true)?;
        detokenizer.skip_prompt(prompt);
        let completion = Completion {
            text: String::new(),
            tokens: Vec::new(),
            prompt_tokens: prompt.len(),
            finish_reason: None,
            time_to_first_token: Duration::ZERO,
            total_time: Duration::ZERO,
        };
        Ok(Answer { id, text: Some((detokenizer, StopStrings::new(options.stop.iter().cloned()))), completion })
    }

    /// Takes in a step's progress and returns the text that is certain now.
    fn advance(&mut self, progress: &Progress, elapsed: Duration) -> String {
        let Some((detokenizer, stops)) = &mut self.text else { return String::new() };
        let done = &mut self.completion;
        if done.total_time.is_zero() {
            done.time_to_first_token = elapsed;
        }
        done.total_time = elapsed;
        done.finish_reason = progress.finished;
        let mut piece = String::new();
        if let Some(token) = progress.token {
            done.tokens.push(token);
            let released = stops.push(&detokenizer.push(token));
            piece = released.text;
            if released.stopped {
                done.finish_reason = Some(FinishReason::Stop);
                self.text = None;
            }
        }
        if progress.finished.is_some()
            && let Some((detokenizer, mut stops)) = self.text.take()
        {
            let released = stops.push(&detokenizer.finish());
            piece.push_str(&released.text);
            piece.push_str(&stops.finish());
        }
        self.completion.text.push_str(&piece);
        piece
    }
}
