//! Parses every PTX file of a directory: `PTX_DIR=… cargo run -p ptx-emulator --example parse`.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use ptx_emulator::Module;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(env::var("PTX_DIR").map_err(|_| "set PTX_DIR to a directory")?);
    for entry in fs::read_dir(&directory)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "ptx") {
            continue;
        }
        let module =
            Module::parse(&fs::read_to_string(&path)?).map_err(|error| format!("{}: {error}", path.display()))?;
        println!("{}: {} entries", path.display(), module.entries().count());
    }
    Ok(())
}
