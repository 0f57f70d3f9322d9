//! Modules, entries and statements as written.

use std::collections::HashMap;

use crate::instruction::Reg;

/// A module as written.
#[derive(Debug, Default)]
pub(crate) struct RawModule<'a> {
    pub target: &'a str,
    pub variables: Vec<Variable<'a>>,
    /// Source files by the numbers that `.file` gives them.
    pub files: HashMap<u32, &'a str>,
    pub entries: Vec<RawEntry<'a>>,
}

/// A variable of the module or of an entry, or an entry's parameter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Variable<'a> {
    pub space: &'a str,
    pub name: &'a str,
    pub align: usize,
    /// Zero for `name[]`, whose size the launch gives.
    pub bytes: usize,
    /// Little-endian initial contents; empty if there is no initialiser.
    pub init: Vec<u8>,
    pub line: u32,
}

/// An entry as written.
#[derive(Debug)]
pub(crate) struct RawEntry<'a> {
    pub name: &'a str,
    pub params: Vec<Variable<'a>>,
    /// `.maxntid`, `.minnctapersm`, … with their numbers.
    pub directives: Vec<(&'a str, Vec<u32>)>,
    pub statements: Vec<Statement<'a>>,
    pub scopes: Vec<Scope<'a>>,
    /// Source lines, in the order of the text.
    pub sources: Vec<Loc>,
    /// Registers per file: predicates, 32-bit, 64-bit.
    pub registers: [u32; 3],
}

/// `{ … }`: its registers and labels are seen inside only.
#[derive(Debug, Default)]
pub(crate) struct Scope<'a> {
    pub parent: usize,
    pub registers: HashMap<&'a str, Reg>,
    /// `%r<16>`: the stem, the number of registers, and the first of them.
    pub ranges: Vec<(&'a str, u32, Reg)>,
    pub labels: HashMap<&'a str, u32>,
}

/// An instruction as written.
#[derive(Debug)]
pub(crate) struct Statement<'a> {
    pub opcode: &'a str,
    /// `@p` or `@!p`: the name, and whether it is negated.
    pub guard: Option<(&'a str, bool)>,
    pub operands: Vec<RawOperand<'a>>,
    pub scope: usize,
    pub line: u32,
    /// Index among the entry's source lines.
    pub source: Option<u32>,
}

/// `.loc`: a place in a source file, and where its function was inlined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loc {
    pub at: Place,
    pub inlined_at: Option<Place>,
}

/// File number, line and column.
pub(crate) type Place = (u32, u32, u32);

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RawOperand<'a> {
    Word(&'a str),
    /// `!p`.
    Not(&'a str),
    /// Bits of an integer, sign-extended.
    Integer(i64),
    /// `0fXXXXXXXX`.
    Float(u32),
    /// `0dXXXXXXXXXXXXXXXX` or a decimal literal.
    Double(u64),
    Vector(Vec<RawOperand<'a>>),
    /// `p|q`.
    Pair(&'a str, &'a str),
    /// `[base+offset]`, or `[base, {coordinates}]` of a tensor copy.
    Address(Box<RawOperand<'a>>, i64, Vec<RawOperand<'a>>),
}

impl<'a> RawEntry<'a> {
    /// The register that `name` means in `scope`.
    pub fn register(&self, mut scope: usize, name: &str) -> Option<Reg> {
        loop {
            if let Some(found) = self.scopes[scope].register(name) {
                return Some(found);
            }
            if scope == 0 {
                return None;
            }
            scope = self.scopes[scope].parent;
        }
    }

    /// The name of a register, in whichever scope declares it.
    pub fn name_of(&self, reg: Reg) -> String {
        let found = self.scopes.iter().find_map(|scope| scope.name_of(reg));
        found.unwrap_or_else(|| format!("register {}", reg.index))
    }

    /// The position that label `name` means in `scope`.
    pub fn label(&self, mut scope: usize, name: &str) -> Option<u32> {
        loop {
            if let Some(found) = self.scopes[scope].labels.get(name) {
                return Some(*found);
            }
            if scope == 0 {
                return None;
            }
            scope = self.scopes[scope].parent;
        }
    }
}

impl Scope<'_> {
    fn name_of(&self, reg: Reg) -> Option<String> {
        if let Some((name, _)) = self.registers.iter().find(|(_, found)| **found == reg) {
            return Some((*name).to_owned());
        }
        let within = |first: &Reg, count: u32| (first.index..first.index + count).contains(&reg.index);
        let (stem, _, first) =
            self.ranges.iter().find(|(_, count, first)| first.class == reg.class && within(first, *count))?;
        Some(format!("{stem}{}", reg.index - first.index))
    }

    fn register(&self, name: &str) -> Option<Reg> {
        if let Some(found) = self.registers.get(name) {
            return Some(*found);
        }
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let number: u32 = name[stem.len()..].parse().ok()?;
        let (_, count, first) = self.ranges.iter().find(|(prefix, ..)| *prefix == stem)?;
        (number < *count).then_some(Reg { index: first.index + number, ..*first })
    }
}
