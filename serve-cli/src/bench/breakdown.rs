//! Where the time of steps goes: the host's work, the device's, and what is between.
use super::{mean, percentile, sort};
use engine::trace::StepTimes;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// What steps of one kind took. Times in microseconds.
#[derive(Clone, Debug, Default)]
pub struct Breakdown {
    /// Steps in which every sequence decodes.
    decode: Steps,
    /// The others.
    prefill: Steps,
    /// Kernels of one decode step, longest first.
    decode_kernels: Vec<Kernel>,
    /// The same of one prefill step.
    prefill_kernels: Vec<Kernel>,
}

/// Entry, launches, microseconds in all.
pub type Kernel = (&'static str, usize, f64);

#[derive(Clone, Debug, Default)]
struct Steps {
    count: usize,
    /// Of these, by graphs.
    graphs: usize,
    /// Sorted, by phase.
    host: Vec<(&'static str, Vec<f64>)>,
    /// The host's work, without waiting; sorted.
    work: Vec<f64>,
    /// Kernels of a step on the device; sorted.
    busy: Vec<f64>,
    /// From the end of a step's kernels to the start of the next one's; sorted. The host's work that is not hidden behind
    /// the device's, and the copies between.
    idle: Vec<f64>,
}

const PHASES: [&str; 5] = ["plan", "upload", "launch", "wait", "commit"];

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

impl Steps {
    /// `steps` with the device time until the next step's kernels start, where that one is of the same kind.
    fn of<'a>(steps: impl Iterator<Item = (&'a StepTimes, Option<f32>)>) -> Self {
        let mut all = Steps { host: PHASES.map(|phase| (phase, Vec::new())).into(), ..Steps::default() };
        for (step, idle) in steps {
            all.count += 1;
            all.graphs += usize::from(step.graph.is_some());
            let phases = [step.plan, step.upload, step.launch, step.wait, step.commit];
            all.host.iter_mut().zip(phases).for_each(|((_, times), time)| times.push(micros(time)));
            all.work.push(micros(step.host()));
            all.busy.extend(step.device.map(|device| f64::from(device.end - device.kernels) * 1e3));
            all.idle.extend(idle.map(|ms| f64::from(ms) * 1e3));
        }
        let times = all.host.iter_mut().map(|(_, times)| times);
        times.chain([&mut all.work, &mut all.busy, &mut all.idle]).for_each(|times| sort(times));
        all
    }

    /// Share of the time in which kernels ran; `None` where the device has no timers.
    fn busy_share(&self) -> Option<f64> {
        // Steps without a successor of their kind have no idle time after them.
        let (busy, idle) = (mean(&self.busy), mean(&self.idle));
        (!self.busy.is_empty() && !self.idle.is_empty()).then(|| busy / (busy + idle))
    }

    fn lines(&self, name: &str) -> String {
        if self.count == 0 {
            return String::new();
        }
        let row = |name: &str, times: &[f64]| {
            let (mean, median, p99) = (mean(times), percentile(times, 0.5), percentile(times, 0.99));
            format!("  {name:<28}{mean:>10.1}{median:>10.1}{p99:>10.1}\n")
        };
        let mut text = format!("{name}: {} steps, {} by graphs\n", self.count, self.graphs);
        text.push_str(&format!("  {:<28}{:>10}{:>10}{:>10}\n", "µs a step", "mean", "median", "p99"));
        for (phase, times) in &self.host {
            text.push_str(&row(&format!("host: {phase}"), times));
        }
        text.push_str(&row("host: work in all", &self.work));
        if !self.busy.is_empty() {
            text.push_str(&row("device: kernels", &self.busy));
        }
        if !self.idle.is_empty() {
            text.push_str(&row("device: idle before the next", &self.idle));
        }
        if let Some(share) = self.busy_share() {
            text.push_str(&format!("  {:<28}{:>9.2}%\n", "device: busy", share * 100.0));
        }
        text
    }

    fn json(&self) -> Value {
        let statistics = |times: &[f64]| json!({"mean": mean(times), "median": percentile(times, 0.5), "p99": percentile(times, 0.99)});
        let mut value = json!({
            "steps": self.count,
            "graph_steps": self.graphs,
            "host_work_us": statistics(&self.work),
            "gpu_busy_share": self.busy_share(),
        });
        for (phase, times) in &self.host {
            value[format!("host_{phase}_us")] = statistics(times);
        }
        if !self.busy.is_empty() {
            value["gpu_kernels_us"] = statistics(&self.busy);
            value["gpu_idle_us"] = statistics(&self.idle);
        }
        value
    }
}

impl Breakdown {
    /// Of traced steps, in their order.
    pub fn of(steps: &[StepTimes]) -> Self {
        let with_idle = |decode: bool| {
            steps.iter().enumerate().filter(move |(_, step)| is_decode(step) == decode && step.kernels.is_none()).map(
                move |(i, step)| {
                    let next = steps.get(i + 1).filter(|next| is_decode(next) == decode && next.kernels.is_none());
                    let idle = next.and_then(|next| Some(next.device?.kernels - step.device?.end));
                    (step, idle)
                },
            )
        };
        let profiled = |decode: bool| {
            let step = steps.iter().find(|step| is_decode(step) == decode && step.kernels.is_some());
            kernels_of(step.and_then(|step| step.kernels.as_deref()).unwrap_or_default())
        };
        Breakdown {
            decode: Steps::of(with_idle(true)),
            prefill: Steps::of(with_idle(false)),
            decode_kernels: profiled(true),
            prefill_kernels: profiled(false),
        }
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut text = self.decode.lines("Decode") + &self.prefill.lines("Prefill");
        for (name, kernels) in [("decode", &self.decode_kernels), ("prefill", &self.prefill_kernels)] {
            if kernels.is_empty() {
                continue;
            }
            let all: f64 = kernels.iter().map(|(.., time)| time).sum();
            text.push_str(&format!("Kernels of a {name} step, one by one: {all:.1} µs in all\n"));
            for (entry, count, time) in kernels {
                let (each, share) = (time / *count as f64, 100.0 * time / all.max(f64::MIN_POSITIVE));
                text.push_str(&format!("  {entry:<44}{count:>6} × {each:>8.2} µs{time:>10.1} µs{share:>7.1}%\n"));
            }
        }
        text
    }

    /// For `--output-json`.
    pub fn json(&self) -> Value {
        let list = |kernels: &[Kernel]| -> Value {
            kernels.iter().map(|(entry, count, time)| json!({"entry": entry, "launches": count, "us": time})).collect()
        };
        json!({
            "decode": self.decode.json(),
            "prefill": self.prefill.json(),
            "decode_kernels": list(&self.decode_kernels),
            "prefill_kernels": list(&self.prefill_kernels),
        })
    }
}

/// Whether every sequence of a step decodes.
pub fn is_decode(step: &StepTimes) -> bool {
    step.decodes == step.sequences
}

/// Launches by entry, the longest first.
pub fn kernels_of(launches: &[(&'static str, f32)]) -> Vec<Kernel> {
    let mut kernels: BTreeMap<&'static str, (usize, f64)> = BTreeMap::new();
    for (entry, ms) in launches {
        let (count, time) = kernels.entry(entry).or_default();
        (*count, *time) = (*count + 1, *time + f64::from(*ms) * 1e3);
    }
    let mut kernels: Vec<_> = kernels.into_iter().map(|(entry, (count, time))| (entry, count, time)).collect();
    kernels.sort_by(|a, b| b.2.total_cmp(&a.2));
    kernels
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::trace::DeviceTimes;

    fn step(start: f32, end: f32, tokens: usize) -> StepTimes {
        StepTimes {
            tokens,
            sequences: 2,
            decodes: if tokens == 2 { 2 } else { 0 },
            graph: (tokens == 2).then_some(2),
            plan: Duration::from_micros(3),
            launch: Duration::from_micros(5),
            wait: Duration::from_micros(900),
            device: Some(DeviceTimes { start: start - 0.002, kernels: start, end }),
            ..StepTimes::default()
        }
    }

    #[test]
    fn idle_is_between_steps_of_one_kind() {
        let steps = [step(0.0, 4.0, 100), step(10.0, 14.0, 2), step(14.01, 18.0, 2), step(18.01, 22.01, 2)];
        let breakdown = Breakdown::of(&steps);
        assert_eq!((breakdown.decode.count, breakdown.prefill.count), (3, 1));
        assert_eq!(breakdown.decode.idle.len(), 2);
        assert!((mean(&breakdown.decode.idle) - 10.0).abs() < 0.1);
        let share = breakdown.decode.busy_share().unwrap();
        assert!((share - 0.9975).abs() < 1e-4, "{share}");
        assert_eq!(mean(&breakdown.decode.work), 8.0);
        assert_eq!(breakdown.prefill.busy_share(), None);
        let kernels = |names: &[&'static str]| Some(names.iter().map(|name| (*name, 0.002)).collect());
        let profiled = [
            StepTimes { kernels: kernels(&["gemm", "norm", "gemm"]), ..step(0.0, 1.0, 2) },
            StepTimes { kernels: kernels(&["prefill"]), ..step(0.0, 1.0, 100) },
        ];
        let breakdown = Breakdown::of(&profiled);
        assert_eq!((breakdown.decode.count, breakdown.prefill.count), (0, 0), "profiled steps are not timed ones");
        let names = |kernels: &[Kernel]| kernels.iter().map(|(entry, count, _)| (*entry, *count)).collect::<Vec<_>>();
        assert_eq!(names(&breakdown.decode_kernels), [("gemm", 2), ("norm", 1)], "the longest first");
        assert_eq!(names(&breakdown.prefill_kernels), [("prefill", 1)]);

        // Two sequences that verify three drafts each, without a graph.
        let verified = StepTimes { decodes: 2, ..step(0.0, 1.0, 8) };
        assert_eq!(Breakdown::of(&[verified]).decode.count, 1);
    }
}
