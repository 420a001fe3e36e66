//! Sufficient statistics of rows: gathered in one pass, merged, reduced over workers, kept in a file.

mod file;
mod sums;

use crate::dense::{Real, with_slices};
use crate::ops::Centred;
use candle_core::{DType, Device, Error, Result, Tensor, bail};
use faer::Mat;
use sums::Sums;

/// Count, mean and centred scatter of rows in f64, and two sums more that the Ledoit-Wolf shrinkage needs; of weighed
/// rows ([`decay`](Self::decay)) the sum of their weights is the count, and that of the weights' squares is kept too.
///
/// Merging the moments of two parts gives those of the whole to rounding, whatever the mean
/// (Chan, Golub and LeVeque's pairwise update), so that a data set may be streamed in one pass, in batches of any
/// size, and by several workers.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_norm::Moments;
/// let mut moments = Moments::new(1)?;
/// for batch in [[[1f32], [2.]], [[3.], [6.]]] {
///     moments.merge(&Moments::from_rows(&Tensor::new(&batch, &Device::Cpu)?, None)?)?;
/// }
/// assert_eq!((moments.count(), moments.mean()), (4., &[3.][..]));
/// assert_eq!(moments.covariance(false)?.to_vec2::<f64>()?, [[3.5]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    mean: Vec<f64>,
    /// About the mean: the first of them is zero.
    sums: Sums,
}

impl Moments {
    /// Of no rows.
    ///
    /// # Errors
    /// No channels.
    pub fn new(channels: usize) -> Result<Self> {
        if channels == 0 {
            bail!("moments: expected at least one channel, got 0")
        }
        Ok(Self { mean: vec![0.; channels], sums: Sums::new(channels) })
    }

    /// Of the rows of `xs`, `(N, d)` in f32 or f64 on any device; cuts the tape.
    ///
    /// `mask`, `(N,)` in u8, has 0 for the rows that are left out.
    ///
    /// # Errors
    /// Another rank or dtype, `d` of 0, a mask of another shape or dtype, a value that is not finite (which row and
    /// channel), fourth powers of deviations that overflow f64 (from about 1e77 on).
    pub fn from_rows(xs: &Tensor, mask: Option<&Tensor>) -> Result<Self> {
        let (rows, channels) = match *xs.dims() {
            [rows, channels] if channels > 0 => (rows, channels),
            ref dims => bail!("moments: expected (N, d) with d >= 1, got {dims:?}"),
        };
        // Also where there are no rows to read.
        if !matches!(xs.dtype(), DType::F32 | DType::F64) {
            return Err(Error::UnsupportedDTypeForOp(xs.dtype(), "moments").bt());
        }
        let xs = xs.detach().to_device(&Device::Cpu)?;
        let xs = match mask {
            None => xs.contiguous()?,
            Some(mask) => {
                if mask.dims() != [rows] || mask.dtype() != DType::U8 {
                    bail!(
                        "moments: expected a mask ({rows},) of u8, got {:?} of {:?}",
                        mask.dims(),
                        mask.dtype()
                    )
                }
                let mask = mask.to_vec1::<u8>()?;
                let kept = (0..rows as u32).zip(mask).filter(|(_, m)| *m != 0).map(|(i, _)| i);
                let kept = kept.collect::<Vec<_>>();
                if kept.is_empty() {
                    return Self::new(channels);
                }
                xs.contiguous()?.index_select(&Tensor::new(kept, &Device::Cpu)?, 0)?
            }
        };
        if rows == 0 {
            return Self::new(channels);
        }
        match xs.dtype() {
            DType::F32 => with_slices::<f32, _, 1>("moments", [&xs], |[xs]| Self::of(xs, channels)),
            DType::F64 => with_slices::<f64, _, 1>("moments", [&xs], |[xs]| Self::of(xs, channels)),
            dtype => Err(Error::UnsupportedDTypeForOp(dtype, "moments").bt()),
        }
    }

    fn of<T: Real>(xs: &[T], channels: usize) -> Result<Self> {
        if let Some(at) = xs.iter().position(|x| !x.wide().is_finite()) {
            bail!(
                "moments: expected finite rows, got {} at row {}, channel {}",
                xs[at].wide(),
                at / channels,
                at % channels
            )
        }
        let rows = Centred::new(xs, channels);
        let mut cubic = rows.higher();
        let quartic = cubic.pop().unwrap_or(0.);
        let scatter = rows.scatter_matrix();
        let second = (0..channels).flat_map(|j| scatter.col(j).iter().copied()).collect();
        let count = (xs.len() / channels) as f64;
        let sums =
            Sums { count, first: vec![0.; channels], second, cubic, quartic, squares: count };
        let moments = Self { mean: rows.mean, sums };
        moments.check("moments")?;
        Ok(moments)
    }

    /// Sums that rows could have: finite, symmetric, not below zero where they are of squares.
    fn check(&self, what: &str) -> Result<()> {
        let d = self.channels();
        for i in 0..d {
            let variance = self.sums.second[i * d + i];
            if !(variance >= 0. && variance.is_finite() && self.mean[i].is_finite()) {
                bail!(
                    "{what}: expected finite moments, got mean {:e} and scatter {variance:e} in channel {i}",
                    self.mean[i]
                )
            }
        }
        if self.sums.second.iter().any(|x| !x.is_finite()) {
            bail!("{what}: expected a finite scatter, got a value that is not")
        }
        if !(self.sums.count >= 0. && self.sums.count.is_finite()) {
            bail!("{what}: expected a count >= 0, got {}", self.sums.count)
        }
        // Weights are at most one.
        let Sums { count, squares, .. } = self.sums;
        if !(squares >= 0. && squares <= count * (1. + 1e-9)) {
            bail!(
                "{what}: expected squares of weights >= 0 and no more than the count {count}, got {squares}"
            )
        }
        for i in 0..d {
            for j in 0..i {
                let pair = (self.sums.second[i * d + j], self.sums.second[j * d + i]);
                if pair.0 != pair.1 {
                    bail!("{what}: expected a symmetric scatter, got {pair:?} at ({i}, {j})")
                }
            }
        }
        if let Some(i) = self.sums.cubic.iter().position(|x| !x.is_finite()) {
            bail!("{what}: expected a finite cubic, got {:e} in channel {i}", self.sums.cubic[i])
        }
        let quartic = self.sums.quartic;
        if !(quartic >= 0. && quartic.is_finite()) {
            bail!("{what}: expected a finite quartic >= 0, got {quartic:e}")
        }
        Ok(())
    }

    /// Takes in the rows of another.
    ///
    /// # Errors
    /// Another width, or a result that overflows f64; then nothing is changed.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if self.channels() != other.channels() {
            bail!("moments: expected {} channels, got {}", self.channels(), other.channels())
        }
        if other.sums.count == 0. {
            return Ok(());
        }
        if self.sums.count == 0. {
            *self = other.clone();
            return Ok(());
        }
        let share = other.sums.count / (self.sums.count + other.sums.count);
        let between = self.mean.iter().zip(&other.mean).map(|(a, b)| b - a).collect::<Vec<_>>();
        let here = between.iter().map(|x| x * share).collect::<Vec<_>>();
        let there = between.iter().map(|x| x * (share - 1.)).collect::<Vec<_>>();
        let mut sums = self.sums.shifted(&here);
        sums.add(&other.sums.shifted(&there));
        sums.first.fill(0.);
        let mean = self.mean.iter().zip(&here).map(|(m, x)| m + x).collect();
        let merged = Self { mean, sums };
        merged.check("moments")?;
        *self = merged;
        Ok(())
    }

    /// Weighs what was gathered so far by `keep`: before each [`merge`](Self::merge), it makes a running estimate.
    ///
    /// The count becomes a sum of weights: `batch / (1 - keep)` in the long run.
    ///
    /// # Errors
    /// `keep` outside `[0, 1]`.
    pub fn decay(&mut self, keep: f64) -> Result<()> {
        if !(0. ..=1.).contains(&keep) {
            bail!("moments: expected 0 <= keep <= 1, got {keep:e}")
        }
        self.sums.scale(keep);
        Ok(())
    }

    /// Number of rows; after a [`decay`](Self::decay), the sum of their weights.
    pub fn count(&self) -> f64 {
        self.sums.count
    }

    /// Number of rows of equal weight that would estimate as well: `(Σ w)² / Σ w²`, the count unless decayed (Kish).
    pub fn effective_count(&self) -> f64 {
        let Sums { count, squares, .. } = self.sums;
        if squares > 0. { count * (count / squares) } else { count }
    }

    /// Width d.
    pub fn channels(&self) -> usize {
        self.mean.len()
    }

    /// The mean of each channel; zero without rows.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// Covariance `(d, d)` in f64 on the CPU, over `N - 1` rows (`unbiased`) or over N; of one row, zero.
    ///
    /// Of weighed rows the unbiased divisor is `Σ w - Σ w² / Σ w`, which is `N - 1` at weights of one.
    ///
    /// # Errors
    /// No rows.
    pub fn covariance(&self, unbiased: bool) -> Result<Tensor> {
        let over = self.divisor("moments", unbiased)?;
        let values = self.sums.second.iter().map(|x| x / over).collect::<Vec<_>>();
        Tensor::from_vec(values, (self.channels(), self.channels()), &Device::Cpu)
    }

    pub(crate) fn covariance_matrix(&self, op: &str, unbiased: bool) -> Result<Mat<f64>> {
        let (d, over) = (self.channels(), self.divisor(op, unbiased)?);
        Ok(Mat::from_fn(d, d, |i, j| self.sums.second[i * d + j] / over))
    }

    fn divisor(&self, op: &str, unbiased: bool) -> Result<f64> {
        let count = self.sums.count;
        if !(count > 0.) {
            bail!("{op}: expected moments of at least one row, got none")
        }
        let less = self.sums.squares / count;
        // Of one row there is no unbiased estimate, whatever its weight: the difference is rounding, the scatter zero.
        Ok(if unbiased && count - less > 1e-12 * count { count - less } else { count })
    }

    /// `Σ ‖x‖⁴` as of [`effective_count`](Self::effective_count) rows, for the estimates of shrinkage.
    pub(crate) fn quartic(&self) -> f64 {
        let count = self.sums.count;
        if count > 0. { self.sums.quartic * (self.effective_count() / count) } else { 0. }
    }

    /// The moments as numbers that may be added up over workers, all about the same `shift`.
    ///
    /// Count, sum, outer products (`d x d`), then `Σ ‖x‖² x` and `Σ ‖x‖⁴`, of `x` less `shift`, and the squares
    /// of the rows' weights (the count again unless decayed): `d² + 2d + 3` numbers. A shift near the mean keeps the digits; one worker's mean, sent to all, will do.
    ///
    /// # Errors
    /// A shift of another width.
    pub fn to_sums(&self, shift: &[f64]) -> Result<Vec<f64>> {
        self.check_shift(shift)?;
        let by = shift.iter().zip(&self.mean).map(|(c, m)| c - m).collect::<Vec<_>>();
        Ok(self.sums.shifted(&by).flatten())
    }

    /// The moments from sums of [`to_sums`](Self::to_sums) with that `shift`.
    ///
    /// # Errors
    /// Another length, a count below zero, sums that belong to no rows: not finite, outer products that are not
    /// symmetric, a variance or a sum of fourth powers below zero.
    pub fn from_sums(sums: &[f64], shift: &[f64]) -> Result<Self> {
        let d = shift.len();
        let mut moments = Self::new(d)?;
        let Some(sums) = Sums::unflatten(sums, d) else {
            bail!("moments: expected {} sums for {d} channels, got {}", Sums::len(d), sums.len())
        };
        if !(sums.count >= 0. && sums.count.is_finite()) {
            bail!("moments: expected a count >= 0, got {}", sums.count)
        }
        if sums.count == 0. {
            return Ok(moments);
        }
        let by = sums.first.iter().map(|s| s / sums.count).collect::<Vec<_>>();
        moments.mean = shift.iter().zip(&by).map(|(c, x)| c + x).collect();
        moments.sums = sums.shifted(&by);
        moments.sums.first.fill(0.);
        // A variance of zero may come out a rounding below it.
        for i in 0..d {
            let variance = &mut moments.sums.second[i * d + i];
            if *variance < 0. && *variance > -1e-9 * sums.second[i * d + i] {
                *variance = 0.;
            }
        }
        // And so may the sum of fourth powers.
        let quartic = &mut moments.sums.quartic;
        if *quartic < 0. && *quartic > -1e-9 * sums.quartic {
            *quartic = 0.;
        }
        moments.check("moments")?;
        Ok(moments)
    }

    fn check_shift(&self, shift: &[f64]) -> Result<()> {
        if shift.len() != self.channels() {
            bail!("moments: expected a shift of {} channels, got {}", self.channels(), shift.len())
        }
        Ok(())
    }
}
