//! Grammars compiled for a vocabulary, kept for requests that ask alike.
use super::Grammar;
use crate::chat_output::ReasoningFormat;
use crate::detokenize::Detokenizer;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

/// Compiled grammars that are kept; a large schema's lexer takes some MB.
const KEPT: usize = 64;
/// Longest text of a grammar in bytes.
const MAX_TEXT: usize = 1 << 20;
/// Whitespace between JSON's tokens. Without a bound small models write whitespace until the answer is as long as it may be.
const WHITESPACE: &str = r"[ \n]{1,8}";

/// A grammar compiled for a model's vocabulary. Clones share it; equal are those that share it.
#[derive(Clone)]
pub struct CompiledGrammar {
    compiled: Arc<Compiled>,
    ignore_eos: bool,
}

struct Compiled {
    grammar: Grammar,
    /// Where every answer starts.
    start: Mutex<Matcher>,
    /// Tokens that end an answer.
    eos: Vec<u32>,
}

impl CompiledGrammar {
    /// The state before an answer's first token, independent of all others.
    pub(crate) fn matcher(&self) -> Matcher {
        lock(&self.compiled.start).deep_clone()
    }

    /// Tokens that end an answer.
    pub(crate) fn eos(&self) -> &[u32] {
        &self.compiled.eos
    }

    /// The answer goes on as long as the grammar lets it.
    pub(crate) fn ignoring_eos(self, ignore_eos: bool) -> Self {
        CompiledGrammar { ignore_eos, ..self }
    }

    /// Whether the answer goes on as long as the grammar lets it.
    pub(crate) fn ignores_eos(&self) -> bool {
        self.ignore_eos
    }

    /// What it was compiled from.
    pub fn grammar(&self) -> &Grammar {
        &self.compiled.grammar
    }
}

impl PartialEq for CompiledGrammar {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.compiled, &other.compiled) && self.ignore_eos == other.ignore_eos
    }
}

impl fmt::Debug for CompiledGrammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CompiledGrammar").field(self.grammar()).finish()
    }
}

/// A model's compiler, with the grammars that it compiled last.
pub(crate) struct Grammars {
    vocabulary: Vocabulary,
    eos: Vec<u32>,
    /// Made by the first request with a grammar: 0.2 s for 128 thousand tokens.
    factory: OnceLock<std::result::Result<ParserFactory, String>>,
    /// The latest last.
    kept: Mutex<VecDeque<CompiledGrammar>>,
}

/// What tokens mean.
enum Vocabulary {
    Of(Tokenizer),
    /// So many tokens without a tokenizer.
    Synthetic(u32),
}

impl Grammars {
    pub fn new(tokenizer: Tokenizer, eos: Vec<u32>) -> Self {
        Grammars::over(Vocabulary::Of(tokenizer), eos)
    }

    fn over(vocabulary: Vocabulary, eos: Vec<u32>) -> Self {
        Grammars { vocabulary, eos, factory: OnceLock::new(), kept: Mutex::new(VecDeque::new()) }
    }

    /// Compiles a grammar, or finds it.
    ///
    /// # Errors
    /// [`Error::Request`] with the compiler's words.
    pub fn compile(&self, grammar: &Grammar) -> Result<CompiledGrammar> {
        if let Some(found) = self.find(grammar) {
            return Ok(found);
        }
        let factory = self.factory.get_or_init(|| factory(&self.vocabulary, &self.eos));
        let factory = factory.as_ref().map_err(|problem| Error::Request { problem: problem.clone() })?;
        let parser = factory.create_parser(top_level(grammar)?);
        let mut start = Matcher::new(parser);
        // The first mask fills the lexer's caches for all answers, and shows grammars that are too large.
        let _ = start.compute_mask();
        if let Some(problem) = start.get_error() {
            return Err(refused(grammar, &problem));
        }
        let compiled = Compiled { grammar: grammar.clone(), start: Mutex::new(start), eos: self.eos.clone() };
        let compiled = CompiledGrammar { compiled: Arc::new(compiled), ignore_eos: false };
        let mut kept = lock(&self.kept);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(compiled.clone());
        Ok(compiled)
    }

    fn find(&self, grammar: &Grammar) -> Option<CompiledGrammar> {
        let mut kept = lock(&self.kept);
        let at = kept.iter().position(|compiled| compiled.grammar() == grammar)?;
        let found = kept.remove(at)?;
        kept.push_back(found.clone());
        Some(found)
    }
}

/// A panic while a lock is held leaves nothing half done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(grammar: &Grammar, problem: &str) -> Error {
    let what = match grammar {
        Grammar::JsonObject | Grammar::JsonSchema(_) => "JSON schema",
        Grammar::Regex(_) => "regular expression",
        Grammar::Lark(_) => "grammar",
        Grammar::AfterReasoning { then, .. } => return refused(then, problem),
    };
    let problem = problem.split_whitespace().collect::<Vec<_>>().join(" ");
    Error::Request { problem: format!("the {what} cannot be followed: {problem}") }
}

fn top_level(grammar: &Grammar) -> Result<TopLevelGrammar> {
    if let Grammar::AfterReasoning { format, open, then } = grammar {
        let mut all = top_level(then)?;
        for grammar in &mut all.grammars {
            grammar.name = Some("then".into());
        }
        all.grammars.insert(0, GrammarWithLexer::from_lark(reasoning(*format, *open)));
        return Ok(all);
    }
    let (Grammar::JsonSchema(text) | Grammar::Regex(text) | Grammar::Lark(text)) = grammar else {
        return Ok(TopLevelGrammar::from_json_schema(bounded(json!({"type": "object"}))));
    };
    if text.len() > MAX_TEXT {
        return Err(refused(grammar, &format!("it has {} bytes, at most {MAX_TEXT} are taken", text.len())));
    }
    Ok(match grammar {
        Grammar::JsonSchema(_) => {
            let schema: Value =
                serde_json::from_str(text).map_err(|e| refused(grammar, &format!("it is not JSON ({e})")))?;
            if !schema.is_object() && !schema.is_boolean() {
                return Err(refused(grammar, "it is neither an object nor a boolean"));
            }
            TopLevelGrammar::from_json_schema(bounded(schema))
        }
        Grammar::Regex(_) => TopLevelGrammar::from_regex(text),
        _ => TopLevelGrammar::from_lark(text.to_string()),
    })
}

/// Reasoning in Lark, before the grammar with the name "then".
fn reasoning(format: ReasoningFormat, open: bool) -> String {
    let (begin, end) = format.tags();
    let end: String = end.chars().flat_map(super::escaped).collect();
    let start = if open {
        "start: thoughts SPACE? @then".to_owned()
    } else {
        format!("start: (BEGIN thoughts SPACE?)? @then\nBEGIN: /\\s*/ {}", json!(begin))
    };
    // A lazy match ends with the mark: the space behind it is matched for itself.
    format!("{start}\nthoughts[lazy]: /(.|\\n)*{end}/\nSPACE: /[ \\n]{{1,8}}/\n")
}

/// Adds llguidance's own settings to a schema, where it does not have them.
pub(super) fn bounded(schema: Value) -> Value {
    let settings = json!({"whitespace_pattern": WHITESPACE, "coerce_one_of": true});
    match schema {
        Value::Object(mut schema) => {
            schema.entry("x-guidance").or_insert(settings);
            Value::Object(schema)
        }
        Value::Bool(true) => json!({"x-guidance": settings}),
        other => other,
    }
}

/// The trie of all tokens' bytes, and what is computed from it once.
fn factory(vocabulary: &Vocabulary, eos: &[u32]) -> std::result::Result<ParserFactory, String> {
    let words = match vocabulary {
        Vocabulary::Of(tokenizer) => words(tokenizer).map_err(|e| e.to_string())?,
        Vocabulary::Synthetic(tokens) => (0..*tokens).map(synthetic_word).collect(),
    };
    let vocab = words.len() as u32;
    let eos: Vec<u32> = eos.iter().copied().filter(|token| *token < vocab).collect();
    let Some(&first) = eos.first() else {
        return Err("grammars need to end answers, and the model has no end-of-sequence token".into());
    };
    let trie = TokTrie::from(&TokRxInfo::new(vocab, first), &words).with_eos_tokens(&eos);
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&env).map_err(|e| e.to_string())?;
    factory.quiet().limits_mut().verbose_errors = false;
    Ok(factory)
}

/// Every token's bytes.
fn words(tokenizer: &Tokenizer) -> Result<Vec<Vec<u8>>> {
    let detokenizer = Detokenizer::new(tokenizer, false)?;
    let word = |id: u32| {
        let mut bytes = detokenizer.token_bytes(id);
        // Marked, so that no text matches them; byte 0xff is in no text, and a lone token of it would look like a mark.
        if tokenizer.is_special(id) {
            bytes.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
        } else if bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) {
            bytes.clear();
        }
        bytes
    };
    Ok((0..tokenizer.vocab_size() as u32).map(word).collect())
}

/// A token of a vocabulary that nobody trained: bytes, the end of a text, then words of letters, every other one behind a
/// space. No two are alike, and they are as long as those of trained vocabularies.
fn synthetic_word(token: u32) -> Vec<u8> {
    if let Ok(byte) = u8::try_from(token) {
        return if byte == TokTrie::SPECIAL_TOKEN_MARKER { Vec::new() } else { vec![byte] };
    }
    if token == SYNTHETIC_EOS {
        return b"\xff<|end|>".to_vec();
    }
    let mut word = if token.is_multiple_of(2) { vec![b' '] } else { Vec::new() };
    // Two letters or more: single ones are bytes.
    let mut rest = token / 2 + 26;
    while rest > 0 {
        word.push(b'a' + (rest % 26) as u8);
        rest /= 26;
    }
    word
}

const SYNTHETIC_EOS: u32 = 256;

/// Lines of JSON without end, over a vocabulary of `vocab_size` tokens that nobody trained: for benchmarks of models that have
/// no tokenizer.
///
/// # Errors
/// [`Error::Request`]: there are fewer than 512 tokens.
pub fn synthetic_json(vocab_size: usize) -> Result<CompiledGrammar> {
    if vocab_size < 512 {
        return Err(Error::Request {
            problem: format!("a vocabulary of {vocab_size} tokens is too small for grammars, it takes 512"),
        });
    }
    let schema = bounded(json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "address": {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
                "required": ["street", "city"], "additionalProperties": false},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "age", "address", "tags"],
        "additionalProperties": false,
    }));
    let grammar = format!("start: line+\nline: json \"\\n\"\njson: %json {schema}\n");
    let grammars = Grammars::over(Vocabulary::Synthetic(vocab_size as u32), vec![SYNTHETIC_EOS]);
    Ok(grammars.compile(&Grammar::Lark(grammar.into()))?.ignoring_eos(true))
}
