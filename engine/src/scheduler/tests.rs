//! What a plan looks like, in small cases; the simulator covers the rest.
use super::*;
use crate::sampling::SamplingParams;

const LIMITS: Limits = Limits { max_tokens: 100, max_sequences: 4, max_model_len: 1000 };

fn scheduler(pages: usize) -> Scheduler {
    Scheduler::new(SchedulerConfig::new(LIMITS), pages)
}

fn request(prompt: std::ops::Range<u32>, max_tokens: usize) -> SequenceRequest {
    SequenceRequest { prompt: prompt.collect(), max_tokens, stop_tokens: vec![7777], ..SequenceRequest::default() }
}

fn output(plan: &StepPlan, token: u32) -> StepOutput {
    let sampled = Sampled { tokens: vec![token], logprobs: Vec::new() };
    StepOutput { samples: vec![sampled; plan.samples.len()], pooled: Vec::new() }
}

/// Runs to the end with one token; returns the steps.
fn drain(scheduler: &mut Scheduler, token: u32) -> usize {
    let mut steps = 0;
    while let Some(plan) = scheduler.plan() {
        let output = output(&plan, token);
        let _ = scheduler.commit(plan, &output);
        steps += 1;
    }
    steps
}

#[test]
fn prompts_are_chunked_beside_decodes() {
    let mut scheduler = scheduler(100);
    let a = scheduler.add(request(0..3, 5)).unwrap();
    let plan = scheduler.plan().unwrap();
    assert_eq!((plan.tokens.len(), plan.decodes, plan.samples.len(), plan.entering.len()), (3, 0, 1, 1));
    let out = output(&plan, 9);
    let progress = scheduler.commit(plan, &out);
    assert_eq!((progress[0].id, progress[0].token, progress[0].finished), (a, Some(9), None));
    scheduler.add(request(0..250, 5)).unwrap();
    let plan = scheduler.plan().unwrap();
    assert_eq!((plan.decodes, plan.tokens.len(), plan.max_query(), plan.max_kv()), (1, 100, 99, 4));
    assert_eq!(plan.samples.len(), 1, "an unfinished prompt samples nothing");
    assert_eq!((plan.positions[..2].to_vec(), plan.tokens[0]), (vec![3, 0], 9));
}

#[test]
fn a_step_is_planned_while_the_one_before_it_runs() {
    let mut scheduler = scheduler(100);
    scheduler.add(request(0..3, 5)).unwrap();
    let first = scheduler.plan().unwrap();
    let second = scheduler.plan().unwrap();
    assert!(scheduler.plan().is_none(), "two are open");
    let slot = second.sequences[0].seq_slot;
    assert_eq!((second.tokens.as_slice(), second.positions.as_slice()), (&[FROM_SLOT | slot][..], &[3][..]));
    assert_eq!((second.sequences[0].kv_len, second.samples[0].position), (4, 4));
    let out = output(&first, 7777);
    let progress = scheduler.commit(first, &out);
    assert_eq!((progress[0].token, progress[0].finished), (None, Some(FinishReason::Stop)));
    assert_eq!((scheduler.free_pages(), scheduler.has_work(), scheduler.open_plans()), (100, false, 1));
    let out = output(&second, 1);
    assert!(scheduler.commit(second, &out).is_empty(), "the row after the end is dropped");
}

#[test]
fn a_prompt_that_was_seen_is_not_computed_again() {
    let mut scheduler = scheduler(100);
    scheduler.add(request(0..150, 1)).unwrap();
    assert_eq!(drain(&mut scheduler, 9), 2);
    scheduler.add(request(0..150, 1)).unwrap();
    let plan = scheduler.plan().unwrap();
    assert_eq!((plan.tokens[0], plan.tokens.len()), (128, 22), "two full blocks of 64 are there");
    let out = output(&plan, 9);
    let _ = scheduler.commit(plan, &out);
    scheduler.add(request(0..128, 1)).unwrap();
    assert_eq!(scheduler.plan().unwrap().tokens.len(), 64, "at least one token must be computed");
    let salted = SequenceRequest { salt: Some("mine".into()), ..request(0..150, 1) };
    scheduler.add(salted).unwrap();
    assert_eq!(scheduler.plan().unwrap().tokens.len(), 100, "another salt, another tree");
    let metrics = scheduler.metrics();
    assert_eq!((metrics.prefix_queries, metrics.prefix_hits), (150 + 150 + 128 + 150, 128 + 64));
}

#[test]
fn an_answer_is_reused_by_the_next_turn() {
    let mut scheduler = scheduler(100);
    scheduler.add(request(0..60, 140)).unwrap();
    drain(&mut scheduler, 9);
    let prompt = (0..60).chain([9; 140]).chain(500..510).collect();
    scheduler.add(SequenceRequest { prompt, ..request(0..0, 1) }).unwrap();
    assert_eq!(scheduler.plan().unwrap().positions[0], 192, "199 tokens were computed, three blocks of them are full");
}

#[test]
fn the_youngest_of_the_lowest_priority_makes_room() {
    let config = SchedulerConfig { policy: Policy::MaxUtilization, ..SchedulerConfig::new(LIMITS) };
    let mut scheduler = Scheduler::new(config, 6);
    let [low, old, young] = [1, 0, 0].map(|priority| {
        let prompt = 1000 * scheduler.arrivals as u32..1000 * scheduler.arrivals as u32 + 63;
        scheduler.add(SequenceRequest { priority, ..request(prompt, 200) }).unwrap()
    });
    let mut finished = Vec::new();
    while let Some(plan) = scheduler.plan() {
        let out = output(&plan, 9);
        finished.extend(scheduler.commit(plan, &out).into_iter().filter(|p| p.finished.is_some()).map(|p| p.id));
    }
    assert_eq!(finished, [old, young, low]);
    assert!(scheduler.metrics().preemptions > 0);
}

#[test]
fn evicted_blocks_come_back_from_the_host() {
    let config = SchedulerConfig { host_pages: 8, ..SchedulerConfig::new(LIMITS) };
    let mut scheduler = Scheduler::new(config, 4);
    scheduler.add(request(0..200, 1)).unwrap();
    drain(&mut scheduler, 9);
    scheduler.add(request(1000..1200, 1)).unwrap();
    drain(&mut scheduler, 9);
    assert_eq!((scheduler.metrics().swapped_out, scheduler.metrics().host_pages), (3, 3));
    scheduler.add(request(0..200, 1)).unwrap();
    let plan = scheduler.plan().unwrap();
    assert_eq!((plan.swap_in.len(), plan.swap_out.len(), plan.tokens.len()), (3, 3, 8));
    assert_eq!(scheduler.metrics().prefix_hits, 192);
}

#[test]
fn answers_of_one_prompt_share_its_pages() {
    let mut scheduler = scheduler(100);
    let sampling = SamplingParams { seed: 5, ..SamplingParams::default() };
    scheduler.add(SequenceRequest { n: 3, sampling, ..request(0..70, 10) }).unwrap();
    let plan = scheduler.plan().unwrap();
    assert_eq!((plan.tokens.len(), plan.pages.len(), plan.entering.len()), (70, 2, 3));
    assert!(plan.samples.iter().all(|sample| sample.row == 69));
    assert_eq!(plan.samples.iter().map(|sample| sample.sampling.seed).collect::<Vec<_>>(), [5, 6, 7]);
    let out = output(&plan, 9);
    let progress = scheduler.commit(plan, &out);
    assert_eq!(progress.iter().map(|p| p.index).collect::<Vec<_>>(), [0, 1, 2]);
    let plan = scheduler.plan().unwrap();
    assert_eq!((plan.decodes, plan.copies.len()), (3, 2), "the last to write keeps the page");
    let shared: Vec<u32> = plan.sequences.iter().map(|s| plan.pages[s.pages.start]).collect();
    assert!(shared.windows(2).all(|pair| pair[0] == pair[1]), "the full block is shared: {shared:?}");
    let out = output(&plan, 9);
    let _ = scheduler.commit(plan, &out);
    drain(&mut scheduler, 9);
    assert_eq!(scheduler.free_pages(), 100);
}

#[test]
fn cancelling_frees_pages_at_once_whatever_is_in_flight() {
    let mut scheduler = scheduler(100);
    let id = scheduler.add(SequenceRequest { n: 4, ..request(0..300, 10) }).unwrap();
    let first = scheduler.plan().unwrap();
    let second = scheduler.plan().unwrap();
    assert!(scheduler.cancel(id) && !scheduler.cancel(id));
    assert_eq!(scheduler.free_pages(), 100);
    for plan in [first, second] {
        let out = output(&plan, 9);
        assert!(scheduler.commit(plan, &out).is_empty());
    }
    assert!(!scheduler.has_work() && scheduler.open_plans() == 0);
}

#[test]
fn drafts_stay_within_the_answer_and_only_accepted_ones_count() {
    let mut scheduler = scheduler(100);
    let speculation = Speculation::Ngram { drafts: 4, max_n: 3, min_n: 1 };
    let prompt = vec![1, 2, 3, 4, 5, 6, 1, 2];
    scheduler.add(SequenceRequest { prompt, speculation, ..request(0..0, 4) }).unwrap();
    let plan = scheduler.plan().unwrap();
    assert!(scheduler.plan().is_none(), "the next drafts depend on this step");
    let out = output(&plan, 3);
    let _ = scheduler.commit(plan, &out);
    let plan = scheduler.plan().unwrap();
    assert_eq!(plan.tokens, [3, 4, 5], "three tokens are left, so two drafts");
    assert_eq!((plan.decodes, plan.samples[0].drafts, plan.sequences[0].kv_len), (1, 2, 11));
    let samples = vec![Sampled { tokens: vec![4, 9], logprobs: Vec::new() }];
    let progress = scheduler.commit(plan, &StepOutput { samples, pooled: Vec::new() });
    assert_eq!(progress.iter().map(|p| p.token).collect::<Vec<_>>(), [Some(4), Some(9)]);
    let plan = scheduler.plan().unwrap();
    assert_eq!((plan.tokens.as_slice(), plan.positions.as_slice()), (&[9][..], &[10][..]));
    let metrics = scheduler.metrics();
    assert_eq!((metrics.drafted[..3].to_vec(), metrics.accepted[..3].to_vec()), (vec![1, 1, 0], vec![1, 0, 0]));
}

#[test]
fn a_priority_goes_first_and_arrivals_keep_their_order() {
    let limits = Limits { max_sequences: 1, ..LIMITS };
    let mut scheduler = Scheduler::new(SchedulerConfig::new(limits), 100);
    let ids: Vec<_> = [0, 0, -1].map(|priority| scheduler.add(SequenceRequest { priority, ..request(0..5, 1) })).into();
    let mut order = Vec::new();
    while let Some(plan) = scheduler.plan() {
        let out = output(&plan, 9);
        order.extend(scheduler.commit(plan, &out).into_iter().map(|progress| progress.id));
    }
    assert_eq!(order, [2, 0, 1].map(|at: usize| *ids[at].as_ref().unwrap()));
}

#[test]
fn senseless_requests_are_refused_in_one_line() {
    let mut scheduler = scheduler(4);
    let beam = |width| Some(BeamParams { width, length_penalty: 1.0, early_stopping: EarlyStopping::Yes });
    let warm = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    for (bad, says) in [
        (request(0..0, 5), "the prompt is empty"),
        (request(0..256, 5), "the prompt has 256 tokens, at most 255 fit"),
        (SequenceRequest { n: 0, ..request(0..5, 5) }, "n is 0"),
        (SequenceRequest { n: 5, ..request(0..5, 5) }, "--max-num-seqs"),
        (SequenceRequest { n: 4, ..request(0..5, 100) }, "that takes 8 pages"),
        (SequenceRequest { beam: beam(1), ..request(0..5, 5) }, "beam width"),
        (SequenceRequest { beam: beam(2), n: 3, ..request(0..5, 5) }, "n is 3"),
        (SequenceRequest { beam: beam(2), sampling: warm, ..request(0..5, 5) }, "temperature"),
        (SequenceRequest { speculation: Speculation::Draft { drafts: 8 }, ..request(0..5, 5) }, "8 draft tokens"),
    ] {
        let message = scheduler.add(bad).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
        assert_eq!(message.lines().count(), 1);
    }
    assert!(!scheduler.has_work());
}
