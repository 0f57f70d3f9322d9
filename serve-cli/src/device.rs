//! `--device`.
use anyhow::Result;
use kernels_host::{Device, Error};
use std::io::Write;
use std::str::FromStr;

/// What `--device` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU if it works, else the CPU.
    #[default]
    Auto,
    /// A GPU by number.
    Cuda(usize),
    /// The CPU.
    Cpu,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(ordinal)) => Ok(DeviceChoice::Cuda(ordinal)),
                _ => Err("expected auto, cpu, cuda or cuda:N".into()),
            },
        }
    }
}

/// Where a model runs.
#[derive(Clone, Debug, clap::Args)]
pub struct DeviceArgs {
    /// Where to run: auto, cuda, cuda:N or cpu. auto is the first GPU, or the CPU if no GPU works.
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Engine")]
    pub device: DeviceChoice,
}

impl DeviceArgs {
    /// Opens the device. Where `auto` passes over a driver that is there, it says why.
    pub fn open(&self) -> Result<Device> {
        match self.device {
            DeviceChoice::Cpu => Ok(Device::cpu()),
            DeviceChoice::Cuda(ordinal) => Ok(Device::cuda(ordinal)?),
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
    if device.is_cpu() { format!("CPU ({} threads)", device.multiprocessors()) } else { device.name().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices() {
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert_eq!("cpu".parse(), Ok(DeviceChoice::Cpu));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA", "cpu:0"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }
}
