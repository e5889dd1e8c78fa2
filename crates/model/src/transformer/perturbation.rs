//! What guidance leaves out of a pass: attentions skipped per block and sample.

use super::{Stream, attention::Keep};

/// What is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// A stream's self-attention: its values pass through, still gated and projected.
    SelfAttention(Stream),
    /// The update this stream receives from the other one.
    CrossAttentionInto(Stream),
}

/// One thing skipped in one sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Perturbation {
    /// What.
    pub skip: Skip,
    /// In which blocks, zero-based; `None` is all of them.
    pub blocks: Option<Vec<usize>>,
}

/// The perturbations of a batch, per sample. The default perturbs nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Perturbations {
    samples: Vec<Vec<Perturbation>>,
}

impl Perturbations {
    /// Nothing is skipped.
    pub fn none() -> Self {
        Self::default()
    }

    /// One list per sample of the batch; samples without one are not perturbed.
    pub fn per_sample(samples: Vec<Vec<Perturbation>>) -> Self {
        Self { samples }
    }

    /// The same list for every one of `batch` samples.
    pub fn all(perturbations: Vec<Perturbation>, batch: usize) -> Self {
        Self { samples: vec![perturbations; batch] }
    }

    /// The two streams pass each other by in every block of every sample.
    pub fn isolated(batch: usize) -> Self {
        let skips = Stream::BOTH.map(|s| Perturbation { skip: Skip::CrossAttentionInto(s), blocks: None });
        Self::all(skips.to_vec(), batch)
    }

    /// Which of `batch` samples do `skip` in `block` all the same.
    pub fn keep(&self, skip: Skip, block: usize, batch: usize) -> Keep {
        let skips = |sample: usize| {
            self.samples.get(sample).is_some_and(|list| {
                list.iter()
                    .any(|p| p.skip == skip && p.blocks.as_ref().is_none_or(|blocks| blocks.contains(&block)))
            })
        };
        let skipped = (0..batch).filter(|&sample| skips(sample)).count();
        match skipped {
            0 => Keep::All,
            n if n == batch => Keep::None,
            _ => Keep::Some((0..batch).map(|sample| if skips(sample) { 0.0 } else { 1.0 }).collect()),
        }
    }
}
