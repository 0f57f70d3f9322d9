//! Criterion benches over the kernels' cases: one id per case, device time by events.
use criterion::{Criterion, Throughput};
use kernels_host::{Device, Event, Stream, case::Case};
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

/// Runs the benches that the arguments (criterion's) select.
pub fn main(_args: Vec<OsString>) -> ExitCode {
    let stream = match Device::cuda(0).and_then(|device| device.stream()) {
        Ok(stream) => stream,
        Err(error) => {
            println!("kernel benches NOT RUN: {error}");
            return ExitCode::SUCCESS;
        }
    };
    let mut criterion = Criterion::default().configure_from_args();
    for kernel in kernels_host::kernels() {
        for case in (kernel.pinned)().into_iter().filter(|case| case.bench()) {
            if let Err(error) = bench(&mut criterion, kernel.name, case.as_ref(), &stream) {
                eprintln!("{} {}: {error}", kernel.name, case.id());
                return ExitCode::FAILURE;
            }
        }
    }
    criterion.final_summary();
    ExitCode::SUCCESS
}

fn bench(criterion: &mut Criterion, kernel: &str, case: &dyn Case, stream: &Stream) -> Result<(), kernels_host::Error> {
    let mut group = criterion.benchmark_group(kernel);
    let work = case.work();
    group.throughput(if work.flops > 0 { Throughput::Elements(work.flops) } else { Throughput::Bytes(work.bytes) });
    let mut failure = None;
    // Enough copies of the data that a round does not fit in the L2 cache (60 MB on an H200).
    let copies = (200_000_000 / work.bytes.max(1)).clamp(1, 64) as usize;
    let mut data = (0..copies).map(|seed| case.prepare(stream, seed as u64)).collect::<Result<Vec<_>, _>>()?;
    group.bench_function(case.id(), |bencher| {
        bencher.iter_custom(|iterations| {
            let mut run = || {
                let start = Event::record(stream)?;
                for i in 0..iterations {
                    data[i as usize % copies].launch(stream)?;
                }
                Event::record(stream)?.elapsed_ms(&start)
            };
            match run() {
                Ok(ms) => Duration::from_secs_f64(f64::from(ms) / 1e3),
                Err(error) => {
                    failure = Some(error);
                    Duration::from_nanos(1)
                }
            }
        })
    });
    group.finish();
    failure.map_or(Ok(()), Err)
}
