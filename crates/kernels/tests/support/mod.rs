//! What the op checks share.

#![allow(dead_code, unused_imports, clippy::print_stdout, reason = "each test program uses its own part")]
#![allow(clippy::allow_attributes, reason = "whether a helper is used depends on the program")]

pub(crate) use std::slice::from_ref as one;

pub(crate) use candle_core::{D, DType, Device, Result, Tensor, Var};
pub(crate) use kiln_kernels::check::{self, Tol, assert_close, backward, gradients, random};

/// Random f32.
pub(crate) fn f32s(shape: &[usize], seed: u64) -> Tensor {
    random(shape, seed).and_then(|t| t.to_dtype(DType::F32)).unwrap()
}

/// The same numbers in f64.
pub(crate) fn wide(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F64).unwrap()
}

/// Rounds to bf16 and back, so that bf16 and f32 see the same numbers.
pub(crate) fn rounded(t: &Tensor) -> Tensor {
    t.to_dtype(DType::BF16).unwrap().to_dtype(t.dtype()).unwrap()
}

/// The f32 op against its f64 reference at the same numbers, forward; and bf16 against both.
pub(crate) fn forward_agrees(
    name: &str,
    tol: Tol,
    inputs: &[Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let inputs: Vec<Tensor> = inputs.iter().map(rounded).collect();
    let cast = |dtype| inputs.iter().map(|t| t.to_dtype(dtype)).collect::<Result<Vec<_>>>().unwrap();
    let want = f(&cast(DType::F64)).unwrap();
    let got = f(&cast(DType::F32)).unwrap();
    assert_eq!((got.dtype(), want.dtype()), (DType::F32, DType::F64), "{name}: the result has x's dtype");
    println!("{name}: {}", assert_close(name, &got, &want, tol));
    let half = f(&cast(DType::BF16)).unwrap();
    assert_eq!(half.dtype(), DType::BF16, "{name}: the result has x's dtype");
    assert_close(&format!("{name} in bf16"), &half, &want, Tol::bf16());
}

/// The gradients of two ways to write one function, in f32.
pub(crate) fn same_gradients(
    name: &str,
    tol: Tol,
    inputs: &[Tensor],
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let cast: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(DType::F32).unwrap()).collect();
    assert_close(&format!("{name}: forward"), &op(&cast).unwrap(), &composed(&cast).unwrap(), tol);
    let (got, want) = (backward(&cast, op).unwrap(), backward(&cast, composed).unwrap());
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_close(&format!("{name}: gradient {i} against the composition"), got, want, tol);
    }
}

/// A transposed view holding the same values as `t` in a non-contiguous layout.
pub(crate) fn scattered(t: &Tensor) -> Tensor {
    let last = t.rank() - 1;
    let view = t.transpose(last - 1, last).unwrap().contiguous().unwrap().transpose(last - 1, last).unwrap();
    assert!(!view.is_contiguous() || view.dims()[last] == 1 || view.dims()[last - 1] == 1);
    view
}
