//! Prompts and lengths of answers.
use super::ServeBenchArgs;
use clap::ValueEnum;
use kernels_host::case::Rng;

/// What prompts look like; vLLM's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dataset {
    /// Random tokens of --random-input-len, answers of --random-output-len.
    Random,
    /// Random tokens with lengths spread as in ShareGPT's conversations: many short ones, few of a thousand.
    #[value(name = "sharegpt-like", alias = "sharegpt")]
    ShareGptLike,
    /// Random tokens behind prefixes that prompts share.
    #[value(name = "prefix_repetition", alias = "prefix-repetition")]
    PrefixRepetition,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Its tokens.
    pub prompt: Vec<u32>,
    /// Most tokens of the answer.
    pub output: usize,
}

impl Ask {
    /// About as many words, for chats: a server that tokenizes makes its own count of them.
    pub fn text(&self) -> String {
        const WORDS: [&str; 16] = [
            "steel", "river", "garden", "seven", "paper", "north", "music", "winter", "bread", "stone", "light",
            "horse", "green", "table", "cloud", "after",
        ];
        let words: Vec<&str> = self.prompt.iter().map(|token| WORDS[*token as usize % WORDS.len()]).collect();
        words.join(" ")
    }
}

/// ShareGPT as vLLM's benchmark samples it has prompts of 215 and answers of 198 tokens on average, between 4 and 1024;
/// a log-normal with these has the same means and about the same medians.
const SHAREGPT_LOG_MEDIAN: (f64, f64) = (4.75, 4.65);
const SHAREGPT_LOG_DEVIATION: f64 = 1.25;
const SHAREGPT_LENGTHS: (f64, f64) = (4.0, 1024.0);

/// A number in [0, 1) with 53 random bits.
pub fn uniform(rng: &mut Rng) -> f64 {
    (rng.bits() >> 11) as f64 / (1_u64 << 53) as f64
}

/// A standard normal number (Box and Muller).
pub fn normal(rng: &mut Rng) -> f64 {
    let (a, b) = (1.0 - uniform(rng), uniform(rng));
    (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}

fn sharegpt(rng: &mut Rng, log_median: f64) -> usize {
    let (least, most) = SHAREGPT_LENGTHS;
    (log_median + SHAREGPT_LOG_DEVIATION * normal(rng)).exp().clamp(least, most) as usize
}

/// All requests of a run, the same for the same seed.
pub fn asks(args: &ServeBenchArgs, seed: u64) -> Vec<Ask> {
    let mut rng = Rng::new(seed);
    let tokens =
        |rng: &mut Rng, len: usize| -> Vec<u32> { (0..len).map(|_| rng.below(args.vocab_size) as u32).collect() };
    let around = |rng: &mut Rng, len: usize| {
        let spread = (len as f64 * args.random_range_ratio) as usize;
        (len - spread + rng.below(2 * spread + 1)).max(1)
    };
    let prefix_len = match args.dataset_name {
        Dataset::Random => args.random_prefix_len,
        Dataset::ShareGptLike => 0,
        Dataset::PrefixRepetition => args.prefix_repetition_prefix_len,
    };
    let count = if args.dataset_name == Dataset::PrefixRepetition { args.prefix_repetition_num_prefixes } else { 1 };
    let prefixes: Vec<_> = (0..count).map(|_| tokens(&mut rng, prefix_len)).collect();
    let mut one = |i: usize| {
        let (input, output) = match args.dataset_name {
            Dataset::Random => (around(&mut rng, args.random_input_len), around(&mut rng, args.random_output_len)),
            Dataset::ShareGptLike => {
                let (input, output) = SHAREGPT_LOG_MEDIAN;
                (sharegpt(&mut rng, input), sharegpt(&mut rng, output))
            }
            Dataset::PrefixRepetition => (args.prefix_repetition_suffix_len, args.prefix_repetition_output_len),
        };
        Ask { prompt: [prefixes[i % prefixes.len()].clone(), tokens(&mut rng, input)].concat(), output }
    };
    (0..args.num_prompts).map(&mut one).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::args;
    use super::*;

    #[test]
    fn lengths_are_what_was_asked_for() {
        let exact = asks(&args(&["--random-input-len", "32", "--random-output-len", "8", "--num-prompts", "5"]), 0);
        assert_eq!(exact.len(), 5);
        assert!(exact.iter().all(|ask| (ask.prompt.len(), ask.output) == (32, 8)));
        assert_eq!(
            exact,
            asks(&args(&["--random-input-len", "32", "--random-output-len", "8", "--num-prompts", "5"]), 0)
        );
        assert_ne!(exact[0].prompt, exact[1].prompt);
        let spread =
            asks(&args(&["--random-input-len", "100", "--random-range-ratio", "0.5", "--num-prompts", "400"]), 0);
        let lens = || spread.iter().map(|ask| ask.prompt.len());
        assert!(
            lens().all(|len| (50..=150).contains(&len)) && lens().any(|len| len < 60) && lens().any(|len| len > 140)
        );
    }

    #[test]
    fn prefixes_are_shared() {
        let asks = asks(
            &args(&[
                "--dataset-name",
                "prefix_repetition",
                "--prefix-repetition-prefix-len",
                "64",
                "--prefix-repetition-num-prefixes",
                "2",
                "--num-prompts",
                "4",
            ]),
            0,
        );
        assert_eq!(asks[0].prompt[..64], asks[2].prompt[..64]);
        assert_ne!(asks[0].prompt[..64], asks[1].prompt[..64]);
        assert_ne!(asks[0].prompt[64..], asks[2].prompt[64..]);
    }

    #[test]
    fn lengths_like_sharegpts() {
        let asks = asks(&args(&["--dataset-name", "sharegpt-like", "--num-prompts", "4000"]), 0);
        let mean = |of: &dyn Fn(&Ask) -> usize| asks.iter().map(of).sum::<usize>() as f64 / 4000.0;
        let (input, output) = (mean(&|ask| ask.prompt.len()), mean(&|ask| ask.output));
        assert!((190.0..240.0).contains(&input) && (170.0..225.0).contains(&output), "{input} {output}");
    }
}
