//! Statistics of the channels of one batch, as batch norm hands them out.

use crate::ops::channel_moments;
use candle_core::{DType, Result, Tensor, bail};

/// Mean and variance of every channel over a batch, in f64.
///
/// [`joined`](Self::joined) makes those of several batches' rows together: what replicas of a model exchange to keep
/// the same running statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelStats {
    rows: usize,
    mean: Vec<f64>,
    variance: Vec<f64>,
}

impl ChannelStats {
    /// Of a tensor `(.., C)` with at least one value a channel; nothing is recorded.
    pub(super) fn of(op: &'static str, xs: &Tensor) -> Result<Self> {
        let channels = xs.dim(candle_core::D::Minus1)?;
        let rows = xs.elem_count() / channels;
        let (_, moments) = channel_moments(op, &xs.reshape((rows, channels))?, None)?;
        // A channel that is all zero has no unit.
        let unit = |inverse: f64| if inverse == 0. { 0. } else { 1. / inverse };
        Ok(Self {
            rows,
            mean: moments.iter().map(|m| m.mean * unit(m.inverse_unit)).collect(),
            variance: moments
                .iter()
                .map(|m| m.squares / rows as f64 * unit(m.inverse_unit).powi(2))
                .collect(),
        })
    }

    /// From numbers that another process sent: values a channel, means, biased variances.
    ///
    /// # Errors
    /// No rows or channels, or another number of variances than means.
    pub fn new(rows: usize, mean: Vec<f64>, variance: Vec<f64>) -> Result<Self> {
        if rows == 0 || mean.is_empty() || mean.len() != variance.len() {
            bail!(
                "channel_stats: expected rows, means and as many variances, got {rows}, {} and {}",
                mean.len(),
                variance.len()
            )
        }
        Ok(Self { rows, mean, variance })
    }

    /// Values of each channel.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The mean of every channel.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// The variance of every channel over the number of rows: what the output is divided by.
    pub fn biased(&self) -> &[f64] {
        &self.variance
    }

    /// The variance over the number of rows less one: what a running estimate takes. NaN for a single row.
    pub fn unbiased(&self) -> Vec<f64> {
        let n = self.rows as f64;
        let factor = if self.rows > 1 { n / (n - 1.) } else { f64::NAN };
        self.variance.iter().map(|v| v * factor).collect()
    }

    /// Statistics of the rows of all `parts` together, joined in the order given.
    ///
    /// # Errors
    /// No parts, or parts with different numbers of channels.
    ///
    /// # References
    /// Chan, Golub and LeVeque, The American Statistician 37(3), 1983.
    pub fn joined(parts: &[Self]) -> Result<Self> {
        let Some((first, others)) = parts.split_first() else {
            bail!("channel_stats: expected at least one part, got none")
        };
        let mut all = first.clone();
        for part in others {
            if part.mean.len() != all.mean.len() {
                bail!(
                    "channel_stats: expected {} channels in each part, got {}",
                    all.mean.len(),
                    part.mean.len()
                )
            }
            let rows = all.rows + part.rows;
            let (of_all, of_part) = (all.rows as f64 / rows as f64, part.rows as f64 / rows as f64);
            let old = all.mean.iter_mut().zip(&mut all.variance);
            for ((mean, variance), (m, v)) in old.zip(part.mean.iter().zip(&part.variance)) {
                let apart = m - *mean;
                *variance = *variance * of_all + v * of_part + apart * apart * of_all * of_part;
                *mean += apart * of_part;
            }
            all.rows = rows;
        }
        Ok(all)
    }
}

/// Values of given statistics, checked.
pub(super) fn given(op: &str, name: &str, t: &Tensor, channels: usize) -> Result<Vec<f64>> {
    if t.dims() != [channels] {
        bail!("{op}: expected {name} of shape [{channels}], got {:?}", t.dims())
    }
    if t.track_op() {
        bail!("{op}: expected {name} without gradient, got a tracked tensor; detach it")
    }
    let values = t.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    match values.iter().position(|v| !v.is_finite() || (*v < 0. && name == "variance")) {
        Some(j) => bail!("{op}: expected a sensible {name}, got {} in channel {j}", values[j]),
        None => Ok(values),
    }
}
