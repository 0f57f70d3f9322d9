//! Instruction probes: small PTX kernels whose results on an H200 the emulator must reproduce.
//!
//! A probe is one instruction form, seeded inputs and one launch. `wootz-probes --record DIR` runs all of them
//! on a GPU; `--golden` condenses that recording into `tests/goldens/probes`, which the tests hold the emulator
//! against on machines without one; `--compare` does the same with the whole recording and names every element.
mod approximate;
mod arithmetic;
mod atomics;
mod convert;
mod different;
mod draw;
mod golden;
mod integer;
mod matrix;
mod packed;
mod record;
mod run;
mod template;
mod tma;
mod warp;
mod wgmma;

pub use record::main;

use golden::Golden;
use kernels_host::TiledMap;
use libtest_mimic::{Failed, Trial};
use std::collections::BTreeMap;

/// One launch of one kernel.
pub struct Probe {
    /// Group and instruction form, such as "cvt/rn.f16.f32".
    name: String,
    ptx: String,
    blocks: u32,
    threads: u32,
    shared: u32,
    /// What the buffers hold before the launch; their addresses are the first parameters.
    buffers: Vec<Vec<u8>>,
    /// The buffer that is compared afterwards.
    output: usize,
    /// The parameters behind the buffers.
    maps: Vec<TiledMap>,
    compare: Compare,
    layout: Layout,
}

/// What may differ from the hardware.
#[derive(Clone, Copy)]
enum Compare {
    /// Nothing.
    Exact,
    /// An approximate function of f32: both must be within the manual's bound of the true value.
    Approximate(approximate::Function),
    /// There is no result: the GPU must fault, and so must the emulator.
    Refused,
}

/// How messages about the output's bytes are worded.
enum Layout {
    /// `[outputs][n]` elements of so many bytes each, computed from the elements of the same number in the inputs.
    Elementwise { inputs: Vec<usize>, outputs: Vec<usize>, n: usize },
    /// Elements of so many bytes.
    Plain(usize),
}

impl Probe {
    /// Its module.
    pub fn ptx(&self) -> &str {
        &self.ptx
    }

    /// The part of the name before the slash.
    fn group(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }

    /// Tells recordings of another version of this probe apart.
    fn fingerprint(&self) -> u64 {
        let mut hash = golden::hash(self.ptx.as_bytes());
        for buffer in &self.buffers {
            hash = hash.rotate_left(5) ^ golden::hash(buffer);
        }
        for map in &self.maps {
            hash = hash.rotate_left(5) ^ golden::hash(format!("{map:?}").as_bytes());
        }
        hash
    }

    /// Which element byte `at` of the output belongs to: its first byte, its size, and a description.
    fn element(&self, at: usize) -> (usize, usize, String) {
        match &self.layout {
            Layout::Plain(size) => {
                let index = at / size;
                (index * size, *size, format!("element {index}"))
            }
            Layout::Elementwise { inputs, outputs, n } => {
                let (mut start, mut plane) = (0, 0);
                while plane + 1 < outputs.len() && at >= start + outputs[plane] * n {
                    start += outputs[plane] * n;
                    plane += 1;
                }
                let index = (at - start) / outputs[plane];
                let operands =
                    inputs.iter().zip(&self.buffers).map(|(size, buffer)| hex(&buffer[index * size..][..*size]));
                let operands: Vec<_> = operands.collect();
                let what = format!("result {plane} of element {index} (inputs {})", operands.join(", "));
                (start + index * outputs[plane], outputs[plane], what)
            }
        }
    }
}

/// A little-endian number.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// Every probe.
pub fn all() -> Vec<Probe> {
    let groups = [
        arithmetic::probes(),
        convert::probes(),
        approximate::probes(),
        integer::probes(),
        packed::probes(),
        atomics::probes(),
        warp::probes(),
        matrix::probes(),
        wgmma::probes(),
        tma::probes(),
    ];
    groups.into_iter().flatten().collect()
}

/// The tests: one per group.
pub fn trials() -> Vec<Trial> {
    let mut groups: BTreeMap<String, Vec<Probe>> = BTreeMap::new();
    for probe in all() {
        groups.entry(probe.group().to_owned()).or_default().push(probe);
    }
    let trial = |(group, probes): (String, Vec<Probe>)| {
        Trial::test(format!("probes::{group}"), move || {
            let golden = Golden::load()?;
            let wrong: Vec<String> = probes.iter().filter_map(|probe| check(&golden, probe).err()).collect();
            match wrong.first() {
                None if probes.iter().all(|probe| golden.refused.contains(&probe.name)) => {
                    Err("the GPU refused all of them: nothing was compared".into())
                }
                None => Ok(()),
                Some(first) => Err(Failed::from(format!("{} of {} probes: {first}", wrong.len(), probes.len()))),
            }
        })
    };
    let versions = Trial::test("probes::recordings_of_other_versions", || Ok(golden::versions_are_checked()?));
    groups.into_iter().map(trial).chain([versions]).collect()
}

/// That the emulator refuses what the GPU refused, agrees with it elsewhere, and differs where it is said to.
fn check(golden: &Golden, probe: &Probe) -> Result<(), String> {
    if matches!(probe.compare, Compare::Refused) || golden.refused.contains(&probe.name) {
        return golden.check_refused(probe);
    }
    let known = different::DIFFERENT.iter().find(|(name, _)| *name == probe.name);
    match (golden.check(probe), known) {
        (Ok(()), Some(_)) => Err(format!("{} agrees now: take it off the list of differences", probe.name)),
        (Err(_), Some(_)) => Ok(()),
        (result, None) => result,
    }
}
