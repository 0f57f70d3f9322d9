//! `tokenizer.json`, through the `tokenizers` crate.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result, read_file};

/// Text to token ids and back. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    origin: String,
    tokenizer: tokenizers::Tokenizer,
    /// Takes special tokens in text for ordinary text; made on first use, since it doubles the memory.
    plain: OnceLock<tokenizers::Tokenizer>,
    /// Bytes of the longest token, found on first use.
    longest: OnceLock<usize>,
    /// One more than the greatest id.
    id_bound: usize,
    decoder: serde_json::Value,
}

impl Tokenizer {
    /// Reads `DIR/tokenizer.json`.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let hint = match dir.join("tokenizer.model").exists() {
            true => {
                "tokenizer.model alone is not supported; convert it with transformers' AutoTokenizer.save_pretrained"
            }
            false => "download it from the model's page",
        };
        let bytes = read_file(&path, hint)?;
        Self::from_slice(&path.display().to_string(), &bytes)
    }

    /// Parses the bytes of a `tokenizer.json`; `origin` names them in errors.
    pub fn from_slice(origin: &str, bytes: &[u8]) -> Result<Self> {
        let error = |problem: String| Error::Tokenizer { origin: origin.to_owned(), problem };
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|e| error(format!("is not a tokenizer ({}); download it again", one_line(&e.to_string()))))?;
        // Training-time settings; the engine decides itself what is too long.
        tokenizer.with_truncation(None).map_err(|e| error(one_line(&e.to_string())))?;
        tokenizer.with_padding(None);
        let greatest = tokenizer.get_vocab(true).into_values().max();
        let decoder = serde_json::to_value(tokenizer.get_decoder())
            .map_err(|e| error(format!("has an unreadable decoder: {e}")))?;
        let this = Tokenizer {
            inner: Arc::new(Inner {
                origin: origin.to_owned(),
                tokenizer,
                plain: OnceLock::new(),
                longest: OnceLock::new(),
                id_bound: greatest.map_or(0, |id| id as usize + 1),
                decoder,
            }),
        };
        // Refuse a decoder that cannot stream now, not in the middle of an answer.
        crate::detokenize::Detokenizer::new(&this, true)?;
        Ok(this)
    }

    /// One word for each of `vocab_size` ids, `t0` `t1` …, for random weights: a server without a tokenizer has texts to
    /// stream, and every token is one.
    pub fn stand_in(vocab_size: usize) -> Result<Self> {
        let vocab: serde_json::Map<String, serde_json::Value> =
            (0..vocab_size).map(|id| (format!("t{id}"), id.into())).collect();
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "t0" },
        });
        Self::from_slice("the tokenizer that stands in", json.to_string().as_bytes())
    }

    /// Tokens that a text of so many bytes has at least, without encoding it: tokens are no longer than the longest. (What a
    /// normaliser makes of a text is at least half as long.)
    pub fn fewest_tokens(&self, bytes: usize) -> usize {
        let find = || self.inner.tokenizer.get_vocab(true).keys().map(String::len).max().unwrap_or(1);
        bytes / (2 * (*self.inner.longest.get_or_init(find)).max(1))
    }

    /// Token ids of `text`. With `parse_special`, special tokens written in the text become their ids, as in a
    /// rendered chat template; without, they are encoded as the characters they are made of. No BOS is added.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>> {
        self.encode_with(text, parse_special, false)
    }

    /// Like [`encode`](Self::encode), and with what the tokenizer itself adds around a prompt (BOS, for most models).
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with(text, true, true)
    }

    fn encode_with(&self, text: &str, parse_special: bool, add_special: bool) -> Result<Vec<u32>> {
        let tokenizer = match parse_special {
            true => &self.inner.tokenizer,
            false => self.inner.plain.get_or_init(|| {
                let mut plain = self.inner.tokenizer.clone();
                plain.set_encode_special_tokens(true);
                plain
            }),
        };
        let encoding = tokenizer.encode_fast(text, add_special).map_err(|e| Error::Tokenizer {
            origin: self.inner.origin.clone(),
            problem: format!("cannot encode the text: {}", one_line(&e.to_string())),
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of `ids`; ids that the tokenizer does not know are left out, special tokens too with `skip_special`.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        // Fails only for decoders that `from_slice` refused.
        self.inner.tokenizer.decode(ids, skip_special).unwrap_or_default()
    }

    /// Id of exactly this token, special or not.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(token)
    }

    /// The token as written in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.tokenizer.id_to_token(id)
    }

    /// True for tokens marked special in `tokenizer.json`.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.tokenizer.get_added_vocabulary();
        self.token(id).is_some_and(|t| added.is_special_token(&t))
    }

    /// Ids and texts of the special tokens, by id.
    pub fn special_tokens(&self) -> Vec<(u32, String)> {
        let added = self.inner.tokenizer.get_added_tokens_decoder();
        let special = added.into_iter().filter(|(_, token)| token.special);
        let mut list: Vec<_> = special.map(|(id, token)| (id, token.content)).collect();
        list.sort();
        list
    }

    /// One more than the greatest token id.
    pub fn vocab_size(&self) -> usize {
        self.inner.id_bound
    }

    /// Refuses a tokenizer with ids beyond the model's embedding. Fewer are normal: models pad their vocabulary.
    pub fn check_vocab(&self, model_vocab_size: usize) -> Result<()> {
        if self.inner.id_bound <= model_vocab_size {
            return Ok(());
        }
        Err(Error::Tokenizer {
            origin: self.inner.origin.clone(),
            problem: format!(
                "has token ids up to {}, the model's vocabulary ends at {}; the tokenizer belongs to another model",
                self.inner.id_bound - 1,
                model_vocab_size as i64 - 1
            ),
        })
    }

    /// File or description that it was read from.
    pub fn origin(&self) -> &str {
        &self.inner.origin
    }

    /// The `decoder` part of `tokenizer.json`.
    pub(crate) fn decoder(&self) -> &serde_json::Value {
        &self.inner.decoder
    }
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Byte-level BPE in the manner of Llama 3, with merges that join bytes within characters.
    pub(crate) fn byte_level() -> Tokenizer {
        let bytes: Vec<char> = (0..256u32)
            .map(|b| match b {
                0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from_u32(b).unwrap(),
                0..=0x20 => char::from_u32(256 + b).unwrap(),
                0x7f..=0xa0 => char::from_u32(256 + 33 + b - 0x7f).unwrap(),
                _ => '\u{143}',
            })
            .collect();
        let mut vocab: Vec<String> = bytes.iter().map(char::to_string).collect();
        let mut merges = Vec::new();
        for (l, r) in [("t", "h"), ("th", "e"), ("\u{120}", "the"), ("ä", "½"), ("h", "i")] {
            vocab.push(format!("{l}{r}"));
            merges.push(serde_json::json!([l, r]));
        }
        let n = vocab.len();
        vocab.push("<|eot|>".to_owned());
        let vocab: serde_json::Map<_, _> = vocab.into_iter().enumerate().map(|(i, t)| (t, i.into())).collect();
        let bl = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [
                {"id": n, "content": "<|eot|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
                {"id": n + 1, "content": "<tool é>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false}
            ],
            "pre_tokenizer": bl, "decoder": bl,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges}
        });
        Tokenizer::from_slice("tokenizer.json", json.to_string().as_bytes()).unwrap()
    }

    /// SentencePiece's BPE as transformers converts Llama 2's: `▁` for spaces, byte fallback.
    pub(crate) fn sentencepiece(decoder: serde_json::Value) -> Tokenizer {
        let mut vocab: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
        vocab.extend((0..256).map(|b| format!("<0x{b:02X}>")));
        let mut merges = Vec::new();
        vocab.extend("▁abcdefgh .,é".chars().map(|c| c.to_string()));
        for (l, r) in [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁", "ab"), ("▁", "▁")] {
            vocab.push(format!("{l}{r}"));
            merges.push(serde_json::json!([l, r]));
        }
        let vocab: serde_json::Map<_, _> = vocab.into_iter().enumerate().map(|(i, t)| (t, i.into())).collect();
        let special = |id: usize, content: &str| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null, "decoder": decoder,
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": merges}
        });
        Tokenizer::from_slice("tokenizer.json", json.to_string().as_bytes()).unwrap()
    }

    pub(crate) fn llama2_decoder() -> serde_json::Value {
        serde_json::json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})
    }

    #[test]
    fn special_tokens_in_text_are_parsed_or_not() {
        let t = byte_level();
        let eot = t.token_id("<|eot|>").unwrap();
        assert_eq!(t.encode("hi<|eot|>", true).unwrap().last(), Some(&eot));
        let plain = t.encode("hi<|eot|>", false).unwrap();
        assert!(!plain.contains(&eot));
        assert_eq!(t.decode(&plain, true), "hi<|eot|>");
        assert_eq!(t.decode(&[eot], true), "");
        assert_eq!(t.special_tokens(), [(eot, "<|eot|>".to_owned())]);
        assert!(t.is_special(eot) && !t.is_special(0) && !t.is_special(u32::MAX));
    }

    #[test]
    fn prompt_gets_bos_where_the_tokenizer_says_so() {
        let t = sentencepiece(llama2_decoder());
        let ids = t.encode_prompt("a b").unwrap();
        assert_eq!(ids[0], 1);
        assert_eq!(t.encode("a b", true).unwrap(), ids[1..]);
        assert_eq!(t.decode(&ids, true), "a b");
    }

    #[test]
    fn refusals() {
        let t = byte_level();
        let text = t.check_vocab(10).unwrap_err().to_string();
        assert!(text.contains("the tokenizer belongs to another model"), "{text}");
        t.check_vocab(t.vocab_size()).unwrap();
        for broken in ["", "{", "{\"model\": 3}", "[]", "{\"version\":\"1.0\"}"] {
            let text = Tokenizer::from_slice("tokenizer.json", broken.as_bytes()).unwrap_err().to_string();
            assert!(text.starts_with("tokenizer.json: is not a tokenizer"), "{text}");
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(Tokenizer::from_dir(dir.path()).unwrap_err().to_string().contains("download it"));
    }

    #[test]
    fn texts_have_their_fewest_tokens() {
        let tokenizer = byte_level();
        for text in ["", "a", " the", "hi the thi", "ä½", "\u{1F600} the the the"] {
            let tokens = tokenizer.encode(&text.repeat(50), false).unwrap().len();
            assert!(tokenizer.fewest_tokens(50 * text.len()) <= tokens, "{text:?}");
        }
        assert!(tokenizer.fewest_tokens(10_000) > 100);
    }
}
