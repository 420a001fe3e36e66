//! Statistics of the channels of one batch, as batch norm hands them out.

use crate::ops::channel_moments;
use candle_core::{D, DType, Device, Result, Tensor, bail};

/// Mean and variance of every channel over a batch, in f64, on the device of the batch.
///
/// [`joined`](Self::joined) makes those of several batches' rows together: what replicas of a model exchange to keep
/// the same running statistics.
#[derive(Clone, Debug)]
pub struct ChannelStats {
    rows: usize,
    mean: Tensor,
    variance: Tensor,
}

impl ChannelStats {
    /// Of a tensor `(.., C)` with at least one value a channel, on the CPU; nothing is recorded.
    pub(super) fn of(op: &'static str, xs: &Tensor) -> Result<Self> {
        let channels = xs.dim(D::Minus1)?;
        let rows = xs.elem_count() / channels;
        let (_, moments) = channel_moments(op, &xs.reshape((rows, channels))?, None)?;
        // A channel that is all zero has no unit.
        let unit = |inverse: f64| if inverse == 0. { 0. } else { 1. / inverse };
        Self::new(
            rows,
            moments.iter().map(|m| m.mean * unit(m.inverse_unit)).collect(),
            moments
                .iter()
                .map(|m| m.squares / rows as f64 * unit(m.inverse_unit).powi(2))
                .collect(),
        )
    }

    /// Of mean and biased variance `(2, C)` in f64.
    #[cfg(feature = "cuda")]
    pub(super) fn of_moments(rows: usize, moments: &Tensor) -> Result<Self> {
        Ok(Self { rows, mean: moments.get(0)?, variance: moments.get(1)? })
    }

    /// From numbers that another process sent: values a channel, means, biased variances. They are on the CPU.
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
        let tensor = |values: Vec<f64>| Tensor::new(values, &Device::Cpu);
        Ok(Self { rows, mean: tensor(mean)?, variance: tensor(variance)? })
    }

    /// Values of each channel.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.mean.elem_count()
    }

    /// The mean of every channel, `(C,)` in f64.
    pub fn mean(&self) -> &Tensor {
        &self.mean
    }

    /// The variance of every channel over the number of rows, `(C,)` in f64: what the output is divided by.
    pub fn biased(&self) -> &Tensor {
        &self.variance
    }

    /// The variance over the number of rows less one: what a running estimate takes. NaN for a single row.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn unbiased(&self) -> Result<Tensor> {
        let n = self.rows as f64;
        &self.variance * (if self.rows > 1 { n / (n - 1.) } else { f64::NAN })
    }

    /// Statistics of the rows of all `parts` together, joined in the order given, on the device of the first.
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
            if part.channels() != all.channels() {
                bail!(
                    "channel_stats: expected {} channels in each part, got {}",
                    all.channels(),
                    part.channels()
                )
            }
            let rows = all.rows + part.rows;
            let (of_all, of_part) = (all.rows as f64 / rows as f64, part.rows as f64 / rows as f64);
            let here = |t: &Tensor| t.to_device(all.mean.device());
            let apart = (here(&part.mean)? - &all.mean)?;
            let within = ((&all.variance * of_all)? + (here(&part.variance)? * of_part)?)?;
            let between = ((apart.sqr()? * of_all)? * of_part)?;
            let variance = (within + between)?;
            let mean = (&all.mean + (apart * of_part)?)?;
            all = Self { rows, mean, variance };
        }
        Ok(all)
    }
}

/// Given statistics, checked: shape and gradient everywhere, values on the CPU, where they are returned.
pub(super) fn given(op: &str, name: &str, t: &Tensor, channels: usize) -> Result<Option<Vec<f64>>> {
    if t.dims() != [channels] {
        bail!("{op}: expected {name} of shape [{channels}], got {:?}", t.dims())
    }
    if t.track_op() {
        bail!("{op}: expected {name} without gradient, got a tracked tensor; detach it")
    }
    if !t.device().is_cpu() {
        return Ok(None);
    }
    let values = t.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    match values.iter().position(|v| !v.is_finite() || (*v < 0. && name == "variance")) {
        Some(j) => bail!("{op}: expected a sensible {name}, got {} in channel {j}", values[j]),
        None => Ok(Some(values)),
    }
}
