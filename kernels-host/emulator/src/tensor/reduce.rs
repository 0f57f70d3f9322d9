//! `cp.reduce.async.bulk` and its tensor form: what becomes of an element in memory when another is reduced into it.
use super::tensor_map::DataType;
use crate::formats::{BF16, F16, Format, Narrowing};

/// The operation of a reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "PTX's names")]
pub enum Reduction {
    Add,
    Min,
    Max,
    Inc,
    Dec,
    And,
    Or,
    Xor,
}

/// An operation that the type does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cp.reduce.async.bulk has no {0:?} of {1:?}: see its table of operations and types in the PTX manual")]
pub struct ReductionError(pub Reduction, pub DataType);

impl Reduction {
    /// What memory holds after `new` is reduced into `old`: patterns of `data_type`, in the low bits.
    pub fn apply(self, data_type: DataType, old: u64, new: u64) -> Result<u64, ReductionError> {
        use DataType as T;
        let result = match data_type {
            T::U32 => self.counter(old as u32, new as u32).or(self.integer(old, new)),
            T::U64 => self.integer(old, new),
            // Sign-extended; the caller's upper bits are dropped below.
            T::S32 => self.integer(old as i32 as i64, new as i32 as i64).map(|x| x as u64),
            T::S64 => self.integer(old as i64, new as i64).map(|x| x as u64),
            T::F16 => self.half(F16, old, new),
            T::Bf16 => self.half(BF16, old, new),
            T::F32 if self == Reduction::Add => {
                Some((f32::from_bits(old as u32) + f32::from_bits(new as u32)).to_bits() as u64)
            }
            T::F64 if self == Reduction::Add => Some((f64::from_bits(old) + f64::from_bits(new)).to_bits()),
            T::U8 | T::U16 | T::F32 | T::F64 => None,
        };
        let mask = u64::MAX >> (64 - 8 * data_type.bytes());
        result.map(|x| x & mask).ok_or(ReductionError(self, data_type))
    }

    fn counter(self, old: u32, limit: u32) -> Option<u64> {
        match self {
            Reduction::Inc => Some(if old >= limit { 0 } else { old + 1 } as u64),
            Reduction::Dec => Some(if old == 0 || old > limit { limit } else { old - 1 } as u64),
            _ => None,
        }
    }
    fn integer<I: Integer>(self, old: I, new: I) -> Option<I> {
        Some(match self {
            Reduction::Add => old.sum(new),
            Reduction::Min => old.min(new),
            Reduction::Max => old.max(new),
            Reduction::And => old & new,
            Reduction::Or => old | new,
            Reduction::Xor => old ^ new,
            Reduction::Inc | Reduction::Dec => return None,
        })
    }
    /// f16 and bf16: sums rounded to nearest even (`.noftz`); of a NaN and a number, the number is less and greater.
    fn half(self, format: Format, old: u64, new: u64) -> Option<u64> {
        let (x, y) = (format.to_f32(old as u32), format.to_f32(new as u32));
        let result = match self {
            // Rounding twice is as rounding once: f32 has two bits more than twice either format's 11 or 8.
            Reduction::Add => x + y,
            Reduction::Min => x.min(y),
            Reduction::Max => x.max(y),
            _ => return None,
        };
        Some(format.from_f32(result, Narrowing::RN) as u64)
    }
}

/// 64-bit integers of either sign.
trait Integer:
    Ord + Copy + std::ops::BitAnd<Output = Self> + std::ops::BitOr<Output = Self> + std::ops::BitXor<Output = Self>
{
    /// The sum, wrapped.
    fn sum(self, other: Self) -> Self;
}
impl Integer for u64 {
    fn sum(self, other: u64) -> u64 {
        self.wrapping_add(other)
    }
}
impl Integer for i64 {
    fn sum(self, other: i64) -> i64 {
        self.wrapping_add(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reductions_are_those_of_their_types() {
        use DataType as T;
        let minus_one = u32::MAX as u64;
        for (op, data_type, old, new, expected) in [
            (Reduction::Add, T::U32, minus_one, 2, 1),
            (Reduction::Min, T::U32, minus_one, 2, 2),
            (Reduction::Min, T::S32, minus_one, 2, minus_one),
            (Reduction::Max, T::S32, minus_one, 2, 2),
            (Reduction::Max, T::S64, u64::MAX, 2, 2),
            (Reduction::Xor, T::U64, u64::MAX, 2, u64::MAX - 2),
            (Reduction::Inc, T::U32, 4, 5, 5),
            (Reduction::Inc, T::U32, 5, 5, 0),
            (Reduction::Dec, T::U32, 0, 5, 5),
            (Reduction::Dec, T::U32, 3, 5, 2),
            (Reduction::Add, T::F32, 1f32.to_bits() as u64, 2f32.to_bits() as u64, 3f32.to_bits() as u64),
            (Reduction::Add, T::F64, 1f64.to_bits(), 2f64.to_bits(), 3f64.to_bits()),
            (Reduction::Add, T::Bf16, 0x3f80, 0x3b80, 0x3f80), // 1 + 2^-8: a tie, to even
            (Reduction::Add, T::F16, 0x7bff, 0x7bff, 0x7c00),
            (Reduction::Max, T::F16, 0x7fff, 0xbc00, 0xbc00), // NaN and -1
        ] {
            assert_eq!(op.apply(data_type, old, new), Ok(expected), "{op:?} {data_type:?}");
        }
        assert_eq!(Reduction::Min.apply(T::F32, 0, 0), Err(ReductionError(Reduction::Min, T::F32)));
        assert_eq!(Reduction::Add.apply(T::U8, 0, 0), Err(ReductionError(Reduction::Add, T::U8)));
    }
}
