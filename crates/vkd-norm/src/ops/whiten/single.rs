//! The gradient of a triangular whitening in f32, from whitened rows.
//!
//! `X S̄ = Y M W` with `M = W⁻ᵀ S̄ W⁻¹` symmetric, and for Cholesky `M` needs nothing but `Gᵀ Y`: all that is multiplied with
//! rows is then of variance one, so that f32 loses no digits to the condition number. `d x d` matrices stay in f64.
//!
//! It would lose digits where `G` and `Y M` nearly cancel: up to `N = d` a whitened batch can hardly move, and close to it
//! the gradient is small beside its terms.

use super::cpu::{BLOCK, mean};
use super::fit::Fit;
use super::linalg::{block_product, lower_product, mirror};
use faer::linalg::matmul::triangular::BlockStructure;
use faer::{Accum, Mat, MatMut, MatRef};
use rayon::prelude::*;

/// Above this a sum of products might leave f32.
const LARGEST: f64 = 1e30;

/// `(G - mean + Y M) W + ridge (X - mean)` for row-major `xs`, their whitened rows `ys` and `grad`; `None` where `fit` is
/// not such a whitening, does not fit f32, or has too few rows.
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
    let (m, ridge) = (narrow(&inner, weight * scale)?, (ridge * scale) as f32);
    let narrow = |mean: &[f64]| mean.iter().map(|&m| m as f32).collect::<Vec<f32>>();
    let (common, xs_mean) = (narrow(&mean(grad, d, &vec![0.; d])), xs_mean);
    let mut out = vec![0f32; xs.len()];
    let size = BLOCK * d;
    let blocks = out.par_chunks_mut(size).zip(ys.par_chunks(size));
    let blocks = blocks.zip(xs.par_chunks(size).zip(grad.par_chunks(size)));
    blocks.for_each_init(
        || vec![0f32; size],
        |scratch, ((out, ys), (xs, grad))| {
            let (rows, scratch) = (ys.len() / d, &mut scratch[..ys.len()]);
            for (to, from) in scratch.chunks_exact_mut(d).zip(grad.chunks_exact(d)) {
                to.iter_mut().zip(from).zip(&common).for_each(|((t, g), m)| *t = g - m);
            }
            let ys = MatRef::from_column_major_slice(ys, d, rows);
            let mut turned = MatMut::from_column_major_slice_mut(scratch, d, rows);
            let full = BlockStructure::Rectangular;
            block_product(turned.as_mut(), Accum::Add, m.as_ref(), full, ys);
            let into = MatMut::from_column_major_slice_mut(out, d, rows);
            let upper = BlockStructure::TriangularUpper;
            block_product(into, Accum::Replace, w.transpose(), upper, turned.as_ref());
            if ridge != 0. {
                for (to, from) in out.chunks_exact_mut(d).zip(xs.chunks_exact(d)) {
                    for ((t, x), m) in to.iter_mut().zip(from).zip(xs_mean) {
                        *t += ridge * (f64::from(*x) - m) as f32;
                    }
                }
            }
        },
    );
    Some(out)
}

/// In f32, if it fits there and leaves room for sums.
fn narrow(a: &Mat<f64>, scale: f64) -> Option<Mat<f32>> {
    let fits = a.col_iter().all(|c| c.iter().all(|x| (scale * x).abs() < LARGEST));
    fits.then(|| Mat::from_fn(a.nrows(), a.ncols(), |i, j| (scale * a[(i, j)]) as f32))
}
