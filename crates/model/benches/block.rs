//! One block of the transformer at the sizes of the 22B, forward and backward: adapters of rank 32 on the attention
//! linears, everything else frozen.
//!
//! `cargo bench -p kiln-model --bench block -- [--repeats N] [--tokens N] [--audio-tokens N] [--text-tokens N]
//! [--rank N]`: weights are random and bf16, activations f32, one timestep for all tokens.
//! `… -- --check FILE` computes what `benches/torch_side.py block --save FILE` stored and prints the largest
//! differences.

mod common;

use std::{collections::BTreeMap, io::Write, path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use kernels::{Mask, Rope};
use kiln_model::{
    Checkpoint, Component, LoraSet, TensorSpec, Weights,
    lora::Target,
    nn::Adapters,
    random_values,
    transformer::{
        Args, Block, CrossArgs, Halves, Perturbations, Stream, StreamArgs, Streams, TransformerConfig, replay,
    },
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONFIG: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/reference/ltx-2.3-22b-manifest.json");
const ADAPTED: [&str; 4] = ["to_q", "to_k", "to_v", "to_out.0"];

fn main() -> Result<()> {
    let worker = std::thread::Builder::new().stack_size(64 << 20);
    let run = || match common::text("--check") {
        Some(file) => check(file.as_ref()),
        None => measure(),
    };
    worker.spawn(run)?.join().map_err(|_| anyhow::anyhow!("the measuring thread panicked"))?
}

/// Tokens of the three kinds.
struct Tokens {
    video: usize,
    audio: usize,
    text: usize,
}

/// Everything a run needs but weights and adapters.
struct Problem {
    args: Args,
    inputs: Streams,
    above: Streams,
}

fn measure() -> Result<()> {
    let program = common::Program::start("block")?;
    let tokens = Tokens {
        video: common::argument("--tokens", 1024)?,
        audio: common::argument("--audio-tokens", 50)?,
        text: common::argument("--text-tokens", 1024)?,
    };
    let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(CONFIG)?)?;
    let config = TransformerConfig::new(&manifest["config"])?;
    let specs = specs(&config)?;
    let block = block(&config, &Weights::random(Component::Transformer, 1, &Device::Cpu, DType::F32))?;
    let lora = adapters(&specs, common::argument("--rank", 32)?)?;
    let weights = specs.iter().map(common::stored_bytes).sum::<u64>() + 4 * lora.parameters() as u64;
    let problem = Problem::new(&config, &tokens, |name, shape| {
        Ok(Tensor::from_vec(random_values(2, name, shape), shape, &Device::Cpu)?)
    })?;
    program.measure(weights, || {
        let (below, found) = problem.run(&block, &lora)?;
        ensure!(found.len() == 2 * lora.paths().len(), "an adapter received no gradient");
        let video = below.video.context("no gradient of the video input")?;
        Ok(video.sqr()?.mean_all()?.to_scalar()?)
    })
}

fn at(w: &Weights) -> Weights {
    w.pp("transformer_blocks").pp(0)
}

fn block(config: &TransformerConfig, w: &Weights) -> Result<Block> {
    Ok(Block::new(config, Halves::Both, 0, &at(w))?)
}

fn specs(config: &TransformerConfig) -> Result<Vec<TensorSpec>> {
    let walk = |w: &Weights| Block::new(config, Halves::Both, 0, &at(w)).map(drop);
    Ok(Weights::record(Component::Transformer, walk)?)
}

/// Random factors, B too, so that every gradient has something in it.
fn adapters(specs: &[TensorSpec], rank: usize) -> Result<LoraSet> {
    let mut tensors = Vec::new();
    for Target { path, inputs, outputs } in Target::matching(specs, &ADAPTED)? {
        for (factor, shape) in [("A", [rank, inputs]), ("B", [outputs, rank])] {
            let key = format!("diffusion_model.{path}.lora_{factor}.weight");
            let values = random_values(3, &key, &shape);
            tensors.push((key, Tensor::from_vec(values, &shape, &Device::Cpu)?));
        }
    }
    Ok(LoraSet::from_tensors(tensors, 1.0, &Device::Cpu)?)
}

impl Problem {
    /// `take` gives the tensor of a name and shape.
    fn new(
        config: &TransformerConfig,
        tokens: &Tokens,
        take: impl Fn(&str, &[usize]) -> Result<Tensor>,
    ) -> Result<Self> {
        let (mut inputs, mut above) = (Streams::default(), Streams::default());
        let mut stream_args = |stream: Stream| {
            let sizes = config.stream(stream);
            let width = sizes.width();
            let count = match stream {
                Stream::Video => tokens.video,
                Stream::Audio => tokens.audio,
            };
            let get = |name: &str, shape: &[usize]| take(&format!("{}.{name}", stream.name()), shape);
            let rope = |cos: &str, sin: &str, head_dim: usize| -> Result<Rope> {
                let shape = [1, count, sizes.heads * head_dim / 2];
                Ok(Rope::new(&get(cos, &shape)?, &get(sin, &shape)?, head_dim)?)
            };
            inputs.set(stream, Some(get("x", &[1, count, width])?));
            above.set(stream, Some(get("above", &[1, count, width])?));
            anyhow::Ok(StreamArgs {
                index: Tensor::zeros((1, count), DType::U32, &Device::Cpu)?,
                modulation: get("modulation", &[1, 9, width])?,
                embedded: Tensor::zeros((1, width), DType::F32, &Device::Cpu)?,
                prompt: get("prompt", &[1, 2, width])?,
                context: get("context", &[1, tokens.text, width])?,
                context_mask: Mask::None,
                self_mask: Mask::None,
                rope: rope("cos", "sin", sizes.head_dim)?,
                cross: Some(CrossArgs {
                    scale_shift: get("cross_scale_shift", &[1, 4, width])?,
                    gate: get("cross_gate", &[1, 1, width])?,
                    rope: rope("cross_cos", "cross_sin", config.audio.head_dim)?,
                }),
                enabled: true,
            })
        };
        let (video, audio) = (Some(stream_args(Stream::Video)?), Some(stream_args(Stream::Audio)?));
        let args = Args { video, audio, perturbations: Perturbations::none(), batch: 1 };
        Ok(Self { args, inputs, above })
    }

    /// Forward and backward: gradients of the inputs and of the adapters.
    fn run(&self, block: &Block, lora: &LoraSet) -> Result<(Streams, BTreeMap<String, Tensor>)> {
        let mut found = BTreeMap::new();
        let forward = |x: &Streams| block.forward(x, &self.args, Adapters::tracked(lora));
        let below = replay(&self.inputs, &self.above, Some(lora), &mut found, forward)?;
        Ok((below, found))
    }
}

fn check(path: &Path) -> Result<()> {
    let file: Arc<Checkpoint> = Checkpoint::open(path)?;
    let config = TransformerConfig::new(file.config()?)?;
    let block = block(&config, &file.weights(Component::Transformer, &Device::Cpu, DType::F32))?;
    let read = |name: &str| file.tensor(name, &Device::Cpu);
    let length = |name: &str| anyhow::Ok(read(name)?.dim(1)?);
    let tokens =
        Tokens { video: length("video.x")?, audio: length("audio.x")?, text: length("video.context")? };
    let problem = Problem::new(&config, &tokens, |name, shape| {
        let tensor = read(name)?;
        ensure!(tensor.dims() == shape, "{name} is {:?}, expected {shape:?}", tensor.dims());
        Ok(tensor)
    })?;
    let factors = file.entries().filter(|(name, _)| name.starts_with("diffusion_model."));
    let factors = factors.map(|(name, _)| Ok((name.to_owned(), read(name)?))).collect::<Result<Vec<_>>>()?;
    let lora = LoraSet::from_tensors(factors, 1.0, &Device::Cpu)?;

    let (below, found) = problem.run(&block, &lora)?;
    let outputs = block.forward(&problem.inputs, &problem.args, Adapters::constant(&lora))?;
    let (mut outward, mut gradients, mut adapters) = (0f32, 0f32, 0f32);
    for stream in Stream::BOTH {
        let both = |what: &str, got: &Streams| -> Result<f32> {
            let got = got.get(stream).with_context(|| format!("no {what} of {}", stream.name()))?;
            difference(got, &read(&format!("{}.{what}", stream.name()))?)
        };
        outward = outward.max(both("output", &outputs)?);
        gradients = gradients.max(both("gradient", &below)?);
    }
    for (key, _) in lora.vars() {
        let got = found.get(&key).with_context(|| format!("{key} received no gradient"))?;
        adapters = adapters.max(difference(got, &read(&format!("gradient.{key}"))?)?);
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{{\"check\": \"block\", \"outputs\": {outward:e}, \"input_gradients\": {gradients:e}, \
         \"adapter_gradients\": {adapters:e}, \"adapters\": {}}}",
        lora.paths().len()
    )?;
    Ok(())
}

/// The largest difference, relative to the largest expected value.
fn difference(got: &Tensor, want: &Tensor) -> Result<f32> {
    ensure!(got.dims() == want.dims(), "{:?} against {:?}", got.dims(), want.dims());
    let most = |t: &Tensor| anyhow::Ok(t.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?);
    Ok(most(&(got - want)?)? / most(want)?.max(f32::MIN_POSITIVE))
}
