//! Passes over the matrix once its moments are known: values forward, gradient backward.

use super::statistics::{ChannelMoments, Rows};
use crate::blocks::{fill, rows_of};
use crate::dense::Real;
use crate::lanes::{accumulate, vectorized};

/// Entries of a block that is written: small, so that a thread which lost its core holds up little.
const BLOCK: usize = 1 << 14;

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
    pub(super) fn new(moments: &ChannelMoments, weight: f64, eps: f64) -> Self {
        let ChannelMoments { inverse_unit, mean, squares } = *moments;
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

/// The standardised rows; a row that `mask` has no place for stays zero.
pub(super) fn forward<T: Real>(xs: &[T], mask: Option<&[bool]>, channels: &[Channel]) -> Vec<T> {
    let width = channels.len();
    let mean = column::<T>(channels, |c| c.mean);
    let shift = column::<T>(channels, |c| c.mean - T::narrow(c.mean).wide());
    let inverse = column::<T>(channels, |c| c.inverse);
    let wide = wide::<T>(channels);
    let block = |start: usize, ys: &mut [T]| {
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
    };
    fill(xs.len(), width, rows_of(BLOCK, width), block).0
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
    let block = |start: usize, dxs: &mut [T]| {
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
    };
    fill(ys.values.len(), width, rows_of(BLOCK, width), block).0
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
    let blocks = ys.blocks(|kept| {
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
        (sum, product)
    });
    let (mut sums, mut products) = (vec![0f64; width], vec![0f64; width]);
    let join = |total: &mut [f64], part: &[T]| {
        total.iter_mut().zip(part).for_each(|(total, p)| *total += p.wide());
    };
    for (sum, product) in &blocks {
        join(&mut sums, sum);
        join(&mut products, product);
    }
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
