//! The multi-call executable: integration and kernel tests by default, the `wootz` command line or the
//! benches when called as `wootz-cli` or `benches` (the former also with that as the first argument).
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<_> = std::env::args_os().collect();
    let name = |arg: Option<&std::ffi::OsString>| {
        arg.map(std::path::PathBuf::from).and_then(|path| path.file_stem()?.to_str().map(str::to_owned))
    };
    let mut role = name(args.first()).unwrap_or_default();
    if args.get(1).is_some_and(|arg| arg == "wootz-cli") {
        role = "wootz-cli".to_owned();
        args.remove(1);
    }
    if args.get(1).is_some_and(|arg| arg == "kernel-counters") {
        return wootz_tests::counters::main(&args[2..]);
    }
    match role.as_str() {
        "benches" => wootz_benches::main(args),
        "wootz-cli" => serve_cli::main(args),
        _ => wootz_tests::main(args),
    }
}
