//! `wootz bench peers`: our kernels beside their rivals, alternating in one run, with the bars that they have to clear.
mod calibrate;
mod gemm;
mod report;
mod row;

use super::write_json;
use crate::device::{DeviceArgs, DeviceChoice};
use crate::terminal::Terminal;
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use kernels_host::cublaslt::CublasLt;
use kernels_host::{Device, Stream};
use row::{Calibration, Results, Row};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `wootz bench peers`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    wootz bench peers                                          everything, the table on stdout\n  \
    wootz bench peers --out results                            and results/peers.json, peers.md, roofline.svg\n  \
    wootz bench peers --only gemm-decode,chain --quick\n\n\
    Rivals are cuBLASLt (its eight best heuristics, the fastest counts) and, through python3, PyTorch. Where one is\n\
    missing a line says so and its rows are left out.")]
pub struct PeerArgs {
    /// Only these parts
    #[arg(long, value_name = "PART", value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Fewer shapes and rounds
    #[arg(long)]
    quick: bool,
    /// Write peers.json, peers.md and roofline.svg to this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// cuBLASLt's shared library, where it is not where the loader or python3's packages have it
    #[arg(long, value_name = "FILE")]
    cublaslt: Option<PathBuf>,
    /// The Python that has PyTorch
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
}

/// A part of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Matrix products of 512 rows and more.
    GemmPrefill,
    /// Matrix products of up to 128 rows.
    GemmDecode,
}

/// What the parts share.
struct Bench<'a> {
    /// Launches wait for their predecessor's end: kernels by themselves.
    stream: Stream,
    cublaslt: Option<&'a CublasLt>,
    quick: bool,
    results: Results,
    out: Option<PathBuf>,
}

impl Bench<'_> {
    /// Rounds of an alternation.
    fn rounds(&self) -> usize {
        if self.quick { 5 } else { 7 }
    }

    /// Takes a row, and shows it.
    fn add(&mut self, row: Row) -> Result<()> {
        writeln!(io::stdout(), "{}", row.line())?;
        self.results.rows.push(row);
        Ok(())
    }

    /// Writes what there is so far: a run that is cut short leaves it.
    fn save(&self) -> Result<()> {
        let Some(folder) = &self.out else { return Ok(()) };
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        write_json(&folder.join("peers.json"), &report::json(&self.results))?;
        for (name, text) in
            [("peers.md", report::markdown(&self.results)), ("roofline.svg", report::svg(&self.results))]
        {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Runs the command.
pub fn run(args: &PeerArgs, terminal: &Terminal) -> Result<ExitCode> {
    let mut out = io::stdout();
    let device = match args.device.device {
        DeviceChoice::Cpu => {
            writeln!(out, "comparison NOT RUN: it times the GPU, and --device is cpu")?;
            return Ok(ExitCode::SUCCESS);
        }
        DeviceChoice::Auto => Device::cuda(0),
        DeviceChoice::Cuda(ordinal) => Device::cuda(ordinal),
    };
    let device = match device {
        Ok(device) => device,
        Err(error) => {
            writeln!(out, "comparison NOT RUN: {error}")?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    let stream = device.stream()?.without_overlap();
    let cublaslt = match CublasLt::open(&stream, args.cublaslt.clone(), &gemm::library_folders(&args.python)) {
        Ok(library) => Some(library),
        Err(error) => {
            writeln!(out, "rows against cuBLASLt NOT RUN: {error}")?;
            None
        }
    };
    let calibration = calibrate::run(&stream, cublaslt.as_ref(), args.quick)?;
    let results = Results {
        device: device.name().to_owned(),
        cuda: Device::driver_version()?,
        cublaslt: cublaslt.as_ref().map(CublasLt::version),
        calibration,
        rows: Vec::new(),
    };
    writeln!(out, "{}", report::header(&results))?;
    let mut bench = Bench { stream, cublaslt: cublaslt.as_ref(), quick: args.quick, results, out: args.out.clone() };
    for &part in Part::value_variants() {
        if !args.only.is_empty() && !args.only.contains(&part) {
            continue;
        }
        writeln!(
            out,
            "{}",
            terminal.bold(&Row::heading(part.to_possible_value().map_or(String::new(), |v| v.get_name().to_owned())))
        )?;
        match part {
            Part::GemmPrefill => gemm::prefill(&mut bench)?,
            Part::GemmDecode => gemm::decode(&mut bench)?,
        }
        bench.save()?;
    }
    write!(out, "\n{}", report::bars(&bench.results))?;
    Ok(ExitCode::SUCCESS)
}
