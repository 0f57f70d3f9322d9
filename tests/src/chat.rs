//! The embedded model answers, the same on every device.
use crate::devices::{Kind, Named};
use anyhow::{Context, Result, ensure};
use engine::chat_template::message;
use engine::engine::EngineConfig;
use engine::llm::{Answer, Completion, Llm, Prompt, SamplingParams};
use engine::scheduler::FinishReason;
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
    Ok(Llm::builder("tiny-chat").device(device).config(config).load()?)
}

fn ask(llm: &mut Llm, question: &str, params: &SamplingParams) -> Result<String> {
    let prompt = llm.chat_prompt(&[message("user", question)])?;
    let mut streamed = String::new();
    let completions = llm.stream(&[prompt], params, None, |_, delta| {
        streamed.push_str(&delta.text);
        ControlFlow::Continue(())
    })?;
    let answer = first(completions)?;
    ensure!(answer.text == streamed, "streamed {streamed:?}, returned {:?}", answer.text);
    ensure!(answer.finish_reason != FinishReason::Abort, "no reason for the end");
    Ok(answer.text)
}

fn first(completions: Vec<Completion>) -> Result<Answer> {
    completions.into_iter().next().and_then(Completion::into_answer).context("one answer")
}

/// All answers to one prompt.
fn generate(llm: &mut Llm, prompt: &[u32], params: &SamplingParams) -> Result<Answer> {
    first(llm.generate(Prompt::Tokens(prompt.to_vec()), params.clone())?)
}

/// What an emulated device has the time for: the whole way through the launches of a GPU.
fn answers_one_question(device: &Device) -> Result<()> {
    let (question, expected) = QUESTIONS[0];
    let answer = ask(&mut load(device)?, question, &SamplingParams::default())?;
    ensure!(answer == expected, "{question} {answer:?} instead of {expected:?}");
    Ok(())
}

fn answers(device: &Device) -> Result<()> {
    let mut llm = load(device)?;
    for (question, expected) in QUESTIONS {
        let answer = ask(&mut llm, question, &SamplingParams::default())?;
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
    let completions = llm.generate(prompts, SamplingParams::default())?;
    for ((question, expected), completion) in asked.iter().zip(&completions) {
        ensure!(completion.text() == *expected, "{question} {:?} instead of {expected:?}", completion.text());
    }
    Ok(())
}

fn multi_turn(device: &Device) -> Result<()> {
    let mut llm = load(device)?;
    let mut messages = Vec::new();
    for (question, expected) in [("What is 12 plus 7?", "19"), ("and plus 5?", "24")] {
        messages.push(message("user", question));
        let done = llm.chat(&messages, SamplingParams::default())?;
        ensure!(done.text() == expected, "{question} {:?} instead of {expected:?}", done.text());
        messages.push(message("assistant", done.text()));
    }
    Ok(())
}

fn stopping(device: &Device) -> Result<()> {
    let mut llm = load(device)?;
    let prompt = llm.chat_prompt(&[message("user", "What is 845 minus 367?")])?;
    let params = SamplingParams { stop: vec!["7".into()], ..SamplingParams::default() };
    let done = generate(&mut llm, &prompt, &params)?;
    ensure!(done.text == "4" && done.finish_reason == FinishReason::Stop, "{done:?}");
    let params = SamplingParams { ignore_eos: true, max_tokens: Some(50), ..SamplingParams::default() };
    let done = generate(&mut llm, &prompt, &params)?;
    ensure!(done.tokens.len() == 50 && done.finish_reason == FinishReason::Length, "{done:?}");
    let done = first(llm.stream(&[prompt], &params, None, |_, _| ControlFlow::Break(()))?)?;
    ensure!(done.tokens.len() < 50 && done.finish_reason == FinishReason::Abort, "{done:?}");
    Ok(())
}

fn seeded(device: &Device) -> Result<()> {
    let mut llm = load(device)?;
    let prompt = llm.chat_prompt(&[message("user", "Hello!")])?;
    let other = llm.chat_prompt(&[message("user", "Spell the word garden")])?;
    let params =
        SamplingParams { temperature: 1.0, top_p: 0.95, seed: 42, max_tokens: Some(24), ..SamplingParams::default() };
    let alone = generate(&mut llm, &prompt, &params)?;
    let again = llm.generate([other, prompt], params)?;
    ensure!(alone == again[1].answers[0], "{:?} and {:?}", alone.text, again[1].text());
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
        let params = SamplingParams { max_tokens: Some(64), ..SamplingParams::default() };
        let run = |llm: &mut Llm| -> Result<Vec<u32>> { Ok(generate(llm, &prompt, &params)?.tokens) };
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
