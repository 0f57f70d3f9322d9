//! Several filters: libtest takes any number, libtest-mimic one.
use libtest_mimic::{Failed, Trial};
use std::ffi::OsString;

/// Options whose value is the next argument.
const WITH_VALUES: [&str; 6] = ["--skip", "--test-threads", "--color", "--format", "--logfile", "-Z"];

/// The filters among `args`, of which the first is the program, and the others.
pub fn split(args: Vec<OsString>) -> (Vec<String>, Vec<OsString>) {
    let mut args = args.into_iter();
    let (mut filters, mut others) = (Vec::new(), Vec::from_iter(args.next()));
    while let Some(arg) = args.next() {
        match arg.into_string() {
            Ok(filter) if !filter.starts_with('-') => filters.push(filter),
            Ok(option) => {
                let value = WITH_VALUES.contains(&option.as_str()).then(|| args.next()).flatten();
                others.push(option.into());
                others.extend(value);
            }
            Err(arg) => others.push(arg),
        }
    }
    (filters, others)
}

/// Filters are told from values of options.
pub fn trial() -> Trial {
    Trial::test("filters", || {
        let args = ["wootz", "norm", "--skip", "cpu", "--exact", "rope", "--color=never", "--test-threads", "2"];
        let (filters, others) = split(args.iter().map(Into::into).collect());
        let rest = ["wootz", "--skip", "cpu", "--exact", "--color=never", "--test-threads", "2"];
        if filters == ["norm", "rope"] && others == rest {
            return Ok(());
        }
        Err(Failed::from(format!("{filters:?}, {others:?}")))
    })
}
