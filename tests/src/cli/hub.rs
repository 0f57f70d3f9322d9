//! MODEL as a name on the hub: what is in the cache is found, what is not is an error that says what to do.
use super::{Ran, model, trial};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![trial("hub_cache", hub_cache), trial("hub_unreachable", hub_unreachable)]
}

/// Runs `wootz ARGS` with a cache of the hub.
fn wootz(home: &Path, args: &[&str], vars: &[(&str, &str)]) -> Result<Ran> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("wootz-cli").args(args).env("HOME", home).env("HF_HOME", home.join("hf"));
    for var in ["HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT", "TRANSFORMERS_OFFLINE"] {
        command.env_remove(var);
    }
    let output = command.envs(vars.iter().copied()).stdin(Stdio::null()).output()?;
    let code = output.status.code().context("a code")?;
    let (stdout, stderr) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    Ok(Ran { line: format!("wootz {}", args.join(" ")), code, stdout, stderr })
}

fn hub_cache() -> Result<()> {
    let (files, home) = (model()?, tempfile::tempdir()?);
    let (commit, repo) = ("0123456789abcdef", home.path().join("hf/hub/models--makers--model"));
    let snapshot = repo.join("snapshots").join(commit);
    fs::create_dir_all(repo.join("blobs"))?;
    fs::create_dir_all(repo.join("refs"))?;
    fs::create_dir_all(&snapshot)?;
    fs::write(repo.join("refs/main"), commit)?;
    for (i, entry) in fs::read_dir(files.path())?.enumerate() {
        let (entry, blob) = (entry?, format!("blob{i}"));
        fs::copy(entry.path(), repo.join("blobs").join(&blob))?;
        std::os::unix::fs::symlink(Path::new("../../blobs").join(&blob), snapshot.join(entry.file_name()))?;
    }
    let generate = |name: &str| {
        let args = ["generate", name, "--device", "cpu", "--prompt", "hi", "--max-tokens", "2"];
        wootz(home.path(), &args, &[("HF_HUB_OFFLINE", "1")])
    };
    let by_name = generate("makers/model")?.succeeded()?;
    ensure!(by_name.stdout == generate(&format!("makers/model@{commit}"))?.succeeded()?.stdout, "{by_name:?}");
    let inspected = wootz(home.path(), &["inspect", "makers/model"], &[("HF_HUB_OFFLINE", "1")])?.succeeded()?;
    ensure!(inspected.stdout.contains("makers/model"), "{inspected:?}");
    generate("makers/other")?.failed(&["makers/other is neither a directory nor in the cache", "HF_HUB_OFFLINE"])?;
    generate("makers/model@v2")?.failed(&["makers/model@v2 is neither"])?;
    let shard = fs::read_dir(&snapshot)?.filter_map(|entry| Some(entry.ok()?.path()));
    let shard =
        shard.filter(|path| path.extension().is_some_and(|ext| ext == "safetensors")).min().context("a shard")?;
    fs::remove_file(&shard)?;
    let name = shard.file_name().and_then(|name| name.to_str()).context("a name")?;
    generate("makers/model")?.failed(&["lacks", name])
}

fn hub_unreachable() -> Result<()> {
    let home = tempfile::tempdir()?;
    // A port that nobody listens on any more.
    let endpoint = format!("http://{}", TcpListener::bind("127.0.0.1:0")?.local_addr()?);
    let args = ["chat", "makers/model", "--device", "cpu", "--ask", "hi"];
    wootz(home.path(), &args, &[("HF_ENDPOINT", &endpoint)])?.failed(&["makers/model is neither", &endpoint, "network"])
}
