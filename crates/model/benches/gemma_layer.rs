//! One Gemma layer of the 12B on 1,024 tokens, forward: time and memory, to be compared with PyTorch.
//!
//! `cargo bench -p kiln-model --bench gemma_layer -- [--tokens N] [--repeats N]`. Weights are random, bf16, made once;
//! activations f32. `benches/compare_model.py` runs it beside PyTorch.

mod common;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use kiln_model::{
    Component, Weights, random_values,
    text::gemma::{GemmaConfig, Layer, Layout},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let program = common::Program::start("gemma_layer")?;
    let tokens = common::argument("--tokens", 1024)?;
    // No key at all: the sizes of the 12B.
    let config = GemmaConfig::new(&serde_json::json!({}))?;
    let build = |w: &Weights| Layer::new(&config, &w.pp("layers").pp(0));
    let layer = build(&Weights::random(Component::Gemma, 1, &Device::Cpu, DType::F32))?;
    let specs = Weights::record(Component::Gemma, |w| build(w).map(drop))?;
    let layout = Layout::new(&config, &[tokens], tokens.max(1024), &Device::Cpu)?;
    let values = random_values(2, "x", &[tokens, config.hidden]);
    let x = (Tensor::from_vec(values, (1, tokens, config.hidden), &Device::Cpu)? * 60.0)?;
    program.measure(specs.iter().map(common::stored_bytes).sum(), || {
        let y = layer.forward(&config, 0, &x, &layout)?;
        Ok(y.sqr()?.mean_all()?.to_scalar()?)
    })
}
