//! How models write tool calls and reasoning.
use std::str::FromStr;

/// How a model writes tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    /// Hermes and Qwen: `<tool_call>{"name": …, "arguments": …}</tool_call>`, one after another.
    Hermes,
    /// Llama 3.1 and later: `{"name": …, "parameters": …}` as the whole answer, or after `<|python_tag|>`; several with `;`
    /// between them.
    Llama3Json,
    /// Mistral: `[TOOL_CALLS] [{"name": …, "arguments": …}, …]`, or `[TOOL_CALLS]name{…}` or `[TOOL_CALLS]name[ARGS]{…}` for
    /// each call.
    Mistral,
    /// An object or an array of objects with `name` and `arguments` or `parameters`, without marks.
    Json,
}

impl ToolFormat {
    /// All of them.
    pub const ALL: [ToolFormat; 4] =
        [ToolFormat::Hermes, ToolFormat::Llama3Json, ToolFormat::Mistral, ToolFormat::Json];

    /// The name that vLLM knows it by (`--tool-call-parser`).
    pub fn name(self) -> &'static str {
        match self {
            ToolFormat::Hermes => "hermes",
            ToolFormat::Llama3Json => "llama3_json",
            ToolFormat::Mistral => "mistral",
            ToolFormat::Json => "json",
        }
    }

    /// What the templates of a model tell it to write; `None` if they name no format that is known.
    pub fn of_templates<S: AsRef<str>>(sources: impl IntoIterator<Item = S>) -> Option<Self> {
        let sources: Vec<S> = sources.into_iter().collect();
        let has = |mark: &str| sources.iter().any(|source| source.as_ref().contains(mark));
        if has("<tool_call>") {
            Some(ToolFormat::Hermes)
        } else if has("[TOOL_CALLS]") {
            Some(ToolFormat::Mistral)
        } else if has("<|python_tag|>") || (has("<|eot_id|>") && has("\"parameters\"")) {
            Some(ToolFormat::Llama3Json)
        } else if has("tools") {
            Some(ToolFormat::Json)
        } else {
            None
        }
    }

    /// What begins a call anywhere in an answer.
    pub(super) fn marks(self) -> &'static [&'static str] {
        match self {
            ToolFormat::Hermes => &["<tool_call>"],
            ToolFormat::Llama3Json => &["<|python_tag|>"],
            ToolFormat::Mistral => &["[TOOL_CALLS]"],
            ToolFormat::Json => &[],
        }
    }

    /// Whether an answer that begins as JSON is a call.
    pub(super) fn starts_bare(self) -> bool {
        matches!(self, ToolFormat::Llama3Json | ToolFormat::Json)
    }

    /// Whether marks are special tokens, which must not be left out of the text
    /// ([`SamplingParams::skip_special_tokens`](crate::SamplingParams::skip_special_tokens)).
    pub fn marks_are_special(self) -> bool {
        matches!(self, ToolFormat::Llama3Json | ToolFormat::Mistral)
    }
}

impl FromStr for ToolFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        // Names of vLLM's parsers for models that write the same.
        let name = match name {
            "qwen" | "qwen25" | "hermes2_pro" => "hermes",
            "llama4_json" | "llama3" | "llama" => "llama3_json",
            other => other,
        };
        ToolFormat::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            let names = ToolFormat::ALL.map(ToolFormat::name).join(", ");
            format!("{name:?} is no tool call format; there are {names}")
        })
    }
}

/// How a model marks its reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReasoningFormat {
    /// DeepSeek, Qwen and most others: `<think>…</think>`.
    Think,
    /// Mistral: `[THINK]…[/THINK]`.
    Mistral,
}

impl ReasoningFormat {
    /// What begins and what ends it.
    pub fn tags(self) -> (&'static str, &'static str) {
        match self {
            ReasoningFormat::Think => ("<think>", "</think>"),
            ReasoningFormat::Mistral => ("[THINK]", "[/THINK]"),
        }
    }

    /// What the templates of a model mention; `None`: it does not reason.
    pub fn of_templates<S: AsRef<str>>(sources: impl IntoIterator<Item = S>) -> Option<Self> {
        let all = [ReasoningFormat::Think, ReasoningFormat::Mistral];
        let find = |source: S| all.into_iter().find(|format| source.as_ref().contains(format.tags().1));
        sources.into_iter().find_map(find)
    }

    /// Whether a prompt ends within reasoning: the template has written the opening tag, and the answer starts with thoughts.
    pub fn is_open_in(self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(self.tags().0)
    }
}

impl FromStr for ReasoningFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "think" | "deepseek_r1" | "qwen3" | "hermes" => Ok(ReasoningFormat::Think),
            "mistral" => Ok(ReasoningFormat::Mistral),
            _ => Err(format!("{name:?} is no reasoning format; there are think (deepseek_r1, qwen3), mistral")),
        }
    }
}
