//! What an H200 made of the probes, condensed: hashes of exact results, offsets of approximate ones.
use super::{Compare, Probe, approximate, run};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// An output is hashed in so many slices, which narrows a mismatch down.
const SLICES: usize = 4;
/// Schedules that the emulator is tried under.
const SEED: u64 = 1;

/// A recording in short.
#[derive(Serialize, Deserialize)]
pub(super) struct Golden {
    /// The GPU.
    pub device: String,
    /// The driver's CUDA version.
    pub driver: String,
    /// By the probe's name.
    pub probes: BTreeMap<String, Condensed>,
    /// Probes that faulted on the GPU, as they were made to: their boxes begin where none may.
    pub refused: BTreeSet<String>,
}

/// One probe's output.
#[derive(Serialize, Deserialize)]
pub(super) struct Condensed {
    /// Half of [`Probe::fingerprint`], in hexadecimal digits.
    of: String,
    #[serde(flatten)]
    output: Output,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Output {
    /// Hashes of the slices, eight hexadecimal digits each.
    Slices(String),
    /// Units in the last place from the nearest result; what is not near it as [`FAR`] plus its pattern.
    Offsets(Vec<i64>),
}

/// Above all offsets.
const FAR: i64 = 1 << 40;

impl Golden {
    /// Where the committed one is.
    pub(super) fn path() -> PathBuf {
        crate::goldens::root().join("probes/h200.json.zst")
    }

    /// Reads the committed one.
    pub(super) fn load() -> Result<Golden> {
        let path = Self::path();
        let packed = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = zstd::decode_all(&packed[..]).with_context(|| format!("{} is damaged", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Writes it to `path`; returns the file's size.
    pub(super) fn store(&self, path: &Path) -> Result<usize> {
        let packed = zstd::encode_all(&serde_json::to_vec(self)?[..], 19)?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, &packed).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(packed.len())
    }

    /// That the GPU refused a probe, as it was meant to, and that the emulator does.
    pub(super) fn check_refused(&self, probe: &Probe) -> Result<(), String> {
        let name = &probe.name;
        match (probe.compare, self.refused.contains(name), run::on_emulator(probe, SEED)) {
            (Compare::Refused, true, Err(_)) => Ok(()),
            (Compare::Refused, true, Ok(_)) => {
                Err(format!("{name}: the emulator takes what the {} refuses", self.device))
            }
            (Compare::Refused, false, _) => {
                Err(format!("{name}: the {} did not refuse it, or it is not recorded", self.device))
            }
            _ => Err(format!("{name}: the {} refused it, so nothing is compared: mend the probe", self.device)),
        }
    }

    /// Runs a probe on the emulator and compares.
    pub(super) fn check(&self, probe: &Probe) -> Result<(), String> {
        let name = &probe.name;
        let known = self.probes.get(name).ok_or_else(|| format!("{name}: not recorded; record the probes again"))?;
        if known.of != short(probe) {
            return Err(format!("{name}: another version of it is recorded; record the probes again"));
        }
        let found = run::on_emulator(probe, SEED).map_err(|e| format!("{name}: {e}"))?;
        match (&known.output, probe.compare) {
            (Output::Slices(expected), _) => {
                let (length, found) = (slice_length(found.len()), slices(&found));
                let wrong =
                    (0..found.len() / 8).find(|i| expected.get(8 * i..8 * i + 8) != Some(&found[8 * i..8 * i + 8]));
                wrong.map_or(Ok(()), |slice| {
                    let (first, last) = (slice * length, (slice + 1) * length - 1);
                    let (from, to) =
                        (probe.element(first).2, probe.element(last.min(probe.buffers[probe.output].len() - 1)).2);
                    Err(format!(
                        "{name}: slice {slice} of the output differs from the {}'s: from {from} to {to}",
                        self.device
                    ))
                })
            }
            (Output::Offsets(offsets), Compare::Approximate(function)) => {
                let recorded = offsets.iter().enumerate().map(|(i, &offset)| near(function, &inputs(probe, i), offset));
                compare_approximate(probe, function, &found, recorded.collect::<Vec<_>>().as_slice())
            }
            (Output::Offsets(_), _) => Err(format!("{name}: recorded as approximate; record the probes again")),
        }
    }
}

impl Condensed {
    /// Of a recorded output.
    pub(super) fn new(probe: &Probe, output: &[u8]) -> Condensed {
        let of = short(probe);
        let output = match probe.compare {
            Compare::Exact | Compare::Refused => Output::Slices(slices(output)),
            Compare::Approximate(function) => Output::Offsets(
                floats(output).enumerate().map(|(i, found)| offset(function, &inputs(probe, i), found)).collect(),
            ),
        };
        Condensed { of, output }
    }
}

/// Both results are within the manual's bound, and agree where it leaves no choice: zeros, infinities, NaNs.
pub(super) fn compare_approximate(
    probe: &Probe,
    function: approximate::Function,
    found: &[u8],
    hardware: &[f32],
) -> Result<(), String> {
    for (index, (found, &hardware)) in floats(found).zip(hardware).enumerate() {
        let inputs = inputs(probe, index);
        let settled = |x: f32| !x.is_normal();
        let agree = found.to_bits() == hardware.to_bits() || !(settled(found) || settled(hardware));
        let tiny = found.abs() <= 2.0 * f32::MIN_POSITIVE && hardware.abs() <= 2.0 * f32::MIN_POSITIVE;
        if !function.allows(&inputs, found) || !(agree || tiny) {
            let what = probe.element(4 * index).2;
            return Err(format!("{}: {what} is {found:e}, on the hardware {hardware:e}", probe.name));
        }
    }
    Ok(())
}

/// An element's inputs as f32.
pub(super) fn inputs(probe: &Probe, index: usize) -> Vec<f32> {
    probe.buffers[..probe.output].iter().filter_map(|buffer| floats(&buffer[4 * index..]).next()).collect()
}

/// Bytes as f32.
pub(super) fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// Patterns in the order of the numbers.
fn ordered(x: f32) -> i64 {
    let bits = i64::from(x.to_bits() & 0x7fff_ffff);
    if x.is_sign_negative() { -bits } else { bits }
}

fn offset(function: approximate::Function, inputs: &[f32], found: f32) -> i64 {
    let nearest = function.nearest(inputs);
    let offset = ordered(found) - ordered(nearest);
    let exact = near(function, inputs, offset).to_bits() == found.to_bits();
    if offset.abs() < 1 << 16 && exact { offset } else { FAR + i64::from(found.to_bits()) }
}

/// Undoes [`offset`].
fn near(function: approximate::Function, inputs: &[f32], offset: i64) -> f32 {
    if offset >= FAR {
        return f32::from_bits((offset - FAR) as u32);
    }
    let nearest = function.nearest(inputs);
    let code = ordered(nearest) + offset;
    let sign = if code < 0 || (code == 0 && nearest.is_sign_negative()) { 1 << 31 } else { 0 };
    f32::from_bits(code.unsigned_abs() as u32 | sign)
}

fn slice_length(bytes: usize) -> usize {
    bytes.div_ceil(SLICES).next_multiple_of(8).max(8)
}

fn slices(output: &[u8]) -> String {
    output.chunks(slice_length(output.len())).map(|slice| format!("{:08x}", hash(slice) as u32)).collect()
}

/// A hash that is the same everywhere.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut hash = 0x9e37_79b9_7f4a_7c15 ^ bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let word = chunk.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
        hash = (hash ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^= hash >> 32;
    }
    hash
}

/// A probe's entry of a recording.
pub(super) struct Recorded {
    pub fingerprint: u64,
    /// None if the GPU refused it.
    pub output: Option<Vec<u8>>,
}

/// Half of a probe's fingerprint.
fn short(probe: &Probe) -> String {
    format!("{:08x}", probe.fingerprint() as u32)
}

/// Condenses a recording. Of probes that it does not hold, `before` keeps what it had, where the GPU is the same.
pub(super) fn condense(
    device: String,
    driver: String,
    outputs: &BTreeMap<String, Recorded>,
    before: Option<Golden>,
) -> Result<Golden> {
    let mut before = before.filter(|before| before.device == device && before.driver == driver);
    let (mut probes, mut refused) = (BTreeMap::new(), BTreeSet::new());
    for probe in super::all() {
        let name = probe.name.clone();
        let Some(Recorded { fingerprint, output }) = outputs.get(&name) else {
            let kept = before.as_mut().and_then(|before| before.probes.remove(&name));
            let kept = kept.with_context(|| format!("{name} is not in the recording"))?;
            ensure!(kept.of == short(&probe), "{name}: what is kept is of another version; record it again");
            probes.insert(name, kept);
            continue;
        };
        ensure!(*fingerprint == probe.fingerprint(), "{name}: the recording is of another version; record it again");
        match output {
            Some(output) => {
                ensure!(output.len() == probe.buffers[probe.output].len(), "{name} has another length");
                probes.insert(name, Condensed::new(&probe, output));
            }
            None => {
                refused.insert(name);
            }
        }
    }
    Ok(Golden { device, driver, probes, refused })
}

/// A recording of another version of a probe is not taken for one of this.
pub(super) fn versions_are_checked() -> Result<(), String> {
    let probe = super::all().into_iter().next().ok_or("no probes")?;
    let refusal = |fingerprint, before| {
        let recorded = Recorded { fingerprint, output: Some(vec![0; probe.buffers[probe.output].len()]) };
        let outputs = match before {
            true => BTreeMap::new(),
            false => BTreeMap::from([(probe.name.clone(), recorded)]),
        };
        let kept = Condensed { of: "00000000".into(), output: Output::Slices(String::new()) };
        let probes = BTreeMap::from([(probe.name.clone(), kept)]);
        let before = Golden { device: String::new(), driver: String::new(), probes, refused: BTreeSet::new() };
        condense(String::new(), String::new(), &outputs, Some(before)).err().map(|error| error.to_string())
    };
    let own = format!("{}: ", probe.name);
    // The first probe passes; others are missing from this recording.
    let passes = refusal(probe.fingerprint(), false).is_some_and(|error| !error.starts_with(&own));
    let other = refusal(probe.fingerprint() ^ 1, false).is_some_and(|error| error.starts_with(&own));
    let kept = refusal(0, true).is_some_and(|error| error.starts_with(&own) && error.contains("what is kept"));
    if passes && other && kept { Ok(()) } else { Err(format!("{passes} {other} {kept}")) }
}
