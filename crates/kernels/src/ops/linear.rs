//! Linear layers over frozen weights, with an optional low-rank adapter beside them.
//!
//! M rows of x (all leading axes), W [out, in], b [out], A [rank, in], B [out, rank].
//!
//! ```text
//! y  = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ
//! dx = g·W + s·(g·B)·A      dA = s·(g·B)ᵀ·x      dB = s·gᵀ·(x·Aᵀ)
//! ```
//!
//! W and b are fields of the op, never its operands: the graph cannot ask for their gradient.
//! Source: `spec/training.md` (adapter), `design/stack.md` §5 no. 3.

use crate::error::Result;
use crate::frozen::FrozenWeight;
use crate::host::{self, Host, Slice};
use crate::matrix::{Threads, View, ViewMut, product, product_plain};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Shape, Tensor};
use rayon::prelude::*;

/// A frozen linear layer: weight and bias as in the checkpoint.
#[derive(Clone, Debug)]
pub struct FrozenLinear {
    weight: FrozenWeight,
    bias: Option<Tensor>,
}

impl FrozenLinear {
    /// weight: [out, in], bias: `[out]` (constant).
    pub fn new(weight: FrozenWeight, bias: Option<Tensor>) -> Result<Self> {
        let bias = bias.map(|bias| checked_bias(&weight, &bias)).transpose()?;
        Ok(Self { weight, bias })
    }

    /// x: [.., in] → [.., out], with the adapter's part where one is given.
    pub fn forward(&self, x: &Tensor, adapter: Option<&Adapter>) -> Result<Tensor> {
        match adapter {
            Some(adapter) => lora_linear(x, &self.weight, self.bias.as_ref(), adapter),
            None => frozen_linear(x, &self.weight, self.bias.as_ref()),
        }
    }

    /// [out, in]
    #[must_use]
    pub fn weight(&self) -> &FrozenWeight {
        &self.weight
    }

    /// `[out]`, f32
    #[must_use]
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Width of the result.
    #[must_use]
    pub fn out_features(&self) -> usize {
        self.weight.out_features()
    }

    /// Width of x.
    #[must_use]
    pub fn in_features(&self) -> usize {
        self.weight.in_features()
    }
}

/// The low-rank part of a linear layer: scale·(x·Aᵀ)·Bᵀ.
#[derive(Clone, Debug)]
pub struct Adapter {
    a: Tensor,
    b: Tensor,
    scale: f64,
}

impl Adapter {
    /// a: [rank, in] (`lora_A`), b: [out, rank] (`lora_B`); either may be tracked, in any float dtype.
    pub fn new(a: Tensor, b: Tensor, scale: f64) -> Result<Self> {
        let [rank, _] = *a.dims() else {
            return host::shape_error("Adapter", "A", &a, "[rank, in]");
        };
        if b.rank() != 2 || b.dim(1)? != rank {
            return host::shape_error("Adapter", "B", &b, format!("[out, {rank}], the rank of A"));
        }
        Ok(Self { a, b, scale })
    }

    /// [rank, in]
    #[must_use]
    pub fn a(&self) -> &Tensor {
        &self.a
    }

    /// [out, rank]
    #[must_use]
    pub fn b(&self) -> &Tensor {
        &self.b
    }

    /// The factor s.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Rows of A.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.a.dims()[0]
    }
}

/// x·Wᵀ + b. x: [.., in] → [.., out]. Gradient for x only.
pub fn frozen_linear(x: &Tensor, weight: &FrozenWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    let base = Base::new("frozen_linear", x, weight, bias)?;
    x.contiguous()?.apply_op1(Frozen(base))
}

/// x·Wᵀ + b + scale·(x·Aᵀ)·Bᵀ. x: [.., in] → [.., out]. Gradients for x, A and B only.
pub fn lora_linear(
    x: &Tensor,
    weight: &FrozenWeight,
    bias: Option<&Tensor>,
    adapter: &Adapter,
) -> Result<Tensor> {
    const OP: &str = "lora_linear";
    let base = Base::new(OP, x, weight, bias)?;
    let (rank, scale) = (adapter.rank(), adapter.scale);
    if adapter.a.dims() != [rank, weight.in_features()] {
        return host::shape_error(OP, "A", &adapter.a, format!("[{rank}, {}]", weight.in_features()));
    }
    if adapter.b.dims() != [weight.out_features(), rank] {
        return host::shape_error(OP, "B", &adapter.b, format!("[{}, {rank}]", weight.out_features()));
    }
    let a = adapter.a.to_dtype(x.dtype())?.contiguous()?;
    let b = adapter.b.to_dtype(x.dtype())?.contiguous()?;
    x.contiguous()?.apply_op3(&a, &b, Lora { base, rank, scale })
}

fn checked_bias(weight: &FrozenWeight, bias: &Tensor) -> Result<Tensor> {
    if bias.dims() != [weight.out_features()] {
        let expected = format!("[{}], the rows of the weight", weight.out_features());
        return host::shape_error("linear", "bias", bias, expected);
    }
    host::constant("linear", "bias", bias)
}

/// The frozen part, as the ops hold it.
#[derive(Clone)]
struct Base {
    weight: FrozenWeight,
    bias: Option<Tensor>,
}

impl Base {
    fn new(op: &'static str, x: &Tensor, weight: &FrozenWeight, bias: Option<&Tensor>) -> Result<Self> {
        if x.dims().last() != Some(&weight.in_features()) {
            let expected = format!("[.., {}], the columns of the weight", weight.in_features());
            return host::shape_error(op, "x", x, expected);
        }
        let bias = bias.map(|bias| checked_bias(weight, bias)).transpose()?;
        Ok(Self { weight: weight.clone(), bias })
    }

    fn out_shape(&self, layout: &Layout) -> Shape {
        let mut dims = layout.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = self.weight.out_features();
        }
        dims.into()
    }

    /// y: [M, out], written.
    fn forward(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        let (out, inner) = (self.weight.out_features(), self.weight.in_features());
        let m = y.len() / out.max(1);
        let biased = start_with_bias(self.bias.as_ref(), y)?;
        let mut y = ViewMut::new(y, m, out);
        self.weight.open()?.times_transposed(0..out, 0..inner, View::new(x, m, inner), &mut y, biased);
        Ok(())
    }

    fn forward_plain(&self, x: &[f64], m: usize) -> Result<Vec<f64>> {
        let (out, inner) = (self.weight.out_features(), self.weight.in_features());
        let mut y = vec![0.0; m * out];
        if let Some(bias) = &self.bias {
            let bias = Slice::of("linear", "bias", bias)?;
            for (i, y) in y.iter_mut().enumerate() {
                *y = f64::from(bias[i % out]);
            }
        }
        let w = self.weight.open()?;
        product_plain(&mut y, 1.0, (m, out, inner), |i, l| x[i * inner + l], |l, j| w.at(j, l));
        Ok(y)
    }

    /// dx: [M, in] = g·W, written.
    fn backward(&self, g: &[f32], dx: &mut [f32]) -> Result<()> {
        let (out, inner) = (self.weight.out_features(), self.weight.in_features());
        let m = g.len() / out.max(1);
        let mut dx = ViewMut::new(dx, m, inner);
        self.weight.open()?.times(0..out, 0..inner, View::new(g, m, out), &mut dx, false);
        Ok(())
    }

    fn backward_plain(&self, g: &[f64], m: usize) -> Result<Vec<f64>> {
        let (out, inner) = (self.weight.out_features(), self.weight.in_features());
        let mut dx = vec![0.0; m * inner];
        let w = self.weight.open()?;
        product_plain(&mut dx, 1.0, (m, inner, out), |i, l| g[i * out + l], |l, j| w.at(l, j));
        Ok(dx)
    }
}

/// Writes the bias to every row; false where there is none and nothing was written.
pub(crate) fn start_with_bias(bias: Option<&Tensor>, y: &mut [f32]) -> Result<bool> {
    let Some(bias) = bias else { return Ok(false) };
    let bias = Slice::of("linear", "bias", bias)?;
    let (bias, width) = (&*bias, bias.len().max(1));
    let rows = (host::TASK / width).max(1);
    y.par_chunks_mut(rows * width).for_each(|rows| {
        for y in rows.chunks_mut(width) {
            y.copy_from_slice(bias);
        }
    });
    Ok(true)
}

struct Frozen(Base);

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "frozen_linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = self.0.out_shape(layout);
        let out = match host::activation(self.name(), "x", storage, layout)? {
            Host::F32(x) => {
                let mut y = host::unset(shape.elem_count());
                self.0.forward(&x, &mut y)?;
                host::store(y, host::dtype_of(storage))
            }
            Host::F64(x) => CpuStorage::F64(self.0.forward_plain(x, rows_of(layout))?),
        };
        Ok((out, shape))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let dx = grad.contiguous()?.apply_op1_no_bwd(&FrozenBackward(self.0.clone()))?;
        Ok(Some(dx.reshape(x.shape())?))
    }
}

struct FrozenBackward(Base);

impl CustomOp1 for FrozenBackward {
    fn name(&self) -> &'static str {
        "frozen_linear gradient"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = Shape::from((rows_of(layout), self.0.weight.in_features()));
        let out = match host::activation(self.name(), "the gradient", storage, layout)? {
            Host::F32(g) => {
                let mut dx = host::unset(shape.elem_count());
                self.0.backward(&g, &mut dx)?;
                host::store(dx, host::dtype_of(storage))
            }
            Host::F64(g) => CpuStorage::F64(self.0.backward_plain(g, rows_of(layout))?),
        };
        Ok((out, shape))
    }
}

/// All leading axes together.
fn rows_of(layout: &Layout) -> usize {
    let dims = layout.dims();
    dims[..dims.len().saturating_sub(1)].iter().product()
}

struct Lora {
    base: Base,
    rank: usize,
    scale: f64,
}

impl CustomOp3 for Lora {
    fn name(&self) -> &'static str {
        "lora_linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let op = self.name();
        let (shape, dtype) = (self.base.out_shape(layout), host::dtype_of(x));
        let (out, inner) = (self.base.weight.out_features(), self.base.weight.in_features());
        let (m, rank) = (rows_of(layout), self.rank);
        let x = host::activation(op, "x", x, layout)?;
        let a = host::activation(op, "A", a, a_layout)?;
        let result = match (x, a, host::activation(op, "B", b, b_layout)?) {
            (Host::F32(x), Host::F32(a), Host::F32(b)) => {
                let mut y = host::unset(shape.elem_count());
                self.base.forward(&x, &mut y)?;
                let hidden = project(&x, &a, m, rank, inner);
                product(
                    &mut ViewMut::new(&mut y, m, out),
                    true,
                    self.scale as f32,
                    View::new(&hidden, m, rank),
                    View::new(&b, out, rank).transposed(),
                    Threads::All,
                );
                host::store(y, dtype)
            }
            (Host::F64(x), Host::F64(a), Host::F64(b)) => {
                let mut y = self.base.forward_plain(x, m)?;
                let mut hidden = vec![0.0; m * rank];
                let dims = (m, rank, inner);
                product_plain(&mut hidden, 1.0, dims, |i, l| x[i * inner + l], |l, j| a[j * inner + l]);
                let dims = (m, out, rank);
                product_plain(&mut y, self.scale, dims, |i, l| hidden[i * rank + l], |l, j| b[j * rank + l]);
                CpuStorage::F64(y)
            }
            _ => return Err(host::wrong_dtype(op, "x, A and B", dtype)),
        };
        Ok((result, shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let wanted = [x.track_op(), a.track_op(), b.track_op()];
        let (x_store, x_layout) = x.storage_and_layout();
        let grad = grad.contiguous()?;
        let (g_store, g_layout) = grad.storage_and_layout();
        let (a_store, a_layout) = a.storage_and_layout();
        let (b_store, b_layout) = b.storage_and_layout();
        let cpu = |storage| host::cpu(self.name(), storage);
        let m = rows_of(x_layout);
        let x_host = host::activation(self.name(), "x", cpu(&x_store)?, x_layout)?;
        let g_host = host::activation(self.name(), "the gradient", cpu(&g_store)?, g_layout)?;
        let a_host = host::activation(self.name(), "A", cpu(&a_store)?, a_layout)?;
        let b_host = host::activation(self.name(), "B", cpu(&b_store)?, b_layout)?;
        let dtype = x.dtype();
        let [dx, da, db] = match (x_host, g_host, a_host, b_host) {
            (Host::F32(x), Host::F32(g), Host::F32(a), Host::F32(b)) => {
                self.backward(wanted, m, [&x, &g, &a, &b])?.map(|d| d.map(|d| host::store(d, dtype)))
            }
            (Host::F64(x), Host::F64(g), Host::F64(a), Host::F64(b)) => {
                self.backward_plain(wanted, m, [x, g, a, b])?.map(|d| d.map(CpuStorage::F64))
            }
            _ => return Err(host::wrong_dtype(self.name(), "x, A, B and the gradient", dtype)),
        };
        let tensor = |storage, like: &Tensor| host::tensor(storage, like.shape());
        Ok((dx.map(|d| tensor(d, x)), da.map(|d| tensor(d, a)), db.map(|d| tensor(d, b))))
    }
}

/// x·Aᵀ: [M, rank]
fn project(x: &[f32], a: &[f32], m: usize, rank: usize, inner: usize) -> Vec<f32> {
    let mut hidden = host::unset(m * rank);
    let (x, a) = (View::new(x, m, inner), View::new(a, rank, inner).transposed());
    product(&mut ViewMut::new(&mut hidden, m, rank), false, 1.0, x, a, Threads::All);
    hidden
}

impl Lora {
    /// [dx, dA, dB], each where wanted.
    fn backward(
        &self,
        [want_x, want_a, want_b]: [bool; 3],
        m: usize,
        [x, g, a, b]: [&[f32]; 4],
    ) -> Result<[Option<Vec<f32>>; 3]> {
        let (out, inner) = (self.base.weight.out_features(), self.base.weight.in_features());
        let (rank, scale) = (self.rank, self.scale as f32);
        let all = Threads::All;
        let g_view = View::new(g, m, out);
        let mut grads = [None, None, None];
        if want_b {
            let hidden = project(x, a, m, rank, inner);
            let mut db = host::unset(out * rank);
            let (lhs, rhs) = (g_view.transposed(), View::new(&hidden, m, rank));
            product(&mut ViewMut::new(&mut db, out, rank), false, scale, lhs, rhs, all);
            grads[2] = Some(db);
        }
        if !(want_x || want_a) {
            return Ok(grads);
        }
        let mut gb = host::unset(m * rank);
        product(&mut ViewMut::new(&mut gb, m, rank), false, scale, g_view, View::new(b, out, rank), all);
        let gb = View::new(&gb, m, rank);
        if want_a {
            let mut da = host::unset(rank * inner);
            let x = View::new(x, m, inner);
            product(&mut ViewMut::new(&mut da, rank, inner), false, 1.0, gb.transposed(), x, all);
            grads[1] = Some(da);
        }
        if want_x {
            let mut dx = host::unset(m * inner);
            self.base.backward(g, &mut dx)?;
            product(&mut ViewMut::new(&mut dx, m, inner), true, 1.0, gb, View::new(a, rank, inner), all);
            grads[0] = Some(dx);
        }
        Ok(grads)
    }

    fn backward_plain(
        &self,
        [want_x, want_a, want_b]: [bool; 3],
        m: usize,
        [x, g, a, b]: [&[f64]; 4],
    ) -> Result<[Option<Vec<f64>>; 3]> {
        let (out, inner) = (self.base.weight.out_features(), self.base.weight.in_features());
        let (rank, scale) = (self.rank, self.scale);
        let mut hidden = vec![0.0; m * rank];
        product_plain(&mut hidden, 1.0, (m, rank, inner), |i, l| x[i * inner + l], |l, j| a[j * inner + l]);
        let mut gb = vec![0.0; m * rank];
        product_plain(&mut gb, scale, (m, rank, out), |i, l| g[i * out + l], |l, j| b[l * rank + j]);
        let mut db = vec![0.0; out * rank];
        product_plain(&mut db, scale, (out, rank, m), |i, l| g[l * out + i], |l, j| hidden[l * rank + j]);
        let mut da = vec![0.0; rank * inner];
        product_plain(&mut da, 1.0, (rank, inner, m), |i, l| gb[l * rank + i], |l, j| x[l * inner + j]);
        let mut dx = self.base.backward_plain(g, m)?;
        product_plain(&mut dx, 1.0, (m, inner, rank), |i, l| gb[i * rank + l], |l, j| a[l * inner + j]);
        Ok([want_x.then_some(dx), want_a.then_some(da), want_b.then_some(db)])
    }
}
