//! Everything that can go wrong between a model directory and a running engine, as typed variants.
//!
//! Each message is one line that says what is wrong, where, and what to do about it, because the
//! command line prints it unchanged.

use std::path::{Path, PathBuf};

/// Result with the engine's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A model, tokenizer or template that cannot be used, or a request that cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A draft model that cannot serve the model that it was given for.
    #[error("the draft model does not fit: {problem}")]
    DraftModel {
        /// What does not fit and what would.
        problem: String,
    },
    /// The operating system refused a file operation.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was attempted: "read", "write", "map".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file that every model directory has is not there.
    #[error("{path} does not exist; {hint}")]
    MissingFile {
        /// The file looked for.
        path: PathBuf,
        /// What to do about it.
        hint: String,
    },
    /// A file is not the JSON that it should be.
    #[error("{origin} is not valid JSON: {source}; download or regenerate the file")]
    Json {
        /// File name or description of the source.
        origin: String,
        /// The parser's message with line and column.
        source: serde_json::Error,
    },
    /// A field of `config.json` (or `generation_config.json`) is missing, of the wrong type or out of range.
    #[error("{origin}: {field}: {problem}")]
    Config {
        /// File name or description of the source.
        origin: String,
        /// The offending field.
        field: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// `architectures` names a model that the engine has no code for.
    #[error("{origin}: architecture {found} is not supported; supported are {supported}")]
    UnknownArchitecture {
        /// File name or description of the source.
        origin: String,
        /// What `architectures` says.
        found: String,
        /// Comma-separated list of the supported names.
        supported: String,
    },
    /// A safetensors file is shorter than its header says.
    #[error(
        "{file} is truncated: header promises {}, the file has {}; download it again",
        Bytes(*promised), Bytes(*actual)
    )]
    Truncated {
        /// File name.
        file: String,
        /// Bytes that header and data should take.
        promised: u64,
        /// Bytes that there are.
        actual: u64,
    },
    /// A safetensors header cannot be parsed or contradicts itself.
    #[error("{file} has a damaged safetensors header: {problem}; download it again")]
    Header {
        /// File name.
        file: String,
        /// What the parser says.
        problem: String,
    },
    /// The shard index is inconsistent with the shards.
    #[error("{file}: {problem}; download the checkpoint again")]
    Index {
        /// File name of the index.
        file: String,
        /// The contradiction.
        problem: String,
    },
    /// Two shards hold a tensor of the same name.
    #[error("tensor {name} is in both {first} and {second}; remove the stray shard")]
    DuplicateTensor {
        /// Tensor name.
        name: String,
        /// First file.
        first: String,
        /// Second file.
        second: String,
    },
    /// A tensor that the architecture needs is in no shard.
    #[error("tensor {name} is missing from {origin}; the checkpoint does not fit its config.json{hint}")]
    MissingTensor {
        /// Tensor name.
        name: String,
        /// Directory or description of the checkpoint.
        origin: String,
        /// A similar name, if there is one.
        hint: String,
    },
    /// A tensor's shape is not the one that the config implies.
    #[error(
        "{file}: tensor {name} has shape {found:?}, config.json implies {expected:?}; the checkpoint does not fit its config.json"
    )]
    WrongShape {
        /// File name.
        file: String,
        /// Tensor name.
        name: String,
        /// Shape by the config.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// A tensor's element type is not F32, F16 or BF16.
    #[error("{file}: tensor {name} is {found}, supported are F32, F16 and BF16; use an unquantized checkpoint")]
    WrongDtype {
        /// File name.
        file: String,
        /// Tensor name.
        name: String,
        /// Element type in the file.
        found: String,
    },
    /// A destination buffer does not have the tensor's element count.
    #[error("tensor {name} has {elements} elements, the buffer has {buffer}")]
    WrongBuffer {
        /// Tensor name.
        name: String,
        /// Elements of the tensor.
        elements: usize,
        /// Elements of the buffer.
        buffer: usize,
    },
    /// `tokenizer.json` cannot be used.
    #[error("{origin}: {problem}")]
    Tokenizer {
        /// File name or description of the source.
        origin: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The model has no chat template.
    #[error(
        "{origin} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); use `generate` or a chat model"
    )]
    NoChatTemplate {
        /// Directory or description of the model.
        origin: String,
    },
    /// A chat template does not compile or fails on this conversation.
    #[error("{origin}:{line}: chat template: {problem}")]
    Template {
        /// File name or description of the source.
        origin: String,
        /// Line in the template, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// The template itself refused the conversation by calling `raise_exception`.
    #[error("{origin}: the chat template refuses this conversation: {message}")]
    TemplateRefused {
        /// File name or description of the source.
        origin: String,
        /// The template's words.
        message: String,
    },
    /// A request that makes no sense.
    #[error("{problem}")]
    Request {
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A prompt that leaves no room for an answer.
    #[error("the prompt has {tokens} tokens, at most {} fit: shorten it, or raise --max-model-len and the KV cache if the model and its memory allow", max - 1)]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Longest sequence, prompt and answer together.
        max: usize,
    },
    /// As many requests are open as the engine's thread takes.
    #[error("{open} requests are open, no more are taken: try again later")]
    Overloaded {
        /// Requests that wait or run.
        open: usize,
    },
    /// The engine's thread was told to end.
    #[error("the engine is shutting down and takes no more requests")]
    ShuttingDown,
    /// A step failed, or the engine panicked: nothing can be computed any more.
    #[error("the engine has failed and must be restarted: {problem}")]
    EngineFault {
        /// The first failure.
        problem: String,
    },
    /// The GPU cannot hold the model.
    #[error(
        "too little GPU memory: weights {}, activations {}, KV cache at least {}, but {} of {} may be used; free the GPU, raise --gpu-memory-utilization, lower --max-model-len or use --device cpu",
        Bytes(*weights as u64), Bytes(*activations as u64), Bytes(*cache as u64), Bytes(*usable as u64), Bytes(*total as u64)
    )]
    GpuMemory {
        /// Bytes of weights.
        weights: usize,
        /// Bytes of activations.
        activations: usize,
        /// Bytes of the smallest useful cache.
        cache: usize,
        /// Bytes that may be used.
        usable: usize,
        /// Bytes of the GPU.
        total: usize,
    },
    /// A device or kernel error.
    #[error(transparent)]
    Device(#[from] kernels_host::Error),
    /// The embedded model cannot be unpacked: the binary is damaged.
    #[error("the embedded model {model} cannot be unpacked: {problem}; reinstall the binary")]
    Embedded {
        /// Model name.
        model: String,
        /// What is wrong.
        problem: String,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Error::Io { action, path: path.to_owned(), source }
    }
}

/// A byte count as people read it: `4.9 GB` (decimal units, as download pages show them).
struct Bytes(u64);

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            n if n >= 1_000_000_000 => write!(f, "{:.1} GB", n as f64 / 1e9),
            n if n >= 1_000_000 => write!(f, "{:.1} MB", n as f64 / 1e6),
            n => write!(f, "{n} bytes"),
        }
    }
}

/// Reads a small text file, with the hint for the case that it is missing.
pub(crate) fn read_file(path: &Path, hint: &str) -> Result<Vec<u8>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(bytes),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::MissingFile { path: path.to_owned(), hint: hint.to_owned() })
        }
        Err(e) => Err(Error::io("read", path)(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_with_sizes() {
        let e = Error::Truncated {
            file: "model-00002-of-00004.safetensors".into(),
            promised: 4_900_000_000,
            actual: 1_200_000_000,
        };
        assert_eq!(
            e.to_string(),
            "model-00002-of-00004.safetensors is truncated: header promises 4.9 GB, the file has 1.2 GB; download it again"
        );
    }
}
