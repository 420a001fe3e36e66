//! Mean and deviation of one row: what layer norm shifts by and divides by.
//!
//! Public for vkd-loss alone, which shares it; no part of the stable interface.

use crate::dense::Real;
use crate::lanes::sums;

/// Per-row statistics: the normalised value is `((x - mean) - shift) * rstd`.
///
/// `mean` is rounded to the element type; `shift` is what that rounding and the rounding of the sum left over. It keeps
/// rows with a mean far above their deviation accurate.
#[derive(Clone, Copy)]
pub struct RowStats<T> {
    /// The rounded mean.
    pub mean: T,
    /// What its rounding left over.
    pub shift: T,
    /// 1 / deviation.
    pub rstd: T,
}

impl<T: Real> RowStats<T> {
    /// Statistics of a row that has at least one entry.
    #[inline(always)]
    pub fn new(row: &[T], eps: f64) -> Self {
        let n = row.len() as f64;
        let mean = T::narrow(sums([row], |[x]| [x])[0] / n);
        let [sum, squares] = sums([row], |[x]| {
            let d = x - mean;
            [d, d * d]
        });
        Self::from_sums(row, mean, sum, squares, eps)
    }

    /// From the sums of `x - mean` and of its squares.
    #[inline(always)]
    pub fn from_sums(row: &[T], mean: T, sum: f64, squares: f64, eps: f64) -> Self {
        if !(sum.is_finite() && squares.is_finite()) {
            return Self::wide(row, eps);
        }
        let n = row.len() as f64;
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

    /// The normalised value of `x`.
    #[inline(always)]
    pub fn apply(&self, x: T) -> T {
        ((x - self.mean) - self.shift) * self.rstd
    }
}
