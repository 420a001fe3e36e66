//! Slices in, slices out. Blocks of rows depend on the row length alone, so the number of threads changes no bit.

use crate::ops::Real;
use vkd_norm::blocks::{fill, map, rows_of};
use vkd_norm::lanes::vectorized;

/// Entries of a block: it stays in the second cache.
const BLOCK: usize = 1 << 16;

/// Per channel: a mean, and one over the root of the variance with eps.
pub(super) struct Channels<T> {
    mean: Vec<T>,
    /// What rounding the mean to the element type leaves over.
    left: Vec<f64>,
    inverse: Vec<f64>,
}

impl<T: Real> Channels<T> {
    pub(super) fn of(mean: &[f64], variance: &[f64], eps: f64) -> Self {
        let narrow = <T as candle_core::WithDType>::from_f64;
        let mean_t: Vec<T> = mean.iter().map(|&m| narrow(m)).collect();
        let left = mean.iter().zip(&mean_t).map(|(m, t)| m - candle_core::WithDType::to_f64(*t));
        let inverse = variance.iter().map(|v| (v + eps).sqrt().recip());
        Self { left: left.collect(), inverse: inverse.collect(), mean: mean_t }
    }

    /// Of each channel the sums of g, then of each the sums of g h, h the normalised value.
    pub(super) fn sums(&self, grad: &[T], xs: &[T]) -> Vec<f64> {
        let width = self.mean.len();
        let block = |range: std::ops::Range<usize>| {
            let (mut sum, mut along) = (vec![T::zero(); width], vec![T::zero(); width]);
            let at = range.start * width..range.end * width;
            vectorized(
                #[inline(always)]
                || {
                    let rows = grad[at.clone()].chunks_exact(width).zip(xs[at].chunks_exact(width));
                    for (g, x) in rows {
                        let sums = sum.iter_mut().zip(along.iter_mut()).zip(&self.mean);
                        for (((sum, along), &m), (&g, &x)) in sums.zip(g.iter().zip(x)) {
                            *sum += g;
                            *along += g * (x - m);
                        }
                    }
                },
            );
            (sum, along)
        };
        let wide = candle_core::WithDType::to_f64;
        let mut sums = vec![0f64; 2 * width];
        for (sum, along) in map(grad.len() / width, width, rows_of(BLOCK, width), block) {
            sums.iter_mut().zip(sum.into_iter().chain(along)).for_each(|(s, x)| *s += wide(x));
        }
        let (sum, along) = sums.split_at_mut(width);
        for (j, along) in along.iter_mut().enumerate() {
            *along = (*along - self.left[j] * sum[j]) * self.inverse[j];
        }
        sums
    }

    /// `g - mean(g) - h mean(g h)`, the means from sums over `count` rows.
    pub(super) fn gradient(&self, grad: &[T], xs: &[T], sums: &[f64], count: usize) -> Vec<T> {
        let (width, n) = (self.mean.len(), count as f64);
        let narrow = <T as candle_core::WithDType>::from_f64;
        let (sum, along) = sums.split_at(width);
        let slopes: Vec<f64> = along.iter().zip(&self.inverse).map(|(a, i)| a / n * i).collect();
        let level = sum.iter().zip(&self.left).zip(&slopes);
        let level: Vec<T> = level.map(|((s, left), slope)| narrow(s / n - left * slope)).collect();
        let slope: Vec<T> = slopes.iter().map(|&slope| narrow(slope)).collect();
        let block = |start: usize, out: &mut [T]| {
            let at = start * width..start * width + out.len();
            vectorized(
                #[inline(always)]
                || {
                    let rows = grad[at.clone()].chunks_exact(width).zip(xs[at].chunks_exact(width));
                    for (out, (g, x)) in out.chunks_exact_mut(width).zip(rows) {
                        let columns = level.iter().zip(&slope).zip(&self.mean);
                        let entries = out.iter_mut().zip(g.iter().zip(x)).zip(columns);
                        for ((out, (&g, &x)), ((&level, &slope), &m)) in entries {
                            *out = (g - level) - (x - m) * slope;
                        }
                    }
                },
            );
        };
        fill(grad.len(), width, rows_of(BLOCK, width), block).0
    }
}
