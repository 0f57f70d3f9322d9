//! The thread over an engine without a device: one token per request and step.
use super::*;
use crate::engine::EngineConfig;
use crate::scheduler::{self, FinishReason, Limits, Policy, Speculation};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::sync_channel;

const PATIENCE: Duration = Duration::from_secs(30);

/// Answers with 0, 1, 2, … until `max_tokens`.
#[derive(Default)]
struct Fake {
    added: u64,
    open: Vec<(RequestId, u32, usize, usize)>,
    steps: Arc<AtomicUsize>,
    fault: Arc<AtomicBool>,
    panic: Arc<AtomicBool>,
    cancelled: Arc<AtomicUsize>,
    dropped: Arc<AtomicBool>,
}

impl EngineCore for Fake {
    fn admission(&self) -> Admission {
        let max_model_len = EngineConfig::default().max_num_seqs * 1000;
        let limits = Limits { max_tokens: 64, max_sequences: 8, max_model_len };
        let scheduler = scheduler::Admission { limits, policy: Policy::MaxUtilization, pages: 1 << 20 };
        Admission {
            scheduler,
            vocab: 100,
            hidden_size: 1,
            drafts: 0,
            draft_model: false,
            speculation: Speculation::Off,
        }
    }
    fn add(&mut self, request: SequenceRequest) -> Result<RequestId> {
        if request.prompt == [13] {
            return Err(Error::Request { problem: "thirteen".into() });
        }
        let id = RequestId::numbered(self.added);
        self.added += 1;
        self.open.extend((0..request.n as u32).map(|index| (id, index, 0, request.max_tokens)));
        Ok(id)
    }
    fn cancel(&mut self, id: RequestId) {
        self.cancelled.fetch_add(1, Ordering::SeqCst);
        self.open.retain(|(open, ..)| *open != id);
    }
    fn cancel_answer(&mut self, id: RequestId, index: u32) {
        self.open.retain(|(open, at, ..)| (*open, *at) != (id, index));
    }
    fn has_work(&self) -> bool {
        !self.open.is_empty()
    }
    fn step(&mut self) -> Result<Vec<Progress>> {
        self.steps.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panic.load(Ordering::SeqCst), "the step fell over");
        if self.fault.load(Ordering::SeqCst) {
            return Err(Error::Request { problem: "a sticky error".into() });
        }
        let progress = self.open.iter_mut().map(|(id, index, at, len)| {
            *at += 1;
            let finished = (at == len).then_some(FinishReason::Length);
            let token = Some(*at as u32 - 1);
            Progress { id: *id, index: *index, token, logprobs: None, finished, score: None, embedding: None }
        });
        let progress: Vec<_> = progress.collect();
        self.open.retain(|(.., at, len)| at < len);
        Ok(progress)
    }
    fn metrics(&self) -> SchedulerMetrics {
        SchedulerMetrics { running: self.open.len(), ..SchedulerMetrics::default() }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::SeqCst);
    }
}

fn request(max_tokens: usize) -> SequenceRequest {
    SequenceRequest { prompt: vec![1], max_tokens, ..SequenceRequest::default() }
}

fn read(mut stream: TokenStream) -> Result<Vec<u32>> {
    let mut tokens = Vec::new();
    while let Some(event) = stream.recv() {
        tokens.extend(event?.progress.token);
    }
    assert!(stream.recv().is_none(), "nothing after the end");
    Ok(tokens)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::yield_now();
    }
}

#[test]
fn requests_from_many_threads_are_answered_and_the_engine_rests() {
    let handle = EngineHandle::spawn(Fake::default(), 100).unwrap();
    std::thread::scope(|scope| {
        for len in 1..20 {
            let handle = handle.clone();
            scope.spawn(move || {
                let tokens = read(handle.submit(request(len)).unwrap()).unwrap();
                assert_eq!(tokens, (0..len as u32).collect::<Vec<_>>());
            });
        }
    });
    until("rest", || !handle.health().busy);
    assert_eq!((handle.health().open_requests, handle.metrics().running), (0, 0));
    assert!(handle.health().is_live(Duration::ZERO), "an idle thread is alive");
    handle.shutdown(PATIENCE).unwrap();
}

#[test]
fn a_slow_reader_stops_nobody_and_a_dropped_one_cancels() {
    let fake = Fake::default();
    let (steps, cancelled) = (fake.steps.clone(), fake.cancelled.clone());
    let handle = EngineHandle::spawn(fake, 100).unwrap();
    let slow = handle.submit(request(500)).unwrap();
    assert_eq!(read(handle.submit(request(100)).unwrap()).unwrap().len(), 100);
    until("the slow reader's answer", || handle.health().open_requests == 0);
    assert_eq!(read(slow).unwrap().len(), 500, "all of it is kept");
    assert_eq!(cancelled.load(Ordering::SeqCst), 0);
    let endless = handle.submit(request(50_000)).unwrap();
    until("a step", || handle.health().busy);
    drop(endless);
    until("rest", || handle.health().open_requests == 0 && !handle.health().busy);
    assert_eq!(cancelled.load(Ordering::SeqCst), 1);
    assert!(steps.load(Ordering::SeqCst) < 50_000);
}

#[test]
fn one_answer_of_several_ends_early() {
    let handle = EngineHandle::spawn(Fake::default(), 100).unwrap();
    let both = SequenceRequest { n: 2, ..request(20_000) };
    let mut stream = handle.submit(both).unwrap();
    let mut counts = [0, 0];
    while let Some(event) = stream.recv() {
        let progress = event.unwrap().progress;
        counts[progress.index as usize] += 1;
        if (progress.index, counts[0]) == (0, 10) {
            stream.cancel_answer(0);
        }
    }
    assert!((10..20_000).contains(&counts[0]), "{counts:?}");
    assert_eq!(counts[1], 20_000);
}

#[test]
fn refusals_are_typed_and_cost_others_nothing() {
    let handle = EngineHandle::spawn(Fake::default(), 2).unwrap();
    let empty = SequenceRequest { prompt: Vec::new(), ..request(1) };
    assert!(matches!(handle.submit(empty), Err(Error::Request { .. })));
    let long = SequenceRequest { prompt: vec![1; 1 << 20], ..request(1) };
    assert!(matches!(handle.submit(long), Err(Error::PromptTooLong { .. })));
    // What only the engine finds out.
    let thirteen = handle.submit(SequenceRequest { prompt: vec![13], ..request(1) }).unwrap();
    assert!(matches!(read(thirteen), Err(Error::Request { .. })));
    until("the end of the refused one", || handle.health().open_requests == 0);
    let open = [handle.submit(request(60_000)).unwrap(), handle.submit(request(60_000)).unwrap()];
    assert!(matches!(handle.submit(request(1)), Err(Error::Overloaded { open: 2 })));
    drop(open);
    until("room", || handle.health().open_requests == 0);
    handle.shutdown(PATIENCE).unwrap();
    assert!(matches!(handle.submit(request(1)), Err(Error::ShuttingDown)));
}

#[test]
fn a_fault_reaches_everybody_and_poisons_the_handle() {
    for panics in [false, true] {
        let fake = Fake::default();
        let trigger = if panics { fake.panic.clone() } else { fake.fault.clone() };
        let dropped = fake.dropped.clone();
        let handle = EngineHandle::spawn(fake, 100).unwrap();
        let streams: Vec<_> = (0..5).map(|_| handle.submit(request(60_000)).unwrap()).collect();
        trigger.store(true, Ordering::SeqCst);
        for stream in streams {
            let error = read(stream).unwrap_err();
            let text = if panics { "the step fell over" } else { "a sticky error" };
            assert!(matches!(&error, Error::EngineFault { problem } if problem.contains(text)), "{error}");
        }
        assert!(matches!(handle.submit(request(1)), Err(Error::EngineFault { .. })));
        assert!(!handle.health().is_live(PATIENCE));
        until("the end of all requests", || handle.health().open_requests == 0);
        assert!(matches!(handle.shutdown(PATIENCE), Err(Error::EngineFault { .. })));
        assert!(dropped.load(Ordering::SeqCst), "device memory is given back");
    }
}

#[test]
fn shutdown_lets_answers_end_and_then_ends_them() {
    let handle = EngineHandle::spawn(Fake::default(), 100).unwrap();
    let short = handle.submit(request(100)).unwrap();
    handle.shutdown(PATIENCE).unwrap();
    assert_eq!(read(short).unwrap().len(), 100);

    let fake = Fake::default();
    let dropped = fake.dropped.clone();
    let handle = EngineHandle::spawn(fake, 100).unwrap();
    let mut endless = handle.submit(SequenceRequest { n: 2, ..request(63_000) }).unwrap();
    handle.shutdown(Duration::ZERO).unwrap();
    assert!(dropped.load(Ordering::SeqCst));
    let mut reasons = Vec::new();
    while let Some(event) = endless.recv() {
        reasons.extend(event.unwrap().progress.finished);
    }
    assert_eq!(reasons, [FinishReason::Abort; 2]);
}

#[test]
fn the_thread_ends_with_its_last_handle() {
    let fake = Fake::default();
    let dropped = fake.dropped.clone();
    let handle = EngineHandle::spawn(fake, 100).unwrap();
    let stream = handle.submit(request(10)).unwrap();
    drop(handle);
    assert_eq!(read(stream).unwrap().len(), 10, "a stream keeps the thread alive");
    until("the end of the thread", || dropped.load(Ordering::SeqCst));
}

#[test]
fn a_stalled_step_is_not_alive() {
    struct Stalled(Fake, std::sync::mpsc::Receiver<()>);
    impl EngineCore for Stalled {
        fn admission(&self) -> Admission {
            self.0.admission()
        }
        fn add(&mut self, request: SequenceRequest) -> Result<RequestId> {
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
        fn step(&mut self) -> Result<Vec<Progress>> {
            let _ = self.1.recv();
            self.0.step()
        }
        fn metrics(&self) -> SchedulerMetrics {
            self.0.metrics()
        }
    }
    let (release, gate) = sync_channel(0);
    let handle = EngineHandle::spawn(Stalled(Fake::default(), gate), 100).unwrap();
    let stream = handle.submit(request(1)).unwrap();
    until("a stall", || !handle.health().is_live(Duration::from_millis(20)));
    drop(release);
    assert_eq!(read(stream).unwrap(), [0]);
    until("life", || handle.health().is_live(PATIENCE));
}
