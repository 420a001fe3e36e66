//! Row kernels of layer norm: slices in, slices out.
//!
//! Sums run over a fixed number of lanes and over blocks whose size depends on the row length alone, so that the
//! result is the same bit for bit with any number of threads.

use crate::dense::Real;
use rayon::prelude::*;

/// Independent partial sums: enough for the compiler to keep them in vector registers.
const LANES: usize = 8;
/// Below this many elements threads cost more than they give.
const PARALLEL_FROM: usize = 1 << 18;

/// Per-row statistics: the normalised value is `((x - mean) - shift) * rstd`.
///
/// `mean` is rounded to the element type; `shift` is what that rounding and the rounding of the sum left over. It keeps
/// rows with a mean far above their deviation accurate.
struct RowStats<T> {
    mean: T,
    shift: T,
    rstd: T,
}

impl<T: Real> RowStats<T> {
    fn new(row: &[T], eps: f64) -> Self {
        let n = row.len() as f64;
        let mean = T::narrow(lane_sum(row, |x| x) / n);
        // Two loops with one accumulator each run twice as fast as one loop with two.
        let sum = lane_sum(row, |x| x - mean);
        let squares = lane_sum(row, |x| (x - mean) * (x - mean));
        if !(sum.is_finite() && squares.is_finite()) {
            return Self::wide(row, eps);
        }
        let shift = sum / n;
        let variance = (squares / n - shift * shift).max(0.);
        Self { mean, shift: T::narrow(shift), rstd: T::narrow(1. / (variance + eps).sqrt()) }
    }

    /// The same in f64, for rows whose squares overflow the element type.
    #[cold]
    fn wide(row: &[T], eps: f64) -> Self {
        let n = row.len() as f64;
        let exact = row.iter().map(|x| x.wide()).sum::<f64>() / n;
        let variance = row.iter().map(|x| (x.wide() - exact).powi(2)).sum::<f64>() / n;
        let mean = T::narrow(exact);
        let shift = T::narrow(exact - mean.wide());
        Self { mean, shift, rstd: T::narrow(1. / (variance + eps).sqrt()) }
    }

    #[inline(always)]
    fn apply(&self, x: T) -> T {
        ((x - self.mean) - self.shift) * self.rstd
    }
}

/// Sum of the lanes by halving: few roundings, and a shape that vectorises.
#[inline(always)]
fn total<T: Real>(mut lanes: [T; LANES]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            let upper = lanes[i + half];
            lanes[i] += upper;
        }
        half /= 2;
    }
    lanes[0].wide()
}

/// Sum of `f` over a row, in lanes of the element type.
#[inline(always)]
fn lane_sum<T: Real>(row: &[T], f: impl Fn(T) -> T) -> f64 {
    let mut lanes = [T::zero(); LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, &x)| *lane += f(x));
    total(lanes)
}

/// Sum of the products of two rows.
#[inline(always)]
fn lane_dot<T: Real>(a: &[T], b: &[T]) -> f64 {
    let mut lanes = [T::zero(); LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_rest, b_rest) = (a_chunks.remainder(), b_chunks.remainder());
    for (a, b) in a_chunks.zip(b_chunks) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(a).zip(b) {
            *lane += x * y;
        }
    }
    lanes.iter_mut().zip(a_rest).zip(b_rest).for_each(|((lane, &x), &y)| *lane += x * y);
    total(lanes)
}

/// Elements per block: whole rows, a function of the row length alone.
fn block_len(channels: usize) -> usize {
    // An empty tensor may have rows of any length.
    channels.saturating_mul(((1 << 14) / channels).max(32))
}

/// Gain and bias of the affine form.
pub(super) type Affine<'a, T> = Option<(&'a [T], &'a [T])>;

/// Normalises each row of length `channels`.
pub(super) fn forward<T: Real>(
    xs: &[T],
    affine: Affine<'_, T>,
    channels: usize,
    eps: f64,
) -> Vec<T> {
    let mut ys = vec![T::zero(); xs.len()];
    let block = |ys: &mut [T], xs: &[T]| {
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
    };
    let len = block_len(channels);
    if xs.len() >= PARALLEL_FROM {
        ys.par_chunks_mut(len).zip(xs.par_chunks(len)).for_each(|(y, x)| block(y, x));
    } else {
        ys.chunks_mut(len).zip(xs.chunks(len)).for_each(|(y, x)| block(y, x));
    }
    ys
}

/// Gradients of input, gain and bias; the last two are empty without `weight`.
///
/// With h the normalised row and p the incoming gradient times the gain, the input's gradient is
/// `rstd * (p - mean(p) - h * mean(p h))`.
pub(super) fn backward<T: Real>(
    xs: &[T],
    weight: Option<&[T]>,
    grad: &[T],
    channels: usize,
    eps: f64,
) -> (Vec<T>, Vec<T>, Vec<T>) {
    let mut dxs = vec![T::zero(); xs.len()];
    let width = if weight.is_some() { channels } else { 0 };
    let block = |dxs: &mut [T], xs: &[T], grad: &[T]| -> (Vec<T>, Vec<T>) {
        let (mut dw, mut db) = (vec![T::zero(); width], vec![T::zero(); width]);
        let mut scaled = vec![T::zero(); width];
        let rows = dxs.chunks_exact_mut(channels).zip(xs.chunks_exact(channels));
        for ((dx, x), g) in rows.zip(grad.chunks_exact(channels)) {
            let stats = RowStats::new(x, eps);
            // dx holds the normalised row until its last use.
            dx.iter_mut().zip(x).for_each(|(h, &x)| *h = stats.apply(x));
            let p = match weight {
                None => g,
                Some(weight) => {
                    for ((s, &g), &w) in scaled.iter_mut().zip(g).zip(weight) {
                        *s = g * w;
                    }
                    for ((dw, &g), &h) in dw.iter_mut().zip(g).zip(&*dx) {
                        *dw += g * h;
                    }
                    db.iter_mut().zip(g).for_each(|(db, &g)| *db += g);
                    &scaled[..]
                }
            };
            let (sum, along) = (lane_sum(p, |x| x), lane_dot(p, dx));
            let n = channels as f64;
            let (mean, along) = (T::narrow(sum / n), T::narrow(along / n));
            dx.iter_mut().zip(p).for_each(|(h, &p)| *h = stats.rstd * ((p - mean) - *h * along));
        }
        (dw, db)
    };
    let len = block_len(channels);
    let parts: Vec<(Vec<T>, Vec<T>)> = if xs.len() >= PARALLEL_FROM {
        let blocks = dxs.par_chunks_mut(len).zip(xs.par_chunks(len)).zip(grad.par_chunks(len));
        blocks.map(|((dx, x), g)| block(dx, x, g)).collect()
    } else {
        let blocks = dxs.chunks_mut(len).zip(xs.chunks(len)).zip(grad.chunks(len));
        blocks.map(|((dx, x), g)| block(dx, x, g)).collect()
    };
    let (mut dw, mut db) = (vec![0f64; width], vec![0f64; width]);
    for (part_w, part_b) in &parts {
        dw.iter_mut().zip(part_w).for_each(|(sum, v)| *sum += v.wide());
        db.iter_mut().zip(part_b).for_each(|(sum, v)| *sum += v.wide());
    }
    let narrow = |sums: Vec<f64>| sums.into_iter().map(T::narrow).collect();
    (dxs, narrow(dw), narrow(db))
}
