//! Warp instructions per second of a shipped kernel: `cargo run -p ptx-emulator --example throughput`.

use std::error::Error;
use std::time::Instant;

use ptx_emulator::{Device, Grid, Module, Param};

fn main() -> Result<(), Box<dyn Error>> {
    let (tokens, width) = (2048_u32, 2048_u32);
    let module = Module::parse(include_str!("../tests/fixtures/rms_norm_bf16.ptx"))?;
    let mut device = Device::new(1);
    let mut filled = |name: &str, elements: u32| -> Result<u64, Box<dyn Error>> {
        let address = device.alloc(name, elements as usize * 2);
        device.write(address, &[0x80, 0x3f].repeat(elements as usize))?;
        Ok(address)
    };
    let (x, weight) = (filled("x", tokens * width)?, filled("weight", width)?);
    let out = filled("out", tokens * width)?;
    let [x, weight, out] = [x, weight, out].map(Param::U64);
    let [w, x_stride, residual_stride, out_stride] = [width; 4].map(Param::U32);
    let params = [x, Param::U64(0), weight, out, w, x_stride, residual_stride, out_stride, Param::F32(1e-5)];
    let start = Instant::now();
    let report = device.launch(&module, "rms_norm_bf16", Grid::linear(tokens, 256), &params, 256)?;
    let seconds = start.elapsed().as_secs_f64();
    let millions = report.total() as f64 / 1e6;
    println!("{millions:.1} million warp instructions in {seconds:.2} s: {:.1} million/s", millions / seconds);
    Ok(())
}
