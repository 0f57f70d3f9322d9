//! Programmatic dependent launches: what a launch may use before it has waited for those before it.

use ptx_emulator::{Access, Device, Fault, FaultKind, Grid, LaunchOptions, Param};

use crate::{module, words};

/// A stream of launches of one block each, with two allocations.
struct Stream {
    device: Device,
    params: [Param; 2],
}

impl Stream {
    fn new(seed: u64) -> Self {
        let mut device = Device::new(seed);
        let (out, data) = (device.alloc("out", 1024), device.alloc("in", 1024));
        for address in [out, data] {
            device.write(address, &words(&[0; 256])).unwrap();
        }
        Self { device, params: [Param::U64(out), Param::U64(data)] }
    }

    fn launch(&mut self, dependent: bool, body: &str) -> Result<(), Fault> {
        let options = LaunchOptions { shared_bytes: 512, dependent, ..LaunchOptions::default() };
        let grid = Grid::linear(1, 64);
        self.device.launch_with(&module(body), "k", grid, &self.params, &options).map(|_| ())
    }
}

const PRODUCE: &str = "st.global.b32 [%rd1], %r1;";
const CONSUME: &str = "ld.global.b32 %r2, [%rd1]; st.global.b32 [%rd2], %r2;";
const WAIT: &str = "griddepcontrol.wait;";

/// Launches all but the last, which must be clean, and returns what the last one does.
fn chain(seed: u64, launches: &[&str]) -> Result<(), Fault> {
    let mut stream = Stream::new(seed);
    let (last, first) = launches.split_last().unwrap();
    for (number, body) in first.iter().enumerate() {
        stream.launch(number > 0, body).unwrap_or_else(|fault| panic!("launch {number}: {fault}"));
    }
    stream.launch(true, last)
}

fn clean(launches: &[&str]) {
    for seed in 0..20 {
        chain(seed, launches).unwrap_or_else(|fault| panic!("seed {seed}: {fault}\n{launches:?}"));
    }
}

fn early(launches: &[&str]) -> Fault {
    let faults = (0..20).map(|seed| match chain(seed, launches) {
        Err(fault) if matches!(fault.kind, FaultKind::Predecessor { .. }) => fault,
        Err(fault) => panic!("seed {seed}: {fault}\n{launches:?}"),
        Ok(()) => panic!("seed {seed}: nothing was found in {launches:?}"),
    });
    faults.collect::<Vec<_>>().swap_remove(0)
}

#[test]
fn outputs_of_the_predecessor_must_be_waited_for() {
    clean(&[PRODUCE, &format!("{WAIT} {CONSUME}")]);
    let fault = early(&[PRODUCE, &format!("\n{CONSUME} {WAIT}")]);
    let message = fault.to_string();
    assert!(message.starts_with("predecessor's output used before griddepcontrol.wait: read of byte "), "{message}");
    assert!(
        message.contains("of `out`; the write by launch `k` may not be done; k, line 10: ld.global.b32"),
        "{message}"
    );
    // A launch that is not dependent begins when all before it are finished.
    let mut stream = Stream::new(0);
    stream.launch(false, PRODUCE).unwrap();
    stream.launch(false, CONSUME).unwrap();
    // So does one after the host has waited.
    stream.launch(false, PRODUCE).unwrap();
    stream.device.synchronize();
    stream.launch(true, CONSUME).unwrap();
}

#[test]
fn what_the_predecessor_uses_must_not_be_overwritten() {
    for (before, access) in [(CONSUME, Access::Read), (PRODUCE, Access::Write)] {
        let fault = early(&[before, PRODUCE]);
        assert!(matches!(fault.kind, FaultKind::Predecessor { access: Access::Write, other, .. } if other == access));
        clean(&[before, &format!("{WAIT} {PRODUCE}")]);
    }
    // What it only reads may be read at once, and what it does not touch may be written.
    clean(&[CONSUME, "ld.global.b32 %r2, [%rd1]; st.global.b32 [%rd1+256], %r2;"]);
}

#[test]
fn one_thread_waits_for_those_that_it_is_ordered_before() {
    let waits = |order: &str| {
        format!(
            "setp.ne.u32 %p1, %r1, 0; @%p1 bra joined; {WAIT} joined: {order} ld.global.b32 %r2, [%rd1]; st.global.b32 [%rd2], %r2;"
        )
    };
    clean(&[PRODUCE, &waits("bar.sync 0;")]);
    early(&[PRODUCE, &waits("")]);
    early(&[PRODUCE, &waits("bar.warp.sync -1;")]);
}

#[test]
fn a_wait_reaches_the_launches_that_its_predecessor_waited_for() {
    let use_both = format!("{WAIT} {CONSUME}");
    let idle = "st.global.b32 [%rd1+512], %r1;";
    let patient = format!("{WAIT} {idle}");
    clean(&[PRODUCE, &patient, &use_both]);
    // The launch in between did not wait, so nothing says that the first is finished.
    early(&[PRODUCE, idle, &use_both]);
    early(&[PRODUCE, "", &patient, &use_both]);
    let read_idle = format!("{WAIT} ld.global.b32 %r2, [%rd1+768];");
    clean(&[PRODUCE, &patient, "st.global.b32 [%rd1+768], %r1;", &read_idle]);
}

#[test]
fn outputs_of_the_predecessor_are_not_constant() {
    let body = format!("{WAIT} ld.global.nc.b32 %r2, [%rd1]; st.global.b32 [%rd2], %r2;");
    let fault = chain(0, &[PRODUCE, &body]).unwrap_err();
    assert!(matches!(&fault.kind, FaultKind::NotConstant { what, .. } if what.contains("launch `k`")), "{fault}");
    let weights = format!("ld.global.nc.b32 %r2, [%rd1+512]; {WAIT} st.global.b32 [%rd2], %r2;");
    clean(&[PRODUCE, &weights]);
}
