//! Attention on slices, head by head.
//!
//! Inner loops add a multiple of one row to another instead of taking dot products: the compiler may not reorder
//! a floating-point sum, so only the former become vector instructions. Keys and values are transposed once per head
//! to make that possible.

use crate::ops::{Real, for_chunks};

#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) tokens: usize,
    pub(super) heads: usize,
    pub(super) dim: usize,
}

impl Sizes {
    /// Values in one token's packed row.
    fn packed(&self) -> usize {
        3 * self.heads * self.dim
    }
}

/// `target += factor * row`.
fn add_scaled<T: Real>(target: &mut [T], factor: T, row: &[T]) {
    for (t, r) in target.iter_mut().zip(row) {
        *t += factor * *r;
    }
}

/// One head's part (0 queries, 1 keys, 2 values) of one token.
fn part<T>(qkv: &[T], s: Sizes, token: usize, part: usize, head: usize) -> &[T] {
    let at = token * s.packed() + (part * s.heads + head) * s.dim;
    &qkv[at..at + s.dim]
}

/// `(dim, tokens)` copy of one head's keys or values.
fn transposed<T: Real>(qkv: &[T], s: Sizes, which: usize, head: usize, out: &mut [T]) {
    for token in 0..s.tokens {
        for (i, x) in part(qkv, s, token, which, head).iter().enumerate() {
            out[i * s.tokens + token] = *x;
        }
    }
}

fn softmax<T: Real>(row: &mut [T]) {
    let top = row.iter().fold(T::neg_infinity(), |m, x| if *x > m { *x } else { m });
    let mut sum = T::zero();
    for x in row.iter_mut() {
        *x = (*x - top).exponential();
        sum += *x;
    }
    let scale = sum.recip();
    for x in row.iter_mut() {
        *x *= scale;
    }
}

/// Row `token` of the softmax matrix.
fn probabilities<T: Real>(
    qkv: &[T],
    s: Sizes,
    head: usize,
    token: usize,
    keys: &[T],
    row: &mut [T],
) {
    let scale = T::from_f64((s.dim as f64).sqrt().recip());
    row.fill(T::zero());
    for (i, q) in part(qkv, s, token, 0, head).iter().enumerate() {
        add_scaled(row, *q * scale, &keys[i * s.tokens..][..s.tokens]);
    }
    softmax(row);
}

pub(super) fn forward<T: Real>(qkv: &[T], s: Sizes) -> Vec<T> {
    let width = s.heads * s.dim;
    let mut out = vec![T::zero(); s.batch * s.tokens * width];
    for_chunks(&mut out, s.tokens * width, |b, out| {
        let qkv = &qkv[b * s.tokens * s.packed()..][..s.tokens * s.packed()];
        let mut keys = vec![T::zero(); s.dim * s.tokens];
        let mut row = vec![T::zero(); s.tokens];
        for head in 0..s.heads {
            transposed(qkv, s, 1, head, &mut keys);
            for token in 0..s.tokens {
                probabilities(qkv, s, head, token, &keys, &mut row);
                let out = &mut out[token * width + head * s.dim..][..s.dim];
                for (other, p) in row.iter().enumerate() {
                    add_scaled(out, *p, part(qkv, s, other, 2, head));
                }
            }
        }
    });
    out
}

/// With P the softmax and `g` the upstream gradient: dV = Pᵀg, dP = gVᵀ, dS = P∘(dP − rowsum(P∘dP)),
/// dQ = dS K / sqrt(d), dK = dSᵀ Q / sqrt(d).
pub(super) fn backward<T: Real>(qkv: &[T], grad: &[T], s: Sizes) -> Vec<T> {
    let (width, packed) = (s.heads * s.dim, s.packed());
    let scale = T::from_f64((s.dim as f64).sqrt().recip());
    let mut out = vec![T::zero(); s.batch * s.tokens * packed];
    for_chunks(&mut out, s.tokens * packed, |b, out| {
        let qkv = &qkv[b * s.tokens * packed..][..s.tokens * packed];
        let grad = &grad[b * s.tokens * width..][..s.tokens * width];
        let mut keys = vec![T::zero(); s.dim * s.tokens];
        let mut values = keys.clone();
        let (mut p, mut dp) = (vec![T::zero(); s.tokens], vec![T::zero(); s.tokens]);
        for head in 0..s.heads {
            transposed(qkv, s, 1, head, &mut keys);
            transposed(qkv, s, 2, head, &mut values);
            let at = |token: usize, part: usize| token * packed + (part * s.heads + head) * s.dim;
            for token in 0..s.tokens {
                probabilities(qkv, s, head, token, &keys, &mut p);
                let g = &grad[token * width + head * s.dim..][..s.dim];
                dp.fill(T::zero());
                for (i, g) in g.iter().enumerate() {
                    add_scaled(&mut dp, *g, &values[i * s.tokens..][..s.tokens]);
                }
                let mean = p.iter().zip(&dp).fold(T::zero(), |sum, (p, d)| sum + *p * *d);
                let q = part(qkv, s, token, 0, head);
                for other in 0..s.tokens {
                    add_scaled(&mut out[at(other, 2)..][..s.dim], p[other], g);
                    let ds = p[other] * (dp[other] - mean) * scale;
                    add_scaled(&mut out[at(token, 0)..][..s.dim], ds, part(qkv, s, other, 1, head));
                    add_scaled(&mut out[at(other, 1)..][..s.dim], ds, q);
                }
            }
        }
    });
    out
}
