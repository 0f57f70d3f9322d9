//! `--device`.
use anyhow::Result;
use kernels_host::{Device, Error, Target};
use std::io::Write;
use std::str::FromStr;

/// What `--device` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU if it works, else the CPU.
    #[default]
    Auto,
    /// A GPU by number, and the module that it runs where that is not the one for it.
    Cuda(usize, Option<Target>),
    /// The CPU.
    Cpu,
    /// A GPU emulated on the CPU, with the module that it runs and the seed that schedules it.
    Emulated(Target, u64),
}

/// What `--device` takes.
const CHOICES: &str =
    "expected auto, cpu, cuda, cuda:N, cuda:N:TARGET, emulated or emulated:TARGET:SEED (TARGET sm_90a or sm_80)";

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0, None)),
            _ => cuda(text).or_else(|| emulated(text)).ok_or_else(|| CHOICES.into()),
        }
    }
}

fn cuda(text: &str) -> Option<DeviceChoice> {
    let mut parts = text.strip_prefix("cuda:")?.split(':');
    let ordinal = parts.next()?.parse().ok()?;
    let target = parts.next().map(target);
    let known = target != Some(None) && parts.next().is_none();
    known.then_some(DeviceChoice::Cuda(ordinal, target.flatten()))
}

fn emulated(text: &str) -> Option<DeviceChoice> {
    let mut parts = text.split(':');
    let (kind, module, seed) = (parts.next()?, parts.next(), parts.next());
    let target = module.map_or(Some(Target::Sm90a), target)?;
    let seed = seed.map_or(Some(0), |seed| seed.parse().ok())?;
    (kind == "emulated" && parts.next().is_none()).then_some(DeviceChoice::Emulated(target, seed))
}

fn target(name: &str) -> Option<Target> {
    [Target::Sm90a, Target::Sm80].into_iter().find(|target| target.to_string() == name)
}

/// Where a model runs.
#[derive(Clone, Debug, clap::Args)]
pub struct DeviceArgs {
    /// Where to run: auto, cuda, cuda:N, cpu or emulated. auto is the first GPU, or the CPU if no GPU works. emulated
    /// executes the GPU's code on the CPU, slowly, and checks its every access (emulated:sm_80 another GPU's code, as does
    /// cuda:0:sm_80 on a GPU; emulated:sm_90a:7 in the order of seed 7)
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Engine")]
    pub device: DeviceChoice,
}

impl DeviceArgs {
    /// Opens the device. Where `auto` passes over a driver that is there, it says why.
    pub fn open(&self) -> Result<Device> {
        match self.device {
            DeviceChoice::Cpu => Ok(Device::cpu()),
            DeviceChoice::Cuda(ordinal, target) => Ok(Device::cuda_with_target(ordinal, target)?),
            DeviceChoice::Emulated(target, seed) => Ok(Device::emulated(target, seed)),
            DeviceChoice::Auto => Ok(Device::cuda(0).unwrap_or_else(|error| {
                if !matches!(error, Error::NoDriver) {
                    let _ = writeln!(std::io::stderr(), "note: running on the CPU: {error}");
                }
                Device::cpu()
            })),
        }
    }
}

/// The device's name with what tells two of a kind apart, such as "CPU (16 threads)".
pub fn describe(device: &Device) -> String {
    if device.is_cpu() {
        return format!("CPU ({} threads)", device.multiprocessors());
    }
    let target = device.emulation().and(device.target()).map_or_else(String::new, |target| format!(" ({target})"));
    format!("{}{target}", device.name())
}

/// Says on stderr, when it is dropped, what an emulated device has executed; of other devices nothing.
pub struct EmulationNote(Device);

impl EmulationNote {
    /// For `device`.
    pub fn new(device: &Device) -> Self {
        EmulationNote(device.clone())
    }
}

impl Drop for EmulationNote {
    fn drop(&mut self) {
        let Some(emulation) = self.0.emulation() else { return };
        let launches: u64 = emulation.launches.values().map(|launches| launches.count).sum();
        let (done, entries) = (emulation.instructions, emulation.launches.len());
        let _ = writeln!(
            std::io::stderr(),
            "emulated: {done} warp instructions in {launches} launches of {entries} kernels"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices() {
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert_eq!("cpu".parse(), Ok(DeviceChoice::Cpu));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0, None)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3, None)));
        assert_eq!("cuda:0:sm_80".parse(), Ok(DeviceChoice::Cuda(0, Some(Target::Sm80))));
        assert_eq!("emulated".parse(), Ok(DeviceChoice::Emulated(Target::Sm90a, 0)));
        assert_eq!("emulated:sm_80".parse(), Ok(DeviceChoice::Emulated(Target::Sm80, 0)));
        assert_eq!("emulated:sm_90a:7".parse(), Ok(DeviceChoice::Emulated(Target::Sm90a, 7)));
        for text in ["emulated:", "emulated:sm_70", "emulated:sm_80:", "emulated:sm_80:1:2", "emulate"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
        for text in
            ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:0:", "cuda:0:sm_70", "cuda:0:sm_80:1", "CUDA", "cpu:0"]
        {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }
}
