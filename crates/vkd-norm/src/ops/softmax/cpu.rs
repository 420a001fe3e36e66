//! Row kernels of softmax and log-softmax, all arithmetic in f64.

use crate::blocks::{fill, rows_of};
use crate::dense::Real;

/// Entries of a block of rows.
const BLOCK: usize = 1 << 12;

/// Largest entry plus the logarithm of the summed exponentials under it, of `row / temperature`.
///
/// NaN for a row that holds NaN or positive infinity, or negative infinity only.
pub fn log_sum_exp<T: Real>(row: &[T], temperature: f64) -> f64 {
    let largest = row.iter().fold(f64::NEG_INFINITY, |m, x| m.max(x.wide())) / temperature;
    largest + row.iter().map(|x| (x.wide() / temperature - largest).exp()).sum::<f64>().ln()
}

/// [`log_sum_exp`], and the softmax of `row / temperature` in `out`: one exponential an entry for both.
pub fn softmax_row<T: Real>(row: &[T], temperature: f64, out: &mut [f64]) -> f64 {
    let largest = row.iter().fold(f64::NEG_INFINITY, |m, x| m.max(x.wide())) / temperature;
    let mut sum = 0.;
    for (p, x) in out.iter_mut().zip(row) {
        *p = (x.wide() / temperature - largest).exp();
        sum += *p;
    }
    out.iter_mut().for_each(|p| *p /= sum);
    largest + sum.ln()
}

/// Softmax of each row, or its logarithm.
pub(super) fn forward<T: Real>(xs: &[T], classes: usize, log: bool) -> Vec<T> {
    let block = |start: usize, ys: &mut [T]| {
        let rows = ys.chunks_exact_mut(classes).zip(xs[start * classes..].chunks_exact(classes));
        for (y, x) in rows {
            let total = log_sum_exp(x, 1.);
            for (y, x) in y.iter_mut().zip(x) {
                let logarithm = x.wide() - total;
                *y = T::narrow(if log { logarithm } else { logarithm.exp() });
            }
        }
    };
    fill(xs.len(), classes, rows_of(BLOCK, classes), block).0
}

/// From the output: `g - p * sum(g)` for the logarithm of p, `p * (g - sum(p g))` for p itself.
pub(super) fn backward<T: Real>(ys: &[T], grad: &[T], classes: usize, log: bool) -> Vec<T> {
    let block = |start: usize, dxs: &mut [T]| {
        let (ys, grad) = (&ys[start * classes..], &grad[start * classes..]);
        let rows = dxs.chunks_exact_mut(classes).zip(ys.chunks_exact(classes));
        for ((dx, y), g) in rows.zip(grad.chunks_exact(classes)) {
            let entries = dx.iter_mut().zip(y).zip(g);
            if log {
                let sum: f64 = g.iter().map(|g| g.wide()).sum();
                entries.for_each(|((dx, y), g)| {
                    *dx = T::narrow(g.wide() - y.wide().exp() * sum);
                });
            } else {
                let sum: f64 = y.iter().zip(g).map(|(y, g)| y.wide() * g.wide()).sum();
                entries.for_each(|((dx, y), g)| *dx = T::narrow(y.wide() * (g.wide() - sum)));
            }
        }
    };
    fill(ys.len(), classes, rows_of(BLOCK, classes), block).0
}
