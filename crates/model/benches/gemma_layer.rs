//! One Gemma layer of the 12B on 1,024 tokens: time and memory, to be compared with PyTorch (`docs/benchmarks.md`).
//!
//! `cargo bench -p kiln-model --bench gemma_layer -- [--tokens N] [--repeats N]`. Weights are random, bf16, made once;
//! activations f32. Prints one line of JSON.
#![expect(clippy::print_stdout, reason = "the result of the program")]

use std::{fs, time::Instant};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use kiln_model::{
    Component, Weights,
    text::gemma::{GemmaConfig, Layer, Layout},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The largest resident size so far, in bytes.
fn peak_bytes() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("the peak is read from /proc")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kilobytes = line.split_whitespace().next().context("VmHWM has no number")?;
    Ok(kilobytes.parse::<u64>()? * 1024)
}

/// Lets the peak start again from what is resident now: making the weights takes more than running the layer.
fn reset_peak() -> Result<()> {
    fs::write("/proc/self/clear_refs", "5").context("/proc/self/clear_refs")
}

fn argument(name: &str, default: usize) -> Result<usize> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name).skip(1);
    arguments.next().map_or(Ok(default), |value| value.parse().with_context(|| format!("{name} {value}")))
}

fn main() -> Result<()> {
    let (tokens, repeats) = (argument("--tokens", 1024)?, argument("--repeats", 5)?);
    // No key at all: the sizes of the 12B.
    let config = GemmaConfig::new(&serde_json::json!({}))?;
    let weights = Weights::random(Component::Gemma, 1, &Device::Cpu, DType::F32).pp("layers").pp(0);
    let layer = Layer::new(&config, &weights)?;
    let layout = Layout::new(&config, &[tokens], tokens.max(1024), &Device::Cpu)?;
    let values = kiln_model::random_values(2, "x", &[tokens, config.hidden]);
    let x = (Tensor::from_vec(values, (1, tokens, config.hidden), &Device::Cpu)? * 60.0)?;

    reset_peak()?;
    let mut seconds = Vec::new();
    for _ in 0..repeats {
        let start = Instant::now();
        let y = layer.forward(&config, 0, &x, &layout)?;
        seconds.push(start.elapsed().as_secs_f64());
        let sum = y.sqr()?.mean_all()?.to_scalar::<f32>()?;
        ensure!(sum.is_finite() && sum > 0.0, "the layer's output is {sum}");
    }
    // Of the whole process: what the allocator kept from making the weights counts too.
    let peak = peak_bytes()?;
    seconds.sort_by(f64::total_cmp);
    let (best, median) = (seconds[0], seconds[repeats / 2]);
    println!(
        "{{\"program\": \"gemma_layer\", \"tokens\": {tokens}, \"repeats\": {repeats}, \"best_s\": {best:.4}, \
         \"median_s\": {median:.4}, \"peak_bytes\": {peak}}}"
    );
    Ok(())
}
