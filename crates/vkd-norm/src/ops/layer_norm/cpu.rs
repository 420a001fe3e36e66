//! Row kernels of layer norm: slices in, slices out.
//!
//! A row is read several times while it is in the first cache, and once from memory. Sums run over a fixed number of
//! lanes and over blocks whose size depends on the row length alone, so that the result is the same bit for bit with any
//! number of threads.

use crate::blocks::{fill, rows_of};
use crate::dense::Real;
use crate::lanes::{sums, vectorized};
use crate::row_stats::RowStats;

/// Entries of a block: its rows stay in the second cache.
const BLOCK: usize = 1 << 14;

/// Gain and bias of the affine form.
pub type Affine<'a, T> = Option<(&'a [T], &'a [T])>;

/// Normalises each row of length `channels`.
pub fn forward<T: Real>(xs: &[T], affine: Affine<'_, T>, channels: usize, eps: f64) -> Vec<T> {
    let block = |start: usize, ys: &mut [T]| {
        let xs = &xs[start * channels..];
        vectorized(
            #[inline(always)]
            || {
                for (y, x) in ys.chunks_exact_mut(channels).zip(xs.chunks_exact(channels)) {
                    let stats = RowStats::new(x, eps);
                    match affine {
                        None => y.iter_mut().zip(x).for_each(|(y, &x)| *y = stats.apply(x)),
                        Some((weight, bias)) => {
                            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                                *y = stats.apply(x) * w + b;
                            }
                        }
                    }
                }
            },
        );
    };
    fill(xs.len(), channels, rows_of(BLOCK, channels), block).0
}

/// Gradients of input, gain and bias; the last two are empty without `weight`.
///
/// With h the normalised row and p the incoming gradient times the gain, the input's gradient is
/// `rstd * (p - mean(p) - h * mean(p h))`.
pub fn backward<T: Real>(
    xs: &[T],
    weight: Option<&[T]>,
    grad: &[T],
    channels: usize,
    eps: f64,
) -> (Vec<T>, Vec<T>, Vec<T>) {
    let width = if weight.is_some() { channels } else { 0 };
    let block = |start: usize, dxs: &mut [T]| -> [Vec<T>; 2] {
        let (xs, grad) = (&xs[start * channels..], &grad[start * channels..]);
        let mut of_affine = [vec![T::zero(); width], vec![T::zero(); width]];
        let [dw, db] = &mut of_affine;
        vectorized(
            #[inline(always)]
            || {
                let rows = dxs.chunks_exact_mut(channels).zip(xs.chunks_exact(channels));
                for ((dx, x), g) in rows.zip(grad.chunks_exact(channels)) {
                    row_backward(dx, x, g, weight, (dw, db), eps);
                }
            },
        );
        of_affine
    };
    let (dxs, parts) = fill(xs.len(), channels, rows_of(BLOCK, channels), block);
    let joined = |which: usize| {
        let mut sums = vec![0f64; width];
        for part in &parts {
            sums.iter_mut().zip(&part[which]).for_each(|(sum, v)| *sum += v.wide());
        }
        sums.into_iter().map(T::narrow).collect()
    };
    (dxs, joined(0), joined(1))
}

/// Sums of `p` and of `h p` in f64, for gradients whose sum leaves the type.
#[cold]
fn wide_sums<T: Real>(x: &[T], g: &[T], weight: Option<&[T]>, stats: &RowStats<T>) -> [f64; 2] {
    let mut out = [0f64; 2];
    for (i, (&x, g)) in x.iter().zip(g).enumerate() {
        let p = g.wide() * weight.and_then(|w| w.get(i)).map_or(1., |w| w.wide());
        out = [out[0] + p, out[1] + stats.apply(x).wide() * p];
    }
    out
}

/// One row of the backward pass; adds to the gradients of gain and bias.
#[inline(always)]
fn row_backward<T: Real>(
    dx: &mut [T],
    x: &[T],
    g: &[T],
    weight: Option<&[T]>,
    (dw, db): (&mut [T], &mut [T]),
    eps: f64,
) {
    let n = x.len() as f64;
    let pivot = RowStats::pivot(x);
    let terms = |x: T, p: T| {
        let d = x - pivot;
        [d, d * d, p, p * d]
    };
    let [sum, squares, of_p, along] = match weight {
        None => sums::<_, 2, 4, 16>([x, g], |[x, g]| terms(x, g)),
        Some(w) => sums::<_, 3, 4, 16>([x, g, w], |[x, g, w]| terms(x, g * w)),
    };
    let (stats, of_p, along) = match RowStats::from_sums(x.len(), pivot, sum, squares, eps) {
        // Products with raw deviations may leave the type where those with normalised ones don't.
        Some(stats) if (along + of_p).is_finite() => {
            (stats, of_p, (along - sum / n * of_p) * stats.rstd.wide())
        }
        found => {
            let stats = found.unwrap_or_else(|| RowStats::careful(x, eps));
            let along = match weight {
                None => sums::<_, 2, 1, 32>([x, g], |[x, g]| [stats.apply(x) * g])[0],
                Some(w) => {
                    sums::<_, 3, 1, 32>([x, g, w], |[x, g, w]| [stats.apply(x) * (g * w)])[0]
                }
            };
            if (along + of_p).is_finite() {
                (stats, of_p, along)
            } else {
                let [of_p, along] = wide_sums(x, g, weight, &stats);
                (stats, of_p, along)
            }
        }
    };
    let (of_p, along) = (T::narrow(of_p / n), T::narrow(along / n));
    match weight {
        None => {
            for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(g) {
                *dx = stats.rstd * ((g - of_p) - stats.apply(x) * along);
            }
        }
        Some(weight) => {
            let rows = dx.iter_mut().zip(x).zip(g).zip(weight).zip(dw).zip(db);
            for (((((dx, &x), &g), &w), dw), db) in rows {
                let h = stats.apply(x);
                *dx = stats.rstd * ((g * w - of_p) - h * along);
                *dw += g * h;
                *db += g;
            }
        }
    }
}
