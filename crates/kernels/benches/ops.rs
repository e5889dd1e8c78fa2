//! Times every op at the sizes of the 22B transformer: 1,024 tokens, width 4096, 32 heads of 128.
//!
//! `cargo bench -p kiln-kernels -- [word…]` runs the ops whose name contains a word; add
//! `--profile dev` to time the build that the tests use. One line per op: the best and the median of
//! the runs, forward alone and forward with backward, in milliseconds. On a machine that does other work
//! too, look at the last column: processor time per forward and backward run, all threads together.

#![expect(clippy::print_stdout, reason = "a benchmark's output is its table")]

use candle_core::{DType, Device, Result, Tensor, Var};
use kiln_kernels::check::random;
use kiln_kernels::{
    Adapter, Attention, FrozenLinear, FrozenWeight, Mask, Modulation, Rope, attention, column_sums,
    feed_forward, gate_residual, gated_heads, gelu_tanh, layer_norm, rms_norm, rms_norm_modulate,
    rms_norm_rope, rope, silu, softmax_last_dim, velocity_loss,
};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Without it most of the time is page faults (measured: 2 to 10 times on memory-bound ops).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TOKENS: usize = 1024;
const WIDTH: usize = 4096;
const HEADS: usize = 32;
const RANK: usize = 32;
/// Stop repeating an op after this long.
const BUDGET: Duration = Duration::from_millis(1500);

type Op<'a> = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + 'a>;

fn f32s(shape: &[usize], seed: u64) -> Result<Tensor> {
    random(shape, seed)?.to_dtype(DType::F32)
}

/// Cheap numbers of order 1/√columns: the speed does not depend on them.
fn weight(out: usize, inner: usize, dtype: DType) -> Result<FrozenWeight> {
    let row = (random(&[1, inner], 1)? * (1.0 / (inner as f64).sqrt()))?.to_dtype(dtype)?;
    FrozenWeight::new(row.broadcast_as((out, inner))?.contiguous()?)
}

fn layer(out: usize, inner: usize, dtype: DType) -> Result<FrozenLinear> {
    FrozenLinear::new(weight(out, inner, dtype)?, Some(f32s(&[out], 2)?))
}

/// Processor time of this process so far, in milliseconds (Linux; elsewhere NaN). Its clock ticks
/// every 10 ms.
fn processor_ms() -> f64 {
    let ticks = || -> Option<f64> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        Some(fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?)
    };
    ticks().map_or(f64::NAN, |ticks| ticks * 10.0)
}

/// (best, median) in milliseconds.
fn time(mut run: impl FnMut() -> Result<()>) -> Result<(f64, f64)> {
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || (start.elapsed() < BUDGET && times.len() < 30) {
        let begin = Instant::now();
        run()?;
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok((times[0], times[times.len() / 2]))
}

fn report(name: &str, inputs: &[Tensor], op: &Op<'_>) -> Result<()> {
    let forward = time(|| {
        black_box(op(inputs)?);
        Ok(())
    })?;
    let vars = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let tracked: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let (before, mut runs) = (processor_ms(), 0);
    let both = time(|| {
        runs += 1;
        black_box(op(&tracked)?.backward()?);
        Ok(())
    })?;
    let processor = (processor_ms() - before) / f64::from(runs);
    println!("{name:44} {:9.2} {:9.2} {:11.2} {:9.2} {processor:10.2}", forward.0, forward.1, both.0, both.1);
    Ok(())
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    println!("threads {}, AVX2 and FMA: {}", rayon::current_num_threads(), kiln_kernels::simd::wide());
    println!(
        "{:44} {:>9} {:>9} {:>11} {:>9} {:>10}",
        "op", "forward", "median", "with grad", "median", "processor"
    );
    let one = |name: &str, shape: &[usize], op: Op<'_>| -> Result<()> {
        if wanted(name) { report(name, &[f32s(shape, 1)?], &op) } else { Ok(()) }
    };
    let stream: &[usize] = &[1, TOKENS, WIDTH];
    let inner: &[usize] = &[1, TOKENS, 4 * WIDTH];

    for dtype in [DType::F32, DType::BF16] {
        for tokens in [TOKENS, 64] {
            let name = format!("frozen_linear {tokens}×{WIDTH}×{WIDTH} {dtype:?}");
            let layer = layer(WIDTH, WIDTH, dtype)?;
            one(&name, &[1, tokens, WIDTH], Box::new(move |x| layer.forward(&x[0], None)))?;
        }
        let name = format!("lora_linear {TOKENS}×{WIDTH}×{WIDTH} rank {RANK} {dtype:?}");
        if wanted(&name) {
            let layer = layer(WIDTH, WIDTH, dtype)?;
            let inputs = [f32s(stream, 1)?, f32s(&[RANK, WIDTH], 3)?, f32s(&[WIDTH, RANK], 4)?];
            let op: Op<'_> = Box::new(move |x| {
                layer.forward(&x[0], Some(&Adapter::new(x[1].clone(), x[2].clone(), 1.0)?))
            });
            report(&name, &inputs, &op)?;
        }
        let name = format!("feed_forward {TOKENS}×{WIDTH}×{} {dtype:?}", 4 * WIDTH);
        if wanted(&name) {
            let (first, second) = (layer(4 * WIDTH, WIDTH, dtype)?, layer(WIDTH, 4 * WIDTH, dtype)?);
            one(&name, stream, Box::new(move |x| feed_forward(&x[0], &first, &second)))?;
        }
    }

    let norm_weight = f32s(&[WIDTH], 5)?;
    let index = Tensor::zeros((1, TOKENS), DType::U32, &Device::Cpu)?;
    let m = Modulation::new(&f32s(&[2, 9, WIDTH], 6)?, &index)?;
    let tables =
        Rope::new(&f32s(&[1, TOKENS, WIDTH / 2], 7)?, &f32s(&[1, TOKENS, WIDTH / 2], 8)?, WIDTH / HEADS)?;
    one("rms_norm", stream, Box::new(|x| rms_norm(&x[0], None, 1e-6)))?;
    one("rms_norm with a weight", stream, Box::new(|x| rms_norm(&x[0], Some(&norm_weight), 1e-6)))?;
    one("layer_norm", stream, Box::new(|x| layer_norm(&x[0], 1e-6)))?;
    one("rms_norm_modulate", stream, Box::new(|x| rms_norm_modulate(&x[0], &m, 0, 1, 1e-6)))?;
    one("rms_norm_rope", stream, Box::new(|x| rms_norm_rope(&x[0], &norm_weight, 1e-6, Some(&tables))))?;
    one("rope", stream, Box::new(|x| rope(&x[0], &tables)))?;
    let pair = |name: &str, second: &[usize], op: Op<'_>| -> Result<()> {
        if wanted(name) { report(name, &[f32s(stream, 1)?, f32s(second, 2)?], &op) } else { Ok(()) }
    };
    pair("gate_residual", stream, Box::new(|x| gate_residual(&x[0], &x[1], &m, 2)))?;
    pair("gated_heads", &[1, TOKENS, HEADS], Box::new(|x| gated_heads(&x[0], &x[1])))?;
    one("gelu_tanh, 16.8 M", inner, Box::new(|x| gelu_tanh(&x[0])))?;
    one("silu, 16.8 M", inner, Box::new(|x| silu(&x[0])))?;
    one("softmax_last_dim 4096 × 4096", &[4096, 4096], Box::new(|x| softmax_last_dim(&x[0])))?;
    one("column_sums 4096 × 4096", &[4096, 4096], Box::new(|x| column_sums(&x[0])))?;
    let target = f32s(&[1, TOKENS, 128], 9)?;
    let mask = Tensor::ones((1, TOKENS), DType::F32, &Device::Cpu)?;
    one("velocity_loss", &[1, TOKENS, 128], Box::new(|x| velocity_loss(&x[0], &target, &mask)))?;

    for (name, keys, mask) in [
        ("attention 32×1024×128", TOKENS, Mask::None),
        ("attention 32×1024×128, 50 keys", 50, Mask::None),
        ("attention 32×1024×128, causal", TOKENS, Mask::Causal { window: None, keys: None }),
    ] {
        if wanted(name) {
            let how = Attention { mask, ..Attention::new(HEADS, WIDTH / HEADS) };
            let inputs = [f32s(stream, 1)?, f32s(&[1, keys, WIDTH], 2)?, f32s(&[1, keys, WIDTH], 3)?];
            let op: Op<'_> = Box::new(move |x| attention(&x[0], &x[1], &x[2], &how));
            report(name, &inputs, &op)?;
        }
    }
    Ok(())
}
