//! SiLU of the root-mean-square norm of each row: the activation of the video VAE. Forward only.

use crate::error::{Error, Result};
use crate::{simd_fn, vecmath};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor};
use rayon::prelude::*;

const OP: &str = "rms_norm_silu";
/// Values per task: enough that handing it to a thread costs nothing beside it.
const TASK: usize = 32 * 1024;

/// u = x / sqrt(mean(x²) + eps) over the last axis, y = u / (1 + e⁻ᵘ). f32 in and out.
///
/// # Errors
/// Another type than f32, no values, an input tracked for gradients (there is no backward).
pub fn rms_norm_silu(x: &Tensor, eps: f64) -> Result<Tensor> {
    if x.dtype() != DType::F32 {
        return Err(Error::DType { op: OP, what: "x", got: x.dtype(), expected: "f32" }.into());
    }
    if x.track_op() {
        return Err(Error::TrackedConstant { op: OP, what: "x" }.into());
    }
    if x.rank() == 0 || x.elem_count() == 0 {
        let expected = "at least one value on the last axis".to_owned();
        return Err(Error::Shape { op: OP, what: "x", got: x.dims().to_vec(), expected }.into());
    }
    x.contiguous()?.apply_op1_no_bwd(&Forward { eps: eps as f32 })
}

struct Forward {
    eps: f32,
}

impl CustomOp1 for Forward {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (start, end) = layout.contiguous_offsets().expect("invariant: made contiguous before");
        let x = &storage.as_slice::<f32>()?[start..end];
        let width = layout.dims().last().copied().expect("invariant: rank checked before");
        let mut y = vec![0f32; x.len()];
        let step = (TASK / width).max(1) * width;
        y.par_chunks_mut(step).zip(x.par_chunks(step)).for_each(|(y, x)| rows(width, self.eps, x, y));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

simd_fn! {
    fn rows(width: usize, eps: f32, x: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let mean = vecmath::sum1(x, |x| x * x) / width as f32;
            let scale = 1.0 / (mean + eps).sqrt();
            for (y, x) in y.iter_mut().zip(x) {
                let u = x * scale;
                *y = u * vecmath::sigmoid::<FMA>(u);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn rows_are_normed_and_activated_as_the_formula_says() {
        for (rows, width) in [(1, 1), (3, 7), (5, 16), (700, 129)] {
            let x: Vec<f32> = (0..rows * width).map(|i| ((i * 37 % 101) as f32 - 50.0) / 17.0).collect();
            let tensor = Tensor::from_slice(&x, (rows, width), &Device::Cpu).unwrap();
            let got = rms_norm_silu(&tensor, 1e-8).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (row, got) in x.chunks(width).zip(got.chunks(width)) {
                let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                for (x, got) in row.iter().zip(got) {
                    let u = f64::from(*x) / (mean + 1e-8).sqrt();
                    let want = u / (1.0 + (-u).exp());
                    assert!((f64::from(*got) - want).abs() < 2e-6, "{rows}×{width}: {got} for {want}");
                }
            }
        }
    }

    #[test]
    fn a_row_of_zeros_stays_zero() {
        let y = rms_norm_silu(&Tensor::zeros((2, 5), DType::F32, &Device::Cpu).unwrap(), 1e-8).unwrap();
        assert_eq!(y.to_vec2::<f32>().unwrap(), vec![vec![0.0; 5]; 2]);
    }

    #[test]
    fn an_input_that_wants_a_gradient_is_refused() {
        let x = candle_core::Var::zeros((2, 5), DType::F32, &Device::Cpu).unwrap();
        assert!(rms_norm_silu(x.as_tensor(), 1e-8).unwrap_err().to_string().contains("tracked"));
    }
}
