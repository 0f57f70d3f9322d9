//! Models by their names on Hugging Face's hub: found in the local cache, or downloaded into it.
//!
//! The cache has the layout that Hugging Face's own tools use, and is shared with them:
//! `models--ORG--NAME/{refs/REVISION, snapshots/COMMIT/FILE, blobs/ETAG}`. What is there is used as it is, without asking
//! the hub whether there is something newer.
mod client;
mod download;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The revision where nobody names one.
const MAIN: &str = "main";

/// A model's name on the hub: `ORG/NAME` or `ORG/NAME@REVISION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    /// `ORG/NAME`.
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl HubId {
    /// What `text` names, if it has the form of such a name.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let part = |part: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            (1..=96).contains(&part.len()) && part.chars().all(fits) && !part.starts_with('.') && !part.contains("..")
        };
        let (org, model) = name.split_once('/')?;
        // A branch may have slashes: `refs/pr/1`. It becomes part of a path.
        let good = part(org) && part(model) && !revision.is_empty() && revision.split('/').all(part);
        good.then(|| HubId { name: name.to_owned(), revision: revision.to_owned() })
    }
}

impl std::fmt::Display for HubId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        if self.revision == MAIN { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

/// How much of a model is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// config.json.
    Config,
    /// All that the engine reads.
    All,
}

/// Where models come from, and where they are kept.
#[derive(Clone, Debug)]
pub struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<String>,
    offline: bool,
    /// Whether somebody looks at stderr.
    visible: bool,
    /// Wait before a download is tried for the second time; twice as long before the third.
    pause: Duration,
    /// How long the hub may say nothing.
    patience: Duration,
}

impl Hub {
    /// As the variables say that Hugging Face's tools read: HF_HUB_CACHE, HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH,
    /// HF_HUB_OFFLINE. `visible`: show how downloads go on.
    ///
    /// # Errors
    /// There is no place for the cache.
    pub fn from_env(visible: bool) -> Result<Self> {
        Hub::from_vars(visible, |name| std::env::var_os(name))
    }

    fn from_vars(visible: bool, var: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let set = |names: &[&str]| names.iter().find_map(|name| var(name).filter(|value| !value.is_empty()));
        let path = |names: &[&str]| set(names).map(PathBuf::from);
        let text = |names: &[&str]| set(names).and_then(|value| value.into_string().ok());
        let home = path(&["HF_HOME"])
            .or_else(|| path(&["XDG_CACHE_HOME"]).map(|cache| cache.join("huggingface")))
            .or_else(|| path(&["HOME"]).map(|home| home.join(".cache/huggingface")))
            .context("there is no home directory for the hub's cache; set HF_HOME")?;
        let token_file = path(&["HF_TOKEN_PATH"]).unwrap_or_else(|| home.join("token"));
        let token = text(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(|| std::fs::read_to_string(token_file).ok());
        let on = |value: String| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
        Ok(Hub {
            endpoint: text(&["HF_ENDPOINT"])
                .map_or_else(|| "https://huggingface.co".into(), |url| url.trim_end_matches('/').to_owned()),
            cache: path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).unwrap_or_else(|| home.join("hub")),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            offline: text(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]).is_some_and(on),
            visible,
            pause: Duration::from_secs(1),
            patience: Duration::from_secs(60),
        })
    }

    /// The directory with a model's files; downloads what is not in the cache.
    ///
    /// # Errors
    /// It is not in the cache, and cannot be downloaded.
    pub fn model(&self, id: &HubId, part: Part) -> Result<PathBuf> {
        let lacks = match self.cached(id) {
            Some(dir) => match missing(&dir, part) {
                None => return Ok(dir),
                Some(file) => format!("{id} in {} lacks {file}", self.cache.display()),
            },
            None => format!("{id} is neither a directory nor in the cache {}", self.cache.display()),
        };
        if self.offline {
            bail!("{lacks}, and HF_HUB_OFFLINE forbids to download it: unset it, or give a directory");
        }
        self.download(id, part, &lacks)
    }

    /// The snapshot that a revision names, if there is one.
    fn cached(&self, id: &HubId) -> Option<PathBuf> {
        let dir = self.folder(id);
        let commit = match std::fs::read_to_string(dir.join("refs").join(&id.revision)) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => id.revision.clone(),
        };
        let snapshot = dir.join("snapshots").join(commit);
        snapshot.is_dir().then_some(snapshot)
    }

    /// A model's part of the cache.
    fn folder(&self, id: &HubId) -> PathBuf {
        self.cache.join(format!("models--{}", id.name.replace('/', "--")))
    }
}

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Whether it is one of the small files that the engine reads.
fn is_small(file: &str) -> bool {
    let one = [CONFIG, TOKENIZER, INDEX, "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"];
    one.contains(&file) || file == "chat_template.jinja" || file == "chat_template.json"
}

/// The first file that a snapshot lacks. What is optional is downloaded before what is not.
fn missing(dir: &Path, part: Part) -> Option<String> {
    let lacks = |file: &str| !dir.join(file).is_file();
    if lacks(CONFIG) {
        return Some(CONFIG.into());
    }
    if part == Part::Config {
        return None;
    }
    if lacks(TOKENIZER) {
        return Some(TOKENIZER.into());
    }
    if !lacks(WEIGHTS) {
        return None;
    }
    match shards(&dir.join(INDEX)) {
        Ok(shards) => shards.into_iter().find(|shard| lacks(shard)),
        Err(_) => Some(WEIGHTS.into()),
    }
}

/// The files that an index names.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    let bytes = std::fs::read(index).with_context(|| format!("cannot read {}", index.display()))?;
    let index: Value = serde_json::from_slice(&bytes).with_context(|| format!("{} is no JSON", index.display()))?;
    let map = index["weight_map"].as_object().ok_or_else(|| anyhow!("{INDEX} has no weight_map"))?;
    Ok(map.values().filter_map(Value::as_str).map(str::to_owned).collect())
}
