//! Bytes of a file to tensors.

use candle_core::{DType, Device, Result, Tensor, bail};
use half::{bf16, f16};

use super::header::{Entry, Stored};

/// Types a weight may be stored in.
pub(super) fn is_weight_type(stored: Stored) -> bool {
    matches!(stored, Stored::BF16 | Stored::F16 | Stored::F32 | Stored::F8E4M3)
}

/// Makes a tensor of `bytes`, stored as `entry` says, in `dtype` (`None`: the type it is stored in).
///
/// The source may lie unaligned, so values are taken byte-wise; the compiler makes wide loads of it.
pub(super) fn tensor(
    bytes: &[u8],
    entry: &Entry,
    scale: Option<f32>,
    dtype: Option<DType>,
    device: &Device,
) -> Result<Tensor> {
    let shape = entry.shape.as_slice();
    let host = &Device::Cpu;
    let made = match (entry.stored, dtype) {
        // The two conversions a whole model goes through, without a tensor in between.
        (Stored::BF16, Some(DType::F32)) => {
            Tensor::from_vec(each(bytes, |b| bf16::from_le_bytes(b).to_f32()), shape, host)
        }
        (Stored::F32, Some(DType::BF16)) => {
            Tensor::from_vec(each(bytes, |b| bf16::from_f32(f32::from_le_bytes(b))), shape, host)
        }
        (Stored::BF16, _) => Tensor::from_vec(each(bytes, bf16::from_le_bytes), shape, host),
        (Stored::F32, _) => Tensor::from_vec(each(bytes, f32::from_le_bytes), shape, host),
        (Stored::F64, _) => Tensor::from_vec(each(bytes, f64::from_le_bytes), shape, host),
        (Stored::F16, _) => Tensor::from_vec(each(bytes, |b| f16::from_le_bytes(b).to_f32()), shape, host),
        (Stored::F8E4M3, _) => {
            let table = fp8_table(scale.unwrap_or(1.0));
            let values: Vec<bf16> = bytes.iter().map(|&b| table[usize::from(b)]).collect();
            Tensor::from_vec(values, shape, host)
        }
        (Stored::U8 | Stored::Bool, _) => Tensor::from_slice(bytes, shape, host),
        (Stored::I8, _) => Tensor::from_vec(each(bytes, |b| i64::from(i8::from_le_bytes(b))), shape, host),
        (Stored::I16, _) => Tensor::from_vec(each(bytes, |b| i64::from(i16::from_le_bytes(b))), shape, host),
        (Stored::I32, _) => Tensor::from_vec(each(bytes, |b| i64::from(i32::from_le_bytes(b))), shape, host),
        (Stored::U16, _) => Tensor::from_vec(each(bytes, |b| u32::from(u16::from_le_bytes(b))), shape, host),
        (Stored::U32, _) => Tensor::from_vec(each(bytes, u32::from_le_bytes), shape, host),
        (Stored::I64, _) => Tensor::from_vec(each(bytes, i64::from_le_bytes), shape, host),
        (Stored::U64 | Stored::F8E5M2, _) => bail!("values stored as {} cannot be used", entry.stored),
    }?;
    let made = match dtype {
        Some(dtype) => made.to_dtype(dtype)?,
        None => made,
    };
    made.to_device(device)
}

fn each<const N: usize, T>(bytes: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (values, rest) = bytes.as_chunks::<N>();
    debug_assert!(rest.is_empty(), "invariant: the header's sizes were checked");
    values.iter().map(|&value| from(value)).collect()
}

/// bf16(f32(code) · scale) for the 256 codes of F8_E4M3: sign, 4 bits of exponent (bias 7), 3 of mantissa, no
/// infinities, 0x7F and 0xFF are NaN. Source: `model.md` §4; the format's definition in arXiv 2209.05433.
fn fp8_table(scale: f32) -> [bf16; 256] {
    std::array::from_fn(|code| {
        let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
        let (exponent, mantissa) = ((code >> 3) & 0xf, (code & 7) as f32);
        let magnitude = match (exponent, code & 7) {
            (15, 7) => f32::NAN,
            (0, _) => mantissa / 8.0 * 2f32.powi(-6),
            (e, _) => (1.0 + mantissa / 8.0) * 2f32.powi(e as i32 - 7),
        };
        bf16::from_f32(sign * magnitude * scale)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp8_codes_have_their_values() {
        let table = fp8_table(1.0);
        for (code, value) in [(0x00, 0.0), (0x01, 0.001953125), (0x38, 1.0), (0x7e, 448.0), (0xb8, -1.0)] {
            assert_eq!(table[code].to_f32(), value, "code {code:#x}");
        }
        assert!(table[0x7f].is_nan() && table[0xff].is_nan());
        assert_eq!(fp8_table(0.5)[0x38].to_f32(), 0.5);
    }
}
