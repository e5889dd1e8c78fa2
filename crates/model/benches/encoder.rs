//! The video encoder of the 22B on 9 frames of 256×256: time and memory, to be compared with PyTorch.
//!
//! `cargo bench -p kiln-model --bench encoder -- [--frames N] [--pixels N] [--repeats N]`. Weights are random, bf16;
//! activations f32. `benches/compare_model.py` runs it beside PyTorch.

mod common;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use kiln_model::{
    Component, Weights, random_values,
    video_vae::{Statistics, VideoEncoder, VideoVaeConfig},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let program = common::Program::start("encoder")?;
    let (frames, pixels) = (common::argument("--frames", 9)?, common::argument("--pixels", 256)?);
    let config = VideoVaeConfig::read(&serde_json::from_str(include_str!("video_vae_22b.json"))?)?;
    let random = |component| Weights::random(component, 1, &Device::Cpu, DType::F32);
    let statistics = Statistics::new(config.latent_channels, &random(Component::VideoStatistics))?;
    let build = |w: &Weights| VideoEncoder::new(&config, w, statistics.clone());
    let encoder = build(&random(Component::VideoEncoder))?;
    let specs = Weights::record(Component::VideoEncoder, |w| build(w).map(drop))?;
    let shape = [1, 3, frames, pixels, pixels];
    let x = Tensor::from_vec(random_values(2, "noise.x", &shape), &shape, &Device::Cpu)?;
    program.measure(specs.iter().map(common::stored_bytes).sum(), || {
        Ok(encoder.encode(&x)?.sqr()?.mean_all()?.to_scalar()?)
    })
}
