//! `cargo bench`: see the library.
fn main() -> std::process::ExitCode {
    wootz_benches::main(std::env::args_os().collect())
}
