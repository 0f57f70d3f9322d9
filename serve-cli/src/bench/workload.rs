//! Requests through an engine, and what `vllm bench` reports of them.
use super::{mean, percentile, sort};
use anyhow::{Context, Result};
use engine::engine::Engine;
use engine::sampling::SamplingParams;
use engine::scheduler::{RequestId, SequenceRequest};
use engine::trace::StepTimes;
use kernels_host::case::Rng;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Instant;

/// One request's times, in seconds since all were queued.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Tokens of the prompt.
    pub input: usize,
    /// When each token of the answer was there.
    pub tokens: Vec<f64>,
}

impl Record {
    fn ttft(&self) -> Option<f64> {
        self.tokens.first().copied()
    }

    fn e2el(&self) -> Option<f64> {
        self.tokens.last().copied()
    }

    fn tpot(&self) -> Option<f64> {
        let steps = self.tokens.len().checked_sub(1).filter(|steps| *steps > 0)?;
        Some((self.e2el()? - self.ttft()?) / steps as f64)
    }
}

/// What one run of a workload did.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Seconds until everything had ended.
    pub seconds: f64,
    /// Of every request.
    pub records: Vec<Record>,
}

/// The likeliest token each time. The seed counts for synthetic acceptance, which must differ among sequences.
pub fn greedy(rng: &mut Rng) -> SamplingParams {
    SamplingParams { seed: rng.bits(), ..SamplingParams::default() }
}

/// Queues all requests at once and runs the engine until they have ended. `progress` hears how many have.
pub fn run(engine: &mut Engine, requests: Vec<SequenceRequest>, progress: impl Fn(usize)) -> Result<Run> {
    let start = Instant::now();
    let mut records = Vec::with_capacity(requests.len());
    let mut places: HashMap<RequestId, usize> = HashMap::with_capacity(requests.len());
    for request in requests {
        records.push(Record { input: request.prompt.len(), tokens: Vec::with_capacity(request.max_tokens) });
        places.insert(engine.add(request)?, records.len() - 1);
    }
    let mut ended = 0;
    while engine.has_work() {
        let steps = engine.step()?;
        let now = start.elapsed().as_secs_f64();
        for step in steps {
            let place = *places.get(&step.id).context("progress of a request that was never queued")?;
            records[place].tokens.push(now);
            ended += usize::from(step.finished.is_some());
        }
        progress(ended);
    }
    Ok(Run { seconds: start.elapsed().as_secs_f64(), records })
}

/// The first step of requests and a decode step after their prompts, kernel by kernel. Nothing on the CPU.
pub fn profile(engine: &mut Engine, requests: Vec<SequenceRequest>) -> Result<Vec<StepTimes>> {
    if engine.runner().device().is_cpu() {
        return Ok(Vec::new());
    }
    let mut waiting: HashMap<RequestId, usize> = HashMap::with_capacity(requests.len());
    for request in requests {
        waiting.insert(engine.add(request)?, 2);
    }
    engine.start_trace();
    engine.profile_next_step();
    let mut asked = false;
    while engine.has_work() {
        for step in engine.step()? {
            if let Some(tokens) = waiting.get_mut(&step.id) {
                *tokens -= 1;
                if *tokens == 0 {
                    waiting.remove(&step.id);
                }
            }
        }
        if !asked && waiting.is_empty() {
            asked = true;
            engine.profile_next_step();
        }
    }
    let steps = engine.take_trace()?.unwrap_or_default();
    Ok(steps.into_iter().filter(|step| step.kernels.is_some()).collect())
}

/// Statistics of runs of the same workload, with the names and definitions of `vllm bench serve`; times in milliseconds.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    requests: usize,
    input: usize,
    output: usize,
    seconds: f64,
    /// Name for people, name in JSON, sorted values.
    times: Vec<(&'static str, &'static str, Vec<f64>)>,
}

impl Metrics {
    /// Over all requests of all runs.
    pub fn of(runs: &[Run]) -> Self {
        let records = || runs.iter().flat_map(|run| &run.records);
        let sorted = |values: &mut dyn Iterator<Item = f64>| {
            let mut values: Vec<f64> = values.map(|seconds| seconds * 1e3).collect();
            sort(&mut values);
            values
        };
        let gaps = records().flat_map(|record| record.tokens.windows(2).map(|pair| pair[1] - pair[0]));
        Metrics {
            requests: records().count(),
            input: records().map(|record| record.input).sum(),
            output: records().map(|record| record.tokens.len()).sum(),
            seconds: runs.iter().map(|run| run.seconds).sum(),
            times: vec![
                ("TTFT", "ttft", sorted(&mut records().filter_map(Record::ttft))),
                ("TPOT", "tpot", sorted(&mut records().filter_map(Record::tpot))),
                ("ITL", "itl", sorted(&mut gaps.into_iter())),
                ("End to end", "e2el", sorted(&mut records().filter_map(Record::e2el))),
            ],
        }
    }

    fn rate(&self, count: usize) -> f64 {
        if self.seconds > 0.0 { count as f64 / self.seconds } else { 0.0 }
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut text = format!("{:<24}{:>10}{:>10}{:>10}\n", "", "mean", "median", "p99");
        for (name, _, values) in self.times.iter().filter(|(.., values)| !values.is_empty()) {
            let (mean, median, p99) = (mean(values), percentile(values, 0.5), percentile(values, 0.99));
            text.push_str(&format!("{:<24}{mean:>10.2}{median:>10.2}{p99:>10.2}\n", format!("{name} (ms)")));
        }
        let rates = [
            ("Requests", self.requests, "requests/s"),
            ("Output", self.output, "tokens/s"),
            ("Input and output", self.input + self.output, "tokens/s"),
        ];
        for (name, count, unit) in rates {
            text.push_str(&format!("{name:<24}{:>10.1} {unit}\n", self.rate(count)));
        }
        text
    }

    /// Everything into a JSON object.
    pub fn write(&self, value: &mut Value) {
        value["duration"] = json!(self.seconds);
        value["completed"] = json!(self.requests);
        value["total_input_tokens"] = json!(self.input);
        value["total_output_tokens"] = json!(self.output);
        value["request_throughput"] = json!(self.rate(self.requests));
        value["output_throughput"] = json!(self.rate(self.output));
        value["total_token_throughput"] = json!(self.rate(self.input + self.output));
        for (_, key, values) in &self.times {
            let average = mean(values);
            let variance = mean(&values.iter().map(|value| (value - average).powi(2)).collect::<Vec<_>>());
            let statistics = [
                ("mean", average),
                ("median", percentile(values, 0.5)),
                ("std", variance.sqrt()),
                ("p90", percentile(values, 0.9)),
                ("p99", percentile(values, 0.99)),
            ];
            for (statistic, number) in statistics {
                let number = if values.is_empty() { Value::Null } else { json!(number) };
                value[format!("{statistic}_{key}_ms")] = number;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_vllms() {
        let record = |tokens: &[f64]| Record { input: 10, tokens: tokens.to_vec() };
        let run = Run { seconds: 2.0, records: vec![record(&[0.5, 0.7, 1.1]), record(&[1.0])] };
        let mut json = json!({});
        Metrics::of(&[run]).write(&mut json);
        let near = |key: &str, expected: f64| assert!((json[key].as_f64().unwrap() - expected).abs() < 1e-9, "{json}");
        near("mean_ttft_ms", 750.0);
        near("mean_tpot_ms", 300.0);
        near("median_itl_ms", 300.0);
        near("mean_e2el_ms", 1050.0);
        near("std_ttft_ms", 250.0);
        near("request_throughput", 1.0);
        near("output_throughput", 2.0);
        near("total_token_throughput", 12.0);
    }
}
