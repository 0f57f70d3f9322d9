use super::*;
use proptest::prelude::*;

const EOS: u32 = 0;

/// Log-probabilities of a toy model over `vocab` tokens after `tokens`.
fn model(seed: u64, vocab: u32, tokens: &[u32]) -> Vec<f32> {
    let mut hash = seed ^ 0x9e37_79b9_7f4a_7c15;
    for token in tokens {
        hash = (hash ^ u64::from(*token + 1)).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(29);
    }
    let logits: Vec<f64> = (0..u64::from(vocab))
        .map(|i| {
            let x = (hash ^ i).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
            ((x ^ (x >> 31)).wrapping_mul(0x9e37_79b9) >> 40) as f64 / f64::from(1 << 24) * 6.0
        })
        .collect();
    let sum: f64 = logits.iter().map(|x| x.exp()).sum();
    logits.iter().map(|x| (x - sum.ln()) as f32).collect()
}

fn best(logprobs: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(logprobs.iter().copied()).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(count);
    all
}

fn search(params: BeamParams, max_tokens: usize, seed: u64, vocab: u32) -> Vec<Answer<Vec<u32>>> {
    let mut search = BeamSearch::new(params, max_tokens);
    let mut beams: Vec<Vec<u32>> = vec![Vec::new()];
    loop {
        let tops: Vec<_> = beams
            .iter()
            .map(|beam| best(&model(seed, vocab, beam), BeamSearch::<()>::tops(params, 1) as usize))
            .collect();
        let tops: Vec<&[(u32, f32)]> = tops.iter().map(Vec::as_slice).collect();
        let keep = |parent: usize, token: Option<u32>| beams[parent].iter().copied().chain(token).collect();
        let next = search.advance(&tops, |token| token == EOS, keep);
        if next.is_empty() {
            return search.into_answers();
        }
        beams = next.iter().map(|c| beams[c.parent].iter().copied().chain([c.token]).collect()).collect();
    }
}

/// The published algorithm over dense arrays: all beams times the whole vocabulary, -1e9 for what does not count.
fn dense(params: BeamParams, max_tokens: usize, seed: u64, vocab: u32) -> Vec<(Vec<u32>, f64)> {
    let w = params.width;
    let lp = f64::from(params.length_penalty);
    let mut running: Vec<(Vec<u32>, f64)> = vec![(Vec::new(), -1e9); w];
    running[0].1 = 0.0;
    let mut finished: Vec<(Vec<u32>, f64, bool)> = vec![(Vec::new(), -1e9, false); w];
    for len in 1..=max_tokens {
        let mut all = Vec::new();
        for (tokens, sum) in &running {
            for (token, p) in (0..).zip(model(seed, vocab, tokens)) {
                all.push(([tokens.as_slice(), &[token]].concat(), sum + f64::from(p)));
            }
        }
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all.truncate(2 * w);
        let ends = |tokens: &Vec<u32>| tokens.last() == Some(&EOS) || len == max_tokens;
        running = all.iter().filter(|(tokens, _)| !ends(tokens)).take(w).cloned().collect();
        for (tokens, sum) in all.iter().take(w).filter(|(tokens, _)| ends(tokens)) {
            finished.push((tokens.clone(), sum / (len as f64).powf(lp), true));
        }
        finished.sort_by(|a, b| b.1.total_cmp(&a.1));
        finished.truncate(w);
        let full = finished.iter().all(|f| f.2);
        let hope = match params.early_stopping {
            EarlyStopping::Never if lp > 0.0 => max_tokens,
            _ => len,
        };
        let worst = if full { finished[w - 1].1 } else { -1e9 };
        let improvable = running.first().is_some_and(|best| best.1 / (hope as f64).powf(lp) > worst);
        if running.is_empty() || !improvable || (full && params.early_stopping == EarlyStopping::Yes) {
            break;
        }
    }
    finished.into_iter().filter(|f| f.2).map(|(tokens, score, _)| (tokens, score)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn it_is_the_dense_algorithm(
        seed: u64, width in 2usize..6, vocab in 8u32..40, max_tokens in 1usize..14, penalty in -1.0f32..2.0, early in 0usize..3,
    ) {
        let early_stopping = [EarlyStopping::Yes, EarlyStopping::Heuristic, EarlyStopping::Never][early];
        let params = BeamParams { width, length_penalty: penalty, early_stopping };
        let ours = search(params, max_tokens, seed, vocab.max(2 * width as u32));
        let theirs = dense(params, max_tokens, seed, vocab.max(2 * width as u32));
        prop_assert_eq!(ours.len(), theirs.len());
        for (ours, (tokens, score)) in ours.iter().zip(&theirs) {
            let mut full = ours.content.clone();
            full.extend(ours.stopped.then_some(EOS));
            prop_assert_eq!(&full, tokens);
            prop_assert!((ours.score - score).abs() < 1e-9);
        }
    }
}

#[test]
fn a_beam_as_wide_as_the_tree_finds_the_best_answer() {
    // Two tokens beside the end, three steps: 8 beams keep everything, so the best answer is the best of all.
    let params = BeamParams { width: 8, length_penalty: 1.0, early_stopping: EarlyStopping::Never };
    for seed in 0..200 {
        let mut best_of_all: Option<(f64, Vec<u32>)> = None;
        let mut open = vec![(Vec::new(), 0.0)];
        while let Some((tokens, sum)) = open.pop() {
            for (token, p) in (0..).zip(model(seed, 3, &tokens)) {
                let (tokens, sum) = ([tokens.as_slice(), &[token]].concat(), sum + f64::from(p));
                let score = sum / tokens.len() as f64;
                if token != EOS && tokens.len() < 3 {
                    open.push((tokens, sum));
                } else if best_of_all.as_ref().is_none_or(|best| score > best.0) {
                    best_of_all = Some((score, tokens));
                }
            }
        }
        let answer = search(params, 3, seed, 3).remove(0);
        let (score, tokens) = best_of_all.unwrap();
        assert!((answer.score - score).abs() < 1e-9, "seed {seed}: {answer:?} but {tokens:?} has {score}");
    }
}
