//! The emulator from outside: instructions, faults, and entries that Wootz ships.

mod asynchronous;
mod clusters;
mod counters;
mod dependent;
mod faults;
mod instructions;
mod partial;
mod races;
mod shipped;
mod warpgroups;

use ptx_emulator::{Device, Fault, Grid, Module, Param};

/// A module with one entry `k(out, in)`, whose `%rd1` and `%rd2` are the two pointers, offset by
/// four bytes times `%tid.x` (`%r1`).
pub(crate) fn module(body: &str) -> Module {
    let text = format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.extern .shared .align 1024 .b8 smem[];
.visible .entry k(.param .u64 out, .param .u64 in) {{
.reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<29>; .reg .b64 %rd<29>;
ld.param.b64 %rd1, [out]; ld.param.b64 %rd2, [in]; mov.u32 %r1, %tid.x;
mul.wide.u32 %rd3, %r1, 4; add.s64 %rd1, %rd1, %rd3; add.s64 %rd2, %rd2, %rd3;
{body}\nret;\n}}"
    );
    Module::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

pub(crate) fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

pub(crate) fn numbers(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Runs `body` on one block with `input` and 4 KiB of shared memory; `out` has a word per thread.
pub(crate) fn run(seed: u64, body: &str, threads: u32, input: &[u32]) -> Result<Vec<u32>, Fault> {
    let mut device = Device::new(seed);
    device.set_instruction_limit(1 << 20);
    let out = device.alloc("out", threads as usize * 4);
    let data = device.alloc("in", input.len() * 4);
    device.write(out, &vec![0; threads as usize * 4])?;
    device.write(data, &words(input))?;
    let params = [Param::U64(out), Param::U64(data)];
    device.launch(&module(body), "k", Grid::linear(1, threads), &params, 4096)?;
    Ok(numbers(&device.read(out, threads as usize * 4)?))
}
