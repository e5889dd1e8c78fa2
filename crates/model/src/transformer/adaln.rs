//! Timestep embeddings and the modulation made of them, once per distinct value instead of once per token.
//!
//! B batch, T tokens, K distinct timesteps, R rows, D width.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};

use crate::{
    Error, Result, Weights,
    nn::{Adapters, Linear},
};

/// Sinusoids per embedding: half cosines, half sines. Source: `model-transformer.md` §5.
const SINUSOIDS: usize = 256;

/// An `…adaln_single` module: a scalar becomes an embedding and, of it, R rows of modulation.
#[derive(Debug)]
pub struct AdaLayerNormSingle {
    linear_1: Linear,
    linear_2: Linear,
    linear: Linear,
    rows: usize,
    width: usize,
}

/// What a module makes of K values.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// [K, R, D]; tables are not added.
    pub modulation: Tensor,
    /// [K, D].
    pub timestep: Tensor,
}

impl AdaLayerNormSingle {
    /// The module at `w` with `rows` rows.
    ///
    /// # Errors
    /// What reading its tensors reports.
    pub fn new(width: usize, rows: usize, w: &Weights) -> Result<Self> {
        let embedder = w.pp("emb").pp("timestep_embedder");
        Ok(Self {
            linear_1: Linear::new(SINUSOIDS, width, &embedder.pp("linear_1"))?,
            linear_2: Linear::new(width, width, &embedder.pp("linear_2"))?,
            linear: Linear::new(width, rows * width, &w.pp("linear"))?,
            rows,
            width,
        })
    }

    /// Embeds `values`, timesteps that are already scaled (0 to 1000).
    ///
    /// # Errors
    /// When the tensor library refuses.
    pub fn forward(
        &self,
        values: &[f32],
        dtype: DType,
        device: &Device,
        adapters: Adapters<'_>,
    ) -> Result<Embedded> {
        let waves = sinusoids(values, device)?.to_dtype(dtype)?;
        let hidden = kernels::silu(&self.linear_1.forward(&waves, adapters)?)?;
        let timestep = self.linear_2.forward(&hidden, adapters)?;
        let modulation = self.linear.forward(&kernels::silu(&timestep)?, adapters)?;
        let modulation = modulation.reshape((values.len(), self.rows, self.width))?;
        // Constants of the pass: what follows holds them without recording.
        Ok(Embedded { modulation: modulation.detach(), timestep: timestep.detach() })
    }
}

/// [K, 256] f32: cosines of s·e_i, then sines, see [`frequency`].
fn sinusoids(values: &[f32], device: &Device) -> Result<Tensor> {
    let half = SINUSOIDS / 2;
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let mut waves = Vec::with_capacity(values.len() * SINUSOIDS);
    for &value in values {
        waves.extend(frequencies.iter().map(|f| (value * f).cos()));
        waves.extend(frequencies.iter().map(|f| (value * f).sin()));
    }
    Ok(Tensor::from_vec(waves, (values.len(), SINUSOIDS), device)?)
}

/// e_i = exp(−ln(10000)·i/128) in f32, bit for bit the reference's.
///
/// The angles are s·e_i with s up to 1000, so the last bit of a frequency moves a sinusoid by 2e-5. For 127 of the
/// 128 the nearest f32 is what the reference has. The other one lies 0.479 of a unit above the number below it, and
/// the reference's vectorised exponential (`torch.exp` of the f32 exponents) takes the number above.
fn frequency(i: usize) -> f32 {
    const ROUNDED_UP: usize = 12;
    let exponent = -(10_000f64.ln() as f32) * i as f32 / (SINUSOIDS / 2) as f32;
    // In f64 and rounded once, so that no system's f32 exponential has a say.
    let nearest = f64::from(exponent).exp() as f32;
    if i == ROUNDED_UP { nearest.next_up() } else { nearest }
}

/// The distinct values of per-token timesteps and which token has which.
#[derive(Debug, Clone)]
pub struct Distinct {
    /// K values in the order they first appear.
    pub values: Vec<f32>,
    /// [B, T] u32, indices into `values`.
    pub index: Tensor,
}

impl Distinct {
    /// Of timesteps [B, T].
    ///
    /// # Errors
    /// `Input` when one of them is not a finite number.
    pub fn of(timesteps: &Tensor) -> Result<Self> {
        let shape = timesteps.dims2()?;
        let all = timesteps.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let mut values = Vec::new();
        let mut places = HashMap::new();
        let mut index = Vec::with_capacity(all.len());
        for value in all {
            if !value.is_finite() {
                return Err(Error::input("timesteps", format!("{value} is not a timestep")));
            }
            let place = *places.entry(value.to_bits()).or_insert_with(|| {
                values.push(value);
                values.len() as u32 - 1
            });
            index.push(place);
        }
        Ok(Self { values, index: Tensor::from_vec(index, shape, timesteps.device())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sinusoids_have_the_values_of_the_specification() {
        // `model-transformer.md` §5, s = 700.
        let waves = sinusoids(&[700.0], &Device::Cpu).expect("a small tensor");
        let waves = waves.flatten_all().and_then(|w| w.to_vec1::<f32>()).expect("a small tensor");
        let known = [
            (0, -0.839_104_3),
            (1, -0.461_800_4),
            (2, -0.988_410_4),
            (127, 0.997_172_1),
            (128, 0.543_970_5),
            (129, -0.886_983_9),
        ];
        for (i, value) in known {
            assert!((waves[i] - value).abs() < 1e-7, "{i}: {} against {value}", waves[i]);
        }
    }

    #[test]
    fn equal_timesteps_are_embedded_once() {
        let timesteps =
            Tensor::new(&[[0f32, 0.7, 0.7], [0.4, 0.0, 0.4]], &Device::Cpu).expect("a small tensor");
        let distinct = Distinct::of(&timesteps).expect("finite timesteps");
        assert_eq!(distinct.values, [0.0, 0.7, 0.4]);
        assert_eq!(distinct.index.to_vec2::<u32>().expect("u32"), [[0, 1, 1], [2, 0, 2]]);
    }
}
