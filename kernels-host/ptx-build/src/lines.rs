//! Source lines in the PTX, for who wants them in the emulator's faults.

/// Set to 1, the PTX names source lines. What ships does not: from the same code with `.loc`, ptxas 13.0 allocates
/// registers differently (Hopper prefill attention: 254 became 255, 229 became 228), and its cubins are 3.5 times as large.
pub const SWITCH: &str = "WOOTZ_PTX_LINES";

/// Whether this build names source lines.
pub fn wanted() -> bool {
    std::env::var(SWITCH).is_ok_and(|value| value == "1")
}

/// Takes the paths of this machine out of `.file` directives: those of the library start at `library/`.
pub fn shorten_paths(text: &str) -> String {
    let shorten = |line: &str| {
        let Some((before, path)) = line.split_once('"').filter(|(before, _)| before.trim().starts_with(".file")) else {
            return line.to_owned();
        };
        let path = path.trim_end_matches('"');
        let short = match path.find("/library/") {
            Some(at) => &path[at + 1..],
            None if path.starts_with('/') => path.rsplit('/').next().unwrap_or_default(),
            None => path,
        };
        format!("{before}\"{short}\"")
    };
    text.lines().map(shorten).fold(String::with_capacity(text.len()), |text, line| text + &line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_of_this_machine_stays() {
        let text = "\t.file\t1 \"kernels-gpu/src/norm/row.rs\"\n\t.file\t2 \"/a/rust/library/core/src/ptr.rs\"\n\
                    \t.file\t3 \"/home/x/y.rs\"\nret;\n";
        let short = shorten_paths(text);
        assert_eq!(
            short,
            "\t.file\t1 \"kernels-gpu/src/norm/row.rs\"\n\t.file\t2 \"library/core/src/ptr.rs\"\n\
             \t.file\t3 \"y.rs\"\nret;\n"
        );
    }
}
