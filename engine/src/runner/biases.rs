//! What is added to logits: a request's own biases, and bans of what would end an answer before its fewest tokens.
use crate::scheduler::SampleRow;
use std::ops::Range;

/// The biases of a sample's rows: those whose token may end the answer have `logit_bias`, the ones before them are banned from
/// what would. One list has both: own biases of banned tokens | other biases | bans. (The kernel takes a token once.)
pub(super) struct Biases<'a> {
    sample: &'a SampleRow,
    /// None if no row of the sample is early.
    bans: &'a [u32],
}

impl<'a> Biases<'a> {
    pub fn of(sample: &'a SampleRow) -> Self {
        let early = sample.position < sample.may_end_at;
        Biases { sample, bans: if early { &sample.sampling.early_bans } else { &[] } }
    }

    pub fn len(&self) -> usize {
        self.sample.sampling.logit_bias.len() + self.bans.len()
    }

    pub fn list(&self) -> impl Iterator<Item = (u32, f32)> {
        let banned = |(token, _): &&(u32, f32)| self.bans.contains(token);
        let own = &self.sample.sampling.logit_bias;
        let first = own.iter().filter(banned).copied();
        let bans = self.bans.iter().map(|&token| (token, f32::NEG_INFINITY));
        first.chain(own.iter().filter(move |bias| !banned(bias)).copied()).chain(bans)
    }

    /// Those of the row that chooses the token at `position`.
    pub fn at(&self, position: u32) -> Range<usize> {
        let own = &self.sample.sampling.logit_bias;
        if position >= self.sample.may_end_at {
            return 0..own.len();
        }
        own.iter().filter(|(token, _)| self.bans.contains(token)).count()..self.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::SamplingParams;
    use crate::scheduler::RequestId;
    use std::sync::Arc;

    #[test]
    fn early_rows_are_banned_from_the_end_and_others_have_their_own_biases() {
        let sampling = SamplingParams {
            logit_bias: vec![(3, 1.0), (7, 2.0), (9, -1.0)],
            early_bans: vec![2, 7],
            ..SamplingParams::default()
        };
        let sample = |position| SampleRow {
            request: RequestId::NOBODY,
            index: 0,
            row: 0,
            drafts: 2,
            seq_slot: 0,
            position,
            may_end_at: 11,
            sampling: Arc::new(sampling.clone()),
        };
        let row = |position: u32, draft: u32| {
            let sample = sample(position);
            let biases = Biases::of(&sample);
            let list: Vec<_> = biases.list().collect();
            assert_eq!(list.len(), biases.len());
            let mut own = list[biases.at(position + draft)].to_vec();
            own.sort_by_key(|(token, _)| *token);
            own
        };
        let early = vec![(2, f32::NEG_INFINITY), (3, 1.0), (7, f32::NEG_INFINITY), (9, -1.0)];
        assert_eq!([row(9, 0), row(9, 1)], [early.clone(), early]);
        assert_eq!([row(9, 2), row(10, 1), row(11, 0)], [(); 3].map(|()| sampling.logit_bias.clone()));
    }
}
