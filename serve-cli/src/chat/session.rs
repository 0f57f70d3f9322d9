//! A conversation with a loaded model.
use crate::speculation::Acceptance;
use crate::terminal::{Terminal, harmless};
use crate::{device, units};
use anyhow::Result;
use engine::chat_template::message;
use engine::llm::{Completion, Llm, SamplingParams};
use engine::scheduler::{FinishReason, SchedulerMetrics};
use serde_json::Value;
use signal_hook::consts::SIGINT;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A model and what was said so far.
pub struct Session {
    llm: Llm,
    params: SamplingParams,
    system: Option<String>,
    /// User and assistant in turns.
    messages: Vec<Value>,
    /// Whether the answers go to a terminal.
    on_terminal: bool,
    /// Set by Ctrl-C.
    interrupted: Arc<AtomicBool>,
    last: Option<Completion>,
    totals: Totals,
}

/// Over the whole session.
#[derive(Default)]
struct Totals {
    answers: usize,
    prompt_tokens: usize,
    tokens: usize,
    time: Duration,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The model was done.
    Done,
    /// It said `--max-tokens` of them.
    Cut,
    /// Ctrl-C.
    Stopped,
    /// There is no room for more.
    ContextFull,
}

impl Session {
    /// An empty conversation. Tells right away if the model cannot chat, or not with this system prompt.
    pub fn new(llm: Llm, params: SamplingParams, system: Option<String>, terminal: &Terminal) -> Result<Self> {
        let session = Session {
            llm,
            params,
            system,
            messages: Vec::new(),
            on_terminal: terminal.stdout,
            interrupted: Arc::default(),
            last: None,
            totals: Totals::default(),
        };
        session.llm.chat_prompt(&session.with_system(&[message("user", "Hello")]))?;
        Ok(session)
    }

    /// From now on Ctrl-C ends the answer and not the process.
    pub fn stop_on_ctrl_c(&self) -> Result<()> {
        signal_hook::flag::register(SIGINT, Arc::clone(&self.interrupted))?;
        Ok(())
    }

    /// Answers on stdout as the tokens come, with a line break at the end. A message that fails is not kept.
    pub fn answer(&mut self, text: &str) -> Result<Outcome> {
        let mut messages = self.messages.clone();
        messages.push(message("user", text));
        let prompt = self.llm.chat_prompt(&self.with_system(&messages))?;
        // The same question twice in a sampled chat may have two answers.
        let mut params = self.params.clone();
        params.seed = params.seed.wrapping_add(self.totals.answers as u64);

        self.interrupted.store(false, Ordering::Relaxed);
        let (mut out, mut written) = (io::stdout(), Ok(()));
        let on_terminal = self.on_terminal;
        let done = self.llm.stream(&[prompt], &params, Some(&self.interrupted), |_, delta| {
            written = out.write_all(harmless(&delta.text, on_terminal).as_bytes()).and_then(|()| out.flush());
            if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        written?;
        writeln!(out)?;
        let Some(completion) = done.into_iter().next() else { return Ok(Outcome::Done) };
        let Some(answer) = completion.answers.first() else { return Ok(Outcome::Done) };

        messages.push(message("assistant", &answer.text));
        self.messages = messages;
        self.totals.add(&completion);
        let full = completion.prompt_tokens + answer.tokens.len() >= self.llm.engine().max_len();
        let outcome = match answer.finish_reason {
            FinishReason::Abort => Outcome::Stopped,
            FinishReason::Length if full => Outcome::ContextFull,
            FinishReason::Length => Outcome::Cut,
            FinishReason::Stop => Outcome::Done,
        };
        self.last = Some(completion);
        Ok(outcome)
    }

    fn with_system(&self, messages: &[Value]) -> Vec<Value> {
        let system = self.system.iter().map(|text| message("system", text));
        system.chain(messages.iter().cloned()).collect()
    }

    /// Forgets the conversation.
    pub fn reset(&mut self) {
        self.messages.clear();
    }

    /// The system prompt.
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// Changes the system prompt.
    pub fn set_system(&mut self, text: Option<String>) {
        self.system = text;
    }

    /// Model, device and context in a line.
    pub fn describe(&self) -> String {
        let engine = self.llm.engine();
        let context = units::plural(engine.max_len(), "token");
        format!("{} on {} · {context} of context", self.llm.name(), device::describe(engine.runner().device()))
    }

    /// What goes below an answer: time to first token, tokens per second, tokens, device.
    pub fn last_line(&self, outcome: Outcome) -> String {
        let Some(last) = &self.last else { return String::new() };
        let mut parts = vec![format!("first token {}", units::duration(last.time_to_first_token))];
        parts.extend(last.decode_rate().map(|rate| format!("{rate:.1} tokens/s")));
        parts.push(units::plural(last.usage().completion_tokens, "token"));
        parts.push(self.llm.engine().runner().device().name().to_owned());
        if outcome == Outcome::Stopped {
            parts.push("stopped".to_owned());
        }
        parts.join(" · ")
    }

    /// What became of drafts, if there were any.
    pub fn speculation(&self) -> Option<String> {
        let acceptance = Acceptance::between(&SchedulerMetrics::default(), &self.llm.engine().metrics())?;
        Some(format!("drafts     {}", acceptance.line()))
    }

    /// One clear line for a full context.
    pub fn context_full(&self) -> String {
        format!("the context of {} tokens is full: /reset starts a new conversation", self.llm.engine().max_len())
    }

    /// `/stats`.
    pub fn stats(&self) -> String {
        let (engine, totals, s) = (self.llm.engine(), &self.totals, &self.params);
        let used = self.last.as_ref().filter(|_| !self.messages.is_empty());
        let used = used.map_or(0, |last| last.prompt_tokens + last.usage().completion_tokens);
        let sampling = if s.temperature == 0.0 {
            "greedy".to_owned()
        } else {
            format!(
                "temperature {}, top_k {}, top_p {}, min_p {}, seed {}",
                s.temperature, s.top_k, s.top_p, s.min_p, s.seed
            )
        };
        let mut lines = vec![
            format!("model      {}", self.describe()),
            format!(
                "context    {used} of {} tokens, {}",
                engine.max_len(),
                units::plural(self.messages.len(), "message")
            ),
            format!("KV cache   {} tokens", units::grouped(engine.kv_tokens() as u64)),
            format!("sampling   {sampling}"),
            format!(
                "session    {}, {} read, {} written in {}",
                units::plural(totals.answers, "answer"),
                units::plural(totals.prompt_tokens, "token"),
                units::plural(totals.tokens, "token"),
                units::duration(totals.time)
            ),
        ];
        lines.extend(self.speculation());
        if self.last.is_some() {
            lines.push(format!("last       {}", self.last_line(Outcome::Done)));
        }
        lines.join("\n")
    }
}

impl Totals {
    fn add(&mut self, completion: &Completion) {
        self.answers += 1;
        self.prompt_tokens += completion.prompt_tokens;
        self.tokens += completion.usage().completion_tokens;
        self.time += completion.total_time;
    }
}
