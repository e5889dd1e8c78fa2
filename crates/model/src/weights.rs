//! What builders ask for their tensors: paths that spell the checkpoint, over three sources.
//!
//! - a file ([`Checkpoint::weights`], [`Checkpoint::load`]),
//! - a recording ([`Weights::record`]): answers with placeholders that take no memory and notes names and shapes,
//! - random values ([`Weights::random`]) for tests and for tiny models made on the spot.
//!
//! A builder asks and stores. It does not compute on what it gets (a placeholder cannot hold the result without
//! taking memory); where a layout must change, [`Weights::tensor_then`] does it on real values only.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
};

use candle_core::{DType, Device, Shape, Tensor};
use half::bf16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    Error, Result,
    checkpoint::{Checkpoint, Component},
};

/// A tensor a builder asks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TensorSpec {
    /// Name relative to the component's prefix.
    pub name: String,
    /// Shape, outermost axis first.
    pub shape: Vec<usize>,
}

/// A place in a component's name space from which tensors are taken. Cheap to clone.
#[derive(Clone)]
pub struct Weights {
    source: Arc<Source>,
    path: String,
    device: Device,
    dtype: DType,
}

enum Source {
    File { file: Arc<Checkpoint>, component: Component, prefix: &'static str },
    Recording { component: Component, asked: Mutex<BTreeMap<String, Vec<usize>>> },
    Random { component: Component, seed: u64 },
}

impl Weights {
    pub(crate) fn from_checkpoint(
        file: Arc<Checkpoint>,
        component: Component,
        device: &Device,
        dtype: DType,
    ) -> Self {
        let prefix = component.prefix(&file);
        Self::new(Source::File { file, component, prefix }, device, dtype)
    }

    /// Deterministic random weights of a sensible size: the same seed, component and name give the same values,
    /// whatever is asked before. Values are rounded to bf16, as a checkpoint's are. See [`random_values`].
    pub fn random(component: Component, seed: u64, device: &Device, dtype: DType) -> Self {
        Self::new(Source::Random { component, seed }, device, dtype)
    }

    /// Walks `build` without any weights and returns what it asked for, sorted by name, relative to `component`.
    ///
    /// # Errors
    /// What `build` reports, and `Tensor` when it asks for one name with two shapes.
    pub fn record(component: Component, build: impl FnOnce(&Self) -> Result<()>) -> Result<Vec<TensorSpec>> {
        let recording = Source::Recording { component, asked: Mutex::default() };
        let root = Self::new(recording, &Device::Cpu, DType::F32);
        build(&root)?;
        let Source::Recording { asked, .. } = &*root.source else {
            unreachable!("invariant: made as a recording above")
        };
        let asked = std::mem::take(&mut *asked.lock().expect("invariant: no builder panicked"));
        Ok(asked.into_iter().map(|(name, shape)| TensorSpec { name, shape }).collect())
    }

    fn new(source: Source, device: &Device, dtype: DType) -> Self {
        Self { source: Arc::new(source), path: String::new(), device: device.clone(), dtype }
    }

    /// The place one level down: `w.pp("attn1").pp("to_q")`, `w.pp(7)`.
    #[must_use]
    pub fn pp(&self, name: impl fmt::Display) -> Self {
        Self { path: self.name(name), ..self.clone() }
    }

    /// The same place with another compute type.
    #[must_use]
    pub fn with_dtype(&self, dtype: DType) -> Self {
        Self { dtype, ..self.clone() }
    }

    /// The path from the component's root, without a trailing dot.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The compute type [`Self::tensor`] converts to.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where tensors are put.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The tensor called `name` here, of exactly this shape, in the compute type.
    ///
    /// # Errors
    /// `Tensor` when it is missing, has another shape or a type that cannot be used; `Io`.
    pub fn tensor(&self, name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
        self.take(name, &shape.into(), Some(self.dtype))
    }

    /// The tensor called `name` here as it is stored (bf16 or f32; f16 widened to f32, fp8 dequantised to bf16):
    /// for the large frozen matrices.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub fn stored(&self, name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
        self.take(name, &shape.into(), None)
    }

    /// [`Self::tensor`] followed by `change` on real values; a recording answers with the unchanged placeholder.
    ///
    /// # Errors
    /// As [`Self::tensor`], and what `change` reports.
    pub fn tensor_then(
        &self,
        name: &str,
        shape: impl Into<Shape>,
        change: impl FnOnce(Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<Tensor> {
        self.changed(self.tensor(name, shape)?, change)
    }

    /// [`Self::stored`] followed by `change`, as [`Self::tensor_then`].
    ///
    /// # Errors
    /// As [`Self::tensor`], and what `change` reports.
    pub fn stored_then(
        &self,
        name: &str,
        shape: impl Into<Shape>,
        change: impl FnOnce(Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<Tensor> {
        self.changed(self.stored(name, shape)?, change)
    }

    fn changed(
        &self,
        tensor: Tensor,
        change: impl FnOnce(Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<Tensor> {
        match &*self.source {
            Source::Recording { .. } => Ok(tensor),
            _ => Ok(change(tensor)?),
        }
    }

    fn name(&self, name: impl fmt::Display) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }

    fn take(&self, name: &str, shape: &Shape, dtype: Option<DType>) -> Result<Tensor> {
        let name = self.name(name);
        match &*self.source {
            Source::File { file, prefix, .. } => {
                let full = format!("{prefix}{name}");
                let found = file.entry(&full).map(|entry| entry.shape.as_slice());
                if let Some(found) = found
                    && found != shape.dims()
                {
                    let want = shape.dims();
                    return Err(Error::tensor(full, format!("expected shape {want:?}, found {found:?}")));
                }
                file.read(&full, dtype, &self.device)
            }
            Source::Recording { asked, .. } => {
                let mut asked = asked.lock().expect("invariant: no builder panicked");
                match asked.insert(name.clone(), shape.dims().to_vec()) {
                    Some(before) if before != shape.dims() => {
                        let now = shape.dims();
                        Err(Error::tensor(name, format!("asked for as {before:?} and as {now:?}")))
                    }
                    _ => placeholder(shape, dtype.unwrap_or(DType::BF16)),
                }
            }
            Source::Random { component, seed } => {
                let full = format!("{}{name}", component.original_prefix());
                let values: Vec<bf16> =
                    random_values(*seed, &full, shape.dims()).into_iter().map(bf16::from_f32).collect();
                let tensor = Tensor::from_vec(values, shape.clone(), &Device::Cpu)?;
                Ok(tensor.to_dtype(dtype.unwrap_or(DType::BF16))?.to_device(&self.device)?)
            }
        }
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, component) = match &*self.source {
            Source::File { component, .. } => ("file", component),
            Source::Recording { component, .. } => ("recording", component),
            Source::Random { component, .. } => ("random", component),
        };
        write!(f, "Weights({kind}, {component}, {:?})", self.path)
    }
}

/// One zero seen through strides of 0: any shape in a few bytes.
fn placeholder(shape: &Shape, dtype: DType) -> Result<Tensor> {
    Ok(Tensor::zeros((), dtype, &Device::Cpu)?.broadcast_as(shape.clone())?)
}

/// The random values of the tensor with this full name: normal, of a size that keeps activations near 1.
///
/// Matrices and kernels have deviation 1/sqrt(fan-in), norm weights lie around 1, deviations (`std…`) are
/// positive, tables and biases are small. f32, row-major, not rounded.
pub fn random_values(seed: u64, full_name: &str, shape: &[usize]) -> Vec<f32> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed ^ fnv1a(full_name));
    let last = full_name.rsplit('.').next().unwrap_or(full_name);
    let fan_in: usize = shape.iter().skip(1).product();
    let (mean, deviation) = if last.starts_with("std") || (last == "weight" && shape.len() == 1) {
        (1.0, 0.1)
    } else if last == "bias" || last.contains("scale_shift_table") || shape.len() <= 1 {
        (0.0, 0.1)
    } else {
        (0.0, 1.0 / (fan_in.max(1) as f32).sqrt())
    };
    let count: usize = shape.iter().product();
    (0..count).map(|_| mean + deviation * normal(&mut generator)).collect()
}

/// One value of the standard normal distribution (Box and Muller's cosine branch).
fn normal(generator: &mut impl Rng) -> f32 {
    let radius: f32 = 1.0 - generator.random::<f32>();
    let angle: f32 = generator.random::<f32>() * std::f32::consts::TAU;
    (-2.0 * radius.ln()).sqrt() * angle.cos()
}

/// The 64-bit FNV-1a hash, so that a tensor's values depend on its name and on nothing else.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
