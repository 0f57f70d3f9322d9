//! The command line as its users see it: this executable runs itself as `wootz`.
//!
//! Every run is checked for three things besides what its test asks: no panic, an exit code, and on failure
//! one line on stderr that starts with "error: ".
mod bad_input;
mod hub;

use anyhow::{Context, Result, ensure};
use bad_input::{damaged, edit};
use kernels_host::Device;
use libtest_mimic::Trial;
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// The tests.
pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |name: &str, run: fn() -> Result<()>| trials.push(trial(name, run));
    add("help", help);
    add("usage", usage);
    add("closed_pipe", closed_pipe);
    add("chat_ask", chat_ask);
    add("chat_ask_emulated", chat_ask_emulated);
    add("chat_ask_sampled", chat_ask_sampled);
    add("chat_piped", chat_piped);
    add("chat_full_context", chat_full_context);
    add("chat_base_model", chat_base_model);
    add("generate", generate);
    add("generate_json", generate_json);
    add("generate_answers", generate_answers);
    add("inspect", inspect);
    add("inspect_config_alone", inspect_config_alone);
    add("doctor", doctor);
    add("bench_latency", bench_latency);
    add("bench_throughput", bench_throughput);
    add("bench_kernels", bench_kernels);
    add("bench_peers", bench_peers);
    add("completions", completions);
    trials.extend(bad_input::trials());
    trials.extend(hub::trials());
    trials
}

fn trial(name: &str, run: fn() -> Result<()>) -> Trial {
    Trial::test(format!("cli::{name}"), move || run().map_err(|e| format!("{e:#}").into()))
}

/// What a run left.
struct Ran {
    line: String,
    code: i32,
    stdout: String,
    stderr: String,
}

/// Runs `wootz ARGS` with `input` on stdin, on the CPU where the command has a choice.
fn wootz_with(args: &[&str], input: &str) -> Result<Ran> {
    let home = tempfile::tempdir()?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("wootz-cli")
        .args(args)
        .env("HOME", home.path())
        .env_remove("XDG_STATE_HOME")
        .env_remove("XDG_CACHE_HOME");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    let input = input.to_owned();
    // A program that has failed does not read: not an error.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    let _ = writer.join();
    let line = format!("wootz {}", args.join(" "));
    let ran = Ran {
        code: output.status.code().with_context(|| format!("{line} was killed: {}", output.status))?,
        stdout: String::from_utf8(output.stdout).context("stdout")?,
        stderr: String::from_utf8(output.stderr).context("stderr")?,
        line,
    };
    ensure!(!ran.stderr.contains("panicked") && !ran.stdout.contains("panicked"), "{ran:?} panics");
    Ok(ran)
}

fn wootz(args: &[&str]) -> Result<Ran> {
    wootz_with(args, "")
}

impl std::fmt::Debug for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` (code {}): stdout {:?}, stderr {:?}", self.line, self.code, self.stdout, self.stderr)
    }
}

impl Ran {
    /// Code 0 and a silent stderr.
    fn succeeded(self) -> Result<Self> {
        ensure!(self.code == 0 && self.stderr.is_empty(), "{self:?}");
        Ok(self)
    }

    /// Code 1, nothing on stdout, and one line on stderr with all of `parts`.
    fn failed(self, parts: &[&str]) -> Result<()> {
        ensure!(self.code == 1 && self.stdout.is_empty(), "{self:?}");
        ensure!(self.stderr.starts_with("error: ") && self.stderr.lines().count() == 1, "{self:?}");
        for part in parts {
            ensure!(self.stderr.contains(part), "{self:?} does not say {part:?}");
        }
        Ok(())
    }

    /// Code 2, clap's words on stderr with `part`.
    fn refused(self, part: &str) -> Result<()> {
        ensure!(
            self.code == 2 && self.stdout.is_empty() && self.stderr.contains(part),
            "{self:?} does not say {part:?}"
        );
        Ok(())
    }
}

const CONFIG: &str = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":128,"intermediate_size":256,
    "num_attention_heads":2,"num_hidden_layers":2,"num_key_value_heads":1,"vocab_size":512,"bos_token_id":1,
    "eos_token_id":2,"torch_dtype":"bfloat16","max_position_embeddings":128}"#;

/// A whole model directory of random weights, in several shards.
fn model() -> Result<TempDir> {
    let dir = tempfile::tempdir()?;
    engine::dummy::write_dummy(CONFIG.as_bytes(), dir.path(), 200_000, 7)?;
    Ok(dir)
}

fn path(dir: &TempDir) -> Result<&str> {
    dir.path().to_str().context("temporary folder")
}

fn help() -> Result<()> {
    for command in [
        "",
        "chat",
        "generate",
        "inspect",
        "doctor",
        "bench",
        "bench kernels",
        "bench latency",
        "bench throughput",
        "completions",
    ] {
        let mut args: Vec<&str> = command.split_whitespace().collect();
        args.push("--help");
        let ran = wootz(&args)?;
        let (ran, usage) = (ran.succeeded()?, format!("Usage: wootz {command}"));
        ensure!(ran.stdout.contains(usage.trim_end()), "{ran:?}");
        ensure!(ran.stdout.contains("Example"), "{ran:?} has no examples");
    }
    let version = wootz(&["--version"])?.succeeded()?;
    ensure!(version.stdout == format!("wootz {}\n", env!("CARGO_PKG_VERSION")), "{version:?}");
    Ok(())
}

fn usage() -> Result<()> {
    wootz(&[])?.refused("Usage: wootz")?;
    wootz(&["cat"])?.refused("unrecognized subcommand 'cat'")?;
    wootz(&["bench"])?.refused("Usage: wootz bench")?;
    wootz(&["generate"])?.refused("--prompt")
}

/// A reader that leaves early is no failure.
fn closed_pipe() -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["wootz-cli", "completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    drop(child.stdout.take());
    let output = child.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(0) && stderr.is_empty(), "{}: {stderr}", output.status);

    // A full disk is one.
    let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") else { return Ok(()) };
    let output = Command::new(std::env::current_exe()?).args(["wootz-cli", "inspect"]).stdout(full).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && stderr.starts_with("error: cannot write to stdout: "), "{stderr}");
    Ok(())
}

fn chat_ask() -> Result<()> {
    // Whatever there is, and the CPU.
    for device in ["auto", "cpu"] {
        let ran = wootz(&["chat", "--device", device, "--ask", "What is 12 plus 7?"])?.succeeded()?;
        ensure!(ran.stdout == "19\n", "{ran:?}");
    }
    let short = wootz(&["chat", "--device", "cpu", "--max-tokens", "1", "--ask", "What is 12 plus 7?"])?;
    ensure!(short.code == 0 && short.stdout == "1\n", "digits are single tokens: {short:?}");
    ensure!(short.stderr.starts_with("note: ") && short.stderr.contains("--max-tokens"), "{short:?}");
    for flag in ["--kv-cache-memory-bytes", "--host-cache-bytes"] {
        wootz(&["chat", "--device", "cpu", flag, "900000GiB", "--ask", "Hello"])?
            .failed(&["too little memory", flag])?;
    }
    let stopped = wootz(&["chat", "--device", "cpu", "--stop", "9", "--ask", "What is 12 plus 7?"])?.succeeded()?;
    ensure!(stopped.stdout == "1\n", "{stopped:?}");
    Ok(())
}

/// The launch path of a GPU, end to end, and what it cost.
fn chat_ask_emulated() -> Result<()> {
    let ran = wootz(&["chat", "--device", "emulated:sm_80", "--ask", "What is 12 plus 7?"])?;
    ensure!(ran.code == 0 && ran.stdout == "19\n", "{}: {:?} {:?}", ran.line, ran.stdout, ran.stderr);
    ensure!(ran.stderr.starts_with("emulated: ") && ran.stderr.contains("warp instructions"), "{:?}", ran.stderr);
    Ok(())
}

fn chat_ask_sampled() -> Result<()> {
    let ask = |seed: &str| -> Result<String> {
        let args =
            ["chat", "--device", "cpu", "--temperature", "5", "--seed", seed, "--max-tokens", "24", "--ask", "Hello"];
        let ran = wootz(&args)?;
        ensure!(ran.code == 0, "{ran:?}");
        Ok(ran.stdout)
    };
    let (first, again, other) = (ask("1")?, ask("1")?, ask("2")?);
    ensure!(first == again, "one seed, two answers: {first:?} {again:?}");
    ensure!(first != other, "two seeds, one answer: {first:?}");
    Ok(())
}

fn chat_piped() -> Result<()> {
    let input = "What is 12 plus 7?\n\n/rset\n/system Be brief.\n/system\n/reset\nWhat is 30 minus 4?\n/stats\n/quit\nnot read\n";
    let ran = wootz_with(&["chat", "--device", "cpu"], input)?.succeeded()?;
    let lines: Vec<&str> = ran.stdout.lines().collect();
    let expected = [
        "19",
        "there is no /rset; did you mean /reset? /help lists the commands",
        "(the system prompt is set; the conversation goes on)",
        "Be brief.",
        "(the conversation is forgotten)",
        "26",
    ];
    ensure!(lines.starts_with(&expected), "{ran:?}");
    ensure!(ran.stdout.contains("2 messages") && ran.stdout.contains("2 answers"), "{ran:?}");
    ensure!(!ran.stdout.contains("not read") && !ran.stdout.contains('\x1b'), "{ran:?}");

    // The second turn is about the first.
    let ran = wootz_with(&["chat", "--device", "cpu"], "Spell cat.\nNow reverse it.\n/stats")?.succeeded()?;
    let context = |text: &str| text.lines().find(|line| line.starts_with("context")).map(str::to_owned);
    ensure!(context(&ran.stdout).is_some_and(|line| line.contains("4 messages")), "{ran:?}");
    Ok(())
}

/// The conversation outgrows the context: a line that says so, and `/reset` helps.
fn chat_full_context() -> Result<()> {
    let long = "What is 1 plus 1? ".repeat(12);
    let input = format!("{long}\nWhat is 12 plus 7?\n/reset\nWhat is 12 plus 7?\n");
    let ran = wootz_with(&["chat", "--device", "cpu", "--max-model-len", "64"], &input)?;
    ensure!(ran.code == 1 && ran.stdout.ends_with("19\n"), "{ran:?}");
    ensure!(ran.stderr.contains("error: the conversation has") && ran.stderr.contains("/reset"), "{ran:?}");
    Ok(())
}

fn chat_base_model() -> Result<()> {
    let no_template = |dir: &Path| {
        edit(dir.join("tokenizer_config.json"), |value| {
            value.as_object_mut().map(|fields| fields.remove("chat_template"));
        })
    };
    damaged(no_template, &["has no chat template", "generate"])?;
    let dir = model()?;
    no_template(dir.path())?;
    let args = ["generate", path(&dir)?, "--device", "cpu", "--prompt", "hi", "--max-tokens", "3"];
    wootz(&args)?.succeeded()?;
    Ok(())
}

fn generate() -> Result<()> {
    let dir = model()?;
    let one = ["generate", path(&dir)?, "--device", "cpu", "--prompt-file", "-", "--max-tokens", "5"];
    let first = wootz_with(&one, "hello wonderful world")?.succeeded()?;
    ensure!(first.stdout.ends_with('\n') && first.stdout.len() > 1, "{first:?}");
    let file = dir.path().join("prompt.txt");
    fs::write(&file, "hello wonderful world\n")?;
    let file = file.to_str().context("path")?;
    let two = ["generate", path(&dir)?, "--device", "cpu", "-f", file, "-p", "x", "--max-tokens", "5"];
    let both = wootz(&two)?.succeeded()?;
    ensure!(both.stdout.contains("--- prompt 1") && both.stdout.contains("--- prompt 2"), "{both:?}");
    ensure!(both.stdout.contains(first.stdout.trim_end()), "batched {both:?}, alone {first:?}");
    wootz(&["generate", "--prompt-file", "/nowhere/x"])?.failed(&["/nowhere/x"])
}

fn generate_json() -> Result<()> {
    let args = ["generate", "--device", "cpu", "--json", "-p", "Hello", "-p", "What", "--max-tokens", "6"];
    let ran = wootz(&args)?.succeeded()?;
    let value: Value = serde_json::from_str(&ran.stdout).with_context(|| format!("{ran:?}"))?;
    ensure!(value["model"] == "tiny-chat", "{value}");
    let results = value["results"].as_array().context("results")?;
    ensure!(results.len() == 2 && results[0]["prompt"] == "Hello", "{value}");
    for result in results {
        let tokens = result["completion_tokens"].as_u64().context("completion_tokens")?;
        ensure!(tokens <= 6 && result["prompt_tokens"].as_u64() > Some(0), "{value}");
        let reason = &result["finish_reason"];
        ensure!(reason == "stop" || (reason == "length" && tokens == 6), "{value}");
        ensure!(result["ttft_ms"].as_f64() > Some(0.0) && result["text"].is_string(), "{value}");
    }
    Ok(())
}

/// Several answers, beams, log-probabilities.
fn generate_answers() -> Result<()> {
    let results = |flags: &[&str]| -> Result<Vec<Value>> {
        let args = ["generate", "--device", "cpu", "--json", "-p", "Hello", "--max-tokens", "6"];
        let ran = wootz(&[&args, flags].concat())?.succeeded()?;
        let value: Value = serde_json::from_str(&ran.stdout).with_context(|| format!("{ran:?}"))?;
        Ok(value["results"].as_array().context("results")?.clone())
    };
    let sampled = results(&["--n", "3", "--temperature", "2", "--seed", "5", "--ignore-eos"])?;
    ensure!(sampled.len() == 3 && sampled.iter().all(|result| result["completion_tokens"] == 6), "{sampled:?}");
    let differ = sampled.iter().any(|result| result["text"] != sampled[0]["text"]);
    ensure!(differ && sampled[2]["index"] == 2, "{sampled:?}");
    let beams = results(&["--num-beams", "4", "--n", "2"])?;
    let score = |at: usize| beams[at]["score"].as_f64().context("a score");
    ensure!(beams.len() == 2 && score(0)? >= score(1)? && beams[0]["text"] != beams[1]["text"], "{beams:?}");
    let told = results(&["--logprobs", "2"])?;
    let tokens = told[0]["logprobs"].as_array().context("logprobs")?;
    ensure!(!tokens.is_empty() && tokens.len() <= 6, "{told:?}");
    for token in tokens {
        ensure!(token["rank"] == 1 && token["top_logprobs"][0]["token_id"] == token["token_id"], "greedy: {token}");
    }
    // Banned, the first token is another.
    let ban = format!("{}=-inf", tokens[0]["token_id"]);
    let other = results(&["--logprobs", "0", "--logit-bias", &ban])?;
    ensure!(other[0]["logprobs"][0]["token_id"] != tokens[0]["token_id"], "{other:?}");
    wootz(&["generate", "-p", "x", "--logprobs", "3"])?.refused("--json")?;
    wootz(&["generate", "-p", "x", "--num-beams", "2", "--temperature", "1", "--device", "cpu"])?
        .failed(&["beam search"])
}

fn inspect() -> Result<()> {
    let text = wootz(&["inspect", "--device", "cpu"])?.succeeded()?;
    for part in ["LlamaForCausalLM", "6.82 M", "GQA", "weights", "per token", "--gpu-memory"] {
        ensure!(text.stdout.contains(part), "{text:?} lacks {part}");
    }
    let ran = wootz(&["inspect", "--json", "--gpu-memory", "1GB", "--max-model-len", "1K"])?.succeeded()?;
    let value: Value = serde_json::from_str(&ran.stdout)?;
    ensure!(value["max_model_len"] == 1024 && value["head_dim"] == 64, "{value}");
    // 8 layers, 2 heads, 64 dimensions, K and V, 2 bytes.
    let per_token = 8 * 2 * 64 * 2 * 2;
    ensure!(value["memory"]["kv_bytes_per_token"] == per_token, "{value}");
    let gpu = &value["gpu"];
    let tokens = gpu["kv_cache_tokens"].as_u64().context("kv_cache_tokens")?;
    let fixed = value["memory"]["weights_bytes"].as_u64().zip(value["memory"]["activations_bytes"].as_u64());
    let (weights, activations) = fixed.context("memory")?;
    let rest = 900_000_000 - weights - activations;
    ensure!(gpu["fits"] == true && tokens == rest / (per_token * 64) * 64, "{value}");
    ensure!(gpu["full_sequences"] == tokens / 1024, "{value}");
    Ok(())
}

/// Neither weights nor tokenizer, by folder and by file; too large for the GPU.
fn inspect_config_alone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("config.json");
    fs::write(
        &config,
        r#"{"architectures":["LlamaForCausalLM"],"hidden_size":8192,"intermediate_size":28672,"num_attention_heads":64,
        "num_hidden_layers":80,"num_key_value_heads":8,"vocab_size":128256,"max_position_embeddings":131072}"#,
    )?;
    for model in [path(&dir)?, config.to_str().context("path")?] {
        let ran = wootz(&["inspect", model, "--gpu-memory", "80GB"])?.succeeded()?;
        ensure!(ran.stdout.contains("70.6 B") && ran.stdout.contains("does not fit"), "{ran:?}");
    }
    Ok(())
}

fn doctor() -> Result<()> {
    let ran = wootz(&["doctor"])?;
    ensure!(ran.code == 0 && ran.stderr.is_empty(), "{ran:?}");
    for part in ["model", "kernels", "driver", "CPU", "history", "cache", "rustc", "ptxas", "`wootz chat` works here"] {
        ensure!(ran.stdout.contains(part), "{ran:?} lacks {part}");
    }
    Ok(())
}

fn bench_latency() -> Result<()> {
    let dir = model()?;
    let config = dir.path().join("config.json");
    let config = config.to_str().context("path")?;
    let out = dir.path().join("out.json");
    let sizes = ["--device", "cpu", "--input-len", "12", "--output-len", "4", "--batch-size", "3", "--num-iters", "2"];
    for (model, extra) in [(path(&dir)?, "auto"), (config, "dummy"), (config, "auto")] {
        let mut args = vec!["bench", "latency", model, "--num-iters-warmup", "0", "--load-format", extra];
        args.extend(sizes);
        args.extend(["--json", out.to_str().context("path")?]);
        let timeline = dir.path().join("timeline.svg");
        args.extend(["--prefix-len", "64", "--timeline", timeline.to_str().context("path")?]);
        let ran = wootz(&args)?.succeeded()?;
        ensure!(fs::read_to_string(&timeline)?.contains("decode steps of 3 sequences"), "no timeline");
        ensure!(ran.stdout.contains("TTFT (ms)") && ran.stdout.contains("TPOT (ms)"), "{ran:?}");
        let value: Value = serde_json::from_slice(&fs::read(&out)?)?;
        let number = |key: &str| value[key].as_f64().with_context(|| format!("{key} in {value}"));
        let whole = number("mean_ttft_ms")? + 3.0 * number("mean_tpot_ms")?;
        ensure!(whole > 0.0 && whole <= number("mean_latency_ms")? * 1.001, "{value}");
        ensure!(number("mean_batch_ttft_ms")? * 1.001 >= number("mean_ttft_ms")?, "{value}");
        ensure!(value["batch_size"] == 3 && value["load_format"] == extra, "{value}");
    }
    let args = ["bench", "latency", config, "--load-format", "dummy", "--input-len", "127", "--output-len", "2"];
    wootz(&args)?.failed(&["--input-len 127", "context of 128"])
}

fn bench_throughput() -> Result<()> {
    let dir = model()?;
    let out = dir.path().join("out.json");
    let sizes =
        ["--device", "cpu", "--input-len", "10", "--output-len", "3", "--num-prompts", "5", "--max-num-seqs", "2"];
    let mut args = vec!["bench", "throughput", path(&dir)?, "--prefix-len", "70", "-v"];
    args.extend(sizes);
    args.extend(["--output-json", out.to_str().context("path")?]);
    let ran = wootz(&args)?.succeeded()?;
    for part in ["KV cache", "TTFT (ms)", "Output", "host: plan", "Prefix cache hits"] {
        ensure!(ran.stdout.contains(part), "{ran:?} lacks {part}");
    }
    let value: Value = serde_json::from_slice(&fs::read(&out)?)?;
    ensure!(value["completed"] == 5 && value["total_output_tokens"] == 15, "{value}");
    // A page of the prefix is there from the second pair of requests on.
    ensure!(value["prefix_cache_hits"].as_u64().is_some_and(|hits| hits >= 64), "{value}");
    let both = value["breakdown"]["decode"]["steps"].as_u64().zip(value["breakdown"]["prefill"]["steps"].as_u64());
    ensure!(both.is_some_and(|(decode, prefill)| decode > 0 && prefill > 0), "{value}");
    let mut args = vec!["bench", "throughput", path(&dir)?, "--random-range-ratio", "0.5", "--num-prefixes", "2"];
    args.extend(sizes);
    args.extend(["--prefix-len", "70", "--output-json", out.to_str().context("path")?]);
    wootz(&args)?.succeeded()?;
    let value: Value = serde_json::from_slice(&fs::read(&out)?)?;
    let tokens = value["total_output_tokens"].as_u64().context("tokens")?;
    ensure!((10..=20).contains(&tokens) && value["num_prefixes"] == 2, "5 answers of 2 to 4 tokens: {value}");
    wootz(&["bench", "throughput", "--random-range-ratio", "1"])?.refused("below 1")
}

fn bench_kernels() -> Result<()> {
    let ran = wootz(&["bench", "kernels", "--device", "cpu"])?.succeeded()?;
    ensure!(ran.stdout.contains("NOT RUN"), "{ran:?}");
    if Device::cuda_count() == 0 {
        let ran = wootz(&["bench", "kernels"])?.succeeded()?;
        ensure!(ran.stdout.contains("NOT RUN: "), "{ran:?}");
    } else {
        let ran = wootz(&["bench", "kernels", "norm/rms_norm"])?.succeeded()?;
        ensure!(ran.stdout.contains("norm/rms_norm") && ran.stdout.contains("GB/s"), "{ran:?}");
    }
    Ok(())
}

fn bench_peers() -> Result<()> {
    let ran = wootz(&["bench", "peers", "--device", "cpu"])?.succeeded()?;
    ensure!(ran.stdout.contains("NOT RUN"), "{ran:?}");
    if Device::cuda_count() == 0 {
        let ran = wootz(&["bench", "peers", "--only", "norm"])?.succeeded()?;
        ensure!(ran.stdout.contains("NOT RUN: "), "{ran:?}");
    } else {
        // Rivals are missing: a line each, and the rows that need none.
        let folder = tempfile::tempdir()?;
        let out = folder.path().join("results");
        let mut args = vec!["bench", "peers", "--quick", "--only", "epilogues,norm", "--python", "no-such-python"];
        args.extend(["--cublaslt", "no-such-library.so", "--out"]);
        args.extend(out.to_str());
        let ran = wootz(&args)?.succeeded()?;
        ensure!(ran.stdout.contains("cuBLASLt NOT RUN") && ran.stdout.contains("PyTorch NOT RUN"), "{ran:?}");
        let json: Value = serde_json::from_slice(&fs::read(out.join("peers.json"))?)?;
        ensure!(json["rows"].as_array().is_some_and(|rows| rows.len() == 10), "{json}");
    }
    wootz(&["bench", "peers", "--only", "gemm"])?.refused("gemm")
}

fn completions() -> Result<()> {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = wootz(&["completions", shell])?.succeeded()?;
        ensure!(ran.stdout.contains("max-model-len") && ran.stdout.contains("wootz"), "{shell}: {ran:?}");
    }
    wootz(&["completions", "tcsh"])?.refused("tcsh")
}
