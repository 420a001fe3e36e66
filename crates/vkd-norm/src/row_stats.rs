//! Mean and deviation of one row: what layer norm shifts by and divides by.
//!
//! Public for vkd-loss alone, which shares it; no part of the stable interface.

use crate::dense::Real;
use crate::lanes::sums;

/// Entries that the pivot is the mean of.
const START: usize = 32;

/// Per-row statistics: the normalised value is `((x - mean) - shift) * rstd`.
///
/// `mean` is near the mean and in the element type, `shift` is the mean of what it leaves over. That keeps rows with a
/// mean far above their deviation accurate.
#[derive(Clone, Copy)]
pub struct RowStats<T> {
    /// Near the mean.
    pub mean: T,
    /// What it leaves over.
    pub shift: T,
    /// 1 / deviation.
    pub rstd: T,
}

impl<T: Real> RowStats<T> {
    /// Statistics of a row that has at least one entry.
    #[inline(always)]
    pub fn new(row: &[T], eps: f64) -> Self {
        let pivot = Self::pivot(row);
        let [sum, squares] = sums::<_, 1, 2, 32>([row], |[x]| {
            let d = x - pivot;
            [d, d * d]
        });
        match Self::from_sums(row.len(), pivot, sum, squares, eps) {
            Some(stats) => stats,
            None => Self::careful(row, eps),
        }
    }

    /// A value that is likely near the row's mean: the mean of its start, the value itself in a constant row.
    #[inline(always)]
    pub fn pivot(row: &[T]) -> T {
        match row.first_chunk::<START>() {
            // A sum of equal values by halving and a division by a power of two are exact.
            Some(start) => T::narrow(sums::<_, 1, 1, START>([start], |[x]| [x])[0] / START as f64),
            None => row[0],
        }
    }

    /// From the sums of `x - pivot` and of its squares over `len` entries, in one walk over the row; `None` where the
    /// pivot is too far from the mean for that, or where squares overflow.
    #[inline(always)]
    pub fn from_sums(len: usize, pivot: T, sum: f64, squares: f64, eps: f64) -> Option<Self> {
        let n = len as f64;
        let shift = sum / n;
        let variance = squares / n - shift * shift;
        // Where the shift is no more than a deviation, the difference loses one bit. Infinity and NaN fail as well.
        if !(shift * shift <= variance && variance.is_finite()) {
            return None;
        }
        let rstd = T::narrow(1. / (variance + eps).sqrt());
        Some(Self { mean: pivot, shift: T::narrow(shift), rstd })
    }

    /// In two walks, and in f64 where squares overflow the element type.
    #[cold]
    pub fn careful(row: &[T], eps: f64) -> Self {
        let n = row.len() as f64;
        let mean = T::narrow(sums::<_, 1, 1, 32>([row], |[x]| [x])[0] / n);
        let [sum, squares] = sums::<_, 1, 2, 32>([row], |[x]| {
            let d = x - mean;
            [d, d * d]
        });
        if sum.is_finite() && squares.is_finite() {
            let shift = sum / n;
            let variance = (squares / n - shift * shift).max(0.);
            let rstd = T::narrow(1. / (variance + eps).sqrt());
            return Self { mean, shift: T::narrow(shift), rstd };
        }
        let exact = row.iter().map(|x| x.wide()).sum::<f64>() / n;
        let variance = row.iter().map(|x| (x.wide() - exact).powi(2)).sum::<f64>() / n;
        let mean = T::narrow(exact);
        let shift = T::narrow(exact - mean.wide());
        Self { mean, shift, rstd: T::narrow(1. / (variance + eps).sqrt()) }
    }

    /// The normalised value of `x`.
    #[inline(always)]
    pub fn apply(&self, x: T) -> T {
        ((x - self.mean) - self.shift) * self.rstd
    }
}
