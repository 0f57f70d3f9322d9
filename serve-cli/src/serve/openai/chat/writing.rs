//! Answers that are being made: whole ones and streams are read from the same deltas.
use super::object::{
    ChatChoice, ChatChunk, ChatCompletion, ChatLogprob, ChatLogprobs, ChatMessage, ChunkChoice, Delta, FunctionCall,
    FunctionDelta, ToolCall, ToolCallDelta,
};
use crate::serve::openai::answers::{Step, Writer, finish_name};
use crate::serve::openai::types::{ChunkUsage, Usage, id, now};
use engine::chat_output::{ChatDelta, ChatFormat, ChatParser};
use engine::detokenize::Detokenizer;

/// How answers are written.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// How the model's text is read.
    pub format: ChatFormat,
    /// Whether more than one tool may be called.
    pub parallel: bool,
    /// Whether reasoning is told.
    pub reasoning: bool,
    /// The usage in chunks.
    pub usage: ChunkUsage,
}

/// All answers to a conversation.
pub struct Writing {
    model: String,
    id: String,
    created: u64,
    style: Style,
    /// For log-probabilities, if asked for.
    detokenizer: Option<Detokenizer>,
    choices: Vec<Growing>,
}

/// An answer that is being made.
struct Growing {
    /// Whether the stream has told its role.
    begun: bool,
    parser: ChatParser,
    message: ChatMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

impl Writing {
    /// `n` answers.
    pub fn new(model: String, style: Style, detokenizer: Option<Detokenizer>, n: usize) -> Self {
        let growing = || Growing {
            begun: false,
            parser: ChatParser::new(style.format),
            message: ChatMessage {
                role: "assistant",
                content: None,
                refusal: None,
                reasoning_content: None,
                tool_calls: Vec::new(),
            },
            logprobs: detokenizer.is_some().then(ChatLogprobs::default),
            finish_reason: None,
        };
        let choices = (0..n).map(|_| growing()).collect();
        Writing { model, id: id("chatcmpl-"), created: now(), style, detokenizer, choices }
    }

    /// Takes in a step: what it adds.
    pub fn push(&mut self, step: &Step) -> Vec<ChunkChoice> {
        let Some(growing) = self.choices.get_mut(step.choice) else { return Vec::new() };
        let mut read = growing.parser.push(&step.delta.text);
        if step.delta.finish_reason.is_some() {
            let parser = std::mem::replace(&mut growing.parser, ChatParser::new(ChatFormat::default()));
            read.extend(parser.finish());
        }
        let mut deltas: Vec<Delta> = read.into_iter().filter_map(|delta| growing.push(delta, self.style)).collect();
        let finish_reason = step.delta.finish_reason.map(|reason| match finish_name(reason) {
            "stop" if !growing.message.tool_calls.is_empty() => "tool_calls",
            name => name,
        });
        growing.finish_reason = finish_reason.or(growing.finish_reason);
        let logprobs = match (&self.detokenizer, step.delta.token, &step.delta.logprobs) {
            (Some(detokenizer), Some(token), Some(found)) => vec![ChatLogprob::new(detokenizer, token, found)],
            _ => Vec::new(),
        };
        if let Some(all) = &mut growing.logprobs {
            all.content.extend(logprobs.iter().cloned());
        }
        // Chunks come token by token also where a token adds no text by itself: clients time them.
        let plain = self.style.format == ChatFormat::default();
        if deltas.is_empty() && (finish_reason.is_some() || !logprobs.is_empty() || plain) {
            deltas.push(Delta { content: (finish_reason.is_none()).then(String::new), ..Delta::default() });
        }
        let last = deltas.len();
        let mut logprobs = (!logprobs.is_empty()).then_some(ChatLogprobs { content: logprobs, refusal: None });
        let chunk = |(i, delta): (usize, Delta)| ChunkChoice {
            index: step.choice,
            delta,
            logprobs: logprobs.take(),
            finish_reason: finish_reason.filter(|_| i + 1 == last),
        };
        deltas.into_iter().enumerate().map(chunk).collect()
    }

    /// The answers, once they have ended.
    pub fn whole(self, usage: Usage) -> ChatCompletion {
        let choice = |(index, growing): (usize, Growing)| {
            let mut message = growing.message;
            if message.tool_calls.is_empty() {
                message.content.get_or_insert_default();
            }
            let finish_reason = growing.finish_reason.unwrap_or("stop");
            ChatChoice { index, message, logprobs: growing.logprobs, finish_reason }
        };
        ChatCompletion {
            id: self.id,
            object: "chat.completion",
            created: self.created,
            model: self.model,
            choices: self.choices.into_iter().enumerate().map(choice).collect(),
            usage,
        }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Option<Usage>>) -> ChatChunk {
        let (id, model) = (self.id.clone(), self.model.clone());
        ChatChunk { id, object: "chat.completion.chunk", created: self.created, model, choices, usage }
    }
}

impl Growing {
    /// Takes in what was read; what is told of it.
    fn push(&mut self, delta: ChatDelta, style: Style) -> Option<Delta> {
        match delta {
            ChatDelta::Content(text) => {
                self.message.content.get_or_insert_default().push_str(&text);
                Some(Delta { content: Some(text), ..Delta::default() })
            }
            ChatDelta::Reasoning(_) if !style.reasoning => None,
            ChatDelta::Reasoning(text) => {
                self.message.reasoning_content.get_or_insert_default().push_str(&text);
                Some(Delta { reasoning_content: Some(text), ..Delta::default() })
            }
            // Who wants one call at a time gets the first.
            ChatDelta::ToolCall { index, .. } | ChatDelta::Arguments { index, .. } if index > 0 && !style.parallel => {
                None
            }
            ChatDelta::ToolCall { index, name } => {
                let id = id("call_");
                let function = FunctionCall { name: name.clone(), arguments: String::new() };
                self.message.tool_calls.push(ToolCall { id: id.clone(), r#type: "function", function });
                let function = FunctionDelta { name: Some(name), arguments: String::new() };
                Some(call(ToolCallDelta { index, id: Some(id), r#type: Some("function"), function }))
            }
            ChatDelta::Arguments { index, text } => {
                self.message.tool_calls.get_mut(index)?.function.arguments.push_str(&text);
                let function = FunctionDelta { name: None, arguments: text };
                Some(call(ToolCallDelta { index, id: None, r#type: None, function }))
            }
        }
    }
}

fn call(call: ToolCallDelta) -> Delta {
    Delta { tool_calls: vec![call], ..Delta::default() }
}

impl Writer for Writing {
    type Chunk = ChatChunk;

    fn step(&mut self, step: Step) -> Vec<ChatChunk> {
        let usage = self.style.usage.of(step.usage);
        // The role comes with the first token: clients take the first chunk's time for the first token's.
        let growing = self.choices.get_mut(step.choice);
        let first = growing.is_some_and(|growing| !std::mem::replace(&mut growing.begun, true));
        let role = first.then(|| ChunkChoice {
            index: step.choice,
            delta: Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() },
            logprobs: None,
            finish_reason: None,
        });
        let choices: Vec<_> = role.into_iter().chain(self.push(&step)).collect();
        choices.into_iter().map(|choice| self.chunk(vec![choice], usage)).collect()
    }

    fn end(&mut self, usage: Usage) -> Vec<ChatChunk> {
        self.style.usage.last.then(|| self.chunk(Vec::new(), Some(Some(usage)))).into_iter().collect()
    }
}
