//! The reference: one query at a time, every score written out.

use super::{Geometry, HostMask};

/// The scores of one head and query after the softmax. [Tk]; zeros when it sees no key.
fn probabilities(
    g: &Geometry,
    mask: HostMask<'_>,
    q: &[f64],
    k: &[f64],
    (b, h, i): (usize, usize, usize),
) -> Vec<f64> {
    let d = g.head_dim;
    let query = &q[(b * g.queries + i) * g.q_width() + h * d..][..d];
    let (start, end) = mask.visible(g, i);
    let mut scores: Vec<f64> = (0..g.keys)
        .map(|j| {
            if j < start || j >= end {
                return f64::NEG_INFINITY;
            }
            let key = &k[(b * g.keys + j) * g.kv_width() + g.kv_head(h) * d..][..d];
            let dot: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
            let keys = mask.keys_of(g, b).map_or(0.0, |bias| f64::from(bias[j]));
            let pairs = mask.pairs_of(g, b, i).map_or(0.0, |bias| f64::from(bias[j]));
            dot * g.scale + keys + pairs
        })
        .collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if top == f64::NEG_INFINITY {
        return vec![0.0; g.keys];
    }
    scores.iter_mut().for_each(|s| *s = (*s - top).exp());
    let total: f64 = scores.iter().sum();
    scores.iter_mut().for_each(|s| *s /= total);
    scores
}

/// Every (batch item, head, query).
fn queries(g: &Geometry) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
    let Geometry { batch, heads, queries, .. } = *g;
    (0..batch).flat_map(move |b| (0..heads).flat_map(move |h| (0..queries).map(move |i| (b, h, i))))
}

pub(super) fn forward(g: &Geometry, mask: HostMask<'_>, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let d = g.head_dim;
    let mut out = vec![0.0; q.len()];
    for (b, h, i) in queries(g) {
        let p = probabilities(g, mask, q, k, (b, h, i));
        let out = &mut out[(b * g.queries + i) * g.q_width() + h * d..][..d];
        for (j, p) in p.iter().enumerate() {
            let value = &v[(b * g.keys + j) * g.kv_width() + g.kv_head(h) * d..][..d];
            for (out, v) in out.iter_mut().zip(value) {
                *out += p * v;
            }
        }
    }
    out
}

/// [dq, dk, dv]
pub(super) fn backward(
    g: &Geometry,
    mask: HostMask<'_>,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    grad: &[f64],
) -> [Vec<f64>; 3] {
    let d = g.head_dim;
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for (b, h, i) in queries(g) {
        let p = probabilities(g, mask, q, k, (b, h, i));
        let query = (b * g.queries + i) * g.q_width() + h * d;
        let key = |j: usize| (b * g.keys + j) * g.kv_width() + g.kv_head(h) * d;
        let upstream = &grad[query..query + d];
        let dp: Vec<f64> =
            (0..g.keys).map(|j| upstream.iter().zip(&v[key(j)..]).map(|(g, v)| g * v).sum()).collect();
        let along: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
        for j in 0..g.keys {
            let ds = p[j] * (dp[j] - along) * g.scale;
            for c in 0..d {
                dv[key(j) + c] += p[j] * upstream[c];
                dq[query + c] += ds * k[key(j) + c];
                dk[key(j) + c] += ds * q[query + c];
            }
        }
    }
    [dq, dk, dv]
}
