//! Executes PTX on the CPU, warp by warp, with the checks of a sanitizer.
//!
//! What runs is the text that the compiler emits, so what is tested is what ships: the
//! compiler's own mistakes show as well. A launch is single-threaded and deterministic from the
//! device's seed, which picks the order of warps and the moments at which asynchronous copies
//! land; another seed explores another interleaving.
//!
//! ```
//! use ptx_emulator::{Device, Grid, Module, Param};
//!
//! let module = Module::parse(
//!     ".version 8.0 .target sm_80 .address_size 64
//!     .visible .entry double(.param .u64 p, .param .u32 n) {
//!         .reg .pred %p<2>; .reg .b32 %r<4>; .reg .b64 %rd<3>;
//!         ld.param.b64 %rd1, [p];
//!         ld.param.b32 %r1, [n];
//!         mov.u32 %r2, %tid.x;
//!         setp.ge.u32 %p1, %r2, %r1;
//!         @%p1 ret;
//!         mad.wide.u32 %rd2, %r2, 4, %rd1;
//!         ld.global.b32 %r3, [%rd2];
//!         shl.b32 %r3, %r3, 1;
//!         st.global.b32 [%rd2], %r3;
//!         ret;
//!     }",
//! )?;
//! let mut device = Device::new(7);
//! let numbers = device.alloc("numbers", 12);
//! device.write(numbers, bytes_of(&[1, 2, 3]))?;
//! let params = [Param::U64(numbers), Param::U32(3)];
//! let report = device.launch(&module, "double", Grid::linear(1, 32), &params, 0)?;
//! assert_eq!(device.read(numbers, 12)?, bytes_of(&[2, 4, 6]));
//! assert_eq!(report.instructions["shl.b32"], 1); // one warp, three of its lanes
//! # fn bytes_of(numbers: &[u32]) -> &'static [u8] {
//! #     numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>().leak()
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is checked
//! Bounds and alignment of every access; reads of memory that nothing has written, byte by byte; data races in
//! shared memory by happens-before, lanes of one warp included; `cp.async` destinations touched before their wait;
//! `.aligned` instructions, shuffles and votes whose lanes are not all there; misuse of named barriers and of a
//! cluster's; shared memory of a block of the cluster that may not be there yet, or any longer; deadlock, with who waits where, also of
//! threads that poll: once all that run are in states that they have been in before, and nothing changed in between, they
//! go round for ever.
//!
//! Data races in global memory, across blocks and clusters too, as the PTX memory model has it: what orders are barriers,
//! and releases that acquires have seen, fences with strong accesses among them, if their scopes hold the other thread.
//! Outputs of the launch before a dependent one that are used before `griddepcontrol.wait`, and memory read by
//! `ld.global.nc` that is not constant.
//!
//! Asynchronous copies are actors of their own, whose data land in parts at moments that the seed draws, and are checked
//! whenever they land: results read, or destinations written, before the copy was waited for; sources written before
//! they were read; buffers filled anew before their readers have said that they are done; stores that the async proxy
//! reads without `fence.proxy.async`; mbarriers initialised twice, used as plain memory, before their initialisation
//! is published or with counts that cannot come true; exits with copies that nobody waited for.
//!
//! Products of `wgmma` are computed at their issue, and watched until `wgmma.wait_group` covers them: use of their registers,
//! writes to their operands in shared memory; registers used since the last `wgmma.fence`; warps of a warpgroup that do
//! not execute the same instructions on the same descriptors; `setmaxnreg` that can never be satisfied.
//!
//! A [`Fault`] names the allocation, the thread, the instruction, its line and, if the text has `.loc`, its source line.
//!
//! # What is counted
//! Warp instructions by opcode, and in [`Counters`] sectors of global memory, wavefronts and conflicts of shared memory,
//! and operations of the tensor cores.
//!
//! # Limits
//! `INSTRUCTIONS.md` lists the instructions that are known, made from the decoder; [`instructions::lists`] answers for one.
//! Functions (`.func`), local memory and textures are not.
//!
//! What is more lenient than hardware:
//! - Every access takes effect at once, so a missing fence shows as a race and not as a stale value.
//! - Of the reads of a sector of global memory the latest of two clusters are kept: a write that races with none but
//!   others is missed under that seed.
//! - A register holds zero until it is written. Reads of registers that nothing wrote are not reported.
//! - Unless [`Device::set_resident_blocks`] says otherwise, as many blocks are resident as an H200's threads, shared memory
//!   and the entry's `.minnctapersm` allow. How many registers the assembler gives a thread is not known: blocks that wait
//!   for each other may fit here and hang on a GPU that holds fewer.
//! - A seed is one order of warps, copies and blocks. It replays that order with the same text and inputs only, and a
//!   fault that it does not show may show under another.
//! - `mbarrier.try_wait` sleeps until a phase ends, or nobody else can run: its time limit is not a time.
//!
//! What is stricter:
//! - Loads and stores of shared memory count as plain ones whatever order they name: a flag there that is no mbarrier and no
//!   atomic operation is reported as a race.
//! - The lanes of a warp at the smallest position go first. Lanes that poll `test_wait`, a strong load or an atomic operation
//!   let the others go first; those that poll in another way for a lane of their own warp are reported as a deadlock.
//! - A loop that changes a register each time, such as one that counts its polls or looks at the clock, is not known for
//!   endless before 2^28 instructions without a change to memory.
//!
//! What it costs: a launch is single-threaded, at some ten million warp instructions a second. Shared memory takes 15 bytes
//! of the host's for each of its own, and 5 for each warp that reads it, for all blocks that have started: where thousands
//! are resident at once, their number times that. Global memory takes up to 3.4 bytes for each that is touched.

#![forbid(unsafe_code)]

mod asynchronous;
mod counters;
mod decode;
mod device;
mod exec;
mod fault;
pub mod formats;
mod instruction;
pub mod instructions;
mod memory;
mod module;
mod residency;
mod source;
mod syntax;
pub mod tensor;

pub use counters::{Banks, Counters, Traffic};
pub use device::{Device, Grid, LaunchOptions, Param, Report};
pub use fault::{Access, Fault, FaultKind, ParseError, Site};
pub use module::Module;
pub use source::SourceLine;
