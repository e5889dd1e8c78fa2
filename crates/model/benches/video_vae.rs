//! Times of the video VAE: one 3-D convolution, and the encoder of the 22B configuration with random weights.
//!
//! `cargo bench -p kiln-model --bench video_vae [-- conv3d|encoder]`. Prints the best of a few runs: wall time and
//! processor time of all threads (the one that counts on a shared machine).

use std::{fs, io::Write, time::Instant};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use kernels::{Conv3d, Padding, Walk3d};
use kiln_model::{
    Component, Weights, random_values,
    video_vae::{Statistics, VideoEncoder, VideoVaeConfig},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let runs = |name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
    if runs("conv3d") {
        conv3d()?;
    }
    if runs("encoder") {
        encoder()?;
    }
    Ok(())
}

/// 128 → 128 channels, 3×3×3, 8 frames of 64×64, causal.
fn conv3d() -> Result<()> {
    let x = noise(&[1, 8, 64, 64, 128])?;
    let weight = noise(&[128, 128, 3, 3, 3])?;
    let walk = Walk3d {
        stride: [1; 3],
        pad: [(2, 0), (1, 1), (1, 1)],
        padding: [Padding::Replicate, Padding::Zeros, Padding::Zeros],
    };
    for dtype in [DType::F32, DType::BF16] {
        let conv = Conv3d::new(weight.to_dtype(dtype)?, Some(noise(&[128])?))?;
        let name = format!("conv3d 128→128 3×3×3 on 8×64×64, weight {dtype:?}");
        report(&name, 5, || Ok(conv.forward(&x, &walk, None)?))?;
    }
    Ok(())
}

/// 9 frames of 256×256 at real size.
fn encoder() -> Result<()> {
    let config = VideoVaeConfig::read(&serde_json::from_str(include_str!("video_vae_22b.json"))?)?;
    let random = |component| Weights::random(component, 1, &Device::Cpu, DType::F32);
    let statistics = Statistics::new(config.latent_channels, &random(Component::VideoStatistics))?;
    let encoder = VideoEncoder::new(&config, &random(Component::VideoEncoder), statistics)?;
    let before = memory("VmRSS")?;
    let pixels = noise(&[1, 3, 9, 256, 256])?;
    report("video VAE encoder, 22B config, 9 frames of 256×256", 3, || Ok(encoder.encode(&pixels)?))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "  with weights {before} MB, at most {} MB", memory("VmHWM")?)?;
    Ok(())
}

fn noise(shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(random_values(1, "noise.weight", shape), shape, &Device::Cpu)?)
}

fn report(name: &str, times: usize, run: impl Fn() -> Result<Tensor>) -> Result<()> {
    let (mut wall, mut processor) = (f64::MAX, f64::MAX);
    for _ in 0..times {
        let (start, before) = (Instant::now(), processor_seconds()?);
        let result = run()?;
        wall = wall.min(start.elapsed().as_secs_f64());
        processor = processor.min(processor_seconds()? - before);
        anyhow::ensure!(result.elem_count() > 0, "{name}: no result");
    }
    let threads = std::thread::available_parallelism()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{name}: {:.0} ms, processor {:.0} ms on {threads}", wall * 1e3, processor * 1e3)?;
    Ok(())
}

/// User and system time of the process, in hundredths of a second as Linux counts them.
fn processor_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').context("/proc/self/stat has no name")?.1;
    let ticks: Vec<f64> = fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse().ok()).collect();
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

/// A line of /proc/self/status, in MB.
fn memory(line: &str) -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let value = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
    let kilobytes: u64 = value.context("no such line")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes / 1000)
}
