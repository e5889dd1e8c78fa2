//! Times of the 3-D convolution of the video VAE. The whole encoder: `encoder.rs`.
//!
//! `cargo bench -p kiln-model --bench conv3d`. Prints the best of a few runs: wall time and
//! processor time of all threads (the one that counts on a shared machine).

use std::{fs, io::Write, time::Instant};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use kernels::{Conv3d, Padding, Walk3d};
use kiln_model::random_values;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// 128 → 128 channels, 3×3×3, 8 frames of 64×64, causal.
fn main() -> Result<()> {
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
