//! One vector for a whole prompt: an embedding.
use crate::error::{Error, Result};
use crate::worker::{TokenStream, block_on};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// How a prompt's hidden states, after the final norm, become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    #[default]
    Mean,
    /// The last token's.
    Last,
}

/// A prompt as a vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// `hidden_size` numbers.
    pub values: Vec<f32>,
    /// Tokens that it was made of.
    pub prompt_tokens: usize,
}

impl Embedding {
    /// Divides by the Euclidean length: a dot product of two such vectors is their cosine similarity. A vector of zeros stays
    /// as it is.
    pub fn normalize(&mut self) {
        let length = self.values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        if length > 0.0 {
            self.values.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
    }
}

/// A sum of hidden states that grows with a prompt's chunks.
///
/// In f64: the states have 8 or 11 significant bits, so that sums are exact, and with them independent of where a prompt
/// was cut, unless a dimension's values span more than 2^40.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pooled {
    /// Of each dimension.
    pub sum: Vec<f64>,
    /// States in it.
    pub count: usize,
}

impl Pooled {
    /// Adds one state.
    pub fn push(&mut self, state: impl ExactSizeIterator<Item = f32>) {
        self.sum.resize(state.len(), 0.0);
        self.sum.iter_mut().zip(state).for_each(|(sum, x)| *sum += f64::from(x));
        self.count += 1;
    }

    /// Adds what came before.
    pub fn join(&mut self, other: &Pooled) {
        self.sum.resize(self.sum.len().max(other.sum.len()), 0.0);
        self.sum.iter_mut().zip(&other.sum).for_each(|(sum, x)| *sum += x);
        self.count += other.count;
    }

    /// The mean of what was pushed.
    pub fn mean(&self) -> Vec<f32> {
        self.sum.iter().map(|sum| (sum / self.count.max(1) as f64) as f32).collect()
    }
}

/// An embedding that is being computed, in the engine's ordinary steps. Dropping it cancels the request.
#[must_use = "dropping it cancels the request"]
pub struct PendingEmbedding {
    tokens: TokenStream,
    prompt_tokens: usize,
    normalize: bool,
}

impl PendingEmbedding {
    pub(crate) fn new(tokens: TokenStream, prompt_tokens: usize, normalize: bool) -> Self {
        PendingEmbedding { tokens, prompt_tokens, normalize }
    }

    /// Waits for it on this thread.
    ///
    /// # Errors
    /// The request could not be queued, or the engine has ended before it.
    pub fn wait(self) -> Result<Embedding> {
        block_on(self)
    }
}

impl Future for PendingEmbedding {
    type Output = Result<Embedding>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let progress = match ready!(self.tokens.poll(cx)) {
            Some(event) => event?.progress,
            None => return Poll::Ready(Err(Error::ShuttingDown)),
        };
        // Without a vector it is the abort of an engine that shuts down.
        let Some(values) = progress.embedding else { return Poll::Ready(Err(Error::ShuttingDown)) };
        let mut embedding = Embedding { values, prompt_tokens: self.prompt_tokens };
        if self.normalize {
            embedding.normalize();
        }
        Poll::Ready(Ok(embedding))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_do_not_depend_on_where_they_are_cut() {
        let states: Vec<[f32; 2]> = (0..50).map(|i| [1.0 / (1 + i % 7) as f32, (i * i) as f32 - 600.0]).collect();
        let sum = |states: &[[f32; 2]]| {
            let mut pooled = Pooled::default();
            states.iter().for_each(|state| pooled.push(state.iter().copied()));
            pooled
        };
        let whole = sum(&states);
        for cut in [0, 1, 17, 50] {
            let mut joined = sum(&states[cut..]);
            joined.join(&sum(&states[..cut]));
            assert_eq!(joined.mean(), whole.mean(), "cut at {cut}");
        }
    }

    #[test]
    fn normalized_vectors_have_length_one_and_zeros_stay() {
        let mut embedding = Embedding { values: vec![3.0, -4.0], prompt_tokens: 1 };
        embedding.normalize();
        assert_eq!(embedding.values, [0.6, -0.8]);
        let mut zeros = Embedding { values: vec![0.0; 3], prompt_tokens: 1 };
        zeros.normalize();
        assert_eq!(zeros.values, [0.0; 3]);
    }
}
