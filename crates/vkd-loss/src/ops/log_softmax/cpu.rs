//! Row kernels of log-softmax, all arithmetic in f64.

use crate::dense::Real;

/// Largest entry plus the logarithm of the summed exponentials under it, of `row / temperature`.
///
/// NaN for a row that holds NaN or positive infinity, or negative infinity only.
pub(crate) fn log_sum_exp<T: Real>(row: &[T], temperature: f64) -> f64 {
    let largest = row.iter().fold(f64::NEG_INFINITY, |m, x| m.max(x.wide())) / temperature;
    largest + row.iter().map(|x| (x.wide() / temperature - largest).exp()).sum::<f64>().ln()
}

/// [`log_sum_exp`], and the softmax of `row / temperature` in `out`: one exponential an entry for both.
pub(crate) fn softmax<T: Real>(row: &[T], temperature: f64, out: &mut [f64]) -> f64 {
    let largest = row.iter().fold(f64::NEG_INFINITY, |m, x| m.max(x.wide())) / temperature;
    let mut sum = 0.;
    for (p, x) in out.iter_mut().zip(row) {
        *p = (x.wide() / temperature - largest).exp();
        sum += *p;
    }
    out.iter_mut().for_each(|p| *p /= sum);
    largest + sum.ln()
}

/// Log-softmax of each row.
pub(super) fn forward<T: Real>(xs: &[T], classes: usize) -> Vec<T> {
    let mut ys = Vec::with_capacity(xs.len());
    for row in xs.chunks_exact(classes) {
        let total = log_sum_exp(row, 1.);
        ys.extend(row.iter().map(|x| T::narrow(x.wide() - total)));
    }
    ys
}

/// `g - softmax * sum(g)`, from the output.
pub(super) fn backward<T: Real>(ys: &[T], grad: &[T], classes: usize) -> Vec<T> {
    let mut dxs = Vec::with_capacity(ys.len());
    for (y, g) in ys.chunks_exact(classes).zip(grad.chunks_exact(classes)) {
        let sum: f64 = g.iter().map(|g| g.wide()).sum();
        dxs.extend(y.iter().zip(g).map(|(y, g)| T::narrow(g.wide() - y.wide().exp() * sum)));
    }
    dxs
}
