//! Modules ready to launch: decoded entries and the layout of their variables.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::ParseError;
use crate::asynchronous::Async;
use crate::decode::{Code, Symbol, Symbols, decode};
use crate::instruction::{Instruction, Op, TensorRegisters};
use crate::source::{self, SourceLine};
use crate::syntax::parser::parse;
use crate::syntax::raw::{RawEntry, RawModule, Variable};

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// A parsed and decoded PTX module.
#[derive(Debug)]
pub struct Module {
    /// No other module of the process has it.
    pub(crate) id: u64,
    pub(crate) entries: Vec<Entry>,
    pub(crate) globals: Vec<GlobalVariable>,
}

/// A kernel.
#[derive(Debug)]
pub(crate) struct Entry {
    pub name: String,
    pub instructions: Vec<Instruction>,
    /// The opcodes that [`Instruction::kind`] indexes.
    pub kinds: Vec<String>,
    /// What [`Instruction::source`] indexes: a line, and the calls that it was inlined through.
    pub sources: Vec<Vec<SourceLine>>,
    pub tensor_registers: TensorRegisters,
    pub params: Vec<ParamSlot>,
    /// Registers per file: predicates, 32-bit, 64-bit.
    pub registers: [u32; 3],
    /// Bytes of the module's `.shared` variables of known size.
    pub static_shared: usize,
    /// Some instruction initialises an mbarrier.
    pub has_mbarriers: bool,
    /// Threads per block at most, from `.maxntid`.
    pub max_threads: Option<u32>,
    /// Registers per thread at most, from `.maxnreg`.
    pub max_registers: Option<u32>,
    /// Blocks per multiprocessor at least, from `.minnctapersm`.
    pub min_blocks: Option<u32>,
    /// Blocks of a cluster, from `.reqnctapercluster`.
    pub cluster: Option<[u32; 3]>,
    /// Blocks of a cluster at most, from `.maxclusterrank`.
    pub max_cluster: Option<u32>,
}

/// Where a parameter lies in the launch's parameters.
#[derive(Debug)]
pub(crate) struct ParamSlot {
    pub offset: usize,
    pub bytes: usize,
}

/// A `.global` or `.const` variable.
#[derive(Debug)]
pub(crate) struct GlobalVariable {
    pub name: String,
    pub bytes: usize,
    pub init: Vec<u8>,
}

impl Module {
    /// Parses and decodes PTX text.
    ///
    /// # Errors
    /// The first thing that is not PTX or that the emulator does not know, with its line.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let raw = parse(text)?;
        let mut symbols = Symbols::default();
        let (static_shared, globals) = place_variables(&raw, &mut symbols);
        let mut entries = Vec::with_capacity(raw.entries.len());
        for entry in &raw.entries {
            let sources = source::resolve(&raw.files, &entry.sources);
            entries.push(Entry { sources, ..Entry::new(entry, &mut symbols, static_shared)? });
        }
        Ok(Self { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), entries, globals })
    }

    /// Names of the entries, in the order of the text.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.name.as_str())
    }

    /// The opcodes of all entries with their modifiers, as in the text: `ld.global.v4.b32`.
    pub fn opcodes(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().flat_map(|entry| &entry.kinds).map(String::as_str)
    }

    /// Bytes of each parameter of entry `name`, in the order of its declaration; none if there is no such entry.
    pub fn parameter_bytes(&self, name: &str) -> Vec<usize> {
        self.entry(name).into_iter().flat_map(|entry| &entry.params).map(|param| param.bytes).collect()
    }

    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }
}

/// Lays out shared variables, those of unknown size behind all others, and lists the global ones.
fn place_variables<'a>(raw: &RawModule<'a>, symbols: &mut Symbols<'a>) -> (usize, Vec<GlobalVariable>) {
    let mut shared = 0_usize;
    let mut globals = Vec::new();
    for variable in &raw.variables {
        if variable.space != ".shared" {
            symbols.names.insert(variable.name, Symbol::Global(globals.len() as u32));
            globals.push(GlobalVariable {
                name: variable.name.to_owned(),
                bytes: variable.bytes,
                init: variable.init.clone(),
            });
        } else if variable.bytes > 0 {
            shared = shared.next_multiple_of(variable.align);
            symbols.names.insert(variable.name, Symbol::Shared(shared as u32));
            shared += variable.bytes;
        }
    }
    let unsized_ones = || raw.variables.iter().filter(|v| v.space == ".shared" && v.bytes == 0);
    // All of them start at the same place: the dynamic shared memory of the launch.
    let align = unsized_ones().map(|variable| variable.align).max().unwrap_or(1);
    let end = shared.next_multiple_of(align);
    for variable in unsized_ones() {
        symbols.names.insert(variable.name, Symbol::Shared(end as u32));
    }
    (end, globals)
}

impl Entry {
    fn new<'a>(raw: &RawEntry<'a>, symbols: &mut Symbols<'a>, static_shared: usize) -> Result<Self, ParseError> {
        let params = place_params(&raw.params, symbols);
        let Code { instructions, kinds, tensor_registers } = decode(raw, symbols)?;
        let directive = |wanted: &str| raw.directives.iter().find(|(name, _)| *name == wanted).map(|(_, n)| n);
        let number = |wanted: &str| directive(wanted).and_then(|numbers| numbers.first().copied());
        let axes = |numbers: &Vec<u32>| std::array::from_fn(|axis| numbers.get(axis).copied().unwrap_or(1).max(1));
        let is_init = |instruction: &Instruction| match &instruction.op {
            Op::Async(op) => matches!(**op, Async::Init { .. }),
            _ => false,
        };
        Ok(Self {
            has_mbarriers: instructions.iter().any(is_init),
            name: raw.name.to_owned(),
            instructions,
            kinds,
            tensor_registers,
            params,
            registers: raw.registers,
            sources: Vec::new(),
            static_shared,
            max_threads: directive(".maxntid").or(directive(".reqntid")).map(|numbers| numbers.iter().product()),
            max_registers: number(".maxnreg"),
            min_blocks: number(".minnctapersm"),
            cluster: directive(".reqnctapercluster").map(axes),
            max_cluster: number(".maxclusterrank"),
        })
    }
}

fn place_params<'a>(params: &[Variable<'a>], symbols: &mut Symbols<'a>) -> Vec<ParamSlot> {
    let mut end = 0_usize;
    params
        .iter()
        .map(|param| {
            let offset = end.next_multiple_of(param.align);
            end = offset + param.bytes;
            symbols.names.insert(param.name, Symbol::Param(offset as u32));
            ParamSlot { offset, bytes: param.bytes }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

    #[test]
    fn unknown_instructions_are_named_with_their_line() {
        let text = format!("{HEAD}.visible .entry k() {{\n\tfrobnicate.b32 %r1;\n}}");
        let message = Module::parse(&text).unwrap_err().to_string();
        assert_eq!(message, "line 5: unknown instruction `frobnicate.b32`");
    }

    #[test]
    fn half_understood_instructions_are_errors() {
        let entry = |body: &str| format!("{HEAD}.entry k() {{ .reg .b32 %r<3>; .reg .b64 %rd<2>; {body} ret; }}");
        for (body, part) in [
            ("add.cc.u32 %r1, %r2, 1;", "modifier `.cc`"),
            ("add.u32 %r1, %r2, 1, 2;", "too many"),
            ("add.u32 %r1, %r2;", "operand 3 is missing"),
            ("add.u64 %rd1, %r2, 1;", "has 32 bits"),
            ("mov.b32 %r9, 0;", "`%r9` is not a register"),
            ("bra nowhere;", "label `nowhere`"),
        ] {
            let message = Module::parse(&entry(body)).unwrap_err().to_string();
            assert!(message.contains(part), "{body}: {message}");
        }
    }

    #[test]
    fn scopes_hide_registers_and_labels() {
        let body = "{ .reg .pred p; again: setp.eq.s32 p, %r1, 0; @p bra again; }
                    { .reg .pred p; again: setp.eq.s32 p, %r1, 1; @p bra again; }";
        let text = format!("{HEAD}.entry k() {{ .reg .b32 %r<3>; {body} ret; }}");
        let module = Module::parse(&text).unwrap();
        let entry = module.entry("k").unwrap();
        assert_eq!(entry.registers, [2, 3, 0]);
        assert_eq!(entry.instructions.len(), 5);
        let outside = format!("{HEAD}.entry k() {{ {{ .reg .pred p; }} @p ret; }}");
        assert!(Module::parse(&outside).is_err());
    }

    #[test]
    fn parameters_and_shared_variables_are_laid_out_by_alignment() {
        let text = format!(
            "{HEAD}.extern .shared .align 1024 .b8 dynamic[];
            .shared .align 4 .b8 fixed[20];
            .entry k(.param .u32 a, .param .align 64 .b8 map[128], .param .u64 .ptr .align 1 p) {{ ret; }}"
        );
        let module = Module::parse(&text).unwrap();
        let entry = module.entry("k").unwrap();
        let offsets: Vec<_> = entry.params.iter().map(|slot| slot.offset).collect();
        assert_eq!(offsets, [0, 64, 192]);
        assert_eq!(entry.static_shared, 1024);
    }
}
