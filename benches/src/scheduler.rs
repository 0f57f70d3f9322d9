//! Host time of the scheduler, without a device: 256 sequences of 32 pages that decode, planned one step ahead.
use criterion::Criterion;
use engine::scheduler::{Limits, Sampled, Scheduler, SchedulerConfig, SequenceRequest, StepOutput, StepPlan};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

const SEQUENCES: usize = 256;
const LIMITS: Limits = Limits { max_tokens: 8192, max_sequences: SEQUENCES, max_model_len: 4096 };

/// A scheduler whose sequences all decode, with a plan under way; it lasts for some 400 steps.
fn decoding() -> (Scheduler, VecDeque<StepPlan>) {
    let mut scheduler = Scheduler::new(SchedulerConfig::new(LIMITS), SEQUENCES * 40);
    for sequence in 0..SEQUENCES as u32 {
        let prompt = (0..1984).map(|i| 256 * i + sequence).collect();
        let request = SequenceRequest { prompt, max_tokens: 512, ..SequenceRequest::default() };
        scheduler.add(request).unwrap_or_else(|error| panic!("{error}"));
    }
    let mut plans: VecDeque<StepPlan> = scheduler.plan().into_iter().collect();
    while plans.back().is_some_and(|plan| plan.decodes < SEQUENCES) {
        plans.extend(scheduler.plan());
        commit(&mut scheduler, &mut plans);
    }
    (scheduler, plans)
}

fn commit(scheduler: &mut Scheduler, plans: &mut VecDeque<StepPlan>) -> Duration {
    let Some(plan) = plans.pop_front() else { return Duration::ZERO };
    let samples = plan.samples.iter().map(|_| Sampled { tokens: vec![5], logprobs: Vec::new() });
    let output = StepOutput { samples: samples.collect(), pooled: Vec::new() };
    let start = Instant::now();
    let progress = scheduler.commit(plan, &output);
    let time = start.elapsed();
    drop(progress);
    time
}

/// `iterations` steps; time of `plan` or of `commit`.
fn time(iterations: u64, of_plan: bool) -> Duration {
    let (mut scheduler, mut plans) = decoding();
    let mut total = Duration::ZERO;
    for _ in 0..iterations {
        if plans.back().is_none_or(|plan| plan.decodes < SEQUENCES) {
            (scheduler, plans) = decoding();
        }
        let start = Instant::now();
        let plan = scheduler.plan();
        let planning = start.elapsed();
        plans.extend(plan);
        let committing = commit(&mut scheduler, &mut plans);
        total += if of_plan { planning } else { committing };
    }
    total
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("scheduler");
    for (name, of_plan) in [("plan", true), ("commit", false)] {
        group.bench_function(format!("{name}/256x32"), |bencher| bencher.iter_custom(|n| time(n, of_plan)));
    }
    group.finish();
    criterion.final_summary();
}
