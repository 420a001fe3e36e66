//! The affine map on slices: three matrix products, and the passes around them.

use crate::ops::activation::cpu as pointwise;
use crate::ops::gemm::{add_product, product};
use crate::ops::{Activation, PARALLEL_FROM, Real};
use faer::{MatMut, MatRef};
use rayon::prelude::*;
use vkd_norm::lanes::vectorized;

/// Rows in one block of a column sum: short sums first, then the sum of the sums, which keeps the rounding small.
const BLOCK: usize = 128;

/// Columns of the three matrices.
#[derive(Clone, Copy)]
pub(crate) struct Widths {
    pub(crate) input: usize,
    pub(crate) output: usize,
}

pub(crate) fn rows<T>(values: &[T], width: usize) -> MatRef<'_, T> {
    MatRef::from_row_major_slice(values, values.len() / width, width)
}

pub(crate) fn rows_mut<T>(values: &mut [T], width: usize) -> MatMut<'_, T> {
    let count = values.len() / width;
    MatMut::from_row_major_slice_mut(values, count, width)
}

/// `xs · weightᵀ + bias`.
pub(crate) fn affine<T: Real>(xs: &[T], weight: &[T], bias: Option<&[T]>, w: Widths) -> Vec<T> {
    let count = xs.len() / w.input;
    let (xs, weight) = (rows(xs, w.input), rows(weight, w.input).transpose());
    match bias {
        Some(bias) => {
            // The product is added to the bias: filling with it costs what filling with zeros would.
            let mut out = Vec::with_capacity(count * w.output);
            (0..count).for_each(|_| out.extend_from_slice(bias));
            add_product(rows_mut(&mut out, w.output), T::one(), xs, weight);
            out
        }
        None => {
            let mut out = vec![T::zero(); count * w.output];
            product(rows_mut(&mut out, w.output), xs, weight);
            out
        }
    }
}

/// `act(xs · weightᵀ + bias)`, and where `keep` is set the slopes of the activation, for the backward pass.
pub(super) fn forward<T: Real>(
    xs: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    w: Widths,
    activation: Activation,
    keep: bool,
) -> (Vec<T>, Option<Vec<T>>) {
    let mut out = affine(xs, weight, bias, w);
    if keep && activation != Activation::Identity {
        let ys = pointwise::forward_with_slopes(activation, &mut out);
        return (ys, Some(out));
    }
    pointwise::in_place(activation, &mut out);
    (out, None)
}

/// `slopes *= grad`, and the column sums of the result where `sums` is set.
pub(crate) fn scale_by<T: Real>(slopes: &mut [T], grad: &[T], width: usize, sums: bool) -> Vec<T> {
    let block = |(slopes, grad): (&mut [T], &[T])| {
        let mut part = vec![T::zero(); if sums { width } else { 0 }];
        vectorized(
            #[inline(always)]
            || {
                for (s, g) in slopes.chunks_exact_mut(width).zip(grad.chunks_exact(width)) {
                    for (s, g) in s.iter_mut().zip(g) {
                        *s *= *g;
                    }
                    for (sum, s) in part.iter_mut().zip(&*s) {
                        *sum += *s;
                    }
                }
            },
        );
        part
    };
    let size = width * BLOCK;
    let parts: Vec<Vec<T>> = if slopes.len() < PARALLEL_FROM {
        slopes.chunks_mut(size).zip(grad.chunks(size)).map(block).collect()
    } else {
        slopes.par_chunks_mut(size).zip(grad.par_chunks(size)).map(block).collect()
    };
    total(&parts, if sums { width } else { 0 })
}

/// Sums over the rows.
pub(crate) fn column_sums<T: Real>(values: &[T], width: usize) -> Vec<T> {
    let block = |values: &[T]| {
        let mut part = vec![T::zero(); width];
        vectorized(
            #[inline(always)]
            || {
                for row in values.chunks_exact(width) {
                    for (sum, v) in part.iter_mut().zip(row) {
                        *sum += *v;
                    }
                }
            },
        );
        part
    };
    let size = width * BLOCK;
    let parts: Vec<Vec<T>> = if values.len() < PARALLEL_FROM {
        values.chunks(size).map(block).collect()
    } else {
        values.par_chunks(size).map(block).collect()
    };
    total(&parts, width)
}

fn total<T: Real>(parts: &[Vec<T>], width: usize) -> Vec<T> {
    let mut sums = vec![T::zero(); width];
    for part in parts {
        sums.iter_mut().zip(part).for_each(|(sum, p)| *sum += *p);
    }
    sums
}

/// `grad · weight`, the gradient of the input.
pub(crate) fn input_gradient<T: Real>(grad: &[T], weight: &[T], w: Widths) -> Vec<T> {
    let mut out = vec![T::zero(); grad.len() / w.output * w.input];
    product(rows_mut(&mut out, w.input), rows(grad, w.output), rows(weight, w.input));
    out
}

/// `gradᵀ · xs`, the gradient of the weight.
pub(crate) fn weight_gradient<T: Real>(grad: &[T], xs: &[T], w: Widths) -> Vec<T> {
    let mut out = vec![T::zero(); w.output * w.input];
    product(rows_mut(&mut out, w.input), rows(grad, w.output).transpose(), rows(xs, w.input));
    out
}
