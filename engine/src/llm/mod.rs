//! A model with its tokenizer and chat template: text in, text out.
//!
//! ```
//! use engine::{Llm, SamplingParams};
//!
//! let mut llm = Llm::load("tiny-chat")?;
//! let params = SamplingParams { max_tokens: Some(16), temperature: 0.8, seed: 1, n: 2, ..SamplingParams::default() };
//! for completion in llm.generate(["Spell the word garden", "What is 6 times 7?"], params)? {
//!     assert_eq!(completion.answers.len(), 2);
//! }
//! # Ok::<(), engine::Error>(())
//! ```
mod answer;
mod builder;
mod params;
mod prompt;

pub use answer::{Answer, Completion, Delta, Usage};
pub use builder::LlmBuilder;
pub use params::SamplingParams;
pub use prompt::{Prompt, Prompts};

use crate::chat_template::{ChatInput, ChatTemplate};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::generation_config::GenerationConfig;
use crate::grammar::{Grammar, Grammars};
use crate::pooling::{Embedding, Pooling};
use crate::scheduler::{RequestId, SequenceRequest};
use crate::source::ModelSource;
use crate::tokenizer::Tokenizer;
pub(crate) use answer::Growth;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A model that answers, on the thread that asks.
pub struct Llm {
    engine: Engine,
    text: Arc<TextModel>,
}

/// What turns text into tokens.
pub struct TextModel {
    name: String,
    tokenizer: Tokenizer,
    /// A base model has none: an error only when somebody chats.
    template: Option<ChatTemplate>,
    generation: GenerationConfig,
    pub(crate) grammars: Grammars,
}

impl TextModel {
    fn new(name: String, tokenizer: Tokenizer, template: Option<ChatTemplate>, generation: GenerationConfig) -> Self {
        let grammars = Grammars::new(tokenizer.clone(), generation.eos_token_ids.clone());
        TextModel { name, tokenizer, template, generation, grammars }
    }

    /// The model's name for people.
    pub fn name(&self) -> &str {
        &self.name
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
    ///
    /// # Errors
    /// The model has no chat template, or the template refuses the conversation.
    pub fn chat_prompt(&self, messages: &[serde_json::Value]) -> Result<Vec<u32>> {
        let text = self.chat_text(&ChatInput {
            messages: messages.to_vec(),
            add_generation_prompt: true,
            ..Default::default()
        })?;
        self.chat_tokens(&text)
    }

    /// The prompt's text for a conversation with tools, documents or variables such as `enable_thinking`. Its end says
    /// whether the template has opened the answer's reasoning already
    /// ([`ReasoningFormat::is_open_in`](crate::chat_output::ReasoningFormat::is_open_in)).
    ///
    /// # Errors
    /// As [`TextModel::chat_prompt`].
    pub fn chat_text(&self, input: &ChatInput) -> Result<String> {
        let template = self.template.as_ref().ok_or_else(|| Error::NoChatTemplate { origin: self.name.clone() })?;
        template.render(input)
    }

    /// Tokens of what [`TextModel::chat_text`] returned: the template writes the special tokens itself.
    ///
    /// # Errors
    /// The tokenizer cannot encode it.
    pub fn chat_tokens(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, true)
    }

    /// The chat template, if the model has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Whether the model can follow a grammar: compiles it, or finds it compiled. On the caller's thread, since large
    /// schemas take tens of milliseconds.
    ///
    /// # Errors
    /// [`Error::Request`] with what is wrong with the grammar.
    pub fn check_grammar(&self, grammar: &Grammar) -> Result<()> {
        self.grammars.compile(grammar).map(drop)
    }

    /// What the engine is asked for.
    pub(crate) fn request(&self, prompt: Vec<u32>, params: &SamplingParams) -> Result<SequenceRequest> {
        params.validate()?;
        let grammar = params.grammar.as_ref().map(|grammar| self.grammars.compile(grammar)).transpose()?;
        params.request(prompt, &self.generation.eos_token_ids, grammar)
    }

    /// Prompt tokens of plain text, with the special tokens that the tokenizer adds.
    ///
    /// # Errors
    /// The tokenizer cannot encode it.
    pub fn text_prompt(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode_prompt(text)
    }

    /// A prompt's tokens.
    pub(crate) fn encode(&self, prompt: Prompt) -> Result<Vec<u32>> {
        match prompt {
            Prompt::Text(text) => self.text_prompt(&text),
            Prompt::Tokens(tokens) => Ok(tokens),
        }
    }
}

impl Llm {
    /// Loads a model onto the first GPU, or where there is none onto the CPU: a Hugging Face directory, or `"tiny-chat"`,
    /// which is inside the library. [`Llm::builder`] sets all the rest.
    ///
    /// # Errors
    /// The files cannot be used, or the model does not fit.
    pub fn load(source: impl Into<ModelSource>) -> Result<Self> {
        Llm::builder(source).load()
    }

    /// Sets device and bounds before loading.
    pub fn builder<'a>(source: impl Into<ModelSource>) -> LlmBuilder<'a> {
        LlmBuilder::new(source.into())
    }

    /// The model's name for people.
    pub fn name(&self) -> &str {
        &self.text.name
    }

    /// The engine below.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The engine below, to run tokens without text.
    pub fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// Tokenizer, chat template and recommendations.
    pub fn text_model(&self) -> &Arc<TextModel> {
        &self.text
    }

    /// The engine and what turns text into its tokens.
    pub fn into_parts(self) -> (Engine, Arc<TextModel>) {
        (self.engine, self.text)
    }

    /// What the model's makers recommend.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.text.generation
    }

    /// Prompt tokens of a conversation, ready for the assistant's turn.
    ///
    /// # Errors
    /// The model has no chat template, or the template refuses the conversation.
    pub fn chat_prompt(&self, messages: &[serde_json::Value]) -> Result<Vec<u32>> {
        self.text.chat_prompt(messages)
    }

    /// Prompt tokens of plain text, with the special tokens that the tokenizer adds.
    ///
    /// # Errors
    /// The tokenizer cannot encode it.
    pub fn text_prompt(&self, text: &str) -> Result<Vec<u32>> {
        self.text.text_prompt(text)
    }

    /// Continues one prompt or many, all at once, and returns their answers in the prompts' order.
    ///
    /// # Errors
    /// A prompt or the parameters can never run; or the engine has failed.
    pub fn generate(&mut self, prompts: impl Prompts, params: SamplingParams) -> Result<Vec<Completion>> {
        let prompts = prompts.into_prompts().into_iter().map(|prompt| self.text.encode(prompt));
        let prompts = prompts.collect::<Result<Vec<_>>>()?;
        self.stream(&prompts, &params, None, |_, _| ControlFlow::Continue(()))
    }

    /// Embeddings of one prompt or many, in the prompts' order; of length one if `normalize`.
    ///
    /// # Errors
    /// As [`Llm::generate`].
    pub fn embed(&mut self, prompts: impl Prompts, pooling: Pooling, normalize: bool) -> Result<Vec<Embedding>> {
        let mut embeddings = Vec::new();
        let mut places: HashMap<RequestId, usize> = HashMap::new();
        for prompt in prompts.into_prompts() {
            let added = self.text.encode(prompt).and_then(|prompt| {
                let prompt_tokens = prompt.len();
                let request = SequenceRequest { prompt, pooling: Some(pooling), ..SequenceRequest::default() };
                Ok((self.engine.add(request)?, prompt_tokens))
            });
            match added {
                Ok((id, prompt_tokens)) => {
                    places.insert(id, embeddings.len());
                    embeddings.push(Embedding { values: Vec::new(), prompt_tokens });
                }
                Err(error) => {
                    places.into_keys().for_each(|id| self.engine.cancel(id));
                    return Err(error);
                }
            }
        }
        while self.engine.has_work() {
            for progress in self.engine.step()? {
                if let (Some(at), Some(values)) = (places.get(&progress.id), progress.embedding) {
                    embeddings[*at].values = values;
                }
            }
        }
        if normalize {
            embeddings.iter_mut().for_each(Embedding::normalize);
        }
        Ok(embeddings)
    }

    /// Answers a conversation of [`message`](crate::message)s.
    ///
    /// # Errors
    /// As [`Llm::generate`]; or the model does not chat.
    pub fn chat(&mut self, messages: &[serde_json::Value], params: SamplingParams) -> Result<Completion> {
        let prompt = self.chat_prompt(messages)?;
        let mut completions = self.generate(Prompt::Tokens(prompt), params)?;
        completions.pop().ok_or_else(|| Error::Request { problem: "there is no answer to no prompt".into() })
    }

    /// As [`Llm::generate`], for tokens. `on_delta(i, delta)` sees prompt i's answers as they grow and may end them all by
    /// breaking; so does `cancel`, looked at before every step, a long prompt's too.
    ///
    /// # Errors
    /// As [`Llm::generate`].
    pub fn stream(
        &mut self,
        prompts: &[Vec<u32>],
        params: &SamplingParams,
        cancel: Option<&AtomicBool>,
        mut on_delta: impl FnMut(usize, &Delta) -> ControlFlow<()>,
    ) -> Result<Vec<Completion>> {
        let (engine, text) = (&mut self.engine, &self.text);
        let mut growths = Vec::with_capacity(prompts.len());
        let mut places: HashMap<RequestId, usize> = HashMap::with_capacity(prompts.len());
        for prompt in prompts {
            let growth = text
                .request(prompt.clone(), params)
                .and_then(|request| engine.admission().check(&request).map(|()| request))
                .and_then(|request| Ok((Growth::new(&text.tokenizer, prompt, params)?, engine.add(request)?)));
            match growth {
                Ok((growth, id)) => {
                    places.insert(id, growths.len());
                    growths.push(growth);
                }
                Err(error) => {
                    places.into_keys().for_each(|id| engine.cancel(id));
                    return Err(error);
                }
            }
        }
        while engine.has_work() {
            if cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                places.into_keys().for_each(|id| engine.cancel(id));
                break;
            }
            let (steps, now) = (engine.step()?, Instant::now());
            for (id, started) in engine.take_started() {
                places.get(&id).into_iter().for_each(|&at| growths[at].start(started));
            }
            for progress in steps {
                let (id, ended) = (progress.id, progress.finished.is_some());
                let Some(&at) = places.get(&id) else { continue };
                let Some(delta) = growths[at].push(progress, now) else { continue };
                if on_delta(at, &delta).is_break() {
                    engine.cancel(id);
                    places.remove(&id);
                } else if growths[at].is_over() {
                    engine.cancel(id);
                } else if delta.finish_reason.is_some() && !ended {
                    engine.cancel_answer(id, delta.index);
                }
            }
        }
        Ok(growths.into_iter().map(Growth::finish).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::{Grammar, Llm, Prompt, SamplingParams};
    use crate::Device;
    use crate::engine::EngineConfig;
    use crate::scheduler::{FinishReason, Speculation};

    #[test]
    fn a_completion_tells_what_was_cached() {
        let mut llm = Llm::builder("tiny-chat").device(&Device::cpu()).load().unwrap();
        let params = SamplingParams { max_tokens: Some(1), ..SamplingParams::default() };
        let mut cached = || llm.generate(Prompt::Tokens(vec![7; 130]), params.clone()).unwrap()[0].cached_tokens;
        assert_eq!([cached(), cached()], [0, 128]);
    }

    /// Neither the model's end nor a stop token or string ends an answer early, drafted or not; what comes later does.
    #[test]
    fn answers_have_their_fewest_tokens() {
        let ngrams = Speculation::Ngram { drafts: 5, max_n: 3, min_n: 1 };
        let config = EngineConfig { speculation: ngrams, ..EngineConfig::default() };
        let mut llm = Llm::builder("tiny-chat").device(&Device::cpu()).config(config).load().unwrap();
        let prompt = llm.chat_prompt(&[crate::message("user", "What is 12 plus 7?")]).unwrap();
        let mut answer = |params: SamplingParams| {
            let params = SamplingParams { max_tokens: Some(40), ..params };
            llm.generate(Prompt::Tokens(prompt.clone()), params).unwrap().remove(0).into_answer().unwrap()
        };
        let short = answer(SamplingParams::default());
        let (count, first) = (short.tokens.len(), short.tokens[0]);
        assert!((1..8).contains(&count) && short.finish_reason == FinishReason::Stop, "{short:?}");
        let long = SamplingParams { min_tokens: 12, speculation: Speculation::Off, ..SamplingParams::default() };
        let held = answer(long.clone());
        assert!(held.tokens.len() >= 12 && held.tokens.starts_with(&short.tokens), "{held:?}");
        let drafted = SamplingParams { speculation: ngrams, ..long.clone() };
        assert_eq!(answer(drafted), held);
        let stopped = answer(SamplingParams { stop_token_ids: vec![first], ..long.clone() });
        assert!(stopped.tokens.len() >= 12 && !stopped.tokens[..12].contains(&first), "{stopped:?}");
        let text = answer(SamplingParams { stop: vec![short.text.clone()], ..long.clone() });
        assert!(text.tokens.len() >= 12 && text.text.starts_with(&short.text), "{text:?}");
        let letters = Some(Grammar::Regex("[a-z]*".into()));
        assert!(answer(SamplingParams { grammar: letters, ..long }).tokens.len() >= 12);
        let exact = SamplingParams { min_tokens: count, ..SamplingParams::default() };
        assert_eq!(answer(exact), short, "as many as it has");
    }
}
