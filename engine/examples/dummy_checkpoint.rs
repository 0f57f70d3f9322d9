//! Writes a checkpoint with random weights: `dummy_checkpoint CONFIG DIR [SEED] [SHARD_MB]`.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(config), Some(dir)) = (args.first(), args.get(1)) else {
        eprintln!("usage: dummy_checkpoint CONFIG DIR [SEED] [SHARD_MB]");
        return ExitCode::from(2);
    };
    let number = |i: usize, default: u64| args.get(i).map_or(Ok(default), |text| text.parse());
    let (Ok(seed), Ok(shard_mb)) = (number(2, 0), number(3, 5000)) else {
        eprintln!("SEED and SHARD_MB must be whole numbers");
        return ExitCode::from(2);
    };
    let written = std::fs::read(config)
        .map_err(|e| format!("cannot read {config}: {e}"))
        .and_then(|json| {
            engine::dummy::write_dummy(
                &json,
                Path::new(dir),
                shard_mb.saturating_mul(1_000_000),
                seed,
            )
            .map_err(|e| e.to_string())
        });
    match written {
        Ok(s) => {
            println!(
                "{dir}: {} parameters, {} bytes in {} file(s)",
                s.parameters, s.bytes, s.shards
            );
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
