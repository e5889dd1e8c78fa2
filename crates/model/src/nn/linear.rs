//! The linear layer: a frozen base and, where a set of adapters has one for it, a low-rank side path.

use candle_core::Tensor;
use kernels::{FrozenLinear, FrozenWeight};

use crate::{LoraSet, Result, Weights};

/// The adapters a forward pass applies: none, or a set, recorded for a backward pass or not.
#[derive(Debug, Clone, Copy, Default)]
pub struct Adapters<'a> {
    set: Option<(&'a LoraSet, bool)>,
}

impl<'a> Adapters<'a> {
    /// The base model alone.
    pub const fn none() -> Self {
        Self { set: None }
    }

    /// The adapters of `set`; gradients reach them.
    pub const fn tracked(set: &'a LoraSet) -> Self {
        Self { set: Some((set, true)) }
    }

    /// The adapters of `set` as constants: nothing is recorded on their account.
    pub const fn constant(set: &'a LoraSet) -> Self {
        Self { set: Some((set, false)) }
    }

    /// The set, if there is one.
    pub fn set(&self) -> Option<&'a LoraSet> {
        self.set.map(|(set, _)| set)
    }

    fn of(&self, path: &str) -> Option<&'a kernels::Adapter> {
        let (set, tracked) = self.set?;
        set.adapter(path, tracked)
    }
}

/// A linear layer y = x·Wᵀ + b whose W and b never change. x: [.., in] → [.., out].
///
/// It knows its path in the checkpoint, by which adapters find it.
#[derive(Debug, Clone)]
pub struct Linear {
    path: String,
    base: FrozenLinear,
}

impl Linear {
    /// The layer at `w` with weight `[out, in]`, kept as stored, and bias `[out]`.
    ///
    /// # Errors
    /// What reading its tensors reports.
    pub fn new(inputs: usize, outputs: usize, w: &Weights) -> Result<Self> {
        let bias = w.tensor("bias", outputs)?;
        Self::of(inputs, outputs, Some(bias), w)
    }

    /// The layer at `w` without a bias.
    ///
    /// # Errors
    /// What reading its tensor reports.
    pub fn no_bias(inputs: usize, outputs: usize, w: &Weights) -> Result<Self> {
        Self::of(inputs, outputs, None, w)
    }

    fn of(inputs: usize, outputs: usize, bias: Option<Tensor>, w: &Weights) -> Result<Self> {
        let weight = FrozenWeight::new(w.stored("weight", (outputs, inputs))?)?;
        Ok(Self { path: w.path().to_owned(), base: FrozenLinear::new(weight, bias)? })
    }

    /// Applies the layer with the adapter `adapters` has for it, if any.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(&self, x: &Tensor, adapters: Adapters<'_>) -> Result<Tensor> {
        Ok(self.base.forward(x, adapters.of(&self.path))?)
    }

    /// Whether `adapters` change this layer.
    pub fn is_adapted(&self, adapters: Adapters<'_>) -> bool {
        adapters.of(&self.path).is_some()
    }

    /// The layer without adapters.
    pub fn base(&self) -> &FrozenLinear {
        &self.base
    }

    /// Its path in the checkpoint, relative to the component.
    pub fn path(&self) -> &str {
        &self.path
    }
}
