//! Which models to load, from the command line, a TOML file or `/admin/models/load`.
//!
//! ```toml
//! [[model]]
//! name = "chat"
//! aliases = ["gpt-4o"]
//! engine = { max-model-len = "8K" }      # flags of `wootz serve`
//!
//! [[model.version]]
//! name = "2026-01"
//! path = "Qwen/Qwen3-0.6B"
//! weight = 90
//!
//! [[model.version]]
//! name = "2026-02"
//! path = "./finetuned"
//! weight = 10
//! engine = { kv-cache-memory-bytes = "20GiB" }
//! ```
use super::args::ServeArgs;
use super::registry::Slot;
use crate::device::DeviceArgs;
use crate::model::{LimitArgs, LoadFormat, ModelArgs};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, FromArgMatches, Parser};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Flags that each model may have its own of.
#[derive(Args, Clone, Debug)]
pub struct ModelFlags {
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Read the checkpoint, or make random weights, for which a path to a config.json is enough
    #[arg(long, value_enum, default_value = "auto")]
    pub load_format: LoadFormat,
}

/// The same without the rest of `wootz serve`.
#[derive(Parser)]
#[command(name = "engine", no_binary_name = true, disable_help_flag = true)]
struct FlagsOnly {
    #[command(flatten)]
    flags: ModelFlags,
}

impl ModelFlags {
    /// Changed by `engine`, a table of flags without their dashes.
    ///
    /// # Errors
    /// There is no such flag, or it does not take the value.
    pub fn with(&self, engine: &Map<String, Value>) -> Result<Self> {
        let mut words = Vec::new();
        for (name, value) in engine {
            let flag = format!("--{}", name.replace('_', "-"));
            match value {
                Value::Bool(on) => words.push(format!("{flag}={on}")),
                Value::String(text) => words.push(format!("{flag}={text}")),
                Value::Number(number) => words.push(format!("{flag}={number}")),
                _ => bail!("engine.{name} must be a string, a number or a boolean"),
            }
        }
        let mut flags = self.clone();
        // Without defaults: what is not said stays as it was. A flag that is on by its presence takes true or false here.
        let command = <FlagsOnly as clap::CommandFactory>::command().mut_args(|arg| {
            let is_switch = matches!(arg.get_action(), clap::ArgAction::SetTrue);
            let arg = arg.default_value(clap::builder::Resettable::Reset);
            if is_switch { arg.action(clap::ArgAction::Set).value_parser(clap::value_parser!(bool)) } else { arg }
        });
        let matches = command.try_get_matches_from(words).map_err(|error| {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            anyhow::anyhow!("engine: {first}")
        })?;
        flags.update_from_arg_matches(&matches)?;
        Ok(flags)
    }
}

/// A version of a model that is to be loaded.
#[derive(Clone, Debug)]
pub struct LoadSpec {
    /// Its name; `None` is the model's own.
    pub name: Option<String>,
    /// More names.
    pub aliases: Vec<String>,
    /// Its version.
    pub version: Option<String>,
    /// Its share.
    pub weight: u32,
    /// Where it is.
    pub source: ModelArgs,
    /// How it runs.
    pub flags: ModelFlags,
}

impl LoadSpec {
    /// Where its requests go, once its own name is known.
    pub fn slot(&self, own: &str) -> Slot {
        // A revision of the hub is no version: names have no @.
        let own = || own.split('@').next().unwrap_or(own).to_owned();
        Slot { name: self.name.clone().unwrap_or_else(own), version: self.version.clone() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    model: Vec<FileModel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileModel {
    name: Option<String>,
    #[serde(default)]
    aliases: Vec<String>,
    path: Option<PathBuf>,
    #[serde(default)]
    engine: Map<String, Value>,
    #[serde(default)]
    version: Vec<FileVersion>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileVersion {
    name: String,
    path: Option<PathBuf>,
    #[serde(default = "one")]
    weight: u32,
    #[serde(default)]
    engine: Map<String, Value>,
}

fn one() -> u32 {
    1
}

/// What the command line asks for.
///
/// # Errors
/// The file cannot be read or is wrong.
pub fn specs(args: &ServeArgs) -> Result<Vec<LoadSpec>> {
    if let Some(path) = &args.config {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        return parse(&text, folder, &args.model).with_context(|| path.display().to_string());
    }
    let mut names = args.served_model_name.iter().cloned();
    ensure!(
        args.models.len() <= 1 || args.served_model_name.is_empty(),
        "--served-model-name names one model: give several models their names in a --config file"
    );
    // `--served-model-name NAME MODEL` takes both for names.
    if let (true, Some(path)) = (args.models.is_empty(), args.served_model_name.iter().find(|name| name.contains('/')))
    {
        bail!("--served-model-name {path} looks like a MODEL: give MODEL before --served-model-name");
    }
    let name = names.next();
    let aliases: Vec<_> = names.collect();
    let models = if args.models.is_empty() { vec![None] } else { args.models.iter().cloned().map(Some).collect() };
    let spec = |model| LoadSpec {
        name: name.clone(),
        aliases: aliases.clone(),
        version: None,
        weight: 1,
        source: ModelArgs { model },
        flags: args.model.clone(),
    };
    Ok(models.into_iter().map(spec).collect())
}

/// Paths are relative to the file's folder.
fn parse(text: &str, folder: &Path, flags: &ModelFlags) -> Result<Vec<LoadSpec>> {
    let file: File =
        toml::from_str(text).map_err(|error| anyhow::anyhow!("{}", crate::terminal::one_line(&error.to_string())))?;
    ensure!(!file.model.is_empty(), "no [[model]]: give at least one");
    let place = |path: Option<PathBuf>| {
        let model = path.map(|path| if folder.join(&path).exists() { folder.join(&path) } else { path });
        ModelArgs { model }
    };
    let mut specs = Vec::new();
    for model in file.model {
        let called = model.name.clone().unwrap_or_else(|| "a [[model]] without a name".into());
        let common = flags.with(&model.engine).with_context(|| called.clone())?;
        if model.version.is_empty() {
            specs.push(LoadSpec {
                name: model.name,
                aliases: model.aliases,
                version: None,
                weight: 1,
                source: place(model.path),
                flags: common,
            });
            continue;
        }
        ensure!(model.name.is_some(), "a [[model]] with versions needs a name");
        let mut aliases = model.aliases;
        for version in model.version {
            specs.push(LoadSpec {
                name: model.name.clone(),
                aliases: std::mem::take(&mut aliases),
                weight: version.weight,
                source: place(version.path.or_else(|| model.path.clone())),
                flags: common.with(&version.engine).with_context(|| format!("{called}@{}", version.name))?,
                version: Some(version.name),
            });
        }
    }
    Ok(specs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> ModelFlags {
        FlagsOnly::try_parse_from(["--max-num-seqs", "7", "--device", "cpu", "--gpu-memory-utilization", "0.5"])
            .unwrap()
            .flags
    }

    #[test]
    fn a_file_with_versions() {
        let text = r#"
            [[model]]
            name = "chat"
            aliases = ["gpt-4o"]
            engine = { max-model-len = "1K", no-prefix-cache = true }
            [[model.version]]
            name = "a"
            weight = 90
            [[model.version]]
            name = "b"
            weight = 10
            path = "org/name"
            engine = { max_num_seqs = 3, eager = true }
            [[model]]
            path = "other/name"
        "#;
        let specs = parse(text, Path::new("/nowhere"), &flags()).unwrap();
        let shown: Vec<_> = specs.iter().map(|spec| (spec.slot("own").to_string(), spec.weight)).collect();
        assert_eq!(shown, [("chat@a".into(), 90), ("chat@b".into(), 10), ("own".into(), 1)]);
        assert_eq!((specs[0].aliases.len(), specs[1].aliases.len()), (1, 0));
        let limits = |i: usize| &specs[i].flags.limits;
        assert_eq!(
            (limits(0).max_num_seqs, limits(0).max_model_len),
            (Some(7), Some(1024)),
            "flags of the command line stay"
        );
        assert_eq!((limits(1).max_num_seqs, limits(1).max_model_len), (Some(3), Some(1024)));
        assert!(limits(1).no_prefix_cache && limits(1).eager && !limits(2).eager);
        assert_eq!(limits(1).gpu_memory_utilization, 0.5);
        assert_eq!(specs[1].flags.device.device, crate::device::DeviceChoice::Cpu);
        assert_eq!(specs[2].source.model.as_deref(), Some(Path::new("other/name")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, what) in [
            ("", "model"),
            ("model = []", "[[model]]"),
            ("[[model]]\npaht = \"x\"", "paht"),
            ("[[model]]\nengine = { max-mdel-len = 3 }", "max-mdel-len"),
            ("[[model]]\nengine = { max-num-seqs = 0 }", "max-num-seqs"),
            ("[[model]]\n[[model.version]]\nname = \"a\"", "name"),
        ] {
            let error = format!("{:#}", parse(text, Path::new(""), &flags()).unwrap_err());
            assert!(error.contains(what) && !error.contains('\n'), "{text:?}: {error}");
        }
    }
}
