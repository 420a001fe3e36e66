//! Passes over the matrix once its moments are known: values forward, gradient backward.

use super::statistics::{Moments, PARALLEL_FROM, Rows, block_rows, by_block};
use crate::dense::Real;
use crate::lanes::{accumulate, vectorized};
use rayon::prelude::*;

/// What one channel is shifted by and divided by, in units of `z = x * inverse_unit`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Channel {
    pub(super) inverse_unit: f64,
    pub(super) mean: f64,
    /// 1 / denominator; zero for a channel that is all zero.
    pub(super) inverse: f64,
}

impl Channel {
    /// With `weight` the variance is `weight` times the sum of squares.
    pub(super) fn new(moments: &Moments, weight: f64, eps: f64) -> Self {
        let Moments { inverse_unit, mean, squares } = *moments;
        let variance = squares * weight;
        let squared = variance + variance * (eps * eps) + (eps * mean) * (eps * mean);
        let inverse = if squared == 0. { 0. } else { 1. / squared.sqrt() };
        Self { inverse_unit, mean, inverse }
    }

    fn value(&self, x: f64) -> f64 {
        (x * self.inverse_unit - self.mean) * self.inverse
    }

    /// Whether the element type can carry out the channel's arithmetic.
    fn fits<T: Real>(&self) -> bool {
        let inverse = T::narrow(self.inverse).wide();
        let normal = inverse == 0. || inverse >= T::MIN_POSITIVE;
        self.inverse_unit == 1.
            && inverse.is_finite()
            && normal
            && T::narrow(self.mean).wide().is_finite()
    }
}

/// Channels that need f64.
fn wide<T: Real>(channels: &[Channel]) -> Vec<usize> {
    (0..channels.len()).filter(|&j| !channels[j].fits::<T>()).collect()
}

fn column<T: Real>(channels: &[Channel], f: impl Fn(&Channel) -> f64) -> Vec<T> {
    channels.iter().map(|c| T::narrow(f(c))).collect()
}

/// `f` on each row block of `out` with the index of its first row; blocks run side by side.
fn each_block<T: Real>(out: &mut [T], channels: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let rows = block_rows(channels);
    let len = rows * channels;
    if out.len() >= PARALLEL_FROM {
        out.par_chunks_mut(len).enumerate().for_each(|(b, out)| f(b * rows, out));
    } else {
        out.chunks_mut(len).enumerate().for_each(|(b, out)| f(b * rows, out));
    }
}

/// The standardised rows; a row that `mask` has no place for stays zero.
pub(super) fn forward<T: Real>(xs: &[T], mask: Option<&[bool]>, channels: &[Channel]) -> Vec<T> {
    let width = channels.len();
    let mut ys = vec![T::zero(); xs.len()];
    let mean = column::<T>(channels, |c| c.mean);
    let shift = column::<T>(channels, |c| c.mean - T::narrow(c.mean).wide());
    let inverse = column::<T>(channels, |c| c.inverse);
    let wide = wide::<T>(channels);
    each_block(&mut ys, width, |start, ys| {
        vectorized(
            #[inline(always)]
            || {
                let xs = xs[start * width..].chunks_exact(width);
                for (i, (y, x)) in ys.chunks_exact_mut(width).zip(xs).enumerate() {
                    if mask.is_some_and(|mask| !mask[start + i]) {
                        continue;
                    }
                    let columns = mean.iter().zip(&shift).zip(&inverse);
                    for ((y, &x), ((&mean, &shift), &inverse)) in y.iter_mut().zip(x).zip(columns) {
                        *y = ((x - mean) - shift) * inverse;
                    }
                    for &j in &wide {
                        y[j] = T::narrow(channels[j].value(x[j].wide()));
                    }
                }
            },
        );
    });
    ys
}

/// How the denominator follows its channel's entries: `dD/dx = of_value y + of_guard mean / D`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) of_value: f64,
    pub(super) of_guard: f64,
}

/// Gradient of the input from output and incoming gradient.
///
/// With `D` the denominator, `dx = (g - mean(g) - sum(g y) dD/dx) / D`. The output is read and not the input: with the
/// kept channels that is the gradient of the pass that was run, whatever became of the input since. Without `turn` the
/// channels are constants, and `dx = g / D`.
pub(super) fn backward<T: Real>(
    ys: Rows<'_, T>,
    grad: Rows<'_, T>,
    mask: Option<&[bool]>,
    channels: &[Channel],
    turn: Option<Turn>,
) -> Vec<T> {
    // dx = ((g - level) - y slope) scale
    let terms = match turn {
        Some(turn) => turned(ys, grad, channels, turn),
        None => channels.iter().map(|c| [0., 0., c.inverse]).collect(),
    };
    let width = channels.len();
    let term = |k: usize| terms.iter().map(|t| T::narrow(t[k])).collect::<Vec<T>>();
    let (level, slope, scale) = (term(0), term(1), term(2));
    let wide = wide::<T>(channels);
    let mut dxs = vec![T::zero(); ys.values.len()];
    each_block(&mut dxs, width, |start, dxs| {
        vectorized(
            #[inline(always)]
            || {
                let ys = ys.values[start * width..].chunks_exact(width);
                let grad = grad.values[start * width..].chunks_exact(width);
                let rows = dxs.chunks_exact_mut(width).zip(ys).zip(grad);
                for (i, ((dx, y), g)) in rows.enumerate() {
                    if mask.is_some_and(|mask| !mask[start + i]) {
                        continue;
                    }
                    let columns = level.iter().zip(&slope).zip(&scale);
                    let entries = dx.iter_mut().zip(y).zip(g).zip(columns);
                    for (((dx, &y), &g), ((&level, &slope), &scale)) in entries {
                        *dx = ((g - level) - y * slope) * scale;
                    }
                    for &j in &wide {
                        let [level, slope, scale] = terms[j];
                        let d = (g[j].wide() - level) - y[j].wide() * slope;
                        dx[j] = T::narrow(d * scale * channels[j].inverse_unit);
                    }
                }
            },
        );
    });
    dxs
}

/// Level, slope and scale of every channel's gradient, where the statistics follow the entries.
fn turned<T: Real>(
    ys: Rows<'_, T>,
    grad: Rows<'_, T>,
    channels: &[Channel],
    turn: Turn,
) -> Vec<[f64; 3]> {
    let width = channels.len();
    let n = ys.kept.len().max(1) as f64;
    let [sums, products] = by_block(ys.kept, width, |kept, [sums, products]| {
        let (mut sum, mut product) = (vec![T::zero(); width], vec![T::zero(); width]);
        vectorized(
            #[inline(always)]
            || {
                let (fours, few) = kept.as_chunks::<4>();
                for four in fours {
                    let [ga, gb, gc, gd] = four.map(|i| grad.row(i));
                    let [ya, yb, yc, yd] = four.map(|i| ys.row(i));
                    accumulate(
                        [&mut sum, &mut product],
                        [ga, gb, gc, gd, ya, yb, yc, yd],
                        |[ga, gb, gc, gd, ya, yb, yc, yd]| {
                            [(ga + gb) + (gc + gd), (ga * ya + gb * yb) + (gc * yc + gd * yd)]
                        },
                    );
                }
                for &i in few {
                    let rows = [grad.row(i), ys.row(i)];
                    accumulate([&mut sum, &mut product], rows, |[g, y]| [g, g * y]);
                }
            },
        );
        sums.iter_mut().zip(&sum).for_each(|(to, from)| *to = from.wide());
        products.iter_mut().zip(&product).for_each(|(to, from)| *to = from.wide());
    });
    let join = |parts: &[f64]| {
        let mut total = vec![0f64; width];
        for part in parts.chunks_exact(width) {
            total.iter_mut().zip(part).for_each(|(total, p)| *total += p);
        }
        total
    };
    let (sums, products) = (join(&sums), join(&products));
    let sums = sums.iter().zip(&products);
    channels
        .iter()
        .zip(sums)
        .map(|(c, (sum, along))| {
            let level = sum / n + along * turn.of_guard * c.mean * c.inverse;
            [level, along * turn.of_value, c.inverse]
        })
        .collect()
}
