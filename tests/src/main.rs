//! The multi-call executable: integration and kernel tests by default, the `wootz` command line, the benches, the
//! instruction probes or the comparison with a GPU when called as `wootz-cli`, `benches`, `wootz-probes` or
//! `wootz-differential` (all but the benches also with that as the first argument).
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<_> = std::env::args_os().collect();
    let name = |arg: Option<&std::ffi::OsString>| {
        arg.map(std::path::PathBuf::from).and_then(|path| path.file_stem()?.to_str().map(str::to_owned))
    };
    let mut role = name(args.first()).unwrap_or_default();
    const ROLES: [&str; 3] = ["wootz-cli", "wootz-probes", "wootz-differential"];
    if let Some(first) = ROLES.into_iter().find(|role| args.get(1).is_some_and(|arg| arg == role)) {
        role = first.to_owned();
        args.remove(1);
    }
    if args.get(1).is_some_and(|arg| arg == "kernel-counters") {
        return wootz_tests::counters::main(&args[2..]);
    }
    match role.as_str() {
        "benches" => wootz_benches::main(args),
        "wootz-cli" => serve_cli::main(args),
        "wootz-probes" => wootz_tests::probes::main(args),
        "wootz-differential" => wootz_tests::differential::main(args),
        _ => wootz_tests::main(args),
    }
}
