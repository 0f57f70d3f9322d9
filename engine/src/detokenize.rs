//! Streaming detokenisation: token ids in, text out as soon as it is certain.
//!
//! The concatenation of everything [`Detokenizer::push`] and [`Detokenizer::finish`] return equals
//! [`Tokenizer::decode`] of all ids, for any ids. To hold that exactly, the decoder of `tokenizer.json` is
//! run as a pipeline of stages that keep only what a later token can still change: an incomplete
//! UTF-8 character (byte-level), a run of byte tokens (SentencePiece decides about the run as a
//! whole), trailing characters that might be stripped. Each token is looked at once, so the cost is
//! linear in the output; decoding a window again and again, the usual way, is not exact for
//! invalid UTF-8.

use std::borrow::Cow;

use serde_json::Value;
use tokenizers::{Decoder, DecoderWrapper};

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// State of one sequence's output.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    stages: Vec<Stage>,
    /// Where tokens are joined without a decoder, by a space between them.
    join: Option<&'static str>,
    started: bool,
}

impl Detokenizer {
    /// A detokeniser for a fresh output; special tokens are left out with `skip_special`.
    ///
    /// # Errors
    /// The tokenizer's decoder is of a kind that no supported architecture uses (WordPiece, CTC).
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Result<Self> {
        let mut stages = Vec::new();
        let decoder = tokenizer.decoder();
        let mut fused = false;
        if !decoder.is_null() {
            Stage::build(decoder, &mut fused, &mut stages).map_err(|kind| Error::Tokenizer {
                origin: tokenizer.origin().to_owned(),
                problem: format!(
                    "decoder {kind} is not supported; supported are ByteLevel, Metaspace, Replace, ByteFallback, Fuse and Strip"
                ),
            })?;
        }
        Ok(Detokenizer {
            tokenizer: tokenizer.clone(),
            skip_special,
            stages,
            join: decoder.is_null().then_some(" "),
            started: false,
        })
    }

    /// Continues a prompt: its text is not returned, but the space that SentencePiece drops at the beginning
    /// of a text is the prompt's and not the answer's.
    pub fn skip_prompt(&mut self, ids: &[u32]) {
        for id in ids {
            self.push(*id);
        }
    }

    /// Adds one token and returns the text that has become certain, often but not always the token's own.
    pub fn push(&mut self, id: u32) -> String {
        let Some(token) = self.tokenizer.token(id) else {
            return String::new();
        };
        if self.skip_special && self.tokenizer.is_special(id) {
            return String::new();
        }
        let mut out = String::new();
        if let Some(separator) = self.join.filter(|_| self.started) {
            out.push_str(separator);
        }
        self.started = true;
        run(&mut self.stages, token, &mut out);
        out
    }

    /// The bytes that a token adds in the middle of an answer; empty for ids that the tokenizer does not know. No token is
    /// held back or changed by its neighbours here: an incomplete character is its own bytes.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(mut token) = self.tokenizer.token(id) else { return Vec::new() };
        for stage in &self.stages {
            match stage {
                Stage::ByteLevel { .. } => {
                    let mut bytes = Vec::new();
                    push_bytes(&token, &mut bytes);
                    return bytes;
                }
                Stage::PerToken(decoder) => token = decoder.decode_chain(vec![token]).unwrap_or_default().concat(),
                Stage::Metaspace { replacement, .. } => token = token.replace(*replacement, " "),
                Stage::ByteFallback { .. } => {
                    if let Some(byte) = byte_token(&token) {
                        return vec![byte];
                    }
                }
                // It strips a text's ends.
                Stage::Strip { .. } => {}
            }
        }
        token.into_bytes()
    }

    /// The rest, at the end of the output. Incomplete characters come out as U+FFFD.
    pub fn finish(mut self) -> String {
        let mut out = String::new();
        let mut stages = self.stages.as_mut_slice();
        while let Some((first, rest)) = stages.split_first_mut() {
            for piece in first.finish() {
                run(rest, piece, &mut out);
            }
            stages = rest;
        }
        out
    }
}

/// Sends one token through `stages` to `out`.
fn run(stages: &mut [Stage], token: String, out: &mut String) {
    match stages.split_first_mut() {
        None => out.push_str(&token),
        Some((first, rest)) => {
            for piece in first.push(token) {
                run(rest, piece, out);
            }
        }
    }
}

/// One decoder of `tokenizer.json`, incrementally.
#[derive(Debug)]
enum Stage {
    /// Byte-level BPE: characters stand for bytes; the bytes not yet decided.
    ByteLevel { pending: Vec<u8> },
    /// Decoders that treat each token by itself.
    PerToken(Box<DecoderWrapper>),
    /// `▁` to space, dropped in the first token where the scheme prepends it.
    Metaspace { replacement: char, drop: bool },
    /// `<0xE4>` tokens, collected until another token ends the run.
    ByteFallback { run: Vec<u8> },
    /// Strip on the joined text: characters still to drop at the start, and the tail that may be dropped.
    Strip { content: char, start: usize, stop: usize, tail: String },
}

impl Stage {
    /// Appends the stages of a decoder; `fused` says whether the tokens are one text by now. Error: the kind.
    fn build(decoder: &Value, fused: &mut bool, stages: &mut Vec<Stage>) -> Result<(), String> {
        let kind = decoder["type"].as_str().unwrap_or("(without type)");
        let number = |key: &str| decoder[key].as_u64().unwrap_or(0) as usize;
        let character = |key: &str| decoder[key].as_str().and_then(|s| s.chars().next());
        let unsupported = || kind.to_owned();
        match kind {
            "Sequence" => {
                for inner in decoder["decoders"].as_array().ok_or_else(unsupported)? {
                    Self::build(inner, fused, stages)?;
                }
                return Ok(());
            }
            "Fuse" => *fused = true,
            "ByteLevel" if !*fused => {
                *fused = true;
                stages.push(Stage::ByteLevel { pending: Vec::new() });
            }
            "ByteFallback" if !*fused => stages.push(Stage::ByteFallback { run: Vec::new() }),
            "Metaspace" if !*fused => stages.push(Stage::Metaspace {
                replacement: character("replacement").ok_or_else(unsupported)?,
                drop: decoder["prepend_scheme"] != "never",
            }),
            "Strip" if *fused => stages.push(Stage::Strip {
                content: character("content").ok_or_else(unsupported)?,
                start: number("start"),
                stop: number("stop"),
                tail: String::new(),
            }),
            // tokenizers itself panics where stop exceeds a token's length.
            "Strip" if number("stop") > 0 => {
                return Err("Strip with stop on single tokens".to_owned());
            }
            "Replace" | "Strip" if !*fused => {
                let wrapper = serde_json::from_value(decoder.clone()).map_err(|_| unsupported())?;
                stages.push(Stage::PerToken(Box::new(wrapper)));
            }
            _ if *fused => return Err(format!("{kind} after Fuse")),
            _ => return Err(unsupported()),
        }
        Ok(())
    }

    /// Consumes a token, or after fusing a piece of text; returns what goes to the next stage.
    fn push(&mut self, token: String) -> Vec<String> {
        match self {
            Stage::ByteLevel { pending } => {
                push_bytes(&token, pending);
                vec![take_decided(pending)]
            }
            // Replace and Strip on one token cannot fail: the pattern was compiled when it was loaded.
            Stage::PerToken(decoder) => decoder.decode_chain(vec![token]).unwrap_or_default(),
            Stage::Metaspace { replacement, drop } => {
                let first = std::mem::take(drop);
                let with = if first { "" } else { " " };
                vec![token.replace(*replacement, with)]
            }
            Stage::ByteFallback { run } => match byte_token(&token) {
                Some(byte) => {
                    run.push(byte);
                    Vec::new()
                }
                None => take_run(run).into_iter().chain([token]).collect(),
            },
            Stage::Strip { content, start, stop, tail } => {
                let text = strip_start(&token, *content, start);
                tail.push_str(text);
                let kept = tail.trim_end_matches(*content).len();
                let matches = tail[kept..].chars().count();
                let hold = matches.min(*stop) * content.len_utf8();
                let rest = tail.split_off(tail.len() - hold);
                vec![std::mem::replace(tail, rest)]
            }
        }
    }

    fn finish(&mut self) -> Vec<String> {
        match self {
            Stage::ByteLevel { pending } => {
                let rest = String::from_utf8_lossy(pending).into_owned();
                pending.clear();
                vec![rest]
            }
            Stage::ByteFallback { run } => take_run(run).into_iter().collect(),
            // Whatever is held back is exactly what is to be stripped.
            Stage::PerToken(_) | Stage::Metaspace { .. } | Stage::Strip { .. } => Vec::new(),
        }
    }
}

/// Appends the bytes that a byte-level token stands for; a token with other characters is its own UTF-8.
fn push_bytes(token: &str, out: &mut Vec<u8>) {
    let before = out.len();
    for c in token.chars() {
        match byte_of(c) {
            Some(b) => out.push(b),
            None => {
                out.truncate(before);
                out.extend(token.as_bytes());
                return;
            }
        }
    }
}

/// The byte that GPT-2's alphabet writes as `c`.
fn byte_of(c: char) -> Option<u8> {
    match c as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        // The 68 bytes without a printable character follow from U+0100 in order: 0..=0x20, 0x7f..=0xa0, 0xad.
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// Removes and returns all of `pending` but an incomplete character at its end.
fn take_decided(pending: &mut Vec<u8>) -> String {
    let decided = pending.len() - incomplete_suffix(pending);
    let rest = pending.split_off(decided);
    let text = match String::from_utf8_lossy(pending) {
        Cow::Borrowed(text) => text.to_owned(),
        Cow::Owned(text) => text,
    };
    *pending = rest;
    text
}

/// Length of the beginning of a character at the end of `bytes`, 0 to 3.
fn incomplete_suffix(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    // The last byte that can begin a multi-byte character decides.
    let Some(start) = tail.iter().rposition(|b| *b >= 0xc0) else {
        return 0;
    };
    match std::str::from_utf8(&tail[start..]) {
        Err(e) if e.error_len().is_none() => tail.len() - start,
        _ => 0,
    }
}

/// The byte of a `<0xE4>` token, by the rules of `tokenizers`.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// A run of byte tokens is text, or one U+FFFD per byte; no token at all where there was no byte.
fn take_run(run: &mut Vec<u8>) -> Option<String> {
    if run.is_empty() {
        return None;
    }
    let n = run.len();
    match String::from_utf8(std::mem::take(run)) {
        Ok(text) => Some(text),
        Err(_) => Some("\u{fffd}".repeat(n)),
    }
}

/// Drops up to `left` leading `content` characters, once for the whole text.
fn strip_start<'a>(text: &'a str, content: char, left: &mut usize) -> &'a str {
    let mut rest = text;
    while *left > 0 && !rest.is_empty() {
        match rest.strip_prefix(content) {
            Some(after) => {
                rest = after;
                *left -= 1;
            }
            None => *left = 0,
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::tokenizer::tests::{byte_level, llama2_decoder, sentencepiece};

    fn pieces(t: &Tokenizer, ids: &[u32], skip: bool) -> Vec<String> {
        let mut d = Detokenizer::new(t, skip).unwrap();
        let mut out: Vec<String> = ids.iter().map(|id| d.push(*id)).collect();
        out.push(d.finish());
        out
    }

    #[test]
    fn characters_are_not_split() {
        let t = byte_level();
        let ids = t.encode("hi 你👩🏽x", true).unwrap();
        let out = pieces(&t, &ids, true);
        assert_eq!(out.concat(), "hi 你👩🏽x");
        assert!(out.iter().all(|p| !p.contains('\u{fffd}')), "{out:?}");
        // Every piece comes with the token that completes it, not later.
        assert_eq!(out.last().unwrap(), "");
    }

    #[test]
    fn llama2_spaces() {
        let t = sentencepiece(llama2_decoder());
        let ids = t.encode(" a b", true).unwrap();
        assert_eq!(pieces(&t, &ids, true).concat(), " a b");
        // A continuation keeps the space that begins it.
        let a = t.token_id("▁a").unwrap();
        let mut d = Detokenizer::new(&t, true).unwrap();
        d.skip_prompt(&[1, a]);
        assert_eq!(d.push(a), " a");
        assert_eq!(pieces(&t, &[1, a, a], true), ["", "a", " a", ""]);
    }

    #[test]
    fn unsupported_decoders_are_refused_at_load() {
        let json = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        let mut fused = false;
        assert_eq!(Stage::build(&json, &mut fused, &mut Vec::new()), Err("WordPiece".to_owned()));
    }

    fn decoders() -> impl Strategy<Value = Value> {
        let metaspace = |s: &str| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": s, "split": true});
        prop::sample::select(vec![
            llama2_decoder(),
            metaspace("always"),
            metaspace("never"),
            json!({"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 2, "stop": 2}]}),
            json!({"type": "Sequence", "decoders": [
                {"type": "ByteFallback"}, {"type": "Strip", "content": "▁", "start": 1, "stop": 0},
                metaspace("first"), {"type": "Fuse"}]}),
            Value::Null,
        ])
    }

    /// tokenizers' own Strip panics where the whole text is shorter than `stop`; such cases are left out.
    fn whole(t: &Tokenizer, ids: &[u32], skip: bool) -> Option<String> {
        std::panic::catch_unwind(|| t.decode(ids, skip)).ok()
    }

    proptest! {
        #[test]
        fn byte_level_equals_the_whole_decode(
            ids in prop::collection::vec(0u32..266, 0..60),
            skip in any::<bool>(),
        ) {
            let t = byte_level();
            prop_assert_eq!(pieces(&t, &ids, skip).concat(), t.decode(&ids, skip));
        }

        #[test]
        fn text_survives_byte_level(text in "\\PC{0,40}") {
            let t = byte_level();
            let ids = t.encode(&text, false).unwrap();
            let out = pieces(&t, &ids, true);
            prop_assert_eq!(out.concat(), text);
        }

        #[test]
        fn sentencepiece_equals_the_whole_decode(
            decoder in decoders(),
            ids in prop::collection::vec(
                prop_oneof![0u32..3, 3u32..259, 0xe4u32 + 3..0xf0, 0x80u32 + 3..0x90, 259u32..280], 0..40),
            skip in any::<bool>(),
        ) {
            let t = sentencepiece(decoder);
            if let Some(want) = whole(&t, &ids, skip) {
                prop_assert_eq!(pieces(&t, &ids, skip).concat(), want);
            }
        }
    }
}
