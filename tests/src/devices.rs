//! The devices that tests run on.
use kernels_host::{Device, Error, Target};
use std::sync::LazyLock;

/// How the emulated devices of tests schedule warps and copies: `SEED`, 1 if it is not set. A failure names it.
static SEED: LazyLock<u64> =
    LazyLock::new(|| std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1));

/// A device with the name that tests carry.
#[derive(Clone)]
pub struct Named {
    /// "cpu", "sm_90a", "sm_80", "emulated-sm_90a" or "emulated-sm_80".
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

/// Kinds of devices.
#[derive(Clone)]
pub enum Kind {
    Cpu,
    Cuda(Device),
    Emulated(Target),
}

impl Named {
    fn cuda(target: Target, device: Device) -> Self {
        Named { name: target.to_string(), kind: Kind::Cuda(device) }
    }

    /// The device; an emulated one is new and this test's own, so that the host's cores run different tests.
    pub fn device(&self) -> Device {
        self.with_seed(*SEED)
    }

    /// As [`Named::device`], an emulated one with that seed.
    pub fn with_seed(&self, seed: u64) -> Device {
        match &self.kind {
            Kind::Cpu => Device::cpu(),
            Kind::Cuda(device) => device.clone(),
            Kind::Emulated(target) => Device::emulated(*target, seed),
        }
    }

    /// Whether it is emulated: slow, and strict.
    pub fn is_emulated(&self) -> bool {
        matches!(self.kind, Kind::Emulated(_))
    }
}

/// The CPU, the emulated GPU once per module, and the GPU once per module that it runs. With `GPU=required` a missing
/// GPU is an error; otherwise its tests are announced as not run.
pub fn available() -> Result<Vec<Named>, String> {
    let mut devices = vec![Named { name: "cpu".into(), kind: Kind::Cpu }];
    for target in [Target::Sm90a, Target::Sm80] {
        devices.push(Named { name: format!("emulated-{target}"), kind: Kind::Emulated(target) });
    }
    match Device::cuda(0) {
        Ok(device) => {
            let best = device.target().unwrap_or(Target::Sm80);
            devices.push(Named::cuda(best, device));
            if best != Target::Sm80 {
                let device = Device::cuda_with_target(0, Some(Target::Sm80)).map_err(|e| e.to_string())?;
                devices.push(Named::cuda(Target::Sm80, device));
            }
        }
        Err(error) if std::env::var("GPU").is_ok_and(|v| v == "required") => {
            return Err(format!("GPU=required, but {error}"));
        }
        Err(Error::NoDriver | Error::NoDevice { .. }) => {
            eprintln!("no GPU: the GPU cases run on the emulator only (GPU=required makes that a failure)")
        }
        Err(error) => return Err(error.to_string()),
    }
    Ok(devices)
}
