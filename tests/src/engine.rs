//! The engine against transformers' goldens, on every device.
use crate::devices::Named;
use crate::goldens::{self, Golden, Transcript};
use anyhow::{Context, Result, ensure};
use engine::checkpoint::Checkpoint;
use engine::config::ModelConfig;
use engine::engine::{Engine, EngineConfig};
use engine::model::WeightSource;
use engine::scheduler::SequenceRequest;
use kernels_host::Device;
use libtest_mimic::{Failed, Trial};
use std::path::PathBuf;

/// The tests.
pub fn trials(devices: &[Named]) -> Vec<Trial> {
    let mut trials = Vec::new();
    let cases = match goldens::cases() {
        Ok(cases) => cases,
        Err(error) => return vec![Trial::test("engine::goldens", move || Err(Failed::from(format!("{error:#}"))))],
    };
    for dir in cases {
        let case = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // Goldens are many forward passes: minutes on an emulated device.
        for device in devices.iter().filter(|device| !device.is_emulated()) {
            let mut add = |test: &str, run: fn(&Golden, &Device) -> Result<()>| {
                let name = format!("engine::{test}::{case}::{}", device.name);
                let (dir, device): (PathBuf, _) = (dir.clone(), device.device());
                trials.push(Trial::test(name, move || {
                    Golden::load(&dir)
                        .and_then(|golden| run(&golden, &device))
                        .map_err(|error| Failed::from(format!("{error:#}")))
                }));
            };
            add("logits", logits);
            add("logits_chunked", logits_chunked);
            add("greedy", greedy);
            add("greedy_batched", greedy_batched);
        }
    }
    trials
}

fn load(golden: &Golden, device: &Device, step: usize) -> Result<Engine> {
    let config = ModelConfig::from_dir(&golden.dir)?;
    let checkpoint = Checkpoint::open(&golden.dir)?;
    let limits = EngineConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: Some(step),
        kv_cache_tokens: Some(4096),
        ..EngineConfig::default()
    };
    Engine::load(device, &config, WeightSource::Checkpoint(&checkpoint), &limits, &|_, _| ()).context("loading")
}

fn check_logits(golden: &Golden, device: &Device, step: usize) -> Result<()> {
    let mut engine = load(golden, device, step)?;
    for transcript in [&golden.a, &golden.b] {
        let logits = engine.score(&transcript.prompt)?;
        golden.check_logits(transcript, &logits)?;
    }
    Ok(())
}

/// The prompt in one step.
fn logits(golden: &Golden, device: &Device) -> Result<()> {
    check_logits(golden, device, 256)
}

/// The prompt in steps of 40 tokens: attention over a cached prefix, and decode-sized tails.
fn logits_chunked(golden: &Golden, device: &Device) -> Result<()> {
    check_logits(golden, device, 40)
}

fn request(transcript: &Transcript) -> SequenceRequest {
    SequenceRequest {
        prompt: transcript.prompt.clone(),
        max_tokens: transcript.greedy.len(),
        ..SequenceRequest::default()
    }
}

/// Runs all requests together and returns their tokens.
fn run(engine: &mut Engine, requests: Vec<SequenceRequest>) -> Result<Vec<Vec<u32>>> {
    let ids = requests.into_iter().map(|request| engine.add(request)).collect::<engine::Result<Vec<_>>>()?;
    let mut tokens = vec![Vec::new(); ids.len()];
    while engine.has_work() {
        for progress in engine.step()? {
            let at = ids.iter().position(|id| *id == progress.id).context("an unknown sequence")?;
            tokens[at].extend(progress.token);
        }
    }
    Ok(tokens)
}

fn greedy(golden: &Golden, device: &Device) -> Result<()> {
    let mut engine = load(golden, device, 256)?;
    for transcript in [&golden.a, &golden.b] {
        let tokens = run(&mut engine, vec![request(transcript)])?;
        golden.check_greedy(transcript, &tokens[0])?;
    }
    Ok(())
}

/// Both prompts and copies of them in one batch, chunked.
fn greedy_batched(golden: &Golden, device: &Device) -> Result<()> {
    let mut engine = load(golden, device, 64)?;
    let transcripts = [&golden.a, &golden.b, &golden.a, &golden.b, &golden.b];
    let tokens = run(&mut engine, transcripts.iter().map(|transcript| request(transcript)).collect())?;
    for (transcript, tokens) in transcripts.iter().zip(&tokens) {
        ensure!(
            tokens.len() == transcript.greedy.len(),
            "{} tokens instead of {}",
            tokens.len(),
            transcript.greedy.len()
        );
        golden.check_greedy(transcript, tokens)?;
    }
    Ok(())
}
