//! Row kernels of RMS norm: slices in, slices out; blocks and lanes as in layer norm.

use crate::blocks::{fill, rows_of};
use crate::dense::Real;
use crate::lanes::{sums, vectorized};

/// Entries of a block: its rows stay in the second cache.
const BLOCK: usize = 1 << 14;

/// 1 / the root mean square of a row.
#[inline(always)]
fn inverse<T: Real>(row: &[T], eps: f64) -> T {
    let squares = sums::<_, 1, 1, 32>([row], |[x]| [x * x])[0];
    let squares = if squares.is_finite() { squares } else { wide(row) };
    T::narrow(1. / (squares / row.len() as f64 + eps).sqrt())
}

/// The sum of squares in f64, for rows whose squares overflow the element type.
#[cold]
fn wide<T: Real>(row: &[T]) -> f64 {
    row.iter().map(|x| x.wide().powi(2)).sum()
}

pub(super) fn forward<T: Real>(xs: &[T], weight: &[T], channels: usize, eps: f64) -> Vec<T> {
    let block = |start: usize, ys: &mut [T]| {
        let xs = &xs[start * channels..];
        vectorized(
            #[inline(always)]
            || {
                for (y, x) in ys.chunks_exact_mut(channels).zip(xs.chunks_exact(channels)) {
                    let inverse = inverse(x, eps);
                    for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                        *y = (x * inverse) * w;
                    }
                }
            },
        );
    };
    fill(xs.len(), channels, rows_of(BLOCK, channels), block).0
}

/// Gradients of input and gain.
///
/// With h the normalised row and p the incoming gradient times the gain, the input's gradient is
/// `(p - h * mean(p h)) / rms`.
pub(super) fn backward<T: Real>(
    xs: &[T],
    weight: &[T],
    grad: &[T],
    channels: usize,
    eps: f64,
) -> (Vec<T>, Vec<T>) {
    let block = |start: usize, dxs: &mut [T]| -> Vec<T> {
        let (xs, grad) = (&xs[start * channels..], &grad[start * channels..]);
        let mut dw = vec![T::zero(); channels];
        vectorized(
            #[inline(always)]
            || {
                let rows = dxs.chunks_exact_mut(channels).zip(xs.chunks_exact(channels));
                for ((dx, x), g) in rows.zip(grad.chunks_exact(channels)) {
                    let inverse = inverse(x, eps);
                    let along =
                        sums::<_, 3, 1, 32>([x, g, weight], |[x, g, w]| [(x * inverse) * (g * w)])
                            [0];
                    let along = T::narrow(along / channels as f64);
                    let entries = dx.iter_mut().zip(x).zip(g).zip(weight).zip(dw.iter_mut());
                    for ((((dx, &x), &g), &w), dw) in entries {
                        let h = x * inverse;
                        *dx = inverse * (g * w - h * along);
                        *dw += g * h;
                    }
                }
            },
        );
        dw
    };
    let (dxs, parts) = fill(xs.len(), channels, rows_of(BLOCK, channels), block);
    let mut dw = vec![0f64; channels];
    for part in &parts {
        dw.iter_mut().zip(part).for_each(|(sum, v)| *sum += v.wide());
    }
    (dxs, dw.into_iter().map(T::narrow).collect())
}
