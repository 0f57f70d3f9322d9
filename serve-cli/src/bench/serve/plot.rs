//! Latency against throughput, as SVG.
use super::metrics::{Metric, Metrics};
use std::fmt::Write;

/// Pixels of a panel.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 220.0;
/// Pixels around it, for numbers and names.
const MARGIN: f64 = 70.0;
const PANELS: [(Metric, &str); 3] =
    [(Metric::Ttft, "TTFT (ms)"), (Metric::Tpot, "TPOT (ms)"), (Metric::E2el, "End to end (ms)")];
const LINES: [(f64, &str, &str); 2] = [(0.5, "median", "#5e81ac"), (0.99, "p99", "#bf616a")];

/// One panel for each latency, one point for each level of the sweep; `title` may hold any text.
pub fn draw(title: &str, levels: &[(String, Metrics)]) -> String {
    let mut body = String::new();
    let title = title.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(body, "<text x=\"{MARGIN}\" y=\"24\" font-size=\"14\">{title}</text>");
    let most = |values: &mut dyn Iterator<Item = f64>| ceiling(values.fold(0.0, f64::max));
    let right = most(&mut levels.iter().map(|(_, metrics)| metrics.output_throughput()));
    for (i, (metric, name)) in PANELS.into_iter().enumerate() {
        let top = MARGIN * 0.8 + i as f64 * (HEIGHT + MARGIN);
        let high = most(&mut levels.iter().map(|(_, metrics)| metrics.quantile(metric, 0.99)));
        frame(&mut body, top, name, right, high);
        for (share, label, colour) in LINES {
            let point = |metrics: &Metrics| {
                let x = MARGIN + metrics.output_throughput() / right * WIDTH;
                (x, top + HEIGHT - metrics.quantile(metric, share) / high * HEIGHT)
            };
            let points: Vec<String> = levels
                .iter()
                .map(|(_, metrics)| {
                    let (x, y) = point(metrics);
                    format!("{x:.1},{y:.1}")
                })
                .collect();
            let line = points.join(" ");
            let _ =
                writeln!(body, "<polyline points=\"{line}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
            for (level, metrics) in levels {
                let (x, y) = point(metrics);
                let (ms, rate) = (metrics.quantile(metric, share), metrics.output_throughput());
                let _ = writeln!(
                    body,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"><title>{level}: {label} {ms:.2} ms \
                     at {rate:.0} tokens/s</title></circle>"
                );
                if share == 0.5 {
                    let _ =
                        writeln!(body, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{level}</text>", y - 8.0);
                }
            }
        }
    }
    for (i, (_, label, colour)) in LINES.into_iter().enumerate() {
        let x = MARGIN + WIDTH - 130.0 + 70.0 * i as f64;
        let _ = writeln!(body, "<rect x=\"{x}\" y=\"14\" width=\"12\" height=\"12\" fill=\"{colour}\"/>");
        let _ = writeln!(body, "<text x=\"{}\" y=\"24\">{label}</text>", x + 16.0);
    }
    let (width, height) = (WIDTH + 1.5 * MARGIN, MARGIN * 0.8 + PANELS.len() as f64 * (HEIGHT + MARGIN));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}

/// Axes with five marks each.
fn frame(body: &mut String, top: f64, name: &str, right: f64, high: f64) {
    for i in 0..=4 {
        let share = f64::from(i) / 4.0;
        let (x, y) = (MARGIN + share * WIDTH, top + HEIGHT * (1.0 - share));
        let _ = writeln!(
            body,
            "<path d=\"M{MARGIN} {y:.1}H{:.1}M{x:.1} {top:.1}V{:.1}\" stroke=\"#ddd\"/>",
            MARGIN + WIDTH,
            top + HEIGHT
        );
        let (across, up) = (number(share * right), number(share * high));
        let _ = writeln!(body, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{up}</text>", MARGIN - 6.0, y + 4.0);
        let _ = writeln!(
            body,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{across}</text>",
            top + HEIGHT + 15.0
        );
    }
    let _ = writeln!(body, "<text x=\"{MARGIN}\" y=\"{:.1}\" font-weight=\"bold\">{name}</text>", top - 6.0);
    let (x, y) = (MARGIN + WIDTH / 2.0, top + HEIGHT + 30.0);
    let _ = writeln!(body, "<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"middle\">output tokens/s</text>");
}

fn number(value: f64) -> String {
    if value >= 10.0 || value == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// The next of 1, 2, 4, 5, 8 and 10 times a power of ten.
fn ceiling(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 4.0, 5.0, 8.0, 10.0].into_iter().map(|step| step * power).find(|top| *top >= value).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::super::client::Outcome;
    use super::super::load::{Run, Sent};
    use super::*;

    #[test]
    fn points_lie_in_their_panels() {
        let level = |n: usize| {
            let sent = Sent {
                start: 0.0,
                outcome: Outcome {
                    input: 4,
                    output: 3,
                    pieces: vec![0.1 * n as f64, 0.2 * n as f64, 0.4 * n as f64],
                    error: None,
                },
            };
            (n.to_string(), Metrics::of(&Run { seconds: 1.0, sent: vec![sent; n] }, &Vec::new()))
        };
        let svg = draw("a <model>", &[level(1), level(2), level(8)]);
        assert!(svg.contains("a &lt;model>") && svg.contains("8: p99 800.00 ms at 24 tokens/s"), "{svg}");
        let number = |circle: &str, name: &str| -> f64 {
            circle.split(name).nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
        };
        let circles: Vec<&str> = svg.lines().filter(|line| line.starts_with("<circle")).collect();
        assert_eq!(circles.len(), 3 * 2 * 3);
        for circle in circles {
            let (x, y) = (number(circle, "cx=\""), number(circle, "cy=\""));
            assert!((MARGIN..=MARGIN + WIDTH).contains(&x) && y > 0.0 && y < 3.0 * (HEIGHT + MARGIN), "{circle}");
        }
        assert_eq!((ceiling(0.0), ceiling(3.0), ceiling(81.0)), (1.0, 4.0, 100.0));
    }
}
