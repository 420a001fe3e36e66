//! Column kernels of the per-channel standardisation, all arithmetic in f64.

use crate::dense::Real;

/// Statistics of every channel, taken of `z = x / unit` with `unit` a power of two near the channel's largest
/// magnitude: exact, and no square can overflow or vanish.
struct Channels {
    /// 1 / unit; zero for a channel that is all zero.
    inverse_unit: Vec<f64>,
    mean: Vec<f64>,
    /// 1 / denominator, in units of z; zero for a channel that is all zero.
    inverse: Vec<f64>,
}

fn statistics<T: Real>(xs: &[T], rows: usize, channels: usize, eps: f64) -> Channels {
    let mut largest = vec![0f64; channels];
    for row in xs.chunks_exact(channels) {
        for (m, x) in largest.iter_mut().zip(row) {
            *m = m.max(x.wide().abs());
        }
    }
    let inverse_unit: Vec<f64> = largest.iter().map(|&m| inverse_unit(m)).collect();
    let n = rows as f64;
    // Differences to the first row: a constant channel is exactly zero from here on.
    let first: Vec<f64> =
        xs[..channels].iter().zip(&inverse_unit).map(|(x, u)| x.wide() * u).collect();
    let mut offset = vec![0f64; channels];
    let mut second_moment = vec![0f64; channels];
    for row in xs.chunks_exact(channels) {
        for j in 0..channels {
            let z = row[j].wide() * inverse_unit[j];
            offset[j] += z - first[j];
            second_moment[j] += z * z;
        }
    }
    offset.iter_mut().for_each(|o| *o /= n);
    let mean: Vec<f64> = first.iter().zip(&offset).map(|(f, o)| f + o).collect();
    let mut residual = vec![0f64; channels];
    let mut squares = vec![0f64; channels];
    for row in xs.chunks_exact(channels) {
        for j in 0..channels {
            let d = row[j].wide() * inverse_unit[j] - mean[j];
            residual[j] += d;
            squares[j] += d * d;
        }
    }
    let inverse = (0..channels)
        .map(|j| {
            let shift = residual[j] / n;
            let spread = squares[j] - n * shift * shift;
            let variance = if rows > 1 && spread > 0. { spread / (n - 1.) } else { spread * 0. };
            let guarded = variance + eps * eps * second_moment[j] / n;
            if guarded == 0. { 0. } else { 1. / guarded.sqrt() }
        })
        .collect();
    let mean = (0..channels).map(|j| mean[j] + residual[j] / n).collect();
    Channels { inverse_unit, mean, inverse }
}

/// 1 / 2^floor(log2 largest), kept finite for subnormal input; zero for zero.
fn inverse_unit(largest: f64) -> f64 {
    if largest == 0. {
        return 0.;
    }
    let exponent = f64::from_bits(largest.to_bits() & f64::INFINITY.to_bits());
    1. / exponent.max(f64::MIN_POSITIVE)
}

/// Standardises each column of a `rows x channels` matrix.
pub(super) fn forward<T: Real>(xs: &[T], rows: usize, channels: usize, eps: f64) -> Vec<T> {
    let c = statistics(xs, rows, channels, eps);
    let mut ys = vec![T::zero(); xs.len()];
    for (y, x) in ys.chunks_exact_mut(channels).zip(xs.chunks_exact(channels)) {
        for j in 0..channels {
            y[j] = T::narrow((x[j].wide() * c.inverse_unit[j] - c.mean[j]) * c.inverse[j]);
        }
    }
    ys
}

/// Gradient of the input.
///
/// With `D` the denominator and `y` the output, `dx = (g - mean(g) - sum(g y) (y / (M - 1) + eps² x / (D M))) / D`.
pub(super) fn backward<T: Real>(
    xs: &[T],
    grad: &[T],
    rows: usize,
    channels: usize,
    eps: f64,
) -> Vec<T> {
    let c = statistics(xs, rows, channels, eps);
    let n = rows as f64;
    let mut mean = vec![0f64; channels];
    let mut along = vec![0f64; channels];
    for (g, x) in grad.chunks_exact(channels).zip(xs.chunks_exact(channels)) {
        for j in 0..channels {
            let y = (x[j].wide() * c.inverse_unit[j] - c.mean[j]) * c.inverse[j];
            mean[j] += g[j].wide();
            along[j] += g[j].wide() * y;
        }
    }
    mean.iter_mut().for_each(|m| *m /= n);
    let of_variance = if rows > 1 { 1. / (n - 1.) } else { 0. };
    let of_guard = eps * eps / n;
    let mut dxs = vec![T::zero(); xs.len()];
    let pairs = grad.chunks_exact(channels).zip(xs.chunks_exact(channels));
    for (dx, (g, x)) in dxs.chunks_exact_mut(channels).zip(pairs) {
        for j in 0..channels {
            let z = x[j].wide() * c.inverse_unit[j];
            let y = (z - c.mean[j]) * c.inverse[j];
            let turn = along[j] * (y * of_variance + of_guard * z * c.inverse[j]);
            dx[j] = T::narrow((g[j].wide() - mean[j] - turn) * c.inverse[j] * c.inverse_unit[j]);
        }
    }
    dxs
}
