//! Compresses the embedded models into OUT_DIR, one file each, for `src/embedded.rs`.

use std::path::{Path, PathBuf};

const MODELS: [&str; 2] = ["tiny-chat", "tiny-draft"];
const FILES: [&str; 5] =
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"];
/// Where the template is not part of tokenizer_config.json. Embedded empty where there is none.
const OPTIONAL_FILES: [&str; 1] = ["chat_template.jinja"];
/// zstd's highest level that needs no more memory to decompress; a few seconds for 15 MB of bf16.
const LEVEL: i32 = 19;

fn main() {
    let models = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("../models");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    println!("cargo::rerun-if-changed=build.rs");
    for model in MODELS {
        // The folder too: a file that appears or disappears changes it.
        println!("cargo::rerun-if-changed={}", models.join(model).display());
        for file in FILES.iter().chain(&OPTIONAL_FILES) {
            let source = models.join(model).join(file);
            let target = out.join(format!("{model}.{file}.zst"));
            let optional = OPTIONAL_FILES.contains(file);
            if let Err(problem) = embed(&source, &target, optional) {
                println!("cargo::error=models/{model}/{file}: {problem}");
                return;
            }
        }
    }
}

fn embed(source: &Path, target: &Path, optional: bool) -> Result<(), String> {
    let bytes = match std::fs::read(source) {
        Ok(bytes) => {
            println!("cargo::rerun-if-changed={}", source.display());
            bytes
        }
        Err(e) if optional && e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => {
            return Err(format!("{e}; check out the whole repository"));
        }
    };
    let compressed = zstd::encode_all(bytes.as_slice(), LEVEL).map_err(|e| format!("cannot be compressed: {e}"))?;
    std::fs::write(target, compressed).map_err(|e| format!("cannot be written to {}: {e}", target.display()))
}
