//! A picture of where the time of steps goes, as SVG.
use super::breakdown::{is_decode, kernels_of};
use engine::trace::StepTimes;
use std::fmt::Write;
use std::time::Duration;

/// Decode steps side by side.
const STEPS: usize = 3;
/// Pixels of the lanes.
const WIDTH: f64 = 1000.0;
/// Pixels left of them, for their names.
const LEFT: f64 = 100.0;
const LANE: f64 = 40.0;
const COLOURS: [&str; 10] =
    ["#5e81ac", "#bf616a", "#a3be8c", "#ebcb8b", "#b48ead", "#88c0d0", "#d08770", "#4c566a", "#8fbcbb", "#81a1c1"];

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A drawing as it grows downwards.
struct Drawing {
    body: String,
    height: f64,
}

impl Drawing {
    fn lane(&mut self, name: &str) {
        self.text(4.0, self.height + 18.0, name);
        self.height += LANE;
    }

    /// A bar in the newest lane: from and length are shares of the width.
    fn bar(&mut self, from: f64, length: f64, colour: &str, title: &str) {
        let (x, width, y) = (LEFT + from * WIDTH, (length * WIDTH).max(0.5), self.height - LANE);
        let _ = writeln!(
            self.body,
            "<rect x=\"{x:.2}\" y=\"{y}\" width=\"{width:.2}\" height=\"28\" fill=\"{colour}\"><title>{title}</title></rect>"
        );
    }

    fn text(&mut self, x: f64, y: f64, text: &str) {
        let _ = writeln!(self.body, "<text x=\"{x}\" y=\"{y}\">{text}</text>");
    }

    fn line(&mut self, text: &str) {
        self.text(LEFT, self.height + 12.0, text);
        self.height += 24.0;
    }

    fn finish(self) -> String {
        let (width, height, body) = (LEFT + WIDTH + 20.0, self.height + 10.0, self.body);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n{body}</svg>\n"
        )
    }
}

/// Three decode steps from the middle of a run, the host's work above the device's, and below them one step kernel by
/// kernel, if one was profiled. `None` without decodes.
pub fn draw(steps: &[StepTimes]) -> Option<String> {
    let decodes: Vec<&StepTimes> = steps.iter().filter(|step| is_decode(step) && step.kernels.is_none()).collect();
    let profiled = steps.iter().filter(|step| is_decode(step)).find_map(|step| step.kernels.as_deref());
    let mut drawing = Drawing { body: String::new(), height: 10.0 };
    let first = (decodes.len() / 2).saturating_sub(1).min(decodes.len().saturating_sub(STEPS));
    let shown = &decodes[first..decodes.len().min(first + STEPS)];
    if shown.is_empty() && profiled.is_none() {
        return None;
    }
    if !shown.is_empty() {
        timed(&mut drawing, shown).unwrap_or_else(|| host(&mut drawing, shown));
    }
    if let Some(launches) = profiled {
        kernels(&mut drawing, launches);
    }
    Some(drawing.finish())
}

/// Steps that the device has timed; `None` if it has none.
fn timed(drawing: &mut Drawing, steps: &[&StepTimes]) -> Option<()> {
    let devices = steps.iter().map(|step| step.device).collect::<Option<Vec<_>>>()?;
    let start = f64::from(devices.first()?.start) * 1e3;
    let all = f64::from(devices.last()?.end) * 1e3 - start;
    let at = |ms: f32| (f64::from(ms) * 1e3 - start) / all;
    drawing.lane("host");
    for (step, device) in steps.iter().zip(&devices) {
        // The host's clock is not the device's: its work for the next step is drawn from this one's kernels' start on.
        phases(drawing, step, at(device.kernels), all, false);
    }
    drawing.lane("device");
    for (i, device) in devices.iter().enumerate() {
        let mut bar = |from: f32, to: f32, colour, name: &str| {
            let title = format!("{name}: {:.1} µs", f64::from(to - from) * 1e3);
            drawing.bar(at(from), at(to) - at(from), colour, &title);
        };
        bar(device.start, device.kernels, COLOURS[6], "copies");
        bar(device.kernels, device.end, if i % 2 == 0 { COLOURS[0] } else { COLOURS[9] }, "kernels");
    }
    drawing.line(&format!("{all:.1} µs, {} decode steps of {} sequences", steps.len(), steps[0].sequences));
    Some(())
}

/// Steps on the CPU: one phase after another.
fn host(drawing: &mut Drawing, steps: &[&StepTimes]) {
    let all: f64 = steps.iter().map(|step| micros(step.host() + step.wait)).sum();
    drawing.lane("host");
    let mut at = 0.0;
    for step in steps {
        at = phases(drawing, step, at, all, true);
    }
    drawing.line(&format!("{all:.1} µs, {} decode steps of {} sequences", steps.len(), steps[0].sequences));
}

/// The host's work from `at` on; returns its end.
fn phases(drawing: &mut Drawing, step: &StepTimes, mut at: f64, all: f64, waits: bool) -> f64 {
    let wait = if waits { step.wait } else { Duration::ZERO };
    for (name, time, colour) in [
        ("plan", step.plan, COLOURS[2]),
        ("upload", step.upload, COLOURS[3]),
        ("launch", step.launch, COLOURS[4]),
        ("wait", wait, "#d8dee9"),
        ("commit", step.commit, COLOURS[1]),
    ] {
        if name != "wait" || waits {
            drawing.bar(at, micros(time) / all, colour, &format!("{name}: {:.1} µs", micros(time)));
        }
        at += micros(time) / all;
    }
    at
}

/// One step's launches end to end, and what each entry takes.
fn kernels(drawing: &mut Drawing, launches: &[(&'static str, f32)]) {
    let entries = kernels_of(launches);
    let colour = |entry: &str| {
        let rank = entries.iter().position(|(other, ..)| *other == entry);
        COLOURS[rank.unwrap_or(COLOURS.len()).min(COLOURS.len() - 1)]
    };
    let all: f64 = entries.iter().map(|(.., time)| time).sum::<f64>().max(f64::MIN_POSITIVE);
    drawing.lane("kernels");
    let mut at = 0.0;
    for (entry, ms) in launches {
        let time = f64::from(*ms) * 1e3;
        drawing.bar(at, time / all, colour(entry), &format!("{entry}: {time:.2} µs"));
        at += time / all;
    }
    drawing.line(&format!("{all:.1} µs: the {} kernels of one decode step, each timed by itself", launches.len()));
    for (entry, count, time) in &entries {
        let y = drawing.height;
        let _ = writeln!(
            drawing.body,
            "<rect x=\"{LEFT}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{}\"/>",
            colour(entry)
        );
        let label = format!("{entry}: {count} × {:.2} µs, {:.1} %", time / *count as f64, 100.0 * time / all);
        drawing.text(LEFT + 20.0, y + 10.0, &label);
        drawing.height += 18.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::trace::DeviceTimes;

    fn step(device: Option<DeviceTimes>) -> StepTimes {
        StepTimes {
            tokens: 2,
            sequences: 2,
            decodes: 2,
            plan: Duration::from_micros(3),
            launch: Duration::from_micros(5),
            wait: Duration::from_micros(900),
            device,
            ..StepTimes::default()
        }
    }

    /// Right ends of all bars.
    fn ends(svg: &str) -> Vec<f64> {
        let number = |bar: &str, name: &str| -> f64 {
            bar.split(name).nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
        };
        svg.lines().filter(|l| l.contains("<title>")).map(|bar| number(bar, "x=\"") + number(bar, "width=\"")).collect()
    }

    #[test]
    fn steps_and_kernels_fill_the_width() {
        let device = |i: usize| DeviceTimes { start: i as f32, kernels: i as f32 + 0.01, end: i as f32 + 0.99 };
        let mut steps: Vec<_> = (0..9).map(|i| step(Some(device(i)))).collect();
        let svg = draw(&steps).unwrap();
        assert!(svg.contains("2990.0 µs, 3 decode steps of 2 sequences"), "{svg}");
        assert_eq!(ends(&svg).len(), STEPS * (4 + 2));
        steps.push(StepTimes { kernels: Some(vec![("norm", 0.001), ("gemm", 0.004), ("norm", 0.001)]), ..step(None) });
        let svg = draw(&steps).unwrap();
        assert!(svg.contains("6.0 µs: the 3 kernels") && svg.contains("gemm: 1 × 4.00 µs, 66.7 %"), "{svg}");
        let ends = ends(&svg);
        assert!((ends.last().unwrap() - LEFT - WIDTH).abs() < 1.0, "{ends:?}");
        assert!(ends.iter().all(|end| *end <= LEFT + WIDTH + 1.0), "{ends:?}");
    }

    #[test]
    fn the_cpu_has_a_timeline_too() {
        let svg = draw(&[step(None), step(None)]).unwrap();
        assert!(svg.contains("1816.0 µs, 2 decode steps"), "{svg}");
        assert!((ends(&svg).last().unwrap() - LEFT - WIDTH).abs() < 1.0);
        assert_eq!(
            draw(&[StepTimes { tokens: 9, sequences: 1, decodes: 0, ..step(None) }]),
            None,
            "a prompt is no decode"
        );
    }
}
