//! A comparison as JSON, as a Markdown table and as a roofline plot.
use super::row::{Group, Results, Rival, Row};
use serde_json::{Value, json};
use std::fmt::Write;

/// What was measured before the rows.
pub fn header(results: &Results) -> String {
    let calibration = results.calibration;
    format!(
        "{}, driver for CUDA {}, cuBLASLt {}\n8192³ bf16 {:.0} TFLOP/s, copy {:.0} GB/s, read {:.0} GB/s",
        results.device,
        results.cuda,
        results.cublaslt.as_deref().unwrap_or("missing"),
        calibration.product_tflop_per_s,
        calibration.copy_gb_per_s,
        calibration.read_gb_per_s
    )
}

/// Everything, for other programs: a row a line, because these files are committed.
pub fn json_text(results: &Results) -> String {
    let read = results.best_read();
    let rows: Vec<String> = results.rows.iter().map(|row| format!("    {}", row_json(row, read))).collect();
    let head = format!("{:#}", head_json(results));
    let head = head.trim_end().trim_end_matches('}').trim_end();
    format!("{head},\n  \"rows\": [\n{}\n  ]\n}}\n", rows.join(",\n"))
}

fn head_json(results: &Results) -> Value {
    let groups: Vec<Value> = results.groups().into_iter().map(|group| group_json(results, group)).collect();
    json!({
        "device": results.device,
        "cuda": results.cuda,
        "cublaslt": results.cublaslt,
        "torch": results.torch,
        "version": env!("CARGO_PKG_VERSION"),
        "calibration": {
            "product_tflop_per_s": rounded(results.calibration.product_tflop_per_s),
            "copy_gb_per_s": rounded(results.calibration.copy_gb_per_s),
            "read_gb_per_s": rounded(results.calibration.read_gb_per_s),
            "best_read_gb_per_s": rounded(results.best_read()),
            "best_product_tflop_per_s": rounded(results.best_product()),
        },
        "bars": groups,
    })
}

/// To a thousandth.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn row_json(row: &Row, read: f64) -> Value {
    let ratio = row.ratio(read);
    let mut value = json!({
        "group": row.group.name(),
        "work": row.work,
        "ours_us": rounded(row.ours.median),
        "ours_range_us": [rounded(row.ours.least), rounded(row.ours.most)],
        "rival": row.rival_name,
        "rival_us": row.rival_us(read).map(rounded),
        "ratio": ratio.map(rounded),
        "bar": row.bar(),
        "met": ratio.map(|ratio| ratio >= row.bar()),
        "bytes": row.bytes,
        "flops": row.flops,
    });
    if let Rival::Timed(time) | Rival::Unfused { time, .. } = row.rival {
        value["rival_range_us"] = json!([rounded(time.least), rounded(time.most)]);
    }
    if let Rival::Unfused { kernels, bytes, .. } = row.rival {
        value["kernels"] = json!(kernels);
        value["rival_bytes"] = json!(bytes);
    }
    value
}

/// A group in figures: how many of its rows clear their bar, the worst, the mean.
struct Summary {
    rows: usize,
    cleared: usize,
    /// The ratio that is least of its bar, and whose.
    worst: Option<(f64, String)>,
    mean: f64,
    met: bool,
}

fn summary(results: &Results, group: Group) -> Summary {
    let read = results.best_read();
    let mut rows: Vec<(f64, f64, &Row)> =
        results.of(group).filter_map(|row| row.ratio(read).map(|ratio| (ratio / row.bar(), ratio, row))).collect();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    let cleared = rows.iter().filter(|(of_bar, ..)| *of_bar >= 1.0).count();
    let mean = results.mean(group);
    Summary {
        rows: rows.len(),
        cleared,
        worst: rows.first().map(|(_, ratio, row)| (*ratio, row.work.clone())),
        mean,
        met: cleared == rows.len() && group.mean_bar().is_none_or(|bar| mean >= bar),
    }
}

fn group_json(results: &Results, group: Group) -> Value {
    let summary = summary(results, group);
    json!({
        "group": group.name(),
        "rows": summary.rows,
        "cleared": summary.cleared,
        "geometric_mean": rounded(summary.mean),
        "mean_bar": group.mean_bar(),
        "worst": summary.worst.as_ref().map(|(ratio, _)| rounded(*ratio)),
        "worst_work": summary.worst.as_ref().map(|(_, work)| work),
        "met": summary.met,
    })
}

/// The groups' verdicts, as a table.
pub fn bars(results: &Results) -> String {
    let mut text =
        format!("{:<48}{:>8}{:>12}{:>8}{:>8}  {:<6}worst of its bar\n", "", "rows", "cleared", "mean", "bar", "met?");
    for group in results.groups() {
        let summary = summary(results, group);
        let bar = group.mean_bar().map_or("-".into(), |bar| format!("{bar:.2}"));
        let worst = summary.worst.map_or(String::new(), |(ratio, work)| format!("{ratio:.3} {work}"));
        let met = if summary.met { "yes" } else { "no" };
        let _ = writeln!(
            text,
            "{:<48}{:>8}{:>12}{:>8.3}{bar:>8}  {met:<6}{worst}",
            group.name(),
            summary.rows,
            summary.cleared,
            summary.mean
        );
    }
    text
}

/// The tables, for docs/perf.
pub fn markdown(results: &Results) -> String {
    let read = results.best_read();
    let mut text = String::from("# Kernels beside their rivals\n\n");
    let torch = results.torch.as_ref().map_or(String::new(), |versions| format!(". {versions}"));
    let _ = writeln!(text, "{}{torch}.\n", header(results).replace('\n', ". "));
    let _ = writeln!(
        text,
        "Best in this run: a product at {:.0} TFLOP/s, reading at {read:.0} GB/s. Times are medians of rounds in which \
         both sides alternate; a ratio above 1 is ours being faster.\n",
        results.best_product()
    );
    text += "| work | rows | clear their bar | geometric mean | bar | met? | worst of its bar |\n|---|---|---|---|---|---|---|\n";
    for group in results.groups() {
        let summary = summary(results, group);
        let bar = group.mean_bar().map_or("–".into(), |bar| format!("≥ {bar:.2}"));
        let worst = summary.worst.map_or(String::new(), |(ratio, work)| format!("{ratio:.3}, {work}"));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.3} | {bar} | {} | {worst} |",
            group.name(),
            summary.rows,
            summary.cleared,
            summary.mean,
            if summary.met { "yes" } else { "no" }
        );
    }
    for group in results.groups() {
        let _ = writeln!(text, "\n## {}\n", group.name());
        text += "| work | ours µs | rival | rival µs | ratio | bar | met? | GB/s | TFLOP/s | of best read |\n";
        text += "|---|---|---|---|---|---|---|---|---|---|\n";
        for row in results.of(group) {
            text += &markdown_row(row, read);
        }
    }
    text
}

fn markdown_row(row: &Row, read: f64) -> String {
    let optional = |value: Option<f64>, digits: usize| value.map_or("–".into(), |value| format!("{value:.digits$}"));
    let ratio = row.ratio(read);
    let bandwidth = row.bytes as f64 / row.ours.median / 1e3;
    format!(
        "| {} | {:.2} | {} | {} | {} | {:.2} | {} | {bandwidth:.0} | {:.0} | {:.1} % |\n",
        row.work,
        row.ours.median,
        row.rival_name,
        optional(row.rival_us(read), 2),
        optional(ratio, 3),
        row.bar(),
        if ratio.is_some_and(|ratio| ratio >= row.bar()) { "yes" } else { "no" },
        row.flops as f64 / row.ours.median / 1e6,
        100.0 * bandwidth / read
    )
}

/// Pixels of the plot, and of its margins.
const SIZE: (f64, f64) = (960.0, 600.0);
const MARGIN: (f64, f64) = (70.0, 50.0);
/// A colour per group.
const COLOURS: [&str; 10] =
    ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f"];

/// Both axes logarithmic: operations per byte, and operations per second.
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
}

impl Axes {
    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let along = |value: f64, (low, high): (f64, f64)| (value / low).ln() / (high / low).ln();
        let (width, height) = (SIZE.0 - 2.0 * MARGIN.0, SIZE.1 - 2.0 * MARGIN.1);
        (MARGIN.0 + along(x, self.x) * width, SIZE.1 - MARGIN.1 - along(y, self.y) * height)
    }
}

/// The rows with operations over the roof of this run's best read bandwidth and best product: ours as dots, rivals as
/// rings.
pub fn svg(results: &Results) -> String {
    let (read, product) = (results.best_read().max(1.0), results.best_product().max(1.0));
    let axes = Axes { x: (0.5, 1e4), y: (0.5, 2000.0) };
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n",
        SIZE.0, SIZE.1
    );
    grid(&mut text, &axes);
    let ridge = product * 1e3 / read;
    let roof = [(axes.x.0, axes.x.0 * read / 1e3), (ridge, product), (axes.x.1, product)];
    let points: Vec<String> = roof.map(|(x, y)| axes.at(x, y)).iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(text, "<polyline points=\"{}\" fill=\"none\" stroke=\"black\"/>", points.join(" "));
    let (x, y) = axes.at(0.6, 0.6 * read / 1e3);
    let _ = writeln!(text, "<text x=\"{x:.1}\" y=\"{:.1}\">{read:.0} GB/s</text>", y - 40.0);
    let (x, y) = axes.at(axes.x.1, product);
    let _ = writeln!(text, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"end\">{product:.0} TFLOP/s</text>", y - 6.0);
    for (turn, group) in results.groups().into_iter().enumerate() {
        let colour = COLOURS[turn % COLOURS.len()];
        let (x, y) = (SIZE.0 - MARGIN.0 - 210.0, SIZE.1 - MARGIN.1 - 14.0 * (turn as f64 + 1.0));
        let _ = writeln!(text, "<text x=\"{x}\" y=\"{y}\" fill=\"{colour}\">{}</text>", group.name());
        for row in results.of(group).filter(|row| row.flops > 0 && row.bytes > 0) {
            let intensity = row.flops as f64 / row.bytes as f64;
            let rate = |us: f64| row.flops as f64 / us / 1e6;
            let mut mark = |us: f64, fill: &str, radius: f64| {
                let (x, y) = axes.at(intensity, rate(us));
                let _ = writeln!(
                    text,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{fill}\" stroke=\"{colour}\"/>"
                );
            };
            if let Rival::Timed(time) = row.rival {
                mark(time.median, "none", 4.0);
            }
            mark(row.ours.median, colour, 2.0);
        }
    }
    text + "</svg>\n"
}

fn grid(text: &mut String, axes: &Axes) {
    let decades = |(low, high): (f64, f64)| {
        [1.0, 10.0, 100.0, 1000.0, 10000.0].into_iter().filter(move |v| (low..=high).contains(v))
    };
    for value in decades(axes.x) {
        let ((x, low), (_, high)) = (axes.at(value, axes.y.0), axes.at(value, axes.y.1));
        let _ = writeln!(text, "<line x1=\"{x:.1}\" y1=\"{low:.1}\" x2=\"{x:.1}\" y2=\"{high:.1}\" stroke=\"#ddd\"/>");
        let _ = writeln!(text, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value}</text>", low + 16.0);
    }
    for value in decades(axes.y) {
        let ((left, y), (right, _)) = (axes.at(axes.x.0, value), axes.at(axes.x.1, value));
        let _ =
            writeln!(text, "<line x1=\"{left:.1}\" y1=\"{y:.1}\" x2=\"{right:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>");
        let _ = writeln!(text, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>", left - 6.0, y + 4.0);
    }
    let (middle, bottom) = (SIZE.0 / 2.0, SIZE.1 - 12.0);
    let _ = writeln!(text, "<text x=\"{middle}\" y=\"{bottom}\" text-anchor=\"middle\">operations per byte</text>");
    let _ = writeln!(text, "<text x=\"14\" y=\"20\">TFLOP/s (dots: ours, rings: rivals)</text>");
}

#[cfg(test)]
mod tests {
    use super::super::row::{Calibration, Time};
    use super::*;

    fn row(ours: f64, rival: Rival, bar: Option<f64>) -> Row {
        let time = |median| Time { median, least: median, most: median };
        Row {
            group: Group::GemmDecode,
            work: format!("product of {ours} us"),
            ours: time(ours),
            rival,
            rival_name: "rival".into(),
            bar,
            value: None,
            bytes: 400_000_000,
            flops: 800_000_000,
            reads: true,
        }
    }

    fn results(rows: Vec<Row>) -> Results {
        let calibration = Calibration { product_tflop_per_s: 700.0, copy_gb_per_s: 4200.0, read_gb_per_s: 4000.0 };
        Results { device: "GPU".into(), cuda: "13.0".into(), cublaslt: None, torch: None, calibration, rows }
    }

    #[test]
    fn bars_are_judged() {
        let timed = |median| Rival::Timed(Time { median, least: median, most: median });
        // 1.25 and 1.0 times as fast: mean 1.118; both above 0.98.
        let results_met = results(vec![row(100.0, timed(125.0), None), row(110.0, timed(110.0), None)]);
        let json: Value = serde_json::from_str(&json_text(&results_met)).unwrap();
        assert_eq!(json["bars"][0]["met"], true);
        assert_eq!(json["rows"][0]["ratio"], 1.25);
        assert!((results_met.mean(Group::GemmDecode) - 1.25f64.sqrt()).abs() < 1e-9);
        // 400 MB in 100 µs: 4000 GB/s, no more than what reading alone did.
        assert_eq!(results_met.best_read(), 4000.0);
        let slow = results(vec![row(100.0, timed(130.0), None), row(110.0, timed(100.0), None)]);
        assert_eq!(group_json(&slow, Group::GemmDecode)["met"], false);
        assert!(bars(&slow).contains("0.909 product of 110 us"));
        assert!(markdown(&slow).contains("| product of 110 us | 110.00 | rival | 100.00 | 0.909 | 0.98 | no |"));
    }

    #[test]
    fn floors_are_taken_from_the_runs_best_read() {
        // A rival read 400 MB in 80 µs, 5000 GB/s: at that rate the other row's bytes take 80 µs too.
        let timed = Rival::Timed(Time { median: 80.0, least: 80.0, most: 80.0 });
        let results = results(vec![row(100.0, timed, None), row(100.0, Rival::Floor, Some(0.9))]);
        assert_eq!(results.best_read(), 5000.0);
        let json: Value = serde_json::from_str(&json_text(&results)).unwrap();
        assert_eq!(json["rows"][1]["ratio"], 0.8);
        assert_eq!(json["rows"][1]["met"], false);
    }

    #[test]
    fn the_plot_is_well_formed() {
        let text = svg(&results(vec![row(100.0, Rival::Floor, None)]));
        assert!(text.starts_with("<svg") && text.ends_with("</svg>\n"));
        assert_eq!(text.matches("<circle").count(), 1);
        assert!(!text.contains("NaN"));
    }
}
