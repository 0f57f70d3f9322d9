//! `wootz`: see the library.
fn main() -> std::process::ExitCode {
    serve_cli::main(std::env::args_os().collect())
}
