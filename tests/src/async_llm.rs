//! Many callers at once, of all tempers: the engine's thread answers the patient ones as if they were alone, and nothing of
//! the others is left.
use crate::devices::{Kind, Named};
use anyhow::{Context, Result, bail, ensure};
use engine::async_llm::CompletionStream;
use engine::engine::{Admission, Engine, EngineConfig};
use engine::scheduler::{FinishReason, Policy, Progress, RequestId, SchedulerMetrics, SequenceRequest};
use engine::worker::{EngineCore, EngineHandle, MAX_OPEN_REQUESTS};
use engine::{AsyncLlm, Device, Error, Llm, SamplingParams, message};
use kernels_host::case::Rng;
use libtest_mimic::{Failed, Trial};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

type Test = fn(&Device) -> Result<()>;

/// The tests. The CPU's are exact; a GPU shows that its engine may run on another thread than the one that loaded it.
pub fn trials(devices: &[Named]) -> Vec<Trial> {
    let everywhere: [(&str, Test); 2] =
        [("streams_dropped_at_random_leave_nothing", random_drops), ("a_failed_step_reaches_every_stream", fault)];
    let exact: [(&str, Test); 3] = [
        ("streams_side_by_side_answer_as_if_alone", side_by_side),
        ("a_slow_reader_stops_nobody", slow_reader),
        ("stop_strings_end_one_answer_of_several", stop_strings),
    ];
    let mut trials = Vec::new();
    for named in devices.iter().filter(|device| !device.is_emulated()) {
        let mut add = |(name, run): (&str, Test)| {
            let device = named.clone();
            trials.push(Trial::test(format!("async_llm::{name}::{}", named.name), move || {
                run(&device.device()).map_err(|error| Failed::from(format!("{error:#}")))
            }));
        };
        everywhere.into_iter().for_each(&mut add);
        if matches!(named.kind, Kind::Cpu) {
            exact.into_iter().for_each(&mut add);
        }
    }
    trials
}

const QUESTIONS: [&str; 8] = [
    "What is 12 plus 7?",
    "What is 845 minus 367?",
    "Spell the word garden",
    "Which is larger, 381 or 318?",
    "Who are you?",
    "Sort these numbers: 42, 7, 19",
    "Reverse the word lamp",
    "What is 6 times 7?",
];

/// A small cache, so that sequences wait for pages and, with `MaxUtilization`, lose them.
fn load(device: &Device, policy: Policy) -> Result<Llm> {
    let config = EngineConfig {
        max_num_seqs: 16,
        kv_cache_tokens: Some(1024),
        policy,
        overlap: Some(true),
        ..EngineConfig::default()
    };
    Ok(Llm::builder("tiny-chat").device(device).config(config).load()?)
}

fn params(i: usize) -> SamplingParams {
    let params = SamplingParams { max_tokens: Some(24), ..SamplingParams::default() };
    if i.is_multiple_of(2) { params } else { SamplingParams { temperature: 0.9, seed: i as u64, ..params } }
}

fn ask(llm: &AsyncLlm, i: usize) -> engine::Result<CompletionStream> {
    llm.chat(&[message("user", QUESTIONS[i % QUESTIONS.len()])], params(i))
}

/// Waits until the engine has nothing to do, and looks whether everything was given back.
fn check_rest(llm: &AsyncLlm) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let (health, metrics) = (llm.handle().health(), llm.handle().metrics());
        if !health.busy && health.open_requests == 0 {
            ensure!((metrics.running, metrics.waiting, metrics.used_pages) == (0, 0, 0), "left over: {metrics:?}");
            return Ok(());
        }
        ensure!(Instant::now() < until, "no rest: {health:?}, {metrics:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs `each(i)` on 32 threads.
fn on_threads(each: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let each = &each;
        let threads: Vec<_> = (0..32).map(|i| scope.spawn(move || each(i))).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("a thread panicked"),
        })
    })
}

fn side_by_side(device: &Device) -> Result<()> {
    let mut alone = load(device, Policy::GuaranteedNoEvict)?;
    let expected: Vec<_> = (0..32)
        .map(|i| Ok(alone.chat(&[message("user", QUESTIONS[i % QUESTIONS.len()])], params(i))?.answers))
        .collect::<Result<_>>()?;
    for policy in [Policy::GuaranteedNoEvict, Policy::MaxUtilization] {
        let llm = AsyncLlm::new(load(device, policy)?)?;
        on_threads(|i| {
            let mut stream = ask(&llm, i)?;
            let mut text = String::new();
            while let Some(delta) = stream.recv() {
                text.push_str(&delta?.text);
            }
            let done = stream.into_completion();
            ensure!(done.answers == expected[i], "request {i}: {:?} instead of {:?}", done.answers, expected[i]);
            ensure!(text == done.text(), "streamed {text:?}, returned {:?}", done.text());
            ensure!(!done.time_to_first_token.is_zero() && done.total_time >= done.time_to_first_token, "{done:?}");
            Ok(())
        })?;
        check_rest(&llm)?;
    }
    Ok(())
}

fn random_drops(device: &Device) -> Result<()> {
    let llm = AsyncLlm::new(load(device, Policy::MaxUtilization)?)?;
    for round in 0..3 {
        on_threads(|i| {
            let mut rng = Rng::new(round * 100 + i as u64);
            let mut stream = ask(&llm, i)?;
            // Some go at once, some in the middle, some never.
            for _ in 0..rng.below(40) {
                let Some(delta) = stream.recv() else { return Ok(()) };
                delta?;
            }
            Ok(())
        })?;
        check_rest(&llm)?;
    }
    let done = llm.chat(&[message("user", "What is 12 plus 7?")], SamplingParams::default())?.wait()?;
    ensure!(done.text() == "19", "{done:?}");
    Ok(llm.handle().shutdown(PATIENCE)?)
}

fn slow_reader(device: &Device) -> Result<()> {
    let llm = AsyncLlm::new(load(device, Policy::GuaranteedNoEvict)?)?;
    let long = SamplingParams { max_tokens: Some(200), ignore_eos: true, ..SamplingParams::default() };
    let mut slow = llm.generate("Hello", long.clone())?;
    slow.recv().context("a first token")??;
    for i in 0..4 {
        ask(&llm, i)?.wait()?;
    }
    // Its answer is made without its reader, and kept.
    check_rest(&llm)?;
    let slow = slow.wait()?;
    ensure!(slow.usage().completion_tokens == 200, "{slow:?}");
    ensure!(slow.answers[0] == llm.generate("Hello", long)?.wait()?.answers[0], "late reading changed the answer");
    Ok(())
}

/// An engine whose steps fail after a while.
struct Failing(Engine, usize);

impl EngineCore for Failing {
    fn admission(&self) -> Admission {
        self.0.admission()
    }
    fn add(&mut self, request: SequenceRequest) -> engine::Result<RequestId> {
        self.0.add(request)
    }
    fn cancel(&mut self, id: RequestId) {
        self.0.cancel(id);
    }
    fn cancel_answer(&mut self, id: RequestId, index: u32) {
        self.0.cancel_answer(id, index);
    }
    fn has_work(&self) -> bool {
        self.0.has_work()
    }
    fn step(&mut self) -> engine::Result<Vec<Progress>> {
        self.1 = self.1.checked_sub(1).ok_or_else(|| Error::Request { problem: "an illegal memory access".into() })?;
        self.0.step()
    }
    fn metrics(&self) -> SchedulerMetrics {
        self.0.metrics()
    }
}

fn fault(device: &Device) -> Result<()> {
    let (engine, text) = load(device, Policy::GuaranteedNoEvict)?.into_parts();
    let llm = AsyncLlm::over(EngineHandle::spawn(Failing(engine, 12), MAX_OPEN_REQUESTS)?, text);
    let long = SamplingParams { max_tokens: Some(200), ignore_eos: true, ..SamplingParams::default() };
    on_threads(|_| {
        // Those that come too late are refused at once, the others hear of it in their streams.
        let done = llm.generate("Hello", long.clone()).and_then(CompletionStream::wait);
        match done {
            Err(Error::EngineFault { problem }) if problem.contains("illegal memory access") => Ok(()),
            other => bail!("{other:?} from an engine that has failed"),
        }
    })?;
    let health = llm.handle().health();
    ensure!(!health.is_live(PATIENCE) && health.fault.is_some(), "{health:?}");
    ensure!(matches!(llm.handle().shutdown(PATIENCE), Err(Error::EngineFault { .. })), "a fault is forgotten");
    Ok(())
}

fn stop_strings(device: &Device) -> Result<()> {
    let llm = AsyncLlm::new(load(device, Policy::GuaranteedNoEvict)?)?;
    let sampled = SamplingParams {
        n: 8,
        temperature: 1.5,
        seed: 3,
        max_tokens: Some(60),
        ignore_eos: true,
        ..SamplingParams::default()
    };
    let whole = llm.generate("The answer is", sampled.clone())?.wait()?;
    let stopped = llm.generate("The answer is", SamplingParams { stop: vec!["e".into()], ..sampled })?.wait()?;
    let mut ended = 0;
    for (whole, stopped) in whole.answers.iter().zip(&stopped.answers) {
        let cut = whole.text.split('e').next().unwrap_or_default();
        ensure!(stopped.text == cut, "{:?} of {:?}", stopped.text, whole.text);
        let reason = if cut.len() < whole.text.len() { FinishReason::Stop } else { FinishReason::Length };
        ensure!(stopped.finish_reason == reason, "{stopped:?}");
        ended += usize::from(reason == FinishReason::Stop);
    }
    ensure!(ended > 0, "no answer had the stop string: the test tests nothing");
    check_rest(&llm)
}
