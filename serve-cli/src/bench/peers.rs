//! `wootz bench peers`: our kernels beside their rivals, alternating in one run, with the bars that they have to clear.
mod attention;
mod calibrate;
mod chain;
mod epilogues;
mod fusions;
mod gemm;
mod layers;
mod norm;
mod report;
mod row;
mod torch;

use super::timing::{Replay, Samples, repeats};
use crate::device::{DeviceArgs, DeviceChoice};
use crate::terminal::{Terminal, one_line};
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use kernels_host::cublaslt::CublasLt;
use kernels_host::{Device, Stream};
use row::{Calibration, Results, Rival, Row, Time};
use serde_json::Value;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use torch::Torch;

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
    /// The 128 linear layers of a decode step as one graph.
    Chain,
    /// Products with fused epilogues against two kernels.
    Epilogues,
    /// Attention against cuDNN.
    Attention,
    /// Residual add and RMSNorm against torch.compile.
    Norm,
    /// 32 decoder layers as one graph against the memory's bandwidth.
    Layers,
    /// A decoder layer with each fusion on and off.
    Fusions,
}

impl Part {
    fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
    }

    /// Whether its rival is PyTorch.
    fn needs_torch(self) -> bool {
        matches!(self, Part::Attention | Part::Norm)
    }

    fn run(self, bench: &mut Bench<'_>) -> Result<()> {
        match self {
            Part::GemmPrefill => gemm::prefill(bench),
            Part::GemmDecode => gemm::decode(bench),
            Part::Chain => chain::run(bench),
            Part::Epilogues => epilogues::run(bench),
            Part::Attention => attention::run(bench),
            Part::Norm => norm::run(bench),
            Part::Layers => layers::run(bench),
            Part::Fusions => fusions::run(bench),
        }
    }
}

/// What the parts share.
struct Bench<'a> {
    /// Launches wait for their predecessor's end: kernels by themselves.
    stream: Stream,
    cublaslt: Option<&'a CublasLt>,
    torch: Option<Torch>,
    quick: bool,
    results: Results,
    out: Option<PathBuf>,
}

impl Bench<'_> {
    /// Rounds of an alternation.
    fn rounds(&self) -> usize {
        if self.quick { 5 } else { 7 }
    }

    /// A stream with programmatic dependent launch, as the engine's.
    fn overlapped(&self) -> Result<Stream> {
        Ok(self.stream.device().stream()?)
    }

    /// Alternates `ours` with a case of PyTorch's; `None`, and a line, where PyTorch cannot do it.
    fn against_torch(&mut self, work: &str, case: &Value, ours: &Replay) -> Result<Option<(Time, Rival)>> {
        let rounds = self.rounds();
        let Some(torch) = &mut self.torch else { return Ok(None) };
        let mut turns = || -> Result<[Samples; 2]> {
            torch.prepare(case)?;
            torch.time(gemm::TURN_US)?;
            let repeats = repeats(ours, &self.stream, gemm::TURN_US)?;
            let (mut mine, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                mine.push(ours.sample(&self.stream, repeats)?);
                theirs.push(torch.time(gemm::TURN_US)?);
            }
            Ok([mine, theirs].map(Samples::new))
        };
        match turns() {
            Ok([mine, theirs]) => Ok(Some(((&mine).into(), Rival::Timed((&theirs).into())))),
            Err(error) => {
                writeln!(io::stdout(), "{work:<44}NOT RUN: {}", one_line(&format!("{error:#}")))?;
                Ok(None)
            }
        }
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
        let files = [
            ("peers.json", report::json_text(&self.results)),
            ("peers.md", report::markdown(&self.results)),
            ("roofline.svg", report::svg(&self.results)),
        ];
        for (name, text) in files {
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
        DeviceChoice::Cpu | DeviceChoice::Emulated(..) => {
            writeln!(out, "comparison NOT RUN: it times the GPU, and --device is another")?;
            return Ok(ExitCode::SUCCESS);
        }
        DeviceChoice::Auto => Device::cuda(0),
        DeviceChoice::Cuda(ordinal, target) => Device::cuda_with_target(ordinal, target),
    };
    let device = match device {
        Ok(device) => device,
        Err(error) => {
            writeln!(out, "comparison NOT RUN: {error}")?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    let selected = |part: &Part| args.only.is_empty() || args.only.contains(part);
    let parts: Vec<Part> = Part::value_variants().iter().copied().filter(selected).collect();
    // Importing it takes seconds: the parts before its own go on meanwhile.
    let mut torch = match parts.iter().any(|part| part.needs_torch()) {
        true => Torch::start(&args.python).map_err(|error| error.to_string()),
        false => Err("no selected part needs it".into()),
    };
    let stream = device.stream()?.without_overlap();
    let cublaslt = CublasLt::open(&stream, args.cublaslt.clone(), &gemm::library_folders(&args.python));
    if let Err(error) = &cublaslt {
        writeln!(out, "rows against cuBLASLt NOT RUN: {error}")?;
    }
    let cublaslt = cublaslt.ok();
    let results = Results {
        device: device.name().to_owned(),
        cuda: Device::driver_version()?,
        cublaslt: cublaslt.as_ref().map(CublasLt::version),
        torch: None,
        calibration: calibrate::run(&stream, cublaslt.as_ref(), args.quick)?,
        rows: Vec::new(),
    };
    writeln!(out, "{}", report::header(&results))?;
    let (quick, folder) = (args.quick, args.out.clone());
    let mut bench = Bench { stream, cublaslt: cublaslt.as_ref(), torch: None, quick, results, out: folder };
    let mut code = ExitCode::SUCCESS;
    for part in parts {
        writeln!(out, "{}", terminal.bold(&Row::heading(part.name())))?;
        if part.needs_torch() && bench.torch.is_none() {
            let waiting = std::mem::replace(&mut torch, Err("it failed before".into()));
            match waiting
                .and_then(|mut torch| torch.greet().map(|versions| (torch, versions)).map_err(|e| e.to_string()))
            {
                Ok((torch, versions)) => (bench.torch, bench.results.torch) = (Some(torch), Some(versions)),
                Err(problem) => writeln!(out, "rows against PyTorch NOT RUN: {}", one_line(&problem))?,
            }
        }
        if let Err(error) = part.run(&mut bench) {
            code = ExitCode::FAILURE;
            writeln!(out, "{} FAILED: {}", part.name(), one_line(&format!("{error:#}")))?;
        }
        bench.save()?;
    }
    write!(out, "\n{}", report::bars(&bench.results))?;
    Ok(code)
}
