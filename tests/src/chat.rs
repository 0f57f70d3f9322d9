//! The embedded model answers, the same on every device.
use crate::devices::{Kind, Named};
use anyhow::{Context, Result, ensure};
use engine::chat_template::message;
use engine::engine::EngineConfig;
use engine::llm::{GenerateOptions, Llm};
use engine::sampling::SamplingParams;
use engine::scheduler::FinishReason;
use engine::source::ModelSource;
use kernels_host::Device;
use libtest_mimic::{Failed, Trial};
use std::ops::ControlFlow;

/// Questions that tiny-chat must know, over several kinds of task.
const QUESTIONS: &[(&str, &str)] = &[
    ("What is 12 plus 7?", "19"),
    ("What is 845 minus 367?", "478"),
    ("What is 6 times 7?", "42"),
    ("Which is larger, 381 or 318?", "381"),
    ("Sort these numbers: 42, 7, 19", "7, 19, 42"),
];

/// The tests.
pub fn trials(devices: &[Named]) -> Vec<Trial> {
    let mut trials = Vec::new();
    for named in devices {
        let mut add = |test: &str, run: fn(&Device) -> Result<()>| {
            let device = named.clone();
            trials.push(Trial::test(format!("chat::{test}::{}", named.name), move || {
                run(&device.device()).map_err(|error| Failed::from(format!("{error:#}")))
            }));
        };
        if named.is_emulated() {
            add("answers_one_question", answers_one_question);
            continue;
        }
        add("answers", answers);
        add("answers_in_one_batch", answers_in_one_batch);
        add("multi_turn", multi_turn);
        add("stop_strings_and_callers_end_an_answer", stopping);
        add("a_seed_gives_the_same_answer_in_any_batch", seeded);
        if !matches!(named.kind, Kind::Cpu) {
            add("same_tokens_as_the_cpu", same_tokens_as_the_cpu);
        }
    }
    trials
}

fn load(device: &Device) -> Result<Llm> {
    let config = EngineConfig { max_num_seqs: 16, kv_cache_tokens: Some(16 * 1024), ..EngineConfig::default() };
    Ok(Llm::load(&ModelSource::default(), device, &config, &|_, _| ())?)
}

fn ask(llm: &mut Llm, question: &str, options: &GenerateOptions) -> Result<String> {
    let prompt = llm.chat_prompt(&[message("user", question)])?;
    let mut streamed = String::new();
    let completions = llm.generate(&[prompt], options, |_, piece| {
        streamed.push_str(piece);
        ControlFlow::Continue(())
    })?;
    let completion = completions.into_iter().next().context("one answer")?;
    ensure!(completion.text == streamed, "streamed {streamed:?}, returned {:?}", completion.text);
    ensure!(completion.finish_reason.is_some(), "no reason for the end");
    Ok(completion.text)
}

/// What an emulated device has the time for: the whole way through the launches of a GPU.
fn answers_one_question(device: &Device) -> Result<()> {
    let (question, expected) = QUESTIONS[0];
    let answer = ask(&mut load(device)?, question, &GenerateOptions::default())?;
    ensure!(answer == expected, "{question} {answer:?} instead of {expected:?}");
    Ok(())
}

fn answers(device: &Device) -> Result<()> {
    let mut llm = load(device)?;
    for (question, expected) in QUESTIONS {
        let answer = ask(&mut llm, question, &GenerateOptions::default())?;
        ensure!(answer == *expected, "{question} {answer:?} instead of {expected:?}");
    }
    Ok(())
}

fn answers_in_one_batch(device: &Device) -> Result<()> {
    let mut llm = load(device)?;
    // More prompts than sequences may run at once.
    let asked: Vec<_> = QUESTIONS.iter().cycle().take(40).collect();
    let prompts = asked
        .iter()
        .map(|(question, _)| llm.chat_prompt(&[message("user", question)]))
        .collect::<engine::Result<Vec<_>>>()?;
    let completions = llm.generate(&prompts, &GenerateOptions::default(), |_, _| ControlFlow::Continue(()))?;
    for ((question, expected), completion) in asked.iter().zip(&completions) {
        ensure!(completion.text == *expected, "{question} {:?} instead of {expected:?}", completion.text);
    }
    Ok(())
}

fn multi_turn(device: &Device) -> Result<()> {
    let mut llm = load(device)?;
    let mut messages = Vec::new();
    for (question, expected) in [("What is 12 plus 7?", "19"), ("and plus 5?", "24")] {
        messages.push(message("user", question));
        let prompt = llm.chat_prompt(&messages)?;
        let done = llm.generate(&[prompt], &GenerateOptions::default(), |_, _| ControlFlow::Continue(()))?;
        ensure!(done[0].text == expected, "{question} {:?} instead of {expected:?}", done[0].text);
        messages.push(message("assistant", &done[0].text));
    }
    Ok(())
}

fn stopping(device: &Device) -> Result<()> {
    let mut llm = load(device)?;
    let prompt = llm.chat_prompt(&[message("user", "What is 845 minus 367?")])?;
    let options = GenerateOptions { stop: vec!["7".into()], ..GenerateOptions::default() };
    let done = llm.generate(std::slice::from_ref(&prompt), &options, |_, _| ControlFlow::Continue(()))?;
    ensure!(done[0].text == "4" && done[0].finish_reason == Some(FinishReason::Stop), "{:?}", done[0]);
    let options = GenerateOptions { ignore_eos: true, max_tokens: Some(50), ..GenerateOptions::default() };
    let done = llm.generate(std::slice::from_ref(&prompt), &options, |_, _| ControlFlow::Continue(()))?;
    ensure!(done[0].tokens.len() == 50 && done[0].finish_reason == Some(FinishReason::Length), "{:?}", done[0]);
    let done = llm.generate(&[prompt], &options, |_, _| ControlFlow::Break(()))?;
    ensure!(done[0].tokens.len() < 50 && done[0].finish_reason.is_none(), "{:?}", done[0]);
    Ok(())
}

fn seeded(device: &Device) -> Result<()> {
    let mut llm = load(device)?;
    let prompt = llm.chat_prompt(&[message("user", "Hello!")])?;
    let other = llm.chat_prompt(&[message("user", "Spell the word garden")])?;
    let sampling = SamplingParams { temperature: 1.0, top_p: 0.95, seed: 42, ..SamplingParams::default() };
    let options = GenerateOptions { sampling, max_tokens: Some(24), ..GenerateOptions::default() };
    let mut run = |prompts: &[Vec<u32>]| llm.generate(prompts, &options, |_, _| ControlFlow::Continue(()));
    let alone = run(std::slice::from_ref(&prompt))?;
    let again = run(&[other, prompt])?;
    ensure!(alone[0].tokens == again[1].tokens, "{:?} and {:?}", alone[0].text, again[1].text);
    Ok(())
}

/// Greedy tokens equal the CPU's, except where the CPU's two best logits are closer than the devices' logits.
fn same_tokens_as_the_cpu(device: &Device) -> Result<()> {
    let (mut gpu, mut cpu) = (load(device)?, load(&Device::cpu())?);
    let mut compared = 0;
    for question in
        ["What is 12 plus 7?", "Who are you?", "Spell the word garden", "What can you not do?", "Reverse the word lamp"]
    {
        let prompt = cpu.chat_prompt(&[message("user", question)])?;
        let options = GenerateOptions { max_tokens: Some(64), ..GenerateOptions::default() };
        let run = |llm: &mut Llm| -> Result<Vec<u32>> {
            let done = llm.generate(std::slice::from_ref(&prompt), &options, |_, _| ControlFlow::Continue(()))?;
            Ok(done.into_iter().next().context("one answer")?.tokens)
        };
        let (a, b) = (run(&mut cpu)?, run(&mut gpu)?);
        let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
        compared += same;
        if a == b {
            continue;
        }
        let prefix: Vec<u32> = prompt.iter().chain(&a[..same]).copied().collect();
        let last = |llm: &mut Llm| -> Result<Vec<f32>> {
            let logits = llm.engine_mut().score(&prefix)?;
            Ok(logits[logits.len() / prefix.len() * (prefix.len() - 1)..].to_vec())
        };
        let (cpu_logits, gpu_logits) = (last(&mut cpu)?, last(&mut gpu)?);
        let noise = cpu_logits.iter().zip(&gpu_logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let mut sorted = cpu_logits.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let margin = sorted[0] - sorted[1];
        ensure!(margin <= 2.0 * noise, "{question}: token {same} differs, margin {margin}, noise {noise}");
        ensure!(noise < 0.5, "{question}: the devices' logits differ by {noise}");
    }
    ensure!(compared > 20, "only {compared} tokens compared");
    Ok(())
}
