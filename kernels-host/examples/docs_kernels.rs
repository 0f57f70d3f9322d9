//! Prints `docs/kernels.md`: `cargo xtask docs-kernels`. Arguments: the repository, and folders with kernels.json or
//! peers.json, the one that counts first.
use serde_json::Value;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let Some(root) = args.next() else {
        eprintln!("usage: docs_kernels REPOSITORY FOLDER…");
        return ExitCode::from(2);
    };
    let folders: Vec<PathBuf> = args.collect();
    let newest = |name: &str| {
        let found = folders.iter().find_map(|folder| std::fs::read(folder.join(name)).ok().map(|text| (folder, text)));
        found.and_then(|(folder, text)| Some((folder.clone(), serde_json::from_slice::<Value>(&text).ok()?)))
    };
    print!("{}", document(&root, newest("kernels.json"), newest("peers.json")));
    ExitCode::SUCCESS
}

fn document(root: &Path, kernels: Option<(PathBuf, Value)>, peers: Option<(PathBuf, Value)>) -> String {
    let mut text = String::from(
        "# Kernels\n\nMade by `cargo xtask docs-kernels`; do not edit. A kernel is two files of the same path: \
         `kernels-gpu/src/<kernel>.rs`, which opens with its formula, grid and bytes, and its launcher in \
         `kernels-host/src`.\n\n",
    );
    let none = Vec::new();
    let cases = kernels.as_ref().and_then(|(_, json)| json["cases"].as_array()).unwrap_or(&none);
    let calibration = peers.as_ref().map_or(&Value::Null, |(_, json)| &json["calibration"]);
    let roof = Roof::of(cases, calibration);
    if let Some((folder, json)) = &kernels {
        let _ = writeln!(
            text,
            "Shares are of the best that a run's kernels reached on an {} ({}): reading at {:.0} GB/s, a product at {:.0} \
             TFLOP/s. Each kernel's best case is shown, over data that do not fit in the L2 cache.\n",
            json["device"].as_str().unwrap_or("?"),
            folder.strip_prefix(root).unwrap_or(folder).display(),
            roof.read,
            roof.product
        );
    }
    text += "| kernel | what it does | entries | best case | µs | GB/s | TFLOP/s | share of the roofline |\n";
    text += "|---|---|---|---|---|---|---|---|\n";
    for kernel in kernels_host::kernels() {
        let best = cases
            .iter()
            .filter(|case| case["kernel"] == kernel.name && case["median_us"].is_number())
            .max_by(|a, b| roof.share(a).total_cmp(&roof.share(b)));
        let measured = best.map_or("– | – | – | – | –".into(), |case| {
            let number = |key: &str| case[key].as_f64().unwrap_or(0.0);
            format!(
                "{} | {:.1} | {:.0} | {:.0} | {:.0} %",
                case["case"].as_str().unwrap_or("?"),
                number("median_us"),
                number("gb_per_s"),
                number("tflop_per_s"),
                100.0 * roof.share(case)
            )
        });
        let _ =
            writeln!(text, "| {} | {} | {} | {measured} |", kernel.name, what(root, kernel.name), kernel.entries.len());
    }
    let peers = peers.as_ref().map_or(&Value::Null, |(_, json)| json);
    text + &fusions(peers) + &layer_fusions(peers)
}

/// The first sentence of a kernel's dossier.
fn what(root: &Path, kernel: &str) -> String {
    let file = root.join("kernels-gpu/src").join(kernel).with_extension("rs");
    let source = std::fs::read_to_string(file).unwrap_or_default();
    let lines = source.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim);
    let paragraph: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
    let paragraph = paragraph.join(" ");
    let end = paragraph.find(". ").map_or(paragraph.len(), |at| at + 1);
    match &paragraph[..end] {
        "" => "whichever of the family's kernels fits the shape and the GPU".into(),
        sentence => sentence.trim_end_matches(['.', ':']).replace('|', "\\|"),
    }
}

/// The best rates of a run.
struct Roof {
    read: f64,
    product: f64,
}

impl Roof {
    fn of(cases: &[Value], calibration: &Value) -> Self {
        // Less than 100 MB may come from the L2 cache in part.
        let large = cases.iter().filter(|case| case["bytes"].as_u64().is_some_and(|bytes| bytes >= 100_000_000));
        let most = |values: &mut dyn Iterator<Item = &Value>| values.filter_map(Value::as_f64).fold(1.0, f64::max);
        let read = most(&mut large.map(|case| &case["gb_per_s"]));
        let product = most(&mut cases.iter().map(|case| &case["tflop_per_s"]));
        let known = |key: &str| calibration[key].as_f64().unwrap_or(0.0);
        Roof { read: read.max(known("best_read_gb_per_s")), product: product.max(known("best_product_tflop_per_s")) }
    }

    /// Of the bound that a case is nearest to.
    fn share(&self, case: &Value) -> f64 {
        let number = |key: &str| case[key].as_f64().unwrap_or(0.0);
        (number("gb_per_s") / self.read).max(number("tflop_per_s") / self.product)
    }
}

/// Fused against unfused, from the comparison's rows.
fn fusions(peers: &Value) -> String {
    let rows = peers["rows"].as_array().map_or(&[] as &[Value], Vec::as_slice);
    let fused: Vec<&Value> =
        rows.iter().filter(|row| row["group"].as_str().is_some_and(|group| group.contains("fused"))).collect();
    if fused.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "\n## Fusions\n\n| fusion, rows x columns x depth | fused µs | unfused µs | times as fast |\n|---|---|---|---|\n",
    );
    for row in fused {
        let number = |key: &str| row[key].as_f64().unwrap_or(0.0);
        let (ours, unfused) = (number("ours_us"), number("rival_us"));
        let work = row["work"].as_str().unwrap_or("?");
        let _ = writeln!(text, "| {work} | {ours:.1} | {unfused:.1} | {:.2} |", unfused / ours.max(1e-9));
    }
    text
}

/// A decoder layer with each fusion on and off, from the comparison's rows.
fn layer_fusions(peers: &Value) -> String {
    let rows = peers["rows"].as_array().map_or(&[] as &[Value], Vec::as_slice);
    // Only those rows have it.
    let mut rows = rows.iter().filter(|row| row["kernels"].is_array()).peekable();
    if rows.peek().is_none() {
        return String::new();
    }
    let mut text = String::from(
        "\n## A decoder layer, each fusion on and off\n\n\
         Llama-3.1-8B, context 2048: a layer with the fusion against the same without; all others are on, but for the \
         kernel from norm to KV write where its parts are compared. \
         Megabytes are what the kernels read and write, each its inputs and outputs once; of what lies between two \
         kernels the L2 cache keeps most at decode.\n\n\
         | step: fusion | kernels, fused | apart | µs, fused | apart | MB, fused | apart | times as fast |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap_or(0.0);
        let (ours, apart) = (number("ours_us"), number("rival_us"));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {ours:.1} | {apart:.1} | {:.1} | {:.1} | {:.2} |",
            row["work"].as_str().unwrap_or("?"),
            row["kernels"][0],
            row["kernels"][1],
            number("bytes") / 1e6,
            number("rival_bytes") / 1e6,
            apart / ours.max(1e-9)
        );
    }
    text
}
