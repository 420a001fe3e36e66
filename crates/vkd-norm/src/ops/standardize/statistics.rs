//! Mean and variance of every channel of a row-major matrix.
//!
//! Rows are taken in blocks whose size depends on the row length alone; a block is summed twice in the element type, about
//! its own mean, while it is in the cache, and the blocks are joined in f64. Channels that leave the range of the element
//! type are taken again in f64, in units of a power of two near their largest magnitude, where no square can overflow or
//! vanish.

use crate::blocks;
use crate::dense::Real;
use crate::lanes::{accumulate, vectorized};
use std::ops::Range;

/// Entries of a block: it stays in the second cache between two walks over it.
const BLOCK: usize = 1 << 16;

/// Which sum of squares is called the variance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Variance {
    /// Over the number of rows.
    Biased,
    /// Over the number of rows less one; zero for a single row.
    Unbiased,
}

impl Variance {
    /// 1 / the divisor of the sum of squares of `rows` rows; zero where nothing can vary.
    pub(crate) fn weight(self, rows: usize) -> f64 {
        match (self, rows) {
            (_, 0 | 1) => 0.,
            (Self::Biased, n) => 1. / n as f64,
            (Self::Unbiased, n) => 1. / (n - 1) as f64,
        }
    }
}

/// ChannelMoments of one channel of `z = x * inverse_unit`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ChannelMoments {
    /// A power of two: 1 unless the channel's range asks for another, zero for a channel that is all zero.
    pub(crate) inverse_unit: f64,
    pub(crate) mean: f64,
    /// Sum of the squares about the mean.
    pub(crate) squares: f64,
}

#[cfg(any(feature = "cuda", test))]
impl ChannelMoments {
    /// Number of rows, and moments, of parts `(chunks, 3, channels)` as a device makes them: number, mean and squares.
    pub(super) fn joined(parts: &[f64], channels: usize) -> (usize, Vec<Self>) {
        let mut counts = vec![0f64; channels];
        let mut moments = vec![Self { inverse_unit: 1., mean: 0., squares: 0. }; channels];
        for part in parts.chunks_exact(3 * channels) {
            let (numbers, rest) = part.split_at(channels);
            let (means, squares) = rest.split_at(channels);
            let of_part = numbers.iter().zip(means).zip(squares);
            for ((all, count), ((&n, &mean), &squares)) in
                moments.iter_mut().zip(&mut counts).zip(of_part)
            {
                if n > 0. {
                    let (apart, total) = (mean - all.mean, *count + n);
                    all.squares += squares + apart * apart * (*count * n / total);
                    // Exact for the first part.
                    all.mean = if *count == 0. { mean } else { all.mean + apart * (n / total) };
                    *count = total;
                }
            }
        }
        (counts.first().map_or(0, |n| *n as usize), moments)
    }
}

/// The rows that count, of a row-major matrix with at least one channel.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) channels: usize,
    /// Indices of the rows, in order.
    pub(crate) kept: &'a [usize],
}

impl<'a, T: Real> Rows<'a, T> {
    #[inline(always)]
    pub(super) fn row(&self, index: usize) -> &'a [T] {
        let start = index * self.channels;
        &self.values[start..start + self.channels]
    }

    /// ChannelMoments of every channel; all zero without rows.
    pub(crate) fn moments(&self) -> Vec<ChannelMoments> {
        let n = self.kept.len() as f64;
        let Some(&first) = self.kept.first() else {
            return vec![ChannelMoments { inverse_unit: 1., mean: 0., squares: 0. }; self.channels];
        };
        // Everything is taken relative to the first row: a constant channel is exactly zero from here on.
        let first = self.row(first);
        let blocks = self.blocks(|kept| {
            let (offsets, squares) = self.block(kept, first);
            (kept.len() as f64, offsets, squares)
        });
        let (mut offset, mut total) = (vec![0f64; self.channels], vec![0f64; self.channels]);
        vectorized(
            #[inline(always)]
            || {
                for (weight, offsets, _) in &blocks {
                    let share = weight / n;
                    offset.iter_mut().zip(offsets).for_each(|(sum, o)| *sum += share * o);
                }
                for (weight, offsets, squares) in &blocks {
                    let of_block = squares.iter().zip(offsets).zip(&offset);
                    for (total, ((squares, o), mean)) in total.iter_mut().zip(of_block) {
                        *total += squares + weight * (o - mean) * (o - mean);
                    }
                }
            },
        );
        let mut moments: Vec<ChannelMoments> = first
            .iter()
            .zip(offset)
            .zip(total)
            .map(|((f, o), squares)| ChannelMoments {
                inverse_unit: 1.,
                mean: f.wide() + o,
                squares,
            })
            .collect();
        self.take_again(&mut moments);
        moments
    }

    /// Results of `f` on blocks of the rows that count, in order.
    pub(super) fn blocks<R: Send>(&self, f: impl Fn(&[usize]) -> R + Sync + Send) -> Vec<R> {
        let size = blocks::rows_of(BLOCK, self.channels);
        let f = |rows: Range<usize>| f(&self.kept[rows]);
        blocks::map(self.kept.len(), self.channels, size, f)
    }

    /// Means relative to the first row, and sums of squares about them, of one block.
    fn block(&self, kept: &[usize], first: &[T]) -> (Vec<f64>, Vec<f64>) {
        let (mut offsets, mut squares) = (vec![0f64; self.channels], vec![0f64; self.channels]);
        let n = kept.len() as f64;
        let zeros = || vec![T::zero(); self.channels];
        let (mut mean, mut rest, mut square) = (zeros(), zeros(), zeros());
        vectorized(
            #[inline(always)]
            || {
                let (fours, few) = kept.as_chunks::<4>();
                for four in fours {
                    let [a, b, c, d] = four.map(|i| self.row(i));
                    accumulate([&mut mean], [a, b, c, d, first], |[a, b, c, d, f]| {
                        [((a - f) + (b - f)) + ((c - f) + (d - f))]
                    });
                }
                for &i in few {
                    accumulate([&mut mean], [self.row(i), first], |[x, f]| [x - f]);
                }
                let share = 1. / n;
                let narrow = T::narrow(share);
                mean.iter_mut().zip(first).for_each(|(m, &f)| *m = *m * narrow + f);
                for four in fours {
                    let [a, b, c, d] = four.map(|i| self.row(i));
                    accumulate(
                        [&mut rest, &mut square],
                        [a, b, c, d, &mean],
                        |[a, b, c, d, mean]| {
                            let (a, b, c, d) = (a - mean, b - mean, c - mean, d - mean);
                            [(a + b) + (c + d), (a * a + b * b) + (c * c + d * d)]
                        },
                    );
                }
                for &i in few {
                    accumulate([&mut rest, &mut square], [self.row(i), &mean], |[x, mean]| {
                        [x - mean, (x - mean) * (x - mean)]
                    });
                }
                let of_rows = mean.iter().zip(first).zip(rest.iter().zip(&square));
                let results = offsets.iter_mut().zip(&mut squares);
                for ((offset, squares), ((mean, first), (rest, square))) in results.zip(of_rows) {
                    // The rounded mean leaves a little over.
                    let left = rest.wide() * share;
                    *offset = (mean.wide() - first.wide()) + left;
                    *squares = (square.wide() - n * left * left).max(0.);
                }
            },
        );
        (offsets, squares)
    }

    /// Channels whose squares may have left the range of the element type.
    #[cold]
    fn take_again(&self, moments: &mut [ChannelMoments]) {
        let n = self.kept.len() as f64;
        // Squares this small are rounded by the spacing of subnormals, or gone.
        let least = n * T::MIN_POSITIVE / T::EPSILON;
        let fine = |m: &ChannelMoments| {
            m.squares >= least && m.squares.is_finite() && (m.mean * m.mean).is_finite()
        };
        let mut doubtful: Vec<usize> = (0..self.channels).filter(|&j| !fine(&moments[j])).collect();
        if doubtful.is_empty() {
            return;
        }
        // A constant channel is right as it is: its squares are zero, its mean is the first row's value.
        let first = self.row(self.kept[0]);
        let mut varies = vec![false; doubtful.len()];
        for &i in self.kept {
            let row = self.row(i);
            for (varies, &j) in varies.iter_mut().zip(&doubtful) {
                *varies |= row[j] != first[j];
            }
        }
        let constant =
            |j: usize| ChannelMoments { inverse_unit: 1., mean: first[j].wide(), squares: 0. };
        doubtful
            .iter()
            .zip(&varies)
            .filter(|(_, v)| !**v)
            .for_each(|(&j, _)| moments[j] = constant(j));
        let mut varies = varies.into_iter();
        doubtful.retain(|_| varies.next() == Some(true));
        if doubtful.is_empty() {
            return;
        }
        let walk = |f: &mut dyn FnMut(usize, f64)| {
            for &i in self.kept {
                let row = self.row(i);
                doubtful.iter().enumerate().for_each(|(k, &j)| f(k, row[j].wide()));
            }
        };
        let mut largest = vec![0f64; doubtful.len()];
        walk(&mut |k, x| largest[k] = largest[k].max(x.abs()));
        let unit: Vec<f64> = largest.into_iter().map(inverse_unit).collect();
        let mut mean = vec![0f64; doubtful.len()];
        walk(&mut |k, x| mean[k] += x * unit[k] / n);
        let (mut rest, mut squares) = (vec![0f64; doubtful.len()], vec![0f64; doubtful.len()]);
        walk(&mut |k, x| {
            let d = x * unit[k] - mean[k];
            rest[k] += d;
            squares[k] += d * d;
        });
        for (k, &j) in doubtful.iter().enumerate() {
            let left = rest[k] / n;
            let squares = squares[k] - n * left * left;
            // Not `max`, which would turn NaN to zero.
            let squares = if squares < 0. { 0. } else { squares };
            moments[j] = ChannelMoments { inverse_unit: unit[k], mean: mean[k] + left, squares };
        }
    }
}

/// 1 / 2^floor(log2 largest), kept finite for subnormal input; zero for zero.
fn inverse_unit(largest: f64) -> f64 {
    if largest == 0. {
        return 0.;
    }
    let exponent = f64::from_bits(largest.to_bits() & f64::INFINITY.to_bits());
    1. / exponent.max(f64::MIN_POSITIVE)
}
