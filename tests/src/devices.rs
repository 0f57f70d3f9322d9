//! The devices that this machine has.
use kernels_host::{Device, Error, Target};

/// A device with the name that tests carry.
#[derive(Clone)]
pub struct Named {
    /// "cpu", "sm_90a" or "sm_80".
    pub name: String,
    /// The device.
    pub device: Device,
}

/// The CPU, and the GPU once per module that it runs. With `GPU=required` a missing GPU is an
/// error; otherwise its tests are announced as not run.
pub fn available() -> Result<Vec<Named>, String> {
    let mut devices = vec![Named { name: "cpu".into(), device: Device::cpu() }];
    match Device::cuda(0) {
        Ok(device) => {
            let best = device.target().unwrap_or(Target::Sm80);
            devices.push(Named { name: best.to_string(), device });
            if best != Target::Sm80 {
                let device = Device::cuda_with_target(0, Some(Target::Sm80)).map_err(|e| e.to_string())?;
                devices.push(Named { name: Target::Sm80.to_string(), device });
            }
        }
        Err(error) if std::env::var("GPU").is_ok_and(|v| v == "required") => {
            return Err(format!("GPU=required, but {error}"));
        }
        Err(Error::NoDriver | Error::NoDevice { .. }) => {
            eprintln!("no GPU: the GPU cases are NOT RUN (GPU=required makes that a failure)")
        }
        Err(error) => return Err(error.to_string()),
    }
    Ok(devices)
}
