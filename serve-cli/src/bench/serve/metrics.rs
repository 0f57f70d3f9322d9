//! What `vllm bench serve` reports of a run, with its names and definitions.
use super::load::{Run, Sent};
use crate::bench::{mean, percentile, sort};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Times of requests and tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Time to the first token.
    Ttft,
    /// Time per output token after the first.
    Tpot,
    /// Between two pieces of an answer.
    Itl,
    /// Until the last token.
    E2el,
}

/// All of them.
pub const ALL: [Metric; 4] = [Metric::Ttft, Metric::Tpot, Metric::Itl, Metric::E2el];

impl Metric {
    /// As flags and JSON call it.
    pub fn key(self) -> &'static str {
        ["ttft", "tpot", "itl", "e2el"][self as usize]
    }

    fn name(self) -> &'static str {
        ["TTFT", "TPOT", "ITL", "End to end"][self as usize]
    }

    /// By its key.
    ///
    /// # Errors
    /// There is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let found = ALL.into_iter().find(|metric| metric.key() == text);
        found.ok_or_else(|| "expected ttft, tpot, itl or e2el".into())
    }
}

/// A request's time in milliseconds; ITL has many.
fn time_of(sent: &Sent, metric: Metric) -> Option<f64> {
    let outcome = &sent.outcome;
    let (first, last) = (outcome.pieces.first()?, outcome.pieces.last()?);
    match metric {
        Metric::Ttft => Some(first * 1e3),
        Metric::E2el => Some(last * 1e3),
        Metric::Tpot if outcome.output > 1 => Some((last - first) * 1e3 / (outcome.output - 1) as f64),
        Metric::Tpot | Metric::Itl => None,
    }
}

/// What a good request keeps, in milliseconds.
pub type Goals = Vec<(Metric, f64)>;

/// Statistics of a run.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Requests that were answered.
    pub completed: usize,
    /// And those that were not.
    pub failed: usize,
    seconds: f64,
    input: usize,
    output: usize,
    good: Option<usize>,
    peak_tokens: usize,
    peak_requests: usize,
    /// In the order of `ALL`, sorted, in milliseconds.
    times: [Vec<f64>; 4],
}

impl Metrics {
    /// Of a run's answered requests.
    pub fn of(run: &Run, goals: &Goals) -> Self {
        let answered: Vec<&Sent> = run.sent.iter().filter(|sent| sent.outcome.error.is_none()).collect();
        let mut times =
            ALL.map(|metric| -> Vec<f64> { answered.iter().filter_map(|it| time_of(it, metric)).collect() });
        let gaps = |sent: &&Sent| -> Vec<f64> {
            sent.outcome.pieces.windows(2).map(|pair| (pair[1] - pair[0]) * 1e3).collect()
        };
        times[Metric::Itl as usize] = answered.iter().flat_map(gaps).collect();
        times.iter_mut().for_each(|values| sort(values));
        // A time that a request does not have (TPOT of one token) is kept, as in vLLM, where it is 0.
        let good = |sent: &&&Sent| goals.iter().all(|(metric, most)| time_of(sent, *metric).unwrap_or(0.0) <= *most);
        let (peak_tokens, peak_requests) = peaks(&answered);
        Metrics {
            completed: answered.len(),
            failed: run.sent.len() - answered.len(),
            seconds: run.seconds,
            input: answered.iter().map(|sent| sent.outcome.input).sum(),
            output: answered.iter().map(|sent| sent.outcome.output).sum(),
            good: (!goals.is_empty()).then(|| answered.iter().filter(good).count()),
            peak_tokens,
            peak_requests,
            times,
        }
    }

    fn rate(&self, count: usize) -> f64 {
        if self.seconds > 0.0 { count as f64 / self.seconds } else { 0.0 }
    }

    /// Tokens of answers a second.
    pub fn output_throughput(&self) -> f64 {
        self.rate(self.output)
    }

    /// A quantile of a metric, in milliseconds.
    pub fn quantile(&self, metric: Metric, share: f64) -> f64 {
        percentile(&self.times[metric as usize], share)
    }

    /// A table for people; `percentiles` are from 0 to 100.
    pub fn table(&self, shown: &[Metric], percentiles: &[f64]) -> String {
        let mut text = format!("{:<24}{:>10}", "Answered", self.completed);
        if self.failed > 0 {
            text.push_str(&format!(", {} failed", self.failed));
        }
        text.push_str(&format!(
            " of {} in {:.2} s, at most {} at once\n",
            self.completed + self.failed,
            self.seconds,
            self.peak_requests
        ));
        text.push_str(&format!("{:<24}{:>10}{:>10}", "", "mean", "median"));
        percentiles.iter().for_each(|p| text.push_str(&format!("{:>10}", format!("p{p}"))));
        text.push('\n');
        for metric in shown {
            let values = &self.times[*metric as usize];
            if values.is_empty() {
                continue;
            }
            let name = format!("{} (ms)", metric.name());
            text.push_str(&format!("{name:<24}{:>10.2}{:>10.2}", mean(values), percentile(values, 0.5)));
            percentiles.iter().for_each(|p| text.push_str(&format!("{:>10.2}", percentile(values, p / 100.0))));
            text.push('\n');
        }
        let mut rates = vec![
            ("Requests", self.rate(self.completed), "requests/s"),
            ("Output", self.output_throughput(), "tokens/s"),
            ("Output, best second", self.peak_tokens as f64, "tokens/s"),
            ("Input and output", self.rate(self.input + self.output), "tokens/s"),
        ];
        if let Some(good) = self.good {
            rates.insert(1, ("Goodput", self.rate(good), "requests/s"));
        }
        for (name, rate, unit) in rates {
            text.push_str(&format!("{name:<24}{rate:>10.2} {unit}\n"));
        }
        text
    }

    /// Everything into a JSON object.
    pub fn write(&self, percentiles: &[f64], value: &mut Value) {
        value["duration"] = json!(self.seconds);
        value["completed"] = json!(self.completed);
        value["failed"] = json!(self.failed);
        value["total_input_tokens"] = json!(self.input);
        value["total_output_tokens"] = json!(self.output);
        value["request_throughput"] = json!(self.rate(self.completed));
        value["request_goodput"] = json!(self.good.map(|good| self.rate(good)));
        value["output_throughput"] = json!(self.output_throughput());
        value["total_token_throughput"] = json!(self.rate(self.input + self.output));
        value["max_output_tokens_per_s"] = json!(self.peak_tokens);
        value["max_concurrent_requests"] = json!(self.peak_requests);
        for metric in ALL {
            let (values, key) = (&self.times[metric as usize], metric.key());
            let average = mean(values);
            let variance = mean(&values.iter().map(|value| (value - average).powi(2)).collect::<Vec<_>>());
            let number = |number: f64| if values.is_empty() { Value::Null } else { json!(number) };
            value[format!("mean_{key}_ms")] = number(average);
            value[format!("median_{key}_ms")] = number(percentile(values, 0.5));
            value[format!("std_{key}_ms")] = number(variance.sqrt());
            for p in percentiles {
                value[format!("p{p}_{key}_ms")] = number(percentile(values, p / 100.0));
            }
        }
    }
}

/// Most pieces in a second of the run, and most requests at once.
fn peaks(sent: &[&Sent]) -> (usize, usize) {
    let mut seconds: BTreeMap<u64, usize> = BTreeMap::new();
    let mut changes: Vec<(f64, i64)> = Vec::with_capacity(2 * sent.len());
    for one in sent {
        for piece in &one.outcome.pieces {
            *seconds.entry((one.start + piece) as u64).or_default() += 1;
        }
        changes.push((one.start, 1));
        changes.push((one.start + one.outcome.pieces.last().copied().unwrap_or(0.0), -1));
    }
    changes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let (mut now, mut most) = (0, 0);
    for (_, change) in changes {
        now += change;
        most = most.max(now);
    }
    (seconds.into_values().max().unwrap_or(0), usize::try_from(most).unwrap_or(0))
}

/// Each request by itself, as vLLM's --save-detailed.
pub fn write_detailed(run: &Run, value: &mut Value) {
    let each = |of: &dyn Fn(&Sent) -> Value| Value::Array(run.sent.iter().map(of).collect());
    value["input_lens"] = each(&|sent| json!(sent.outcome.input));
    value["output_lens"] = each(&|sent| json!(sent.outcome.output));
    value["start_times"] = each(&|sent| json!(sent.start));
    value["ttfts"] = each(&|sent| json!(sent.outcome.pieces.first()));
    value["itls"] =
        each(&|sent| json!(sent.outcome.pieces.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>()));
    value["errors"] = each(&|sent| json!(sent.outcome.error.as_deref().unwrap_or("")));
}

#[cfg(test)]
mod tests {
    use super::super::client::Outcome;
    use super::*;

    fn sent(start: f64, output: usize, pieces: &[f64]) -> Sent {
        Sent { start, outcome: Outcome { input: 10, output, pieces: pieces.to_vec(), error: None } }
    }

    #[test]
    fn definitions_are_vllms() {
        let failed = Sent { outcome: Outcome { error: Some("gone".into()), ..Outcome::default() }, ..Sent::default() };
        // The second answer's tokens came in pieces of two.
        let all = vec![sent(0.0, 3, &[0.5, 0.7, 1.1]), sent(0.5, 5, &[0.1, 0.2, 0.5]), sent(1.7, 1, &[0.25]), failed];
        let goals = vec![(Metric::Ttft, 300.0), (Metric::Tpot, 200.0)];
        let metrics = Metrics::of(&Run { seconds: 2.0, sent: all }, &goals);
        let mut json = json!({});
        metrics.write(&[90.0, 99.0, 99.9], &mut json);
        let near = |key: &str, expected: f64| {
            assert!((json[key].as_f64().unwrap_or(f64::NAN) - expected).abs() < 1e-9, "{key}: {json}");
        };
        near("completed", 3.0);
        near("failed", 1.0);
        near("mean_tpot_ms", (300.0 + 100.0) / 2.0);
        near("median_ttft_ms", 250.0);
        near("mean_itl_ms", (200.0 + 400.0 + 100.0 + 300.0) / 4.0);
        near("median_e2el_ms", 500.0);
        near("request_throughput", 1.5);
        near("request_goodput", 1.0);
        near("output_throughput", 4.5);
        near("total_token_throughput", (30.0 + 9.0) / 2.0);
        near("max_concurrent_requests", 2.0);
        near("max_output_tokens_per_s", 4.0);
        near("p90_ttft_ms", 450.0);
        assert!(json["p99.9_itl_ms"].is_number(), "{json}");
        let table = metrics.table(&ALL, &[99.0]);
        assert!(table.contains("Goodput") && table.contains("1 failed of 4") && table.contains("p99"), "{table}");
    }
}
