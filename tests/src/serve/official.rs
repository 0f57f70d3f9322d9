//! OpenAI's official clients, and the page in a browser, against `wootz serve`. `cargo xtask setup` installs what the scripts in
//! `tests/clients` need.
use super::client::{PATIENCE, Server};
use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use ptx_build::toolchain::target_dir;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

/// What the server asks for and the scripts have.
const KEY: &str = "KEY-A";

/// A file that holds the path of a browser.
const CHROMIUM: &str = "chromium.path";

/// The tests; those whose programs are not installed are ignored and say so, in CI they fail.
pub fn trials() -> Vec<Trial> {
    [
        ("openai_python", &["python/installed"][..], openai_python as fn() -> Result<()>),
        ("openai_javascript", &["javascript/installed"], openai_javascript),
        ("page", &["javascript/installed", CHROMIUM], page),
    ]
    .into_iter()
    .map(|(name, needs, run)| trial(name, needs, run))
    .collect()
}

fn trial(name: &str, needs: &[&str], run: fn() -> Result<()>) -> Trial {
    let missing = needs.iter().find(|file| !folder().join(file).exists());
    let in_ci = std::env::var_os("CI").is_some_and(|value| value == "true" || value == "1");
    match missing {
        Some(_) if !in_ci => {
            let name = format!("serve::{name} (NOT RUN: `cargo xtask setup` has not installed what it needs)");
            Trial::test(name, || Ok(())).with_ignored_flag(true)
        }
        missing => {
            let missing = missing.map(|file| format!("target/clients/{file} is missing: run `cargo xtask setup`"));
            Trial::test(format!("serve::{name}"), move || match missing {
                Some(problem) => Err(problem.into()),
                None => run().map_err(|error| format!("{error:#}").into()),
            })
        }
    }
}

/// Where `setup` installs.
fn folder() -> PathBuf {
    target_dir().join("clients")
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

/// A script in Node.js. It finds packages in its working directory.
fn node(name: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(script(name)).current_dir(folder().join("javascript"));
    command
}

fn openai_python() -> Result<()> {
    let mut python = Command::new(folder().join("python/bin/python"));
    // Not beside the scripts.
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    drive(python.arg(script("openai_client.py")))
}

fn openai_javascript() -> Result<()> {
    drive(&mut node("openai_client.mjs"))
}

/// The page, with a server that has two models and one that asks for a key.
fn page() -> Result<()> {
    let files = tempfile::tempdir()?;
    let config = two_models(files.path())?;
    let server = Server::start(&["--config", config.to_str().context("a path")?])?;
    let keyed = Server::start(&["--api-key", KEY])?;
    let browser = std::fs::read_to_string(folder().join(CHROMIUM))?;
    let mut node = node("page.mjs");
    node.args([&server, &keyed].map(|server| format!("http://{}", server.address())));
    run(node.args([KEY, &browser]))?;
    server.at_rest()?;
    keyed.at_rest()
}

/// A configuration of tiny-chat and `babble`: random weights and no end-of-sequence token, so an answer lasts, and grows, until
/// somebody stops it.
fn two_models(folder: &Path) -> Result<PathBuf> {
    let babble = folder.join("babble");
    std::fs::create_dir(&babble)?;
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-chat");
    std::fs::copy(original.join("tokenizer.json"), babble.join("tokenizer.json"))?;
    // Named, not left out: where a configuration is silent its architecture's default holds.
    for (name, field, none) in
        [("config.json", "eos_token_id", json!([])), ("tokenizer_config.json", "eos_token", Value::Null)]
    {
        let mut config: Value = serde_json::from_slice(&std::fs::read(original.join(name))?)?;
        ensure!(config.get(field).is_some(), "{name} of tiny-chat has no {field}");
        config[field] = none;
        std::fs::write(babble.join(name), config.to_string())?;
    }
    let path = folder.join("wootz.toml");
    let babble = babble.to_str().context("a path")?;
    let text = format!(
        "[[model]]\nname = \"tiny-chat\"\n\n[[model]]\nname = \"babble\"\npath = {babble:?}\n\
         engine = {{ load-format = \"dummy\" }}\n"
    );
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Runs a script on a server that asks for a key. Nothing is left of its requests.
fn drive(command: &mut Command) -> Result<()> {
    let server = Server::start(&["--api-key", KEY])?;
    run(command.arg(format!("http://{}", server.address())).arg(KEY))?;
    server.at_rest()
}

/// Runs a program to its end, which must be a success; else what it said is the error.
fn run(command: &mut Command) -> Result<()> {
    // A file: a pipe that nobody reads would hold a talkative program up.
    let said = tempfile::NamedTempFile::new()?;
    let output = said.reopen()?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    // The server is on this machine, whatever stands between it and others.
    command.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
    let mut child = command.spawn().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let status = ended(&mut child);
    let said = String::from_utf8_lossy(&std::fs::read(said.path())?).into_owned();
    let status = status.with_context(|| said.clone())?;
    ensure!(status.success(), "{status}\n{said}");
    Ok(())
}

/// Waits; a program that hangs is killed.
fn ended(child: &mut Child) -> Result<ExitStatus> {
    let end = Instant::now() + 5 * PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            bail!("it did not end in {} minutes", 5 * PATIENCE.as_secs() / 60);
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
