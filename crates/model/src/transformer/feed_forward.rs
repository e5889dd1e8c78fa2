//! The feed-forward layer: two linear layers around tanh-GELU.

use candle_core::Tensor;

use crate::{
    Result, Weights,
    nn::{Adapters, Linear},
};

/// How much wider the inner layer is.
const FACTOR: usize = 4;

/// `net.2`(GELU(`net.0.proj`(x))). x: [.., D] → [.., D]. Also that of the text connectors.
#[derive(Debug)]
pub struct FeedForward {
    net_0_proj: Linear,
    net_2: Linear,
}

impl FeedForward {
    /// The module at `w` (`…ff`), `width` wide.
    ///
    /// # Errors
    /// What reading its tensors reports.
    pub fn new(width: usize, w: &Weights) -> Result<Self> {
        let net = w.pp("net");
        Ok(Self {
            net_0_proj: Linear::new(width, FACTOR * width, &net.pp(0).pp("proj"))?,
            net_2: Linear::new(FACTOR * width, width, &net.pp(2))?,
        })
    }

    /// Applies the layer.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, x: &Tensor, adapters: Adapters<'_>) -> Result<Tensor> {
        if self.net_0_proj.is_adapted(adapters) || self.net_2.is_adapted(adapters) {
            let inner = kernels::gelu_tanh(&self.net_0_proj.forward(x, adapters)?)?;
            return self.net_2.forward(&inner, adapters);
        }
        // Keeps one inner tensor for the backward pass instead of two.
        Ok(kernels::feed_forward(x, self.net_0_proj.base(), self.net_2.base())?)
    }
}
