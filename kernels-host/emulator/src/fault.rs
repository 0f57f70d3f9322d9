//! What can be wrong with a module's text and with a launch.

use std::fmt;

use crate::SourceLine;
use crate::source::Chain;

/// Text that is not PTX, or PTX that the emulator does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The text does not follow the grammar.
    #[error("line {line}: {what}")]
    Syntax {
        /// One-based line.
        line: u32,
        /// What was found and what was expected.
        what: String,
    },
    /// An instruction that the emulator does not know.
    #[error("line {line}: unknown instruction `{instruction}`")]
    Unknown {
        /// One-based line.
        line: u32,
        /// The opcode with its modifiers.
        instruction: String,
    },
    /// A known instruction with a form or operands that do not fit it.
    #[error("line {line}: `{instruction}`: {what}")]
    Instruction {
        /// One-based line.
        line: u32,
        /// The opcode with its modifiers.
        instruction: String,
        /// What does not fit.
        what: String,
    },
}

/// Why a launch ended, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What happened.
    pub kind: FaultKind,
    /// The instruction; `None` for faults of the host or of the whole launch.
    pub site: Option<Box<Site>>,
}

/// The instruction and thread of a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The entry that was launched.
    pub entry: String,
    /// Line of the module's text, one-based.
    pub line: u32,
    /// The opcode with its modifiers.
    pub instruction: String,
    /// The line of the source that the module's text names, then those of the calls that were inlined, outwards.
    pub source: Vec<SourceLine>,
    /// `%ctaid`.
    pub block: [u32; 3],
    /// `%tid`; of the first lane of the warp if the whole warp is at fault.
    pub thread: [u32; 3],
}

/// How memory was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// A read-modify-write operation.
    Atomic,
}

/// What the sanitizer finds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// An access outside every allocation or beyond the block's shared memory.
    #[error("{access} of {bytes} bytes at {address:#x} is out of bounds: {place}")]
    OutOfBounds {
        /// How.
        access: Access,
        /// Width.
        bytes: usize,
        /// First byte.
        address: u64,
        /// The allocation nearest to it.
        place: String,
    },
    /// An access whose address is no multiple of its width.
    #[error("{access} of {bytes} bytes at {address:#x} is misaligned")]
    Misaligned {
        /// How.
        access: Access,
        /// Width.
        bytes: usize,
        /// First byte.
        address: u64,
    },
    /// A read of bytes that nothing has written.
    #[error("read of uninitialised memory: {place}")]
    Uninitialised {
        /// The first such byte.
        place: String,
    },
    /// An access to the destination of an asynchronous copy that was not waited for.
    #[error("{access} of {place} while an asynchronous copy to it, of line {line}, is in flight: wait for it first")]
    InFlight {
        /// How.
        access: Access,
        /// The first such byte.
        place: String,
        /// Line of the copy.
        line: u32,
    },
    /// A write to memory that an asynchronous operation still reads.
    #[error("{access} of {place}, which the asynchronous operation of line {line} still reads: wait for it first")]
    InUse {
        /// How.
        access: Access,
        /// The first such byte.
        place: String,
        /// Line of the operation.
        line: u32,
    },
    /// An asynchronous operation on what threads wrote without a proxy fence in between.
    #[error(
        "missing fence.proxy.async: {place} was written by thread {thread} at line {line} through the generic proxy; \
         that thread fences before the barrier that publishes it"
    )]
    Proxy {
        /// The first such word.
        place: String,
        /// The writer's index in its block, and which block if it is another.
        thread: String,
        /// The write's line.
        line: u32,
    },
    /// An mbarrier used in a way that PTX does not define.
    #[error("mbarrier: {what}")]
    Mbarrier {
        /// What is wrong with it.
        what: String,
    },
    /// An asynchronous copy that the hardware would not do.
    #[error("asynchronous copy: {what}")]
    Copy {
        /// What is wrong with it.
        what: String,
    },
    /// A block exits before what it started is done.
    #[error("exit too early: {what}")]
    Exit {
        /// What is still going on.
        what: String,
    },
    /// A write to an operand in shared memory of a matrix instruction that was not waited for.
    #[error("{access} of {place}, an operand of the wgmma at line {line}, before wgmma.wait_group covers that")]
    Operand {
        /// How.
        access: Access,
        /// The first such byte.
        place: String,
        /// The matrix instruction's line.
        line: u32,
    },
    /// A use of a register of a matrix instruction that was not waited for.
    #[error("use of {register}, which the wgmma at line {line} works on, before wgmma.wait_group covers that")]
    TensorRegister {
        /// The register's name.
        register: String,
        /// The matrix instruction's line.
        line: u32,
    },
    /// A matrix instruction on registers that others used, without `wgmma.fence` in between.
    #[error("{register} was used since the last wgmma.fence: a wgmma may not work on it without another")]
    TensorFence {
        /// The register's name.
        register: String,
    },
    /// What the four warps of a warpgroup must do together.
    #[error("warpgroup: {what}")]
    Warpgroup {
        /// What is wrong with it.
        what: String,
    },
    /// Two accesses that no barrier orders, at least one of them a write.
    #[error(
        "data race: {access} of {place}, unordered with the {other} by thread {thread}{} at line {line}{}",
        of_block(block),
        in_source(other_source)
    )]
    Race {
        /// This access.
        access: Access,
        /// The word.
        place: String,
        /// The earlier access.
        other: Access,
        /// Its thread's index in the block.
        thread: u32,
        /// Its block, if it is another than that of this access.
        block: Option<[u32; 3]>,
        /// Its line.
        line: u32,
        /// Its line in the source, and those of the calls that were inlined, outwards.
        other_source: Vec<SourceLine>,
    },
    /// A dependent launch used memory that a launch before it may still be using.
    #[error(
        "predecessor's output used before griddepcontrol.wait: {access} of {place}; the {other} by launch `{launch}` \
         may not be done"
    )]
    Predecessor {
        /// How.
        access: Access,
        /// The first such byte.
        place: String,
        /// How the earlier launch used it.
        other: Access,
        /// The earlier launch's entry.
        launch: String,
    },
    /// Memory read by `ld.global.nc` that does not stay the same while the kernel may run.
    #[error("ld.global.nc of memory that is not constant: {place} has another access by {what}")]
    NotConstant {
        /// The first such byte.
        place: String,
        /// Who else uses it, or made it.
        what: String,
    },
    /// An `.aligned` instruction that some lanes of the warp do not execute.
    #[error(
        "partial warp: an .aligned instruction is executed by lanes {present:#010x} without lanes {missing:#010x}, {why}"
    )]
    PartialWarp {
        /// The lanes that execute it.
        present: u32,
        /// Lanes that do not.
        missing: u32,
        /// Why they do not.
        why: String,
    },
    /// A shuffle from a lane that takes no part in it.
    #[error("shuffle from lane {source_lane}, which takes no part: the member lanes here are {members:#010x}")]
    Shuffle {
        /// The lane that is read.
        source_lane: u32,
        /// The lanes of the member mask that have not exited.
        members: u32,
    },
    /// Lanes of a warp wait for each other at different instructions.
    #[error("divergent warp: {waits}")]
    Divergent {
        /// Which lanes wait where.
        waits: String,
    },
    /// A barrier used in a way that PTX does not define.
    #[error("barrier misuse: {what}")]
    Barrier {
        /// What is wrong with it.
        what: String,
    },
    /// Another block of the cluster was used while it is not certain to be there.
    #[error("cluster: {what}")]
    Cluster {
        /// What is wrong with it.
        what: String,
    },
    /// No warp can go on.
    #[error("deadlock: {waits}")]
    Deadlock {
        /// Who waits where.
        waits: String,
    },
    /// The kernel executed `trap`.
    #[error("trap")]
    Trap,
    /// An instruction that is decoded but not executed yet.
    #[error("`{instruction}` is not executed yet")]
    Unsupported {
        /// The opcode with its modifiers.
        instruction: String,
    },
    /// The launch executed more instructions than the device allows.
    #[error("more than {limit} warp instructions; raise the limit if the kernel is meant to run so long")]
    Limit {
        /// The device's limit.
        limit: u64,
    },
    /// A launch that cannot start.
    #[error("launch: {what}")]
    Launch {
        /// What does not fit.
        what: String,
    },
}

fn of_block(block: &Option<[u32; 3]>) -> String {
    block.map_or(String::new(), |block| format!(" of block {block:?}"))
}

fn in_source(lines: &[SourceLine]) -> String {
    if lines.is_empty() { String::new() } else { format!(" ({})", Chain(lines)) }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Atomic => "atomic operation",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        match &self.site {
            Some(site) => write!(f, "; {site}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entry, line, instruction, source, block, thread } = self;
        write!(f, "{entry}, line {line}: {instruction}, thread {thread:?} of block {block:?}")?;
        if !source.is_empty() {
            write!(f, ", at {}", Chain(source))?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

impl From<FaultKind> for Fault {
    fn from(kind: FaultKind) -> Self {
        Self { kind, site: None }
    }
}
