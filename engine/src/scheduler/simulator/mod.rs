//! Random lives of a scheduler: arrivals, lengths, priorities, answers, beams, drafts, cancels and shortages of pages,
//! with plans committed late, over a device that notices every wrong page. Failing runs shrink to a minimal trace.
mod device;
mod invariants;

use super::plan::*;
use super::*;
use device::{Device, Known, STOP, beam_answers, choose, ensure, extend, mix, root};
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a run is made with.
#[derive(Clone, Copy, Debug)]
struct Setup {
    pages: usize,
    config: SchedulerConfig,
    vocab: u32,
    /// Plans that the engine keeps open.
    open: usize,
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Event {
    Add(Box<Arrival>),
    /// The request that arrived so many before the newest; of the one 5 before it only an answer.
    Cancel(u64),
    Plan,
    Commit,
}

#[derive(Clone, Copy, Debug)]
struct Arrival {
    /// Prompts of a family start alike.
    family: u64,
    shared: usize,
    own: usize,
    max_tokens: usize,
    priority: i32,
    n: usize,
    beam: Option<BeamParams>,
    speculation: Speculation,
    salt: u64,
    stops: bool,
    reuse_prefix: bool,
}

/// An open request, as the caller sees it.
struct Open {
    key: u64,
    arrival: Arrival,
    /// Hash and number of tokens of each answer.
    answers: Vec<(u64, usize)>,
    finished: usize,
    beams: Vec<(Vec<u32>, bool)>,
}

#[derive(Default)]
struct Totals {
    steps: u64,
    metrics: SchedulerMetrics,
    finished: u64,
    cancelled: u64,
    cancelled_answers: u64,
}

struct Run<'a> {
    setup: &'a Setup,
    scheduler: Scheduler,
    device: Device,
    known: HashMap<u64, Known>,
    open: HashMap<RequestId, Open>,
    /// Ids in the order of arrival, also of those that were refused.
    arrived: Vec<Option<RequestId>>,
    in_flight: VecDeque<(StepPlan, StepOutput)>,
    totals: Totals,
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        (mix(self.0, 0xabcd) >> 11) as usize % end.max(1)
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

fn setup(random: &mut Random) -> Setup {
    let max_sequences = random.of(&[1, 2, 4, 8]);
    let limits = Limits {
        max_sequences,
        max_tokens: max_sequences + random.of(&[0, 1, 5, 60, 200]),
        max_model_len: random.of(&[100, 300, 1000]),
    };
    let config = SchedulerConfig {
        limits,
        policy: random.of(&[Policy::GuaranteedNoEvict, Policy::MaxUtilization, Policy::MaxUtilization]),
        prefix_cache: random.below(6) > 0,
        host_pages: random.of(&[0, 0, 1, 3, 20]),
    };
    Setup { pages: random.of(&[3, 6, 10, 24]), config, vocab: random.of(&[5, 40, 1000]), open: random.of(&[1, 2, 2]) }
}

fn events(random: &mut Random, setup: &Setup, count: usize) -> Vec<Event> {
    let load = random.of(&[2, 6, 20]);
    let (features, long) = (random.below(4), random.below(3) == 0);
    (0..count)
        .map(|_| match random.below(100) {
            at if at < load => Event::Add(Box::new(arrival(random, setup, features, long))),
            at if at < load + 1 => Event::Cancel(random.below(6) as u64),
            at if at % 2 == 0 => Event::Plan,
            _ => Event::Commit,
        })
        .collect()
}

/// `long`: short prompts with long answers, so that pages run out.
fn arrival(random: &mut Random, setup: &Setup, features: usize, long: bool) -> Arrival {
    let longest = setup.config.limits.max_model_len.min(setup.pages * PAGE_TOKENS);
    let (a, b, c) = (random.below(longest), random.below(longest), random.below(longest));
    let lone = features == 0 || random.below(3) > 0;
    let width = random.of(&[2, 3, 4]);
    let beam = BeamParams {
        width,
        length_penalty: random.of(&[0.0, 1.0, -0.5]),
        early_stopping: random.of(&[EarlyStopping::Yes, EarlyStopping::Heuristic, EarlyStopping::Never]),
    };
    let drafts = 1 + random.below(MAX_DRAFTS);
    let beam = (!lone && random.below(3) == 0).then_some(beam);
    Arrival {
        family: random.below(3) as u64,
        shared: if long { random.of(&[0, 64]) } else { random.of(&[0, 64, 64, 128, 200, a]) },
        own: if long { 1 + b % 64 } else { random.of(&[1, 2, 30, 63, 64, 65, b]) },
        max_tokens: if long { longest / 2 + c / 2 } else { random.of(&[1, 2, 10, 40, 100, c]) },
        priority: random.of(&[0, 0, 0, 1, -1]),
        n: if lone { 1 } else { random.of(&[1, 2, 3, 2]) },
        beam,
        speculation: match (features, random.below(3)) {
            (2 | 3, 0) => Speculation::Draft { drafts },
            (2 | 3, 1) => Speculation::Ngram { drafts, max_n: 3, min_n: 1 },
            _ => Speculation::Off,
        },
        salt: random.of(&[0, 0, 0, 1]),
        stops: random.below(2) == 0,
        reuse_prefix: random.below(10) > 0,
    }
}

impl<'a> Run<'a> {
    fn new(setup: &'a Setup) -> Self {
        let scheduler = Scheduler::new(setup.config, setup.pages);
        let host = setup.config.host_pages;
        Run {
            device: Device::new(setup.pages, host, scheduler.limits().max_sequences, setup.vocab),
            setup,
            scheduler,
            known: HashMap::new(),
            open: HashMap::new(),
            arrived: Vec::new(),
            in_flight: VecDeque::new(),
            totals: Totals::default(),
        }
    }

    fn event(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::Add(arrival) => self.add(arrival),
            Event::Cancel(back) => {
                let at = self.arrived.len().checked_sub(1 + *back as usize);
                let id = at.and_then(|at| self.arrived[at]);
                if let Some(id) = id.filter(|_| *back == 5) {
                    self.cancel_answer(id);
                } else if let Some(id) = id {
                    let open = self.open.remove(&id);
                    ensure!(
                        self.scheduler.cancel(id) == open.is_some(),
                        "{id:?}: cancel disagrees about whether it was open"
                    );
                    self.totals.cancelled += u64::from(open.is_some());
                }
                Ok(())
            }
            Event::Plan if self.in_flight.len() < self.setup.open => self.plan().map(|_| ()),
            Event::Plan => Ok(()),
            Event::Commit => self.commit(),
        }?;
        invariants::check(&self.scheduler);
        Ok(())
    }

    /// Drops the first answer that can be dropped alone.
    fn cancel_answer(&mut self, id: RequestId) {
        let Some(open) = self.open.get_mut(&id) else { return };
        let found = (0..open.answers.len() as u32).any(|index| self.scheduler.cancel_answer(id, index));
        open.finished += usize::from(found);
        self.totals.cancelled_answers += u64::from(found);
        if open.finished == open.answers.len() {
            self.open.remove(&id);
        }
    }

    fn add(&mut self, arrival: &Arrival) -> Result<(), String> {
        let key = self.arrived.len() as u64;
        let token = |seed: u64, i: usize| 1 + (mix(seed, i as u64) >> 20) as u32 % (self.setup.vocab.min(50) - 1);
        let prompt: Vec<u32> = (0..arrival.shared)
            .map(|i| token(arrival.family, i))
            .chain((0..arrival.own).map(|i| token(key + 10, i)))
            .collect();
        // Wide enough for beams that always find as many tokens as they need.
        let beam = arrival.beam.filter(|beam| 2 * beam.width < self.setup.vocab as usize);
        let id = self.scheduler.add(SequenceRequest {
            prompt: prompt.clone(),
            max_tokens: arrival.max_tokens,
            stop_tokens: if arrival.stops || beam.is_some() { vec![STOP] } else { Vec::new() },
            sampling: crate::sampling::SamplingParams { seed: key * 1000, ..Default::default() },
            n: beam.map_or(arrival.n, |beam| arrival.n.min(beam.width)),
            beam,
            speculation: arrival.speculation,
            priority: arrival.priority,
            salt: (arrival.salt > 0).then(|| format!("salt {}", arrival.salt).into()),
            reuse_prefix: arrival.reuse_prefix,
            pooling: None,
        });
        let id = id.ok();
        self.arrived.push(id);
        let Some(id) = id else { return Ok(()) };
        let hash = prompt.iter().fold(root(arrival.salt), |hash, token| extend(hash, *token));
        let known = Known { salt: arrival.salt, prompt, hash };
        let max_tokens = arrival.max_tokens.clamp(1, self.scheduler.max_len() - known.prompt.len());
        let n = beam.map_or(arrival.n, |beam| arrival.n.min(beam.width));
        let beams = beam.map_or(Vec::new(), |beam| beam_answers(beam, &known, max_tokens, n, self.setup.vocab));
        let answers = vec![(hash, 0); n];
        let arrival = Arrival { max_tokens, beam, n, ..*arrival };
        self.open.insert(id, Open { key, arrival, answers, finished: 0, beams });
        self.known.insert(key, known);
        Ok(())
    }

    /// Plans and runs a step; false if there was none.
    fn plan(&mut self) -> Result<bool, String> {
        let before = invariants::Before::of(&self.scheduler);
        let Some(plan) = self.scheduler.plan() else { return Ok(false) };
        before.check(&self.scheduler, &plan)?;
        let output = self.device.run(&plan, &self.known)?;
        self.in_flight.push_back((plan, output));
        self.totals.steps += 1;
        Ok(true)
    }

    fn commit(&mut self) -> Result<(), String> {
        let Some((plan, output)) = self.in_flight.pop_front() else { return Ok(()) };
        for progress in self.scheduler.commit(plan, &output) {
            self.hear(progress)?;
        }
        Ok(())
    }

    /// Compares an answer's next token with what the model says without any scheduler.
    fn hear(&mut self, progress: Progress) -> Result<(), String> {
        let id = progress.id;
        let Some(open) = self.open.get_mut(&id) else {
            return Err(format!("{progress:?} of a request that is not open"));
        };
        let (hash, count) = &mut open.answers[progress.index as usize];
        let (expected, finished) = if open.arrival.beam.is_some() {
            let (tokens, stopped) = &open.beams[progress.index as usize];
            let token = tokens.get(*count).copied();
            let reason = if *stopped { FinishReason::Stop } else { FinishReason::Length };
            (token, (*count + usize::from(!stopped) >= tokens.len()).then_some(reason))
        } else {
            let token = choose(*hash, open.key * 1000 + u64::from(progress.index), self.setup.vocab);
            let stopped = open.arrival.stops && token == STOP;
            let full = *count + 1 >= open.arrival.max_tokens;
            let finished = if stopped { Some(FinishReason::Stop) } else { full.then_some(FinishReason::Length) };
            *hash = extend(*hash, token);
            ((!stopped).then_some(token), finished)
        };
        *count += 1;
        ensure!(
            (progress.token, progress.finished) == (expected, finished),
            "{progress:?}, expected {expected:?} {finished:?}"
        );
        open.finished += usize::from(finished.is_some());
        if open.finished == open.answers.len() {
            self.open.remove(&id);
            self.totals.finished += 1;
        }
        Ok(())
    }

    /// Lets everything end: within a bound, with nothing left behind.
    fn drain(&mut self) -> Result<(), String> {
        let tokens: usize = self
            .open
            .values()
            .map(|o| self.known[&o.key].prompt.len() + o.answers.len().max(4) * o.arrival.max_tokens)
            .sum();
        let mut steps = 0;
        while self.scheduler.has_work() || !self.in_flight.is_empty() {
            while self.in_flight.len() < self.setup.open && self.plan()? {}
            ensure!(!self.in_flight.is_empty(), "there is work and no plan");
            self.commit()?;
            invariants::check(&self.scheduler);
            steps += 1;
            ensure!(steps < 100 + 10 * tokens, "no end after {steps} steps for {tokens} tokens");
        }
        ensure!(self.open.is_empty(), "{} requests never ended", self.open.len());
        ensure!(self.scheduler.free_pages() == self.setup.pages, "pages are lost");
        ensure!(self.scheduler.open_plans() == 0, "plans are lost");
        Ok(())
    }
}

/// A run up to its end, or the number of events until it failed and why.
fn run(setup: &Setup, events: &[Event]) -> Result<Totals, (usize, String)> {
    let mut at = 0;
    let life = || {
        let mut run = Run::new(setup);
        for event in events {
            at += 1;
            run.event(event)?;
        }
        run.drain()?;
        let metrics = run.scheduler.metrics();
        Ok(Totals { metrics, ..run.totals })
    };
    let caught = catch_unwind(AssertUnwindSafe(life)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().cloned();
        Err(message.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default())
    });
    caught.map_err(|message| (at, message))
}

/// Removes events, and makes requests simpler, as long as the run still fails; gives up after 2000 tries.
fn shrink(setup: &Setup, mut events: Vec<Event>) -> Vec<Event> {
    let mut tries = 2000;
    let mut fails = |events: &mut Vec<Event>| {
        tries -= 1;
        let failure = if tries > 0 { run(setup, events).err() } else { None };
        failure.map(|(at, _)| events.truncate(at)).is_some()
    };
    fails(&mut events);
    let mut size = events.len() / 2;
    while size > 0 {
        let mut start = 0;
        while start < events.len() {
            let mut without = [&events[..start], &events[(start + size).min(events.len())..]].concat();
            if fails(&mut without) { events = without } else { start += size }
        }
        size /= 2;
    }
    for at in 0..events.len() {
        let Some(Event::Add(arrival)) = events.get(at).cloned() else { continue };
        let simpler = [
            Arrival { beam: None, ..*arrival },
            Arrival { n: 1, ..*arrival },
            Arrival { speculation: Speculation::Off, ..*arrival },
            Arrival { priority: 0, salt: 0, stops: false, ..*arrival },
            Arrival { max_tokens: arrival.max_tokens / 2, ..*arrival },
        ];
        for simpler in simpler {
            let mut changed = events.clone();
            changed[at] = Event::Add(Box::new(simpler));
            if fails(&mut changed) {
                events = changed;
            }
        }
    }
    events
}

/// One seed's life; panics with a minimal trace if anything is wrong.
fn live(seed: u64, count: usize) -> Totals {
    let mut random = Random(mix(seed, 1));
    let setup = setup(&mut random);
    let events = events(&mut random, &setup, count);
    run(&setup, &events).unwrap_or_else(|(_, failure)| {
        let events = shrink(&setup, events);
        let (_, last) = run(&setup, &events).err().unwrap_or_default();
        let trace: Vec<String> = events.iter().map(|event| format!("  {event:?}")).collect();
        panic!("seed {seed}: {failure}\n{setup:#?}\n{}\nthen: {last}", trace.join("\n"))
    })
}

/// A million steps, and every feature is met in them.
#[test]
fn a_million_steps_keep_every_invariant() {
    let (mut steps, mut all, mut seed) = (0, SchedulerMetrics::default(), 0);
    let (mut finished, mut cancelled, mut cancelled_answers) = (0, 0, 0);
    while steps < 1_000_000 {
        let totals = live(seed, 3000);
        seed += 1;
        steps += totals.steps;
        finished += totals.finished;
        cancelled += totals.cancelled;
        cancelled_answers += totals.cancelled_answers;
        let m = totals.metrics;
        all.prefix_hits += m.prefix_hits;
        all.preemptions += m.preemptions;
        all.swapped_in += m.swapped_in;
        all.accepted[0] += m.accepted[0];
        all.accepted[MAX_DRAFTS - 1] += m.accepted[MAX_DRAFTS - 1];
    }
    println!("{steps} steps, {seed} seeds, {finished} finished, {cancelled} cancelled: {all:?}");
    assert!(all.prefix_hits > 0 && all.preemptions > 0 && all.swapped_in > 0 && finished > 0 && cancelled > 0);
    assert!(cancelled_answers > 0);
    assert!(all.accepted[0] > 0 && all.accepted[MAX_DRAFTS - 1] > 0);
}

/// Lives that found mistakes: a stalled prompt that kept the budget from a later one; forks that held a page of their own
/// beside the tree's.
#[test]
fn lives_that_found_mistakes() {
    for seed in [100_222, 100_244] {
        live(seed, 3000);
    }
}
