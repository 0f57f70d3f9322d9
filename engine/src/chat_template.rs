//! Chat templates: the Jinja programs that turn a conversation into a prompt.
//!
//! minijinja with the Python-isms that real templates use; the output equals that of transformers'
//! `apply_chat_template(tokenize=False)`, which `tests/chat_templates` checks byte for byte.

mod json;
mod python;
mod strftime;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, ErrorKind};
use serde_json::{Map, Value as Json};

use crate::config::Fields;
use crate::error::{Error, Result, read_file};

/// File that overrides the template in `tokenizer_config.json`.
pub const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Folder of further named templates, `<name>.jinja`.
const EXTRA_TEMPLATES: &str = "additional_chat_templates";
/// Bound on the work of one rendering, in minijinja's instructions. A conversation of a thousand messages
/// takes about 100 thousand; ten million take about a second.
const FUEL: u64 = 10_000_000;
/// Greatest prompt in bytes; far above any context, far below memory.
const MAX_OUTPUT: usize = 64 << 20;
/// The special tokens that templates may name, as in transformers.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The templates of a model, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    origin: String,
    special_tokens: Map<String, Json>,
}

/// One rendering's input.
#[derive(Debug, Clone, Default)]
pub struct ChatInput {
    /// Objects with `role`, `content` and whatever else the template reads; see [`message`].
    pub messages: Vec<Json>,
    /// JSON schemas of the functions that the model may call.
    pub tools: Option<Vec<Json>>,
    /// Documents for retrieval-augmented answers.
    pub documents: Option<Vec<Json>>,
    /// End the prompt with the header of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Name of the template, where the model has several; by default `tool_use` with tools, else `default`.
    pub template: Option<String>,
    /// Further variables, such as `enable_thinking`; they override the special tokens.
    pub variables: Map<String, Json>,
    /// What `strftime_now` sees, in UTC; by default the current time.
    pub now: Option<SystemTime>,
}

/// A message with text content.
pub fn message(role: &str, content: &str) -> Json {
    serde_json::json!({"role": role, "content": content})
}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, `tokenizer_config.json` and `special_tokens_map.json` in `dir`.
    ///
    /// # Errors
    /// There is no template, or one does not compile.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let optional = |name: &str| match read_file(&dir.join(name), "") {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::MissingFile { .. }) => Ok(None),
            Err(e) => Err(e),
        };
        let origin = dir.display().to_string();
        let mut builder = Builder::new(&origin);
        if let Some(bytes) = optional("special_tokens_map.json")? {
            builder.special_tokens("special_tokens_map.json", &bytes)?;
        }
        if let Some(bytes) = optional("tokenizer_config.json")? {
            builder.tokenizer_config(&bytes)?;
        }
        // Files replace what tokenizer_config.json says, all of it, as in transformers.
        let mut files = BTreeMap::new();
        if let Some(bytes) = optional(TEMPLATE_FILE)? {
            files.insert("default".to_owned(), (TEMPLATE_FILE.to_owned(), text(TEMPLATE_FILE, bytes)?));
        }
        for (name, file, bytes) in extra_templates(dir)? {
            let source = text(&file, bytes)?;
            files.insert(name, (file, source));
        }
        if !files.is_empty() {
            builder.templates = files;
        }
        builder.build()
    }

    /// From the bytes of a `tokenizer_config.json` and, where there is one, of a `chat_template.jinja`.
    pub fn from_memory(origin: &str, tokenizer_config: &[u8], jinja: Option<&str>) -> Result<Self> {
        let mut builder = Builder::new(origin);
        builder.tokenizer_config(tokenizer_config)?;
        if let Some(source) = jinja {
            let file = (TEMPLATE_FILE.to_owned(), source.to_owned());
            builder.templates = BTreeMap::from([("default".to_owned(), file)]);
        }
        builder.build()
    }

    /// A special token by the name that templates use, such as `eos_token`.
    pub fn special_token(&self, name: &str) -> Option<&str> {
        self.special_tokens.get(name)?.as_str()
    }

    /// The sources of all templates, to see which marks the model knows.
    pub fn sources(&self) -> impl Iterator<Item = String> {
        self.env.templates().map(|(_, template)| template.source().to_owned())
    }

    /// The prompt for a conversation. Encode it with special tokens parsed and no BOS added: the template writes its own.
    ///
    /// # Errors
    /// The conversation is empty, the template refuses it, or the template fails.
    pub fn render(&self, input: &ChatInput) -> Result<String> {
        let refused = |message: String| Error::TemplateRefused { origin: self.origin.clone(), message };
        if input.messages.is_empty() {
            return Err(refused("it is empty; give at least one message".to_owned()));
        }
        let (name, template) = self.select(input).map_err(refused)?;
        let mut out = Bounded(Vec::new());
        // minijinja 3.0.5 panics on some slices with a negative step, `''[::-1]` among them. Rendering changes
        // nothing but `out`, which is dropped then.
        let context = self.context(input);
        let render = || template.render_captured_to(context, &mut out).map(drop);
        match std::panic::catch_unwind(AssertUnwindSafe(render)) {
            Ok(Ok(())) => Ok(String::from_utf8(out.0).unwrap_or_default()),
            Ok(Err(e)) => Err(match refusal(&e) {
                Some(message) => refused(message),
                None => template_error(name, &e),
            }),
            Err(_) => Err(Error::Template {
                origin: file_of(name),
                line: 1,
                problem: "minijinja panicked; is something empty sliced backwards?".to_owned(),
            }),
        }
    }

    fn select(&self, input: &ChatInput) -> Result<(&str, minijinja::Template<'_, '_>), String> {
        let find = |wanted: &str| {
            self.env.templates().find(|(name, _)| name.rsplit_once('#').is_some_and(|(_, n)| n == wanted))
        };
        let found = match &input.template {
            Some(name) => find(name),
            None => input.tools.as_ref().and_then(|_| find("tool_use")).or_else(|| find("default")),
        };
        found.ok_or_else(|| {
            let names = self.env.templates().filter_map(|(name, _)| name.rsplit_once('#'));
            let mut names: Vec<_> = names.map(|(_, n)| n).collect();
            names.sort_unstable();
            let wanted = input.template.as_deref().unwrap_or("default");
            format!("there is no template {wanted:?}; there are {}", names.join(", "))
        })
    }

    fn context(&self, input: &ChatInput) -> Value {
        let mut context: BTreeMap<&str, Value> = BTreeMap::new();
        for (name, value) in self.special_tokens.iter().chain(&input.variables) {
            context.insert(name, Value::from(Serde(value)));
        }
        context.insert("messages", Value::from(Serde(&input.messages)));
        // Present even if absent: templates ask `tools is not none`.
        context.insert("tools", Value::from(Serde(&input.tools)));
        context.insert("documents", Value::from(Serde(&input.documents)));
        context.insert("add_generation_prompt", Value::from(input.add_generation_prompt));
        let now = input.now.unwrap_or_else(SystemTime::now);
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        context.insert("strftime_now", Value::from_function(move |format: &str| strftime::strftime(format, seconds)));
        Value::from(context)
    }
}

fn extra_templates(dir: &Path) -> Result<Vec<(String, String, Vec<u8>)>> {
    let folder = dir.join(EXTRA_TEMPLATES);
    let Ok(entries) = std::fs::read_dir(&folder) else {
        return Ok(Vec::new());
    };
    let mut list = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("read", &folder))?.path();
        let (Some(stem), Some("jinja")) =
            (path.file_stem().and_then(|s| s.to_str()), path.extension().and_then(|e| e.to_str()))
        else {
            continue;
        };
        let file = format!("{EXTRA_TEMPLATES}/{stem}.jinja");
        list.push((stem.to_owned(), file, read_file(&path, "")?));
    }
    Ok(list)
}

fn text(file: &str, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| Error::Template {
        origin: file.to_owned(),
        line: 1,
        problem: "the file is not UTF-8; download it again".to_owned(),
    })
}

/// Collects templates (name to file and source) and special tokens.
struct Builder {
    origin: String,
    special_tokens: Map<String, Json>,
    templates: BTreeMap<String, (String, String)>,
}

impl Builder {
    fn new(origin: &str) -> Self {
        Builder { origin: origin.to_owned(), special_tokens: Map::new(), templates: BTreeMap::new() }
    }

    fn parse(origin: &str, bytes: &[u8]) -> Result<Json> {
        serde_json::from_slice(bytes).map_err(|source| Error::Json { origin: origin.to_owned(), source })
    }

    fn special_tokens(&mut self, origin: &str, bytes: &[u8]) -> Result<()> {
        let value = Self::parse(origin, bytes)?;
        self.special_tokens_of(&Fields::new(origin, &value)?);
        Ok(())
    }

    /// A token is a string, or an object with `content`.
    fn special_tokens_of(&mut self, f: &Fields) {
        for name in SPECIAL_TOKENS {
            let token = match f.get(name) {
                Some(Json::String(token)) => token,
                Some(Json::Object(token)) => match token.get("content") {
                    Some(Json::String(token)) => token,
                    _ => continue,
                },
                _ => continue,
            };
            self.special_tokens.insert(name.to_owned(), Json::from(token.as_str()));
        }
    }

    fn tokenizer_config(&mut self, bytes: &[u8]) -> Result<()> {
        let origin = "tokenizer_config.json";
        let value = Self::parse(origin, bytes)?;
        let f = Fields::new(origin, &value)?;
        self.special_tokens_of(&f);
        let file = "tokenizer_config.json (chat_template)".to_owned();
        match f.get("chat_template") {
            None => {}
            Some(Json::String(source)) => {
                self.templates.insert("default".to_owned(), (file, source.clone()));
            }
            Some(Json::Array(list)) => {
                for item in list {
                    let (Some(name), Some(source)) = (item["name"].as_str(), item["template"].as_str()) else {
                        return Err(f.error("chat_template", "every template needs a name and a template"));
                    };
                    self.templates.insert(name.to_owned(), (file.clone(), source.to_owned()));
                }
            }
            Some(_) => {
                return Err(f.error("chat_template", "must be a string or a list of named templates"));
            }
        }
        Ok(())
    }

    fn build(self) -> Result<ChatTemplate> {
        if self.templates.is_empty() {
            return Err(Error::NoChatTemplate { origin: self.origin });
        }
        let mut env = environment();
        for (name, (file, source)) in self.templates {
            // The template's name in minijinja carries the file for errors and the name for `select`.
            let id = format!("{file}#{name}");
            env.add_template_owned(id.clone(), without_generation_tags(&source))
                .map_err(|e| template_error(&id, &e))?;
        }
        Ok(ChatTemplate { env, origin: self.origin, special_tokens: self.special_tokens })
    }
}

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    // Building fails for ambiguous delimiters only; these are the default ones.
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        env.set_syntax(syntax);
    }
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_debug(true);
    env.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        let error = minijinja::Error::new(ErrorKind::InvalidOperation, message.clone());
        Err(error.with_source(Refusal(message)))
    });
    python::install(&mut env);
    env
}

/// Marks an error as the template's own, not a fault in it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn refusal(error: &minijinja::Error) -> Option<String> {
    let mut source = std::error::Error::source(error);
    while let Some(e) = source {
        if let Some(Refusal(message)) = e.downcast_ref() {
            return Some(message.replace('\n', " "));
        }
        source = e.source();
    }
    None
}

/// The file in a template's id, see [`Builder::build`].
fn file_of(id: &str) -> String {
    id.split('#').next().unwrap_or(id).to_owned()
}

fn template_error(id: &str, error: &minijinja::Error) -> Error {
    let mut problem = match error.kind() {
        ErrorKind::OutOfFuel => "it does not end; fix the template".to_owned(),
        kind => match error.detail() {
            Some(detail) => format!("{kind}: {detail}"),
            None => kind.to_string(),
        },
    };
    if let Some(source) = std::error::Error::source(error) {
        problem = format!("{problem}: {source}");
    }
    Error::Template { origin: file_of(id), line: error.line().unwrap_or(1), problem: problem.replace('\n', " ") }
}

/// `{% generation %}` marks what the assistant wrote, for training. It prints its body in a scope of its own, as `{% with %}` does.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let end = tag.find("%}").unwrap_or(tag.len());
        let inner = tag[..end].trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        rest = tag;
        for (word, instead) in [("endgeneration", "endwith"), ("generation", "with")] {
            if inner == word {
                out.push_str(&tag[..end].replacen(word, instead, 1));
                rest = &tag[end..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// A buffer that refuses to grow beyond [`MAX_OUTPUT`].
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(std::io::Error::other("the prompt exceeds 64 MiB"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "chat_template/tests.rs"]
mod tests;
