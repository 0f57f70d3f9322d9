//! Tokens to text: answers as they grow, stop strings, times.
use super::SamplingParams;
use crate::detokenize::Detokenizer;
use crate::engine::Started;
use crate::error::Result;
use crate::scheduler::{FinishReason, Progress, TokenLogprobs};
use crate::stop::StopStrings;
use crate::tokenizer::Tokenizer;
use std::time::{Duration, Instant};

/// The answers to one prompt.
#[derive(Clone, Debug)]
pub struct Completion {
    /// `n` of them; of a beam search the best first.
    pub answers: Vec<Answer>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were in the prefix cache.
    pub cached_tokens: usize,
    /// Until the first token (TTFT); zero if there was none.
    pub time_to_first_token: Duration,
    /// Until the last.
    pub total_time: Duration,
}

/// One answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The text, without stop strings and special tokens.
    pub text: String,
    /// Its tokens, without the one that ended it.
    pub tokens: Vec<u32>,
    /// Why it ended; [`FinishReason::Abort`] if the caller did not want more.
    pub finish_reason: FinishReason,
    /// Of every token, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Beam search's score.
    pub score: Option<f32>,
}

/// Tokens that a request took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: usize,
    /// Of all answers.
    pub completion_tokens: usize,
}

/// What a token adds to an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// Which of the `n` answers.
    pub index: u32,
    /// Text that is certain now: often the token's own, nothing while a character or a stop string may be incomplete.
    pub text: String,
    /// The token; `None` if it ended the answer.
    pub token: Option<u32>,
    /// Its log-probabilities, if asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// Set with an answer's last one.
    pub finish_reason: Option<FinishReason>,
    /// Beam search's score, with the last one.
    pub score: Option<f32>,
    /// When the engine had the token.
    pub at: Instant,
    /// How the request began.
    pub started: Option<Started>,
}

impl Completion {
    /// The first answer's text.
    pub fn text(&self) -> &str {
        self.answers.first().map_or("", |answer| &answer.text)
    }

    /// The first answer.
    pub fn into_answer(self) -> Option<Answer> {
        self.answers.into_iter().next()
    }

    /// Tokens of prompt and answers.
    pub fn usage(&self) -> Usage {
        let completion_tokens = self.answers.iter().map(|answer| answer.tokens.len()).sum();
        Usage { prompt_tokens: self.prompt_tokens, completion_tokens }
    }

    /// Tokens per second after the first ones; `None` for fewer than two tokens.
    pub fn decode_rate(&self) -> Option<f64> {
        let steps = self.usage().completion_tokens.checked_sub(self.answers.len()).filter(|steps| *steps > 0)?;
        let time = (self.total_time - self.time_to_first_token).as_secs_f64();
        (time > 0.0).then(|| steps as f64 / time)
    }
}

/// The answers to one prompt as they grow.
pub(crate) struct Growth {
    start: Instant,
    prompt_tokens: usize,
    /// Tokens of an answer in which no stop string is looked for.
    min_tokens: usize,
    started: Option<Started>,
    first: Option<Instant>,
    last: Option<Instant>,
    answers: Vec<Growing>,
}

struct Growing {
    /// Until the end.
    text: Option<(Detokenizer, StopStrings)>,
    answer: Answer,
}

impl Growth {
    pub fn new(tokenizer: &Tokenizer, prompt: &[u32], params: &SamplingParams) -> Result<Self> {
        let grow = || -> Result<Growing> {
            let mut detokenizer = Detokenizer::new(tokenizer, params.skip_special_tokens)?;
            detokenizer.skip_prompt(prompt);
            let answer = Answer {
                text: String::new(),
                tokens: Vec::new(),
                finish_reason: FinishReason::Abort,
                logprobs: Vec::new(),
                score: None,
            };
            Ok(Growing { text: Some((detokenizer, StopStrings::new(params.stop.iter().cloned()))), answer })
        };
        Ok(Growth {
            start: Instant::now(),
            prompt_tokens: prompt.len(),
            min_tokens: params.min_tokens,
            started: None,
            first: None,
            last: None,
            answers: (0..params.n).map(|_| grow()).collect::<Result<_>>()?,
        })
    }

    /// The request has begun.
    pub fn start(&mut self, started: Started) {
        self.started = Some(started);
    }

    /// Whether all answers have ended.
    pub fn is_over(&self) -> bool {
        self.answers.iter().all(|growing| growing.text.is_none())
    }

    /// Takes in a token; `None` for what comes after an answer's end. The answer may end before the engine ends it: then the
    /// progress had no end and the delta has one.
    pub fn push(&mut self, progress: Progress, at: Instant) -> Option<Delta> {
        let growing = self.answers.get_mut(progress.index as usize)?;
        let (detokenizer, stops) = growing.text.as_mut()?;
        self.first.get_or_insert(at);
        self.last = Some(at);
        let Progress { index, token, logprobs, finished: mut finish_reason, score, .. } = progress;
        let mut text = String::new();
        if let Some(token) = token {
            growing.answer.tokens.push(token);
            growing.answer.logprobs.extend(logprobs.clone());
            text = detokenizer.push(token);
            if growing.answer.tokens.len() > self.min_tokens {
                let released = stops.push(&text);
                text = released.text;
                if released.stopped {
                    finish_reason = Some(FinishReason::Stop);
                    growing.text = None;
                }
            }
        }
        if finish_reason.is_some()
            && let Some((detokenizer, mut stops)) = growing.text.take()
        {
            let released = stops.push(&detokenizer.finish());
            text.push_str(&released.text);
            text.push_str(&stops.finish());
        }
        growing.answer.text.push_str(&text);
        growing.answer.score = score;
        growing.answer.finish_reason = finish_reason.unwrap_or(FinishReason::Abort);
        let logprobs = logprobs.filter(|_| token.is_some());
        Some(Delta { index, text, token, logprobs, finish_reason, score, at, started: self.started })
    }

    /// What the deltas have told by now. Open answers are aborted ones.
    pub fn finish(self) -> Completion {
        let answers = self.answers.into_iter().map(|growing| growing.answer);
        let since = |at: Option<Instant>| at.map_or(Duration::ZERO, |at| at.saturating_duration_since(self.start));
        Completion {
            answers: answers.collect(),
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.started.map_or(0, |started| started.cached_tokens),
            time_to_first_token: since(self.first),
            total_time: since(self.last),
        }
    }
}
