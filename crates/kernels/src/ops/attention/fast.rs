//! Blocks of queries against blocks of keys; a block's scores stay in the cache.

use super::{Geometry, HostMask};
use crate::host;
use crate::matrix::{Threads, View, ViewMut, product};
use crate::simd_fn;
use crate::vecmath::{exp, max, sum1, sum2};
use rayon::prelude::*;
use std::marker::PhantomData;

/// Queries and keys of one block of scores. Measured in `benches/ops.rs`.
const QUERIES: usize = 128;
const KEYS: usize = 512;

/// What the forward pass left for the backward pass.
pub(super) struct Saved<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) out: &'a [f32],
    /// [B, H, Tq]
    pub(super) log_sum_exp: &'a [f32],
}

/// A [rows, heads·D] result whose heads are written by different tasks.
struct HeadWriter<'a> {
    data: *mut f32,
    len: usize,
    width: usize,
    head_dim: usize,
    _borrow: PhantomData<&'a mut [f32]>,
}

#[expect(unsafe_code, reason = "tasks write disjoint columns of one result")]
// SAFETY: the pointer is only used through `row`, whose callers write disjoint (row, head) pieces.
unsafe impl Sync for HeadWriter<'_> {}

impl<'a> HeadWriter<'a> {
    fn new(data: &'a mut [f32], width: usize, head_dim: usize) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len(), width, head_dim, _borrow: PhantomData }
    }

    /// Writes one head of one row: `values`·factor.
    ///
    /// Each (row, head) belongs to one task.
    fn write(&self, row: usize, head: usize, values: &[f32], factor: f32) {
        let start = row * self.width + head * self.head_dim;
        assert!(values.len() == self.head_dim && start + self.head_dim <= self.len, "invariant: inside");
        for (i, value) in values.iter().enumerate() {
            #[expect(unsafe_code, reason = "tasks write disjoint columns of one result")]
            // SAFETY: start + i is inside (asserted); no other task touches this (row, head).
            unsafe {
                self.data.add(start + i).write(value * factor);
            }
        }
    }
}

/// The place of one block of scores.
#[derive(Clone, Copy)]
struct Block {
    batch: usize,
    query: usize,
    queries: usize,
    key: usize,
    keys: usize,
}

impl Block {
    /// Whether no query of the block sees any of its keys.
    fn hidden(&self, g: &Geometry, mask: &HostMask<'_>) -> bool {
        let (start, _) = mask.visible(g, self.query);
        let (_, end) = mask.visible(g, self.query + self.queries - 1);
        self.key >= end || self.key + self.keys <= start
    }

    /// Adds the mask to one row of scores.
    fn mask_row(&self, g: &Geometry, mask: &HostMask<'_>, row: usize, scores: &mut [f32]) {
        let query = self.query + row;
        let range = self.key..self.key + self.keys;
        if let Some(bias) = mask.keys_of(g, self.batch) {
            add(&bias[range.clone()], scores);
        }
        if let Some(bias) = mask.pairs_of(g, self.batch, query) {
            add(&bias[range], scores);
        }
        if mask.causal {
            let (start, end) = mask.visible(g, query);
            let start = start.saturating_sub(self.key).min(self.keys);
            let end = end.saturating_sub(self.key).min(self.keys);
            scores[..start].fill(f32::NEG_INFINITY);
            scores[end..].fill(f32::NEG_INFINITY);
        }
    }
}

simd_fn! {
    fn add(bias: &[f32], scores: &mut [f32]) {
        for (score, bias) in scores.iter_mut().zip(bias) {
            *score += bias;
        }
    }
}

simd_fn! {
    /// Turns scores into e^(score − top) and gives (the new top, their sum). `top` is that of the
    /// keys before.
    fn exponentiate(top: f32, scores: &mut [f32]) -> (f32, f32) {
        let here = max(scores);
        let top = if here > top { here } else { top };
        let from = if top == f32::NEG_INFINITY { 0.0 } else { top };
        for score in scores.iter_mut() {
            *score = exp::<FMA>(*score - from);
        }
        (top, sum1(scores, |p| p))
    }
}

simd_fn! {
    fn scale(factor: f32, values: &mut [f32]) {
        for value in values.iter_mut() {
            *value *= factor;
        }
    }
}

simd_fn! {
    /// Turns scores into probabilities by the kept log-sum-exp.
    fn probabilities(log_sum_exp: f32, scores: &mut [f32]) {
        for score in scores.iter_mut() {
            *score = exp::<FMA>(*score - log_sum_exp);
        }
    }
}

simd_fn! {
    /// d = p·(d − along)
    fn score_gradient(along: f32, p: &[f32], d: &mut [f32]) {
        for (d, p) in d.iter_mut().zip(p) {
            *d = p * (*d - along);
        }
    }
}

simd_fn! {
    fn dot(x: &[f32], y: &[f32]) -> f32 {
        sum2(x, y, |x, y| x * y)
    }
}

fn blocks(len: usize, size: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(size).map(move |start| (start, size.min(len - start)))
}

/// (out: [B, Tq, H·D], log-sum-exp: [B, H, Tq])
pub(super) fn forward(
    g: &Geometry,
    mask: HostMask<'_>,
    q: &[f32],
    k: &[f32],
    v: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let mut out = host::unset(q.len());
    let mut log_sum_exp = host::unset(g.batch * g.heads * g.queries);
    let writer = HeadWriter::new(&mut out, g.q_width(), g.head_dim);
    if g.queries > 0 {
        log_sum_exp.par_chunks_mut(g.queries).enumerate().for_each(|(item, log_sum_exp)| {
            let (b, h) = (item / g.heads, item % g.heads);
            log_sum_exp.par_chunks_mut(QUERIES).enumerate().for_each(|(block, log_sum_exp)| {
                forward_block(g, mask, [q, k, v], (b, h, block * QUERIES), log_sum_exp, &writer);
            });
        });
    }
    (out, log_sum_exp)
}

/// One head, one block of queries.
fn forward_block(
    g: &Geometry,
    mask: HostMask<'_>,
    [q, k, v]: [&[f32]; 3],
    (b, h, first): (usize, usize, usize),
    log_sum_exp: &mut [f32],
    writer: &HeadWriter<'_>,
) {
    let (d, rows) = (g.head_dim, log_sum_exp.len());
    let queries = head(q, g.q_width(), b * g.queries + first, rows, h, d);
    let (mut sums, mut tops) = (vec![0.0f32; rows], vec![f32::NEG_INFINITY; rows]);
    let mut scores = vec![0.0f32; rows * KEYS.min(g.keys)];
    let mut sum_of_values = vec![0.0f32; rows * d];
    let mut begun = false;
    for (key, keys) in blocks(g.keys, KEYS) {
        let block = Block { batch: b, query: first, queries: rows, key, keys };
        if block.hidden(g, &mask) {
            continue;
        }
        let scores = &mut scores[..rows * keys];
        let k = head(k, g.kv_width(), b * g.keys + key, keys, g.kv_head(h), d);
        let v = head(v, g.kv_width(), b * g.keys + key, keys, g.kv_head(h), d);
        let s = g.scale as f32;
        product(&mut ViewMut::new(scores, rows, keys), false, s, queries, k.transposed(), Threads::One);
        for (row, scores) in scores.chunks_mut(keys).enumerate() {
            block.mask_row(g, &mask, row, scores);
            let (top, sum) = exponentiate(tops[row], scores);
            let shrink = if top == f32::NEG_INFINITY { 1.0 } else { (tops[row] - top).exp() };
            if begun && shrink != 1.0 {
                scale(shrink, &mut sum_of_values[row * d..][..d]);
            }
            sums[row] = sums[row] * shrink + sum;
            tops[row] = top;
        }
        let scores = View::new(scores, rows, keys);
        product(&mut ViewMut::new(&mut sum_of_values, rows, d), begun, 1.0, scores, v, Threads::One);
        begun = true;
    }
    for row in 0..rows {
        let sum = sums[row];
        let factor = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        writer.write(b * g.queries + first + row, h, &sum_of_values[row * d..][..d], factor);
        log_sum_exp[row] = tops[row] + sum.ln();
    }
}

/// Rows of one head as a matrix.
fn head(data: &[f32], width: usize, row: usize, rows: usize, head: usize, d: usize) -> View<'_> {
    View::strided(&data[row * width + head * d..], rows, d, width)
}

/// [dq, dk, dv], each where wanted.
pub(super) fn backward(
    g: &Geometry,
    mask: HostMask<'_>,
    saved: &Saved<'_>,
    grad: &[f32],
    want: [bool; 3],
) -> [Option<Vec<f32>>; 3] {
    let lens = [saved.q.len(), saved.k.len(), saved.v.len()];
    let widths = [g.q_width(), g.kv_width(), g.kv_width()];
    let mut grads = [0, 1, 2].map(|i| if want[i] { host::unset(lens[i]) } else { Vec::new() });
    {
        let mut i = 0;
        let writers = grads.each_mut().map(|grad| {
            i += 1;
            HeadWriter::new(grad, widths[i - 1], g.head_dim)
        });
        (0..g.batch * g.kv_heads).into_par_iter().for_each(|item| {
            backward_head(g, mask, saved, grad, want, (item / g.kv_heads, item % g.kv_heads), &writers);
        });
    }
    let mut want = want.into_iter();
    grads.map(|grad| want.next().unwrap_or(false).then_some(grad))
}

/// One key head with all the query heads that read it.
fn backward_head(
    g: &Geometry,
    mask: HostMask<'_>,
    saved: &Saved<'_>,
    grad: &[f32],
    want: [bool; 3],
    (b, kv_head): (usize, usize),
    [dq_out, dk_out, dv_out]: &[HeadWriter<'_>; 3],
) {
    let d = g.head_dim;
    let mut scratch = Scratch {
        p: vec![0.0; QUERIES * KEYS.min(g.keys)],
        ds: vec![0.0; QUERIES * KEYS.min(g.keys)],
        dq: vec![0.0; g.queries * d],
        dk: vec![0.0; g.keys * d],
        dv: vec![0.0; g.keys * d],
    };
    for h in (0..g.heads).filter(|h| g.kv_head(*h) == kv_head) {
        scratch.dq.fill(0.0);
        let along: Vec<f32> = (0..g.queries)
            .map(|i| {
                let at = (b * g.queries + i) * g.q_width() + h * d;
                dot(&grad[at..at + d], &saved.out[at..at + d])
            })
            .collect();
        for (key, keys) in blocks(g.keys, KEYS) {
            for (query, queries) in blocks(g.queries, QUERIES) {
                let block = Block { batch: b, query, queries, key, keys };
                if !block.hidden(g, &mask) {
                    backward_block(g, mask, saved, grad, want, (h, kv_head), block, &along, &mut scratch);
                }
            }
        }
        if want[0] {
            for (i, dq) in scratch.dq.chunks(d).enumerate() {
                dq_out.write(b * g.queries + i, h, dq, 1.0);
            }
        }
    }
    for j in 0..g.keys {
        let at = j * d..(j + 1) * d;
        if want[1] {
            dk_out.write(b * g.keys + j, kv_head, &scratch.dk[at.clone()], 1.0);
        }
        if want[2] {
            dv_out.write(b * g.keys + j, kv_head, &scratch.dv[at], 1.0);
        }
    }
}

/// Memory of one task.
struct Scratch {
    p: Vec<f32>,
    ds: Vec<f32>,
    /// [Tq, D] of one query head
    dq: Vec<f32>,
    /// [Tk, D] of the key head
    dk: Vec<f32>,
    dv: Vec<f32>,
}

#[expect(clippy::too_many_arguments, reason = "one block of the inner loop; a struct would only rename them")]
fn backward_block(
    g: &Geometry,
    mask: HostMask<'_>,
    saved: &Saved<'_>,
    grad: &[f32],
    [want_q, want_k, want_v]: [bool; 3],
    (h, kv_head): (usize, usize),
    block: Block,
    along: &[f32],
    scratch: &mut Scratch,
) {
    let (d, s) = (g.head_dim, g.scale as f32);
    let Block { batch: b, query, queries, key, keys } = block;
    let one = Threads::One;
    let q = head(saved.q, g.q_width(), b * g.queries + query, queries, h, d);
    let up = head(grad, g.q_width(), b * g.queries + query, queries, h, d);
    let k = head(saved.k, g.kv_width(), b * g.keys + key, keys, kv_head, d);
    let v = head(saved.v, g.kv_width(), b * g.keys + key, keys, kv_head, d);
    let p = &mut scratch.p[..queries * keys];
    product(&mut ViewMut::new(p, queries, keys), false, s, q, k.transposed(), one);
    let log_sum_exp = &saved.log_sum_exp[(b * g.heads + h) * g.queries + query..][..queries];
    for (row, p) in p.chunks_mut(keys).enumerate() {
        block.mask_row(g, &mask, row, p);
        if log_sum_exp[row] == f32::NEG_INFINITY {
            p.fill(0.0);
        } else {
            probabilities(log_sum_exp[row], p);
        }
    }
    let of_keys = key * d..(key + keys) * d;
    if want_v {
        let p = View::new(p, queries, keys).transposed();
        product(&mut ViewMut::new(&mut scratch.dv[of_keys.clone()], keys, d), true, 1.0, p, up, one);
    }
    if !(want_q || want_k) {
        return;
    }
    let ds = &mut scratch.ds[..queries * keys];
    product(&mut ViewMut::new(ds, queries, keys), false, 1.0, up, v.transposed(), one);
    for (row, (ds, p)) in ds.chunks_mut(keys).zip(p.chunks(keys)).enumerate() {
        score_gradient(along[query + row], p, ds);
    }
    let ds = View::new(ds, queries, keys);
    if want_q {
        let dq = &mut scratch.dq[query * d..(query + queries) * d];
        product(&mut ViewMut::new(dq, queries, d), true, s, ds, k, one);
    }
    if want_k {
        product(&mut ViewMut::new(&mut scratch.dk[of_keys], keys, d), true, s, ds.transposed(), q, one);
    }
}
