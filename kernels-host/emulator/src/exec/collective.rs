//! What the lanes of a member mask do together.

use super::lanes;
use super::step::LaneFault;
use super::warp::{Env, Warp};
use crate::FaultKind;
use crate::instruction::{AtomicOp, Collective, Operand, Reg, ShuffleMode, Type, VoteMode};

/// Executes `what` for the lanes in `members`, all of which are here.
///
/// # Errors
/// A shuffle from a lane that is not in `members`.
pub(super) fn execute(warp: &mut Warp, env: &Env<'_>, what: &Collective, members: u32) -> Result<(), LaneFault> {
    match what {
        Collective::Barrier => {}
        Collective::Shuffle { mode, dst, valid, a, b, clamp } => {
            shuffle(warp, env, *mode, (*dst, *valid), [*a, *b, *clamp], members)?;
        }
        Collective::Vote { mode, dst, a } => {
            let votes = warp.guard(*a) & members;
            let answer = match mode {
                VoteMode::All => votes == members,
                VoteMode::Any => votes != 0,
                VoteMode::Uni => votes == 0 || votes == members,
                VoteMode::Ballot => {
                    warp.set32(*dst, members, &[votes; 32]);
                    return Ok(());
                }
            };
            warp.set_pred(*dst, members, 0_u32.wrapping_sub(u32::from(answer)));
        }
        Collective::Reduce { op, ty, dst, a } => {
            let values = warp.get32(*a, env);
            let result = lanes(members).map(|lane| values[lane]).reduce(|a, b| reduce(*op, *ty, a, b)).unwrap_or(0);
            warp.set32(*dst, members, &[result; 32]);
        }
        Collective::Match { ty, dst, a, all } => {
            let values =
                if ty.bits() == 64 { warp.get64(*a, env) } else { super::map(&warp.get32(*a, env), u64::from) };
            let mut same = [0_u32; 32];
            for lane in lanes(members) {
                same[lane] = lanes(members)
                    .filter(|other| values[*other] == values[lane])
                    .fold(0, |mask, other| mask | 1 << other);
            }
            if let Some(pred) = all {
                let agreed = lanes(members).all(|lane| same[lane] == members);
                same = [if agreed { members } else { 0 }; 32];
                if let Some(pred) = pred {
                    warp.set_pred(*pred, members, 0_u32.wrapping_sub(u32::from(agreed)));
                }
            }
            warp.set32(*dst, members, &same);
        }
        Collective::Elect { leader, dst } => {
            let first = members.trailing_zeros();
            if let Some(leader) = leader {
                warp.set32(*leader, members, &[first; 32]);
            }
            warp.set_pred(*dst, members, 1_u32.checked_shl(first).unwrap_or(0));
        }
    }
    Ok(())
}

fn reduce(op: AtomicOp, ty: Type, a: u32, b: u32) -> u32 {
    match op {
        AtomicOp::Add => a.wrapping_add(b),
        AtomicOp::Min if ty.is_signed() => (a as i32).min(b as i32) as u32,
        AtomicOp::Max if ty.is_signed() => (a as i32).max(b as i32) as u32,
        AtomicOp::Min => a.min(b),
        AtomicOp::Max => a.max(b),
        AtomicOp::And => a & b,
        AtomicOp::Or => a | b,
        _ => a ^ b,
    }
}

fn shuffle(
    warp: &mut Warp,
    env: &Env<'_>,
    mode: ShuffleMode,
    (dst, valid): (Reg, Option<Reg>),
    [a, b, clamp]: [Operand; 3],
    members: u32,
) -> Result<(), LaneFault> {
    let (a, b, c) = (warp.get32(a, env), warp.get32(b, env), warp.get32(clamp, env));
    let mut values = a;
    let mut found = 0;
    for lane in lanes(members) {
        let at = lane as u32;
        let (delta, bound, segment) = (b[lane] & 31, c[lane] & 31, c[lane] >> 8 & 31);
        let last = (at & segment) | (bound & !segment);
        let first = at & segment;
        let (source, inside) = match mode {
            // For `up` the clamp is the lowest lane of the segment.
            ShuffleMode::Up => (at.wrapping_sub(delta), at as i32 - delta as i32 >= last as i32),
            ShuffleMode::Down => (at + delta, at + delta <= last),
            ShuffleMode::Bfly => (at ^ delta, at ^ delta <= last),
            ShuffleMode::Idx => {
                let source = first | (delta & !segment);
                (source, source <= last)
            }
        };
        if inside {
            let source_lane = source & 31;
            if members >> source_lane & 1 == 0 {
                return Err(LaneFault::at(lane, FaultKind::Shuffle { source_lane, members }));
            }
            values[lane] = a[(source & 31) as usize];
            found |= 1 << lane;
        }
    }
    warp.set32(dst, members, &values);
    if let Some(valid) = valid {
        warp.set_pred(valid, members, found);
    }
    Ok(())
}
