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
    /// Kernels of one decode step: entry, launches, microseconds in all; longest first.
    kernels: Vec<(&'static str, usize, f64)>,
}

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
        let is_decode = |step: &StepTimes| step.graph.is_some() || step.tokens == step.sequences;
        let with_idle = |decode: bool| {
            steps.iter().enumerate().filter(move |(_, step)| is_decode(step) == decode && step.kernels.is_none()).map(
                move |(i, step)| {
                    let next = steps.get(i + 1).filter(|next| is_decode(next) == decode && next.kernels.is_none());
                    let idle = next.and_then(|next| Some(next.device?.kernels - step.device?.end));
                    (step, idle)
                },
            )
        };
        let profiled = steps.iter().filter(|step| is_decode(step)).find_map(|step| step.kernels.as_deref());
        let mut kernels: BTreeMap<&'static str, (usize, f64)> = BTreeMap::new();
        for (entry, ms) in profiled.unwrap_or_default() {
            let (count, time) = kernels.entry(entry).or_default();
            (*count, *time) = (*count + 1, *time + f64::from(*ms) * 1e3);
        }
        let mut kernels: Vec<_> = kernels.into_iter().map(|(entry, (count, time))| (entry, count, time)).collect();
        kernels.sort_by(|a, b| b.2.total_cmp(&a.2));
        Breakdown { decode: Steps::of(with_idle(true)), prefill: Steps::of(with_idle(false)), kernels }
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut text = self.decode.lines("Decode") + &self.prefill.lines("Prefill");
        if !self.kernels.is_empty() {
            let all: f64 = self.kernels.iter().map(|(.., time)| time).sum();
            text.push_str(&format!("Kernels of a decode step, one by one: {all:.1} µs in all\n"));
            for (entry, count, time) in &self.kernels {
                text.push_str(&format!("  {entry:<44}{count:>6} × {:>8.2} µs{time:>10.1} µs\n", time / *count as f64));
            }
        }
        text
    }

    /// For `--output-json`.
    pub fn json(&self) -> Value {
        let kernels: Vec<_> = self
            .kernels
            .iter()
            .map(|(entry, count, time)| json!({"entry": entry, "launches": count, "us": time}))
            .collect();
        json!({"decode": self.decode.json(), "prefill": self.prefill.json(), "decode_kernels": kernels})
    }
}

/// A timeline of the steps around the middle one of a run's decodes, as SVG: what the host did above, the device's kernels
/// below. `None` without decodes that the device has timed.
pub fn timeline(steps: &[StepTimes]) -> Option<String> {
    let timed: Vec<_> = steps.iter().filter(|step| step.graph.is_some() && step.device.is_some()).collect();
    let middle = timed.len() / 2;
    let shown = timed.get(middle.saturating_sub(1)..(middle + 2).min(timed.len())).filter(|shown| shown.len() == 3)?;
    let start = f64::from(shown[0].device?.start) * 1e3;
    let end = f64::from(shown[2].device?.end) * 1e3;
    let scale = 1000.0 / (end - start);
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1120\" height=\"140\" font-family=\"sans-serif\" font-size=\"11\">\n",
    );
    let mut bar = |row: f64, from: f64, micros: f64, colour: &str, label: &str| {
        let (x, width) = (100.0 + (from - start) * scale, (micros * scale).max(0.5));
        let y = 20.0 + 40.0 * row;
        svg.push_str(&format!(
            "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"28\" fill=\"{colour}\"><title>{label}: {micros:.1} µs</title></rect>\n"
        ));
    };
    for (i, step) in shown.iter().enumerate() {
        let device = step.device?;
        let [begin, kernels, end] = [device.start, device.kernels, device.end].map(|ms| f64::from(ms) * 1e3);
        bar(1.0, begin, kernels - begin, "#d08770", "copies");
        bar(1.0, kernels, end - kernels, if i % 2 == 0 { "#5e81ac" } else { "#81a1c1" }, "kernels");
        // The host's clock is not the device's: its work for the next step is drawn from this one's kernels' start on.
        let mut at = kernels;
        for (name, time, colour) in [
            ("plan", step.plan, "#a3be8c"),
            ("upload", step.upload, "#ebcb8b"),
            ("launch", step.launch, "#b48ead"),
            ("commit", step.commit, "#bf616a"),
        ] {
            bar(0.0, at, micros(time), colour, name);
            at += micros(time);
        }
    }
    svg.push_str("<text x=\"4\" y=\"38\">host</text><text x=\"4\" y=\"78\">device</text>\n");
    svg.push_str(&format!("<text x=\"100\" y=\"125\">{:.1} µs, three decode steps</text>\n</svg>\n", end - start));
    Some(svg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::trace::DeviceTimes;

    fn step(start: f32, end: f32, tokens: usize) -> StepTimes {
        StepTimes {
            tokens,
            sequences: 2,
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
        let svg = timeline(&steps).unwrap();
        assert!(svg.starts_with("<svg") && svg.matches("<rect").count() == 3 * 6);
    }
}
