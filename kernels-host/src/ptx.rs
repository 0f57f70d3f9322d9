//! The embedded PTX.
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::{LazyLock, OnceLock};

/// What a module is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// Every GPU from compute capability 8.0 on: cp.async, ldmatrix, mma.sync.
    Sm80,
    /// Hopper only: TMA, mbarrier, wgmma.
    Sm90a,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Target::Sm80 => "sm_80",
            Target::Sm90a => "sm_90a",
        })
    }
}

/// The compiler that made the PTX, such as "rustc 1.95.0, LLVM 22.1.2".
pub const COMPILER: &str = include_str!(concat!(env!("OUT_DIR"), "/compiler.txt"));

struct Module {
    target: Target,
    packed: &'static [u8],
    len: usize,
    entries: &'static [(&'static str, Range<usize>)],
    text: OnceLock<String>,
}

impl Module {
    const fn new(
        target: Target,
        packed: &'static [u8],
        entries: &'static [(&'static str, Range<usize>)],
        len: usize,
    ) -> Self {
        Module { target, packed, len, entries, text: OnceLock::new() }
    }

    fn text(&self) -> &str {
        self.text.get_or_init(|| {
            let bytes = zstd::bulk::decompress(self.packed, self.len).expect("the frame that the build step wrote");
            String::from_utf8(bytes).expect("PTX is ASCII")
        })
    }
}

type Index = HashMap<(Target, &'static str), (&'static Module, Range<usize>)>;

static MODULES: LazyLock<Vec<Module>> = LazyLock::new(|| include!(concat!(env!("OUT_DIR"), "/modules.rs")).into());
static INDEX: LazyLock<Index> = LazyLock::new(|| {
    MODULES
        .iter()
        .flat_map(|module| {
            module.entries.iter().map(move |(name, range)| ((module.target, *name), (module, range.clone())))
        })
        .collect()
});

/// The PTX of one entry, complete in itself.
pub fn find(target: Target, entry: &str) -> Option<&'static str> {
    let (module, range) = INDEX.get(&(target, entry))?;
    Some(&module.text()[range.clone()])
}

/// The PTX that a GPU whose newest module is `target` runs, and its target: that module's where it holds the entry,
/// else the baseline's.
pub(crate) fn newest(target: Target, entry: &str) -> Option<(Target, &'static str)> {
    [target, Target::Sm80].into_iter().find_map(|target| Some((target, find(target, entry)?)))
}

/// Whether a GPU whose newest module is `target` can run the entry: from that module or the baseline's.
pub fn runs_on(target: Target, entry: &str) -> bool {
    INDEX.keys().any(|&(built, name)| name == entry && built <= target)
}

/// All embedded entries, sorted.
pub fn entries() -> Vec<(Target, &'static str)> {
    let mut entries: Vec<_> = INDEX.keys().copied().collect();
    entries.sort();
    entries
}
