//! Loads, stores, atomics and asynchronous copies.

use super::Decoder;
use crate::ParseError;
use crate::instruction::{AtomicOp, Op, Order, Scope, Space, Type};
use crate::syntax::raw::RawOperand;

const SPACES: &[(&str, Space)] = &[
    ("global", Space::Global),
    ("shared", Space::Shared),
    ("shared::cta", Space::Shared),
    ("shared::cluster", Space::Cluster),
    ("param", Space::Param),
    ("const", Space::Global),
];

/// Modifiers about caches. There are none here, so they change nothing.
const HINTS: &[(&str, ())] = &[
    ("ca", ()),
    ("cg", ()),
    ("cs", ()),
    ("lu", ()),
    ("cv", ()),
    ("wb", ()),
    ("wt", ()),
    ("L1::no_allocate", ()),
    ("L1::evict_last", ()),
    ("L1::evict_first", ()),
    ("L1::evict_normal", ()),
    ("L1::evict_unchanged", ()),
    ("L2::64B", ()),
    ("L2::128B", ()),
    ("L2::256B", ()),
];

/// What a modifier of order says: strong, acquires, releases. The scope of `.volatile` and `.mmio` is the system.
const ORDERS: &[(&str, [bool; 3])] = &[
    ("weak", [false, false, false]),
    ("volatile", [true, false, false]),
    ("mmio", [true, false, false]),
    ("relaxed", [true, false, false]),
    ("acquire", [true, true, false]),
    ("release", [true, false, true]),
    ("acq_rel", [true, true, true]),
];

pub(super) const SCOPES: &[(&str, Scope)] =
    &[("cta", Scope::Block), ("cluster", Scope::Cluster), ("gpu", Scope::Device), ("sys", Scope::Device)];

const ATOMICS: &[(&str, AtomicOp)] = &[
    ("add", AtomicOp::Add),
    ("min", AtomicOp::Min),
    ("max", AtomicOp::Max),
    ("and", AtomicOp::And),
    ("or", AtomicOp::Or),
    ("xor", AtomicOp::Xor),
    ("exch", AtomicOp::Exch),
    ("cas", AtomicOp::Cas),
    ("inc", AtomicOp::Inc),
    ("dec", AtomicOp::Dec),
];

impl Decoder<'_, '_> {
    pub(super) fn memory(&mut self, name: &str) -> Result<Option<Op>, ParseError> {
        Ok(Some(match name {
            "ld" | "ldu" => self.load()?,
            "st" => self.store()?,
            "atom" | "red" => self.atomic(name == "atom")?,
            "cp" => self.copy()?,
            "prefetch" | "prefetchu" | "applypriority" | "discard" => self.ignored()?,
            _ => return Ok(None),
        }))
    }

    fn hints(&mut self) {
        while self.choice(HINTS).is_some() {}
    }

    /// The modifiers of order and scope; `modifies` if the operation is a read-modify-write.
    fn order(&mut self, modifies: bool) -> Order {
        let constant = self.has("nc");
        let [strong, acquire, release] = self.choice(ORDERS).unwrap_or([modifies, false, false]);
        let scope = self.choice(SCOPES).unwrap_or(Scope::Device);
        Order { strong: strong || modifies, acquire, release, scope, modifies, constant, copies: false }
    }

    fn load(&mut self) -> Result<Op, ParseError> {
        let space = self.choice(SPACES).unwrap_or(Space::Generic);
        let order = self.order(false);
        self.hints();
        let width = self.choice(&[("v2", 2), ("v4", 4)]).unwrap_or(1);
        let hint = self.has("L2::cache_hint");
        let ty = self.ty()?;
        let elements = self.elements()?;
        if elements.len() != width {
            return self.wrong(format!("{} registers for {width} elements", elements.len()));
        }
        let dst = elements.iter().map(|raw| self.optional_dst(raw, ty)).collect::<Result<_, _>>()?;
        let address = self.address(space)?;
        if hint {
            self.src(Type::B(64))?;
        }
        Ok(Op::Load { ty, dst, address, order })
    }

    fn store(&mut self) -> Result<Op, ParseError> {
        let space = self.choice(SPACES).unwrap_or(Space::Generic);
        let order = self.order(false);
        self.hints();
        let width = self.choice(&[("v2", 2), ("v4", 4)]).unwrap_or(1);
        let hint = self.has("L2::cache_hint");
        let ty = self.ty()?;
        let address = self.address(space)?;
        let elements = self.elements()?;
        if elements.len() != width {
            return self.wrong(format!("{} registers for {width} elements", elements.len()));
        }
        let src = elements.iter().map(|raw| self.source(raw, ty, true)).collect::<Result<_, _>>()?;
        if hint {
            self.src(Type::B(64))?;
        }
        Ok(Op::Store { ty, src, address, order })
    }

    fn atomic(&mut self, returns: bool) -> Result<Op, ParseError> {
        let space = self.choice(SPACES).unwrap_or(Space::Generic);
        let order = self.order(true);
        self.hints();
        let op = self.required(ATOMICS)?;
        let _ = self.has("noftz");
        let ty = self.ty()?;
        let allowed = match ty {
            Type::F32 | Type::F64 => matches!(op, AtomicOp::Add | AtomicOp::Exch),
            Type::F16 | Type::BF16 | Type::F16x2 | Type::BF16x2 => op == AtomicOp::Add,
            _ => matches!(ty.bits(), 32 | 64),
        };
        if !allowed {
            return self.wrong("this operation is not supported for this type".into());
        }
        let dst = match returns {
            true => {
                let raw = self.next()?;
                self.optional_dst(raw, ty)?
            }
            false => None,
        };
        let address = self.address(space)?;
        let b = self.src(ty)?;
        let c = if op == AtomicOp::Cas { Some(self.src(ty)?) } else { None };
        Ok(Op::Atomic { op, ty, dst, address, order, b, c })
    }

    fn copy(&mut self) -> Result<Op, ParseError> {
        if !self.has("async") {
            return self.wrong("only the asynchronous copies exist".into());
        }
        if self.has("commit_group") {
            return Ok(Op::CopyCommit);
        }
        if self.has("wait_all") {
            return Ok(Op::CopyWait { pending: None });
        }
        if self.has("wait_group") {
            return match self.next()? {
                RawOperand::Integer(pending) if u32::try_from(*pending).is_ok() => {
                    Ok(Op::CopyWait { pending: Some(*pending as u32) })
                }
                _ => self.wrong("the number of groups must be a constant".into()),
            };
        }
        self.hints();
        if !(self.has("shared") || self.has("shared::cta")) || !self.has("global") {
            return self.wrong("the copy must be from .global to .shared".into());
        }
        let to = self.address(Space::Shared)?;
        let from = self.address(Space::Global)?;
        let bytes = match self.next()? {
            RawOperand::Integer(bytes @ (4 | 8 | 16)) => *bytes as u32,
            _ => return self.wrong("the size must be 4, 8 or 16".into()),
        };
        let from_bytes = if self.left() > 0 { Some(self.src(Type::U(32))?) } else { None };
        Ok(Op::CopyAsync { bytes, to, from, from_bytes })
    }

    /// Accepts all modifiers; operands must name registers that exist.
    pub(super) fn ignored(&mut self) -> Result<Op, ParseError> {
        self.words.clear();
        while self.left() > 0 {
            let raw = self.next()?;
            self.resolve(raw)?;
        }
        Ok(Op::Nothing)
    }

    fn resolve(&self, raw: &RawOperand<'_>) -> Result<(), ParseError> {
        match raw {
            RawOperand::Word("_") => Ok(()),
            RawOperand::Word(name) | RawOperand::Not(name) => {
                if self.entry.register(self.statement.scope, name).is_some() {
                    return Ok(());
                }
                self.source(raw, Type::B(32), true).map(|_| ())
            }
            RawOperand::Pair(a, b) => {
                self.resolve(&RawOperand::Word(a))?;
                self.resolve(&RawOperand::Word(b))
            }
            RawOperand::Vector(parts) => parts.iter().try_for_each(|part| self.resolve(part)),
            RawOperand::Address(base, _, more) => {
                self.resolve(base)?;
                more.iter().try_for_each(|part| self.resolve(part))
            }
            RawOperand::Integer(_) | RawOperand::Float(_) | RawOperand::Double(_) => Ok(()),
        }
    }
}
