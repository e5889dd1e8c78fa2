//! Low-rank adapters of the transformer: which layers have one, their values, and their file.
//!
//! y = W·x + b + scale·B(A·x) with A [r, in] and B [out, r], both f32 variables. Exported files carry no alpha, so
//! that every reader assumes scale 1. Knows nothing of optimisers.
//! Source: `training.md` §3.1 (patterns) and §5 (maths and file).

mod file;

use std::{collections::BTreeMap, path::Path};

use candle_core::{DType, Device, Tensor, Var};
use kernels::Adapter;

pub use file::{ReferenceFactors, header_bytes};

use crate::{Checkpoint, Error, Result, TensorSpec};

/// What keys of a LoRA file begin with.
const KEY_PREFIX: &str = "diffusion_model.";
/// Where adapters may be: gradients reach nothing outside the blocks.
const BLOCKS: &str = "transformer_blocks.";

/// A linear layer that gets an adapter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Path of the layer, relative to the transformer: `transformer_blocks.0.attn1.to_q`.
    pub path: String,
    /// Its input width.
    pub inputs: usize,
    /// Its output width.
    pub outputs: usize,
}

impl Target {
    /// The layers of the blocks that match one of `patterns`, sorted by path.
    ///
    /// A path matches when it equals the pattern or ends with a dot and the pattern: `attn1.to_k` is not
    /// `audio_attn1.to_k`. `tensors` are those of the model or of the half that is trained.
    ///
    /// # Errors
    /// `Input` naming a pattern that matches nothing.
    pub fn matching(tensors: &[TensorSpec], patterns: &[impl AsRef<str>]) -> Result<Vec<Self>> {
        let layers: Vec<Self> = tensors.iter().filter_map(Self::of).collect();
        for pattern in patterns {
            let pattern = pattern.as_ref();
            if !layers.iter().any(|layer| matches(&layer.path, pattern)) {
                return Err(Error::input(
                    "target_modules",
                    format!("`{pattern}` matches no layer of the model"),
                ));
            }
        }
        let mut hit: Vec<Self> = layers
            .into_iter()
            .filter(|layer| patterns.iter().any(|pattern| matches(&layer.path, pattern.as_ref())))
            .collect();
        hit.sort();
        hit.dedup();
        Ok(hit)
    }

    /// The linear layer whose weight this is.
    fn of(tensor: &TensorSpec) -> Option<Self> {
        let path = tensor.name.strip_suffix(".weight").filter(|path| path.starts_with(BLOCKS))?;
        match *tensor.shape {
            [outputs, inputs] => Some(Self { path: path.to_owned(), inputs, outputs }),
            _ => None,
        }
    }
}

fn matches(path: &str, pattern: &str) -> bool {
    path.strip_suffix(pattern).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// The adapters of a model.
#[derive(Debug)]
pub struct LoraSet {
    adapters: BTreeMap<String, Factors>,
    rank: usize,
    scale: f64,
}

#[derive(Debug)]
struct Factors {
    a: Var,
    b: Var,
    /// The same storage, recorded or not: an update in place is seen by both.
    tracked: Adapter,
    constant: Adapter,
}

impl Factors {
    fn new(a: &Tensor, b: &Tensor, scale: f64) -> Result<Self> {
        let (a, b) = (Var::from_tensor(a)?, Var::from_tensor(b)?);
        let tracked = Adapter::new(a.as_tensor().clone(), b.as_tensor().clone(), scale)?;
        let constant = Adapter::new(a.as_detached_tensor(), b.as_detached_tensor(), scale)?;
        Ok(Self { a, b, tracked, constant })
    }
}

impl LoraSet {
    /// Fresh adapters that change nothing yet: A uniform in ±1/√in, B zero.
    ///
    /// `uniform` draws from [0, 1); it is called for the values of A in the order of `targets`.
    ///
    /// # Errors
    /// `Input` for a rank of zero.
    pub fn init(
        targets: &[Target],
        rank: usize,
        scale: f64,
        device: &Device,
        mut uniform: impl FnMut() -> f32,
    ) -> Result<Self> {
        if rank == 0 {
            return Err(Error::input("rank", "must be at least 1"));
        }
        let mut adapters = BTreeMap::new();
        for target in targets {
            let bound = 1.0 / (target.inputs as f32).sqrt();
            let values: Vec<f32> =
                (0..rank * target.inputs).map(|_| bound * (2.0 * uniform() - 1.0)).collect();
            let a = Tensor::from_vec(values, (rank, target.inputs), device)?;
            let b = Tensor::zeros((target.outputs, rank), DType::F32, device)?;
            adapters.insert(target.path.clone(), Factors::new(&a, &b, scale)?);
        }
        Ok(Self { adapters, rank, scale })
    }

    /// Adapters from tensors by their key in a LoRA file; values become f32.
    ///
    /// # Errors
    /// `Tensor` for a key that is no factor, a factor without its other half, and shapes that do not fit together.
    pub fn from_tensors(
        tensors: impl IntoIterator<Item = (String, Tensor)>,
        scale: f64,
        device: &Device,
    ) -> Result<Self> {
        let mut halves: BTreeMap<String, (Option<Tensor>, Option<Tensor>)> = BTreeMap::new();
        for (key, tensor) in tensors {
            let (path, is_a) = parse_key(&key)
                .ok_or_else(|| Error::tensor(&key, "is not `diffusion_model.<layer>.lora_{A,B}.weight`"))?;
            let pair = halves.entry(path.to_owned()).or_default();
            let tensor = tensor.to_dtype(DType::F32)?.to_device(device)?;
            *(if is_a { &mut pair.0 } else { &mut pair.1 }) = Some(tensor);
        }
        let mut set = Self { adapters: BTreeMap::new(), rank: 0, scale };
        for (path, pair) in halves {
            let key = |factor| format!("{KEY_PREFIX}{path}.lora_{factor}.weight");
            let (a, b) = match pair {
                (Some(a), Some(b)) => (a, b),
                (None, _) => return Err(Error::tensor(key('A'), "missing beside lora_B")),
                (_, None) => return Err(Error::tensor(key('B'), "missing beside lora_A")),
            };
            let rank = match (a.dims(), b.dims()) {
                (&[rank, _], &[_, other]) if rank == other && rank > 0 => rank,
                (a, b) => return Err(Error::tensor(key('A'), format!("{a:?} does not fit lora_B's {b:?}"))),
            };
            if set.rank != 0 && set.rank != rank {
                return Err(Error::tensor(key('A'), format!("rank {rank}, but others have {}", set.rank)));
            }
            set.rank = rank;
            set.adapters.insert(path, Factors::new(&a, &b, scale)?);
        }
        Ok(set)
    }

    /// Reads a LoRA file and checks that every adapter has a layer in the model `tensors` describe.
    ///
    /// # Errors
    /// As [`Self::from_tensors`], `Tensor` for an adapter without a fitting layer, `Io`, `Format`.
    pub fn load(path: impl AsRef<Path>, tensors: &[TensorSpec], device: &Device) -> Result<Self> {
        let file = Checkpoint::open(path)?;
        let read = file.entries().map(|(key, _)| Ok((key.to_owned(), file.tensor(key, device)?)));
        let set = Self::from_tensors(read.collect::<Result<Vec<_>>>()?, 1.0, device)?;
        let layers: BTreeMap<String, (usize, usize)> = tensors
            .iter()
            .filter_map(Target::of)
            .map(|target| (target.path, (target.inputs, target.outputs)))
            .collect();
        for (path, factors) in &set.adapters {
            let found = (factors.a.dim(1)?, factors.b.dim(0)?);
            match layers.get(path) {
                Some(&layer) if layer == found => {}
                Some((inputs, outputs)) => {
                    let problem =
                        format!("adapts {found:?}, the layer has ({inputs}, {outputs}) (inputs, outputs)");
                    return Err(Error::tensor(path, problem));
                }
                None => return Err(Error::tensor(path, "the model has no such layer in its blocks")),
            }
        }
        Ok(set)
    }

    /// The adapter of the layer at `path`.
    pub(crate) fn adapter(&self, path: &str, tracked: bool) -> Option<&Adapter> {
        let factors = self.adapters.get(path)?;
        Some(if tracked { &factors.tracked } else { &factors.constant })
    }

    /// Every factor with its key in the LoRA file, sorted by key. Setting one changes what the model computes.
    pub fn vars(&self) -> impl Iterator<Item = (String, &Var)> {
        self.adapters.iter().flat_map(|(path, factors)| {
            let key = |factor| format!("{KEY_PREFIX}{path}.lora_{factor}.weight");
            [(key('A'), &factors.a), (key('B'), &factors.b)]
        })
    }

    /// Paths of the adapted layers, sorted.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &str> {
        self.adapters.keys().map(String::as_str)
    }

    /// Inner width of the adapters.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// What B·A is multiplied by.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Values in all factors together.
    pub fn parameters(&self) -> usize {
        self.adapters.values().map(|f| f.a.elem_count() + f.b.elem_count()).sum()
    }

    /// Writes the LoRA file: bf16, no alpha, metadata only for reference factors other than 1. The file appears
    /// under its name only when it is complete.
    ///
    /// # Errors
    /// `Input` when the scale is not 1, which the file could not say; `Io`.
    pub fn save(&self, path: impl AsRef<Path>, factors: ReferenceFactors) -> Result<()> {
        if self.scale != 1.0 {
            let problem = format!("{}: an exported file cannot carry a scale other than 1", self.scale);
            return Err(Error::input("scale", problem));
        }
        let tensors: Vec<(String, &Tensor)> = self.vars().map(|(key, var)| (key, var.as_tensor())).collect();
        file::write(path.as_ref(), &tensors, factors)
    }
}

/// Layer path and whether the key names A.
fn parse_key(key: &str) -> Option<(&str, bool)> {
    let path = key.strip_prefix(KEY_PREFIX)?;
    let (path, is_a) = match path.strip_suffix(".lora_A.weight") {
        Some(path) => (path, true),
        None => (path.strip_suffix(".lora_B.weight")?, false),
    };
    (!path.is_empty()).then_some((path, is_a))
}
