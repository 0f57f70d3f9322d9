//! The multi-call executable: integration and kernel tests by default, the `wootz` command line or the
//! benches when called by those names (or with them as the first argument).
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<_> = std::env::args_os().collect();
    let name = |arg: Option<&std::ffi::OsString>| {
        arg.map(std::path::PathBuf::from).and_then(|path| path.file_stem()?.to_str().map(str::to_owned))
    };
    let mut role = name(args.first()).unwrap_or_default();
    if !["wootz-cli", "benches"].contains(&role.as_str())
        && let Some(first @ ("wootz-cli" | "benches")) = args.get(1).and_then(|arg| arg.to_str())
    {
        role = first.to_owned();
        args.remove(1);
    }
    match role.as_str() {
        "benches" => wootz_benches::main(args),
        "wootz-cli" => serve_cli::main(args),
        _ => wootz_tests::main(args),
    }
}
