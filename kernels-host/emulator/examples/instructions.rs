//! Rewrites `INSTRUCTIONS.md`: what the decoder accepts.

fn main() -> std::io::Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/INSTRUCTIONS.md");
    std::fs::write(path, ptx_emulator::instructions::table())
}
