//! What the emulator says of itself, held against what we ship.
use kernels_host::{Target, ptx};
use libtest_mimic::{Failed, Trial};
use ptx_emulator::{Device, Grid, Module, Param, instructions};
use std::collections::BTreeSet;

/// The tests.
pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("emulator::the_table_lists_what_we_ship", the_table_lists_what_we_ship),
        Trial::test("emulator::faults_name_rust_lines", faults_name_rust_lines),
    ]
}

/// Every instruction of the shipped modules and of the probes is in the table of known ones, so that nobody has to ask
/// the parser.
fn the_table_lists_what_we_ship() -> Result<(), Failed> {
    let shipped = ptx::entries().into_iter().filter_map(|(target, entry)| ptx::find(target, entry));
    let probes = crate::probes::all();
    let mut unlisted = BTreeSet::new();
    for text in shipped.chain(probes.iter().map(crate::probes::Probe::ptx)) {
        let module = Module::parse(text).map_err(|error| error.to_string())?;
        unlisted.extend(module.opcodes().filter(|opcode| !instructions::lists(opcode)).map(str::to_owned));
    }
    if unlisted.is_empty() {
        return Ok(());
    }
    Err(format!("forms that instructions/families.rs of the emulator does not offer the decoder: {unlisted:?}").into())
}

/// A shipped kernel on no buffers at all: the message ends with the line of Rust, if the modules were built with those.
fn faults_name_rust_lines() -> Result<(), Failed> {
    for target in [Target::Sm90a, Target::Sm80] {
        let entry = "silu_mul_bf16";
        let text = ptx::find(target, entry).ok_or("no such entry")?;
        let module = Module::parse(text).map_err(|error| error.to_string())?;
        let params: Vec<_> = module.parameter_bytes(entry).iter().map(|bytes| param(*bytes)).collect();
        let launched = Device::new(1).launch(&module, entry, Grid::linear(1, 32), &params, 0);
        let Err(fault) = launched else { return Err("nothing was reported".into()) };
        let message = fault.to_string();
        let named = message.contains(", at kernels-gpu/src/prim/memory.rs:");
        let built = text.contains("\n\t.loc\t");
        if built != named || !message.contains("no allocation is near") {
            return Err(format!("with lines: {built}; {message}").into());
        }
    }
    Ok(())
}

/// An address of nothing, or a width.
fn param(bytes: usize) -> Param {
    if bytes == 8 { Param::U64(0x100) } else { Param::U32(64) }
}
