//! Writes the embedded PTX: `cargo xtask ptx --out DIR` makes `DIR/<target>/<entry>.ptx`.
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: ptx DIR");
        return ExitCode::from(2);
    };
    match write(&dir) {
        Ok(count) => {
            println!("{count} entries in {}", dir.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {}: {error}", dir.display());
            ExitCode::FAILURE
        }
    }
}

fn write(dir: &std::path::Path) -> std::io::Result<usize> {
    let mut count = 0;
    for (target, entry) in kernels_host::ptx::entries() {
        let folder = dir.join(target.to_string());
        std::fs::create_dir_all(&folder)?;
        let text = kernels_host::ptx::find(target, entry).unwrap_or_default();
        std::fs::write(folder.join(format!("{entry}.ptx")), text)?;
        count += 1;
    }
    Ok(count)
}
