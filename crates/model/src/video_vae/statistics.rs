//! Mean and deviation of each latent channel, shared by encoder and decoder.

use candle_core::Tensor;

use crate::{Result, Weights};

/// `per_channel_statistics`.
#[derive(Debug, Clone)]
pub struct Statistics {
    mean_of_means: Tensor,
    std_of_means: Tensor,
}

impl Statistics {
    /// Takes both `[C]` tensors.
    ///
    /// # Errors
    /// What reading the tensors reports.
    pub fn new(latent_channels: usize, w: &Weights) -> Result<Self> {
        Ok(Self {
            mean_of_means: w.tensor("mean-of-means", latent_channels)?,
            std_of_means: w.tensor("std-of-means", latent_channels)?,
        })
    }

    /// (x − mean) / deviation, channels last.
    pub(super) fn normalise(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_sub(&self.mean_of_means)?.broadcast_div(&self.std_of_means)?)
    }

    /// x · deviation + mean, channels last.
    pub(super) fn denormalise(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_mul(&self.std_of_means)?.broadcast_add(&self.mean_of_means)?)
    }
}
