//! Passes of batch norm and group norm: slices in, slices out.
//!
//! A tensor is a stack of samples, each a row-major matrix. Rows are taken in blocks whose size depends on the row length
//! alone, so that the number of threads changes no bit.

use crate::blocks::{self, fill, rows_of};
use crate::dense::Real;
use crate::lanes::{accumulate, vectorized};
use crate::ops::standardize::Rows;
use std::ops::Range;

/// Entries of a block: it stays in the second cache.
const BLOCK: usize = 1 << 16;

/// Sizes of the stack, and how many sets its channels form.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) samples: usize,
    pub(super) rows: usize,
    pub(super) channels: usize,
    pub(super) groups: usize,
}

/// What one sample's channel is shifted by and multiplied with.
#[derive(Clone, Copy)]
pub(super) struct Column {
    mean: f64,
    inverse: f64,
}

impl Column {
    pub(super) fn of(means: &[f64], variances: &[f64], eps: f64) -> Vec<Self> {
        let column = |(&mean, v): (&f64, &f64)| Self { mean, inverse: 1. / (v + eps).sqrt() };
        means.iter().zip(variances).map(column).collect()
    }

    /// What rounding the mean to the element type leaves over.
    fn left<T: Real>(&self) -> f64 {
        self.mean - T::narrow(self.mean).wide()
    }
}

impl Grid {
    /// Columns of every sample's own groups.
    pub(super) fn columns<T: Real>(&self, xs: &[T], eps: f64) -> Vec<Column> {
        let Self { samples, rows, channels, groups } = *self;
        if rows == 0 {
            return vec![Column { mean: 0., inverse: 0. }; samples * channels];
        }
        let kept: Vec<usize> = (0..rows).collect();
        let (width, n) = (channels / groups, rows as f64);
        let of_samples = |range: Range<usize>| {
            let mut columns = Vec::with_capacity(range.len() * channels);
            for sample in range {
                let values = &xs[sample * rows * channels..(sample + 1) * rows * channels];
                let moments = Rows { values, channels, kept: &kept }.moments();
                for group in moments.chunks_exact(width) {
                    let unit = |inverse: f64| if inverse == 0. { 0. } else { 1. / inverse };
                    let means = group.iter().map(|m| m.mean * unit(m.inverse_unit));
                    let mean = means.clone().sum::<f64>() / width as f64;
                    let squares = group.iter().zip(means).map(|(m, own)| {
                        m.squares * unit(m.inverse_unit).powi(2) + n * (own - mean) * (own - mean)
                    });
                    let variance = squares.sum::<f64>() / (n * width as f64);
                    let column = Column { mean, inverse: 1. / (variance + eps).sqrt() };
                    columns.resize(columns.len() + width, column);
                }
            }
            columns
        };
        blocks::map(samples, rows * channels, 1, of_samples).concat()
    }

    /// Pieces of a block of `rows` rows from row `start` that belong to one sample each: the sample, and rows of the
    /// block.
    fn pieces(&self, start: usize, rows: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
        let per = self.rows.max(1);
        (start / per..(start + rows).div_ceil(per)).map(move |sample| {
            let from = (sample * per).max(start) - start;
            (sample, from..((sample + 1) * per).min(start + rows) - start)
        })
    }

    pub(super) fn forward<T: Real>(
        &self,
        xs: &[T],
        columns: &[Column],
        weight: &[T],
        bias: &[T],
    ) -> Vec<T> {
        let width = self.channels;
        let per_channel = |f: &dyn Fn(&Column, f64, f64) -> f64| -> Vec<T> {
            let affine = weight.iter().zip(bias).cycle();
            let entries = columns.iter().zip(affine);
            entries.map(|(c, (w, b))| T::narrow(f(c, w.wide(), b.wide()))).collect()
        };
        let mean = per_channel(&|c, _, _| c.mean);
        let scale = per_channel(&|c, w, _| c.inverse * w);
        let shift = per_channel(&|c, w, b| b - c.left::<T>() * c.inverse * w);
        let block = |start: usize, ys: &mut [T]| {
            let xs = &xs[start * width..start * width + ys.len()];
            for (sample, piece) in self.pieces(start, ys.len() / width) {
                let at = piece.start * width..piece.end * width;
                let of = sample * width..(sample + 1) * width;
                let (mean, scale, shift) = (&mean[of.clone()], &scale[of.clone()], &shift[of]);
                vectorized(
                    #[inline(always)]
                    || {
                        let rows = ys[at.clone()].chunks_exact_mut(width);
                        for (y, x) in rows.zip(xs[at].chunks_exact(width)) {
                            let columns = mean.iter().zip(scale).zip(shift);
                            for ((y, &x), ((&m, &s), &b)) in y.iter_mut().zip(x).zip(columns) {
                                *y = (x - m) * s + b;
                            }
                        }
                    },
                );
            }
        };
        fill(xs.len(), width, rows_of(BLOCK, width), block).0
    }

    /// Gradients of input, gain and bias.
    ///
    /// With h the normalised value, p the incoming gradient times the gain, and means over what shares statistics, the
    /// input's gradient is `inverse * (p - mean(p) - h * mean(p h))`; without the means where the statistics are
    /// constants.
    pub(super) fn backward<T: Real>(
        &self,
        xs: &[T],
        columns: &[Column],
        weight: &[T],
        grad: &[T],
        follows: bool,
    ) -> (Vec<T>, Vec<T>, Vec<T>) {
        let Self { samples, rows, channels: width, groups } = *self;
        let mean: Vec<T> = columns.iter().map(|c| T::narrow(c.mean)).collect();
        // Sums of g and of g h, of every sample's channels.
        let of_samples = |range: Range<usize>| -> Vec<[f64; 2]> {
            let of_sample = |sample| self.sums(xs, &mean, grad, columns, sample);
            range.flat_map(of_sample).collect()
        };
        let sums = blocks::map(samples, rows * width, 1, of_samples).concat();

        let (mut dw, mut db) = (vec![0f64; width], vec![0f64; width]);
        for of_sample in sums.chunks_exact(width) {
            for ((dw, db), [g, gh]) in dw.iter_mut().zip(&mut db).zip(of_sample) {
                *dw += gh;
                *db += g;
            }
        }
        let narrow = |sums: Vec<f64>| sums.into_iter().map(T::narrow).collect();

        // dx = g gain - level - (x - mean) slope
        let (mut gain, mut level, mut slope) = (Vec::new(), Vec::new(), Vec::new());
        let set = width / groups;
        let n = (rows * set) as f64;
        for (i, (columns, sums)) in columns.chunks(set).zip(sums.chunks(set)).enumerate() {
            let weight = &weight[i * set % width..][..set];
            let mean_of = |k: usize| {
                let terms = weight.iter().zip(sums).map(|(w, s)| w.wide() * s[k]);
                if follows { terms.sum::<f64>() / n } else { 0. }
            };
            let (of_p, of_ph) = (mean_of(0), mean_of(1));
            for (c, w) in columns.iter().zip(weight) {
                let turn = c.inverse * of_ph;
                gain.push(T::narrow(c.inverse * w.wide()));
                level.push(T::narrow(c.inverse * (of_p - c.left::<T>() * turn)));
                slope.push(T::narrow(c.inverse * turn));
            }
        }
        let block = |start: usize, dxs: &mut [T]| {
            let part = start * width..start * width + dxs.len();
            let (xs, grad) = (&xs[part.clone()], &grad[part]);
            for (sample, piece) in self.pieces(start, dxs.len() / width) {
                let at = piece.start * width..piece.end * width;
                let of = sample * width..(sample + 1) * width;
                let (gain, level) = (&gain[of.clone()], &level[of.clone()]);
                let (slope, mean) = (&slope[of.clone()], &mean[of]);
                vectorized(
                    #[inline(always)]
                    || {
                        let rows = dxs[at.clone()].chunks_exact_mut(width);
                        let rows = rows.zip(xs[at.clone()].chunks_exact(width));
                        for ((dx, x), g) in rows.zip(grad[at].chunks_exact(width)) {
                            let columns = gain.iter().zip(level).zip(slope).zip(mean);
                            let entries = dx.iter_mut().zip(x).zip(g).zip(columns);
                            for (((dx, &x), &g), (((&a, &l), &s), &m)) in entries {
                                *dx = (g * a - l) - (x - m) * s;
                            }
                        }
                    },
                );
            }
        };
        let dxs = fill(xs.len(), width, rows_of(BLOCK, width), block).0;
        (dxs, narrow(dw), narrow(db))
    }

    /// Sums of g and of g h over the rows of one sample, per channel.
    fn sums<T: Real>(
        &self,
        xs: &[T],
        mean: &[T],
        grad: &[T],
        columns: &[Column],
        sample: usize,
    ) -> Vec<[f64; 2]> {
        let Self { rows, channels: width, .. } = *self;
        let row = |from: &[T], i: usize| -> Range<usize> {
            let start = (sample * rows + i) * width;
            debug_assert!(start + width <= from.len());
            start..start + width
        };
        let of = sample * width..(sample + 1) * width;
        let (mean, columns) = (&mean[of.clone()], &columns[of]);
        let block = |range: Range<usize>| {
            let (mut sum, mut along) = (vec![T::zero(); width], vec![T::zero(); width]);
            vectorized(
                #[inline(always)]
                || {
                    let whole = range.len() / 4 * 4;
                    for i in (range.start..range.start + whole).step_by(4) {
                        let [a, b, c, d] = [0, 1, 2, 3].map(|k| row(xs, i + k));
                        accumulate(
                            [&mut sum, &mut along],
                            [
                                &grad[a.clone()],
                                &grad[b.clone()],
                                &grad[c.clone()],
                                &grad[d.clone()],
                                &xs[a],
                                &xs[b],
                                &xs[c],
                                &xs[d],
                                mean,
                            ],
                            |[ga, gb, gc, gd, xa, xb, xc, xd, m]| {
                                let first = ga * (xa - m) + gb * (xb - m);
                                let second = gc * (xc - m) + gd * (xd - m);
                                [(ga + gb) + (gc + gd), first + second]
                            },
                        );
                    }
                    for i in range.start + whole..range.end {
                        let at = row(xs, i);
                        let entries = [&grad[at.clone()], &xs[at], mean];
                        accumulate([&mut sum, &mut along], entries, |[g, x, m]| [g, g * (x - m)]);
                    }
                },
            );
            (sum, along)
        };
        let mut sums = vec![[0f64; 2]; width];
        for (sum, along) in blocks::map(rows, width, rows_of(BLOCK, width), block) {
            for (total, (s, a)) in sums.iter_mut().zip(sum.iter().zip(&along)) {
                total[0] += s.wide();
                total[1] += a.wide();
            }
        }
        let entries = sums.iter().zip(columns);
        entries.map(|([g, gd], c)| [*g, (gd - c.left::<T>() * g) * c.inverse]).collect()
    }
}
