//! Backward through the whole model, one block at a time.
//!
//! Forward keeps the input of every block and nothing else. Backward goes from the last block to the first: it makes
//! the kept input a variable, runs the block again, recorded this time, feeds in the gradient from above, hands on
//! the adapters' gradients and drops the graph. Memory is that of one block's activations plus the block inputs.

use std::collections::BTreeMap;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Layout, Shape, Tensor, Var,
    backend::{BackendDevice, BackendStorage},
};

use super::{Args, Inputs, Perturbations, Stream, Streams, Transformer};
use crate::{Error, LoraSet, Result, nn::Adapters};

/// What a forward pass keeps for its backward pass.
#[derive(Debug)]
pub struct Kept {
    args: Args,
    latents: Streams,
    /// The input of each block.
    inputs: Vec<Streams>,
    /// The output of the last one.
    last: Streams,
}

/// What a backward pass found.
#[derive(Debug, Default)]
pub struct Gradients {
    /// Of the latents, per stream the gradient reached.
    pub latents: Streams,
    /// Of the adapters, by their key in the LoRA file. A factor the gradient did not reach is absent.
    pub adapters: BTreeMap<String, Tensor>,
}

impl Transformer {
    /// [`Transformer::forward`] that keeps what [`Transformer::backward`] needs. Records nothing.
    ///
    /// # Errors
    /// As [`Transformer::forward`].
    pub fn forward_keeping(
        &self,
        inputs: &Inputs<'_>,
        perturbations: &Perturbations,
        lora: Option<&LoraSet>,
    ) -> Result<(Streams, Kept)> {
        let adapters = lora.map_or(Adapters::none(), Adapters::constant);
        let args = self.prepare(inputs, perturbations, adapters)?;
        let latents = Streams {
            video: inputs.video.map(|m| m.latent.detach()),
            audio: inputs.audio.map(|m| m.latent.detach()),
        };
        let mut x = self.enter_latents(&latents, adapters)?;
        let mut kept = Vec::with_capacity(self.blocks().len());
        for block in self.blocks() {
            let next = block.forward(&x, &args, adapters)?;
            kept.push(x);
            x = next;
        }
        let velocities = self.leave(&x, &args, adapters)?;
        Ok((velocities, Kept { args, latents, inputs: kept, last: x }))
    }

    /// Gradients of latents and adapters, given those of the velocities. A stream without one (its prediction is not
    /// part of the loss) may still receive gradients through the other stream.
    ///
    /// # Errors
    /// When a gradient has another shape than its velocity.
    pub fn backward(&self, kept: Kept, velocities: &Streams, lora: Option<&LoraSet>) -> Result<Gradients> {
        let adapters = lora.map_or(Adapters::none(), Adapters::tracked);
        let mut found = BTreeMap::new();
        let Kept { args, latents, mut inputs, last } = kept;
        let mut above = replay(&last, velocities, lora, &mut found, |x| self.leave(x, &args, adapters))?;
        drop(last);
        for block in self.blocks().iter().rev() {
            let input = inputs.pop().expect("invariant: one kept input per block");
            above = replay(&input, &above, lora, &mut found, |x| block.forward(x, &args, adapters))?;
        }
        let latents = replay(&latents, &above, lora, &mut found, |x| self.enter_latents(x, adapters))?;
        Ok(Gradients { latents, adapters: found })
    }
}

/// Runs one stage of the model recorded, from variables, and pulls `above`, the gradients of its outputs, through it.
///
/// Returns the gradients of `inputs` and puts those of the adapters into `found`, by their key in the LoRA file. The
/// graph is gone when it returns. A driver that keeps blocks elsewhere (streams them) calls this per block.
///
/// # Errors
/// What `run` reports, and when a gradient has another shape than its output.
pub fn replay(
    inputs: &Streams,
    above: &Streams,
    lora: Option<&LoraSet>,
    found: &mut BTreeMap<String, Tensor>,
    run: impl FnOnce(&Streams) -> Result<Streams>,
) -> Result<Streams> {
    if above.is_empty() {
        return Ok(Streams::default());
    }
    let mut vars = Vec::new();
    let mut recorded = Streams::default();
    for stream in Stream::BOTH {
        if let Some(input) = inputs.get(stream) {
            let var = Var::from_tensor(input)?;
            recorded.set(stream, Some(var.as_tensor().clone()));
            vars.push((stream, var));
        }
    }
    let outputs = run(&recorded)?;
    // One scalar pulls both streams' gradients through at once.
    let mut root: Option<Tensor> = None;
    for stream in Stream::BOTH {
        if let (Some(output), Some(gradient)) = (outputs.get(stream), above.get(stream)) {
            let end = output.apply_op1(Pull::new(output, gradient)?)?;
            root = Some(match root {
                Some(other) => (other + end)?,
                None => end,
            });
        }
    }
    let Some(root) = root else { return Ok(Streams::default()) };
    // The graph alone holds the activations from here on.
    drop((recorded, outputs));
    let mut gradients = root.backward()?;
    let mut below = Streams::default();
    for (stream, var) in &vars {
        below.set(*stream, gradients.remove(var.as_tensor()));
    }
    for (key, var) in lora.into_iter().flat_map(LoraSet::vars) {
        if let Some(gradient) = gradients.remove(var.as_tensor()) {
            found.insert(key, gradient);
        }
    }
    Ok(below)
}

/// The end of a graph whose gradient is given: a zero whose backward yields that gradient.
///
/// A sum of products with the gradient would do the same and hold five more tensors of its size.
struct Pull {
    gradient: Tensor,
}

impl Pull {
    fn new(output: &Tensor, gradient: &Tensor) -> Result<Self> {
        if output.dims() != gradient.dims() {
            let problem = format!("shape {:?}, its output has {:?}", gradient.dims(), output.dims());
            return Err(Error::input("gradient", problem));
        }
        Ok(Self { gradient: gradient.detach().to_dtype(output.dtype())? })
    }
}

/// One zero on the device.
fn zero<D: BackendDevice>(device: &D, dtype: DType) -> candle_core::Result<(D::Storage, Shape)> {
    let shape = Shape::from(());
    Ok((device.zeros_impl(&shape, dtype)?, shape))
}

impl CustomOp1 for Pull {
    fn name(&self) -> &'static str {
        "pull"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        zero(storage.device(), storage.dtype())
    }

    fn cuda_fwd(&self, storage: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        zero(storage.device(), storage.dtype())
    }

    /// The upstream gradient is 1: the root is the sum of these ends.
    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.gradient.clone()))
    }
}
