//! Source lines of instructions, from `.file` and `.loc`.

use std::collections::HashMap;
use std::fmt;

use crate::syntax::raw::{Loc, Place};

/// Calls that a source line's chain names at most.
const DEEPEST: usize = 8;

/// A line of a source file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLine {
    /// The file's path as the compiler wrote it.
    pub file: String,
    /// One-based line.
    pub line: u32,
}

impl fmt::Display for SourceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// "prim/memory.rs:12, from norm/row.rs:120", or nothing.
pub(crate) struct Chain<'s>(pub &'s [SourceLine]);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, line) in self.0.iter().enumerate() {
            write!(f, "{}{line}", if depth == 0 { "" } else { ", from " })?;
        }
        Ok(())
    }
}

/// The lines that each of `locs` means: of the instruction, then of the calls that were inlined, outwards.
pub(crate) fn resolve(files: &HashMap<u32, &str>, locs: &[Loc]) -> Vec<Vec<SourceLine>> {
    // The place of an inlined call may itself have been inlined: its own `.loc` says where.
    let callers: HashMap<Place, Place> =
        locs.iter().filter_map(|loc| loc.inlined_at.map(|caller| (loc.at, caller))).collect();
    let chain = |loc: &Loc| {
        let mut found = Vec::new();
        let mut next = Some(loc.at);
        let mut caller = loc.inlined_at;
        while let (Some((file, line, _)), true) = (next, found.len() < DEEPEST) {
            // Line 0 is code that no line stands for.
            if let (Some(file), true) = (files.get(&file), line > 0) {
                found.push(SourceLine { file: (*file).to_owned(), line });
            }
            next = caller;
            caller = next.and_then(|place| callers.get(&place)).copied();
        }
        found
    };
    locs.iter().map(chain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_followed_outwards() {
        let files = HashMap::from([(1, "row.rs"), (2, "memory.rs")]);
        let locs = [
            Loc { at: (1, 120, 9), inlined_at: None },
            Loc { at: (2, 30, 5), inlined_at: Some((1, 120, 9)) },
            Loc { at: (2, 12, 5), inlined_at: Some((2, 30, 5)) },
            Loc { at: (2, 0, 0), inlined_at: Some((1, 121, 9)) },
        ];
        let found = resolve(&files, &locs);
        let text: Vec<_> = found.iter().map(|lines| Chain(lines).to_string()).collect();
        assert_eq!(text[0], "row.rs:120");
        assert_eq!(text[2], "memory.rs:12, from memory.rs:30, from row.rs:120");
        assert_eq!(text[3], "row.rs:121");
    }
}
