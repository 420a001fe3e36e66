//! The gradient of a triangular whitening in f32, from whitened rows.
//!
//! `X S̄ = Y M W` with `M = W⁻ᵀ S̄ W⁻¹` symmetric, and for Cholesky `M` needs nothing but `Gᵀ Y`: all that is multiplied with
//! rows is then of variance one, so that f32 loses no digits to the condition number. `d x d` matrices stay in f64.
//!
//! It loses digits where `G` and `Y M` nearly cancel: of a loss that hardly moves along whitened batches, of a gradient that
//! all rows have in common, and near `N = d`, where a whitened batch can hardly move. What is left of each channel is compared
//! with what came in, and f64 takes over where it is too little.

use super::cpu::{BLOCK, mean};
use super::fit::Fit;
use super::linalg::{block_product, lower_product, mirror};
use faer::linalg::matmul::triangular::BlockStructure;
use faer::{Accum, Mat, MatMut, MatRef};
use rayon::prelude::*;

/// Above this a sum of products might leave f32; where all is below its inverse, digits fall off the other end.
const LARGEST: f64 = 1e30;

/// The least share of a channel's incoming gradient that must be left after the mean and `Y M` are taken off.
const LEFT: f64 = 0.25;

/// `(G - mean + Y M) W + ridge (X - mean)` for row-major `xs`, their whitened rows `ys` and `grad`; `None` where `fit` is
/// not such a whitening, does not fit f32, has too few rows, or cancels.
pub(super) fn triangular_gradient(
    fit: &Fit,
    xs: &[f32],
    ys: &[f32],
    grad: &[f32],
    xs_mean: &[f64],
) -> Option<Vec<f32>> {
    let d = xs_mean.len();
    let rows = xs.len() / d;
    if rows < 2 * d || !fit.is_plain_triangle() {
        return None;
    }
    let w = narrow(fit.w(), 1.)?;
    let columns = |values| MatRef::from_column_major_slice(values, d, rows);
    let mut inner = lower_product(columns(grad), columns(ys).transpose());
    mirror(&mut inner);
    let inner = Mat::from_fn(d, d, |i, j| f64::from(inner[(i, j)]));
    let (ridge, weight) = fit.triangle_adjoint(&inner);
    let scale = 2. / (rows.max(2) - 1) as f64;
    // The ridge has the unit of 1 / x²: of itself it need not fit f32.
    let (m, ridge) = (narrow(&inner, weight * scale)?, ridge * scale);
    let common: Vec<f32> = mean(grad, d, &vec![0.; d]).into_iter().map(|m| m as f32).collect();
    let mut out = vec![0f32; xs.len()];
    let size = BLOCK * d;
    let blocks = out.par_chunks_mut(size).zip(ys.par_chunks(size));
    let blocks = blocks.zip(xs.par_chunks(size).zip(grad.par_chunks(size)));
    let parts: Vec<Vec<[f32; 2]>> = blocks
        .map_init(
            || vec![0f32; size],
            |scratch, ((out, ys), (xs, grad))| {
                let (rows, scratch) = (ys.len() / d, &mut scratch[..ys.len()]);
                for (to, from) in scratch.chunks_exact_mut(d).zip(grad.chunks_exact(d)) {
                    to.iter_mut().zip(from).zip(&common).for_each(|((t, g), m)| *t = g - m);
                }
                let ys = MatRef::from_column_major_slice(ys, d, rows);
                let mut turned = MatMut::from_column_major_slice_mut(&mut *scratch, d, rows);
                let full = BlockStructure::Rectangular;
                block_product(turned.as_mut(), Accum::Add, m.as_ref(), full, ys);
                let into = MatMut::from_column_major_slice_mut(&mut *out, d, rows);
                let upper = BlockStructure::TriangularUpper;
                block_product(into, Accum::Replace, w.transpose(), upper, turned.as_ref());
                if ridge != 0. {
                    for (to, from) in out.chunks_exact_mut(d).zip(xs.chunks_exact(d)) {
                        for ((t, x), m) in to.iter_mut().zip(from).zip(xs_mean) {
                            *t += (ridge * (f64::from(*x) - m)) as f32;
                        }
                    }
                }
                sizes(grad, scratch, out, d)
            },
        )
        .collect();
    enough_is_left(&parts, d).then_some(out)
}

/// Of each channel, the sums of `|G|` and of what is left of it; both not finite where a result is not.
fn sizes(grad: &[f32], left: &[f32], out: &[f32], d: usize) -> Vec<[f32; 2]> {
    let mut sums = vec![[0f32; 2]; d];
    let rows = grad.chunks_exact(d).zip(left.chunks_exact(d)).zip(out.chunks_exact(d));
    for ((grad, left), out) in rows {
        for (((sum, g), l), o) in sums.iter_mut().zip(grad).zip(left).zip(out) {
            // 0, or NaN.
            let check = 0. * o;
            sum[0] += g.abs() + check;
            sum[1] += l.abs();
        }
    }
    sums
}

/// Whether no channel cancels, and all is finite.
fn enough_is_left(parts: &[Vec<[f32; 2]>], d: usize) -> bool {
    let mut total = vec![[0f64; 2]; d];
    for part in parts {
        for (t, p) in total.iter_mut().zip(part) {
            *t = [t[0] + f64::from(p[0]), t[1] + f64::from(p[1])];
        }
    }
    total.iter().all(|[grad, left]| *left >= LEFT * grad)
}

/// In f32, if it fits there with all its digits and leaves room for sums.
fn narrow(a: &Mat<f64>, scale: f64) -> Option<Mat<f32>> {
    let mut largest = 0f64;
    for column in a.col_iter() {
        for x in column.iter() {
            let size = (scale * x).abs();
            largest = if size.is_nan() { f64::INFINITY } else { largest.max(size) };
        }
    }
    let fits = largest == 0. || (1. / LARGEST..LARGEST).contains(&largest);
    fits.then(|| Mat::from_fn(a.nrows(), a.ncols(), |i, j| (scale * a[(i, j)]) as f32))
}
