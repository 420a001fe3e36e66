//! Statistics of the channels, gathered over batches for evaluation.

use crate::ops::{ChannelMoments, channel_moments};
use crate::{Variance, standardize_with};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::collections::HashMap;

const OP: &str = "running_stats";

/// Mean and variance of every channel over many batches, in f64.
///
/// Without momentum they are those of all rows seen so far, as if they had come in one batch. With momentum `m` a batch
/// moves both by `(1 - m) old + m batch`; the first batch sets them. Nothing is updated behind the caller's back.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_norm::{RunningStats, Variance};
/// let mut stats = RunningStats::new(1, Variance::Unbiased, None)?;
/// for batch in [[[1f32], [2.]], [[3.], [4.]]] {
///     stats.update(&Tensor::new(&batch, &Device::Cpu)?, None)?;
/// }
/// let xs = Tensor::new(&[[2.5f32]], &Device::Cpu)?;
/// assert_eq!(stats.standardize(&xs, 1e-6)?.to_vec2::<f32>()?, [[0.]]);
/// // Saved and loaded as tensors, for instance in a safetensors file.
/// assert_eq!(RunningStats::from_tensors(&stats.tensors()?, Variance::Unbiased, None)?, stats);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RunningStats {
    mean: Vec<f64>,
    /// Biased where it accumulates, of the chosen kind where it moves.
    variance: Vec<f64>,
    count: f64,
    kind: Variance,
    momentum: Option<f64>,
}

impl RunningStats {
    /// Statistics of no rows.
    ///
    /// # Errors
    /// No channels, or a momentum outside (0, 1].
    pub fn new(channels: usize, kind: Variance, momentum: Option<f64>) -> Result<Self> {
        if channels == 0 {
            bail!("{OP}: expected at least one channel, got 0")
        }
        if let Some(m) = momentum
            && !(m > 0. && m <= 1.)
        {
            bail!("{OP}: expected 0 < momentum <= 1, got {m}")
        }
        let zeros = vec![0f64; channels];
        Ok(Self { mean: zeros.clone(), variance: zeros, count: 0., kind, momentum })
    }

    /// Takes in a batch `(M, C)`, without the rows where `mask` (u8, `(M,)`) is zero; nothing is recorded on the tape.
    ///
    /// # Errors
    /// Another shape or dtype than [`standardize`](crate::standardize) takes, another number of channels, a channel
    /// whose mean or variance is not finite, in the batch or together with what was seen, or, with momentum, fewer than two rows: one has no variance to move
    /// towards. Nothing is changed then.
    pub fn update(&mut self, xs: &Tensor, mask: Option<&Tensor>) -> Result<()> {
        let (rows, moments) = channel_moments(OP, xs, mask)?;
        if moments.len() != self.mean.len() {
            bail!("{OP}: expected {} channels, got {}", self.mean.len(), moments.len())
        }
        let n = rows as f64;
        let plain = |(j, m): (usize, &ChannelMoments)| -> Result<(f64, f64)> {
            // A channel that is all zero has no unit.
            let unit = if m.inverse_unit == 0. { 0. } else { 1. / m.inverse_unit };
            let (mean, squares) = (m.mean * unit, m.squares * unit * unit);
            if !(mean.is_finite() && squares.is_finite()) {
                bail!(
                    "{OP}: expected finite values, got mean {mean}, squares {squares} in channel {j}"
                )
            }
            Ok((mean, squares))
        };
        let batch = moments.iter().enumerate().map(plain).collect::<Result<Vec<_>>>()?;
        let (mut mean, mut variance) = (self.mean.clone(), self.variance.clone());
        let old = mean.iter_mut().zip(&mut variance);
        match self.momentum {
            None if rows == 0 => {}
            None => {
                let total = self.count + n;
                for ((mean, variance), (of_batch, squares)) in old.zip(batch) {
                    let step = of_batch - *mean;
                    // The share first: a first batch moves by nothing, however far.
                    let between = self.count / total * step * step * n;
                    *variance = (*variance * self.count + squares + between) / total;
                    *mean += step * (n / total);
                }
            }
            Some(_) if rows < 2 => {
                bail!("{OP}: expected at least 2 rows with momentum, got {rows}")
            }
            Some(m) => {
                let m = if self.count == 0. { 1. } else { m };
                let weight = self.kind.weight(rows);
                for ((mean, variance), (of_batch, squares)) in old.zip(batch) {
                    *mean += m * (of_batch - *mean);
                    *variance += m * (squares * weight - *variance);
                }
            }
        }
        let together = mean.iter().zip(&variance);
        if let Some(j) = together.into_iter().position(|(m, v)| !(m.is_finite() && v.is_finite())) {
            bail!(
                "{OP}: expected finite statistics, got mean {:e} and variance {:e} in channel {j}",
                mean[j],
                variance[j]
            )
        }
        (self.mean, self.variance) = (mean, variance);
        self.count += n;
        Ok(())
    }

    /// Rows seen so far.
    pub fn count(&self) -> f64 {
        self.count
    }

    /// The mean of every channel: `(C,)`, f64.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn mean(&self, device: &Device) -> Result<Tensor> {
        Tensor::new(self.mean.as_slice(), device)
    }

    /// The variance of every channel, of the chosen kind: `(C,)`, f64.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn variance(&self, device: &Device) -> Result<Tensor> {
        let factor = match (self.momentum, self.kind) {
            (None, Variance::Unbiased) if self.count > 1. => self.count / (self.count - 1.),
            _ => 1.,
        };
        let variance: Vec<f64> = self.variance.iter().map(|v| v * factor).collect();
        Tensor::new(variance, device)
    }

    /// [`standardize_with`] these statistics.
    ///
    /// # Errors
    /// No rows seen yet, and those of [`standardize_with`].
    pub fn standardize(&self, xs: &Tensor, eps: f64) -> Result<Tensor> {
        if self.count == 0. {
            bail!("{OP}: expected statistics of at least one row, got none; call update first")
        }
        standardize_with(xs, &self.mean(xs.device())?, &self.variance(xs.device())?, eps)
    }

    /// What [`from_tensors`](Self::from_tensors) reads: `mean`, `variance` (as stored) and `count`, in f64.
    ///
    /// # Errors
    /// None.
    pub fn tensors(&self) -> Result<HashMap<String, Tensor>> {
        Ok(HashMap::from([
            ("mean".to_owned(), Tensor::new(self.mean.as_slice(), &Device::Cpu)?),
            ("variance".to_owned(), Tensor::new(self.variance.as_slice(), &Device::Cpu)?),
            ("count".to_owned(), Tensor::new(self.count, &Device::Cpu)?),
        ]))
    }

    /// The statistics that [`tensors`](Self::tensors) wrote; kind and momentum as when they were gathered.
    ///
    /// # Errors
    /// A missing tensor, one of another shape, a value that is not finite or is negative where it can't be, and those
    /// of [`new`](Self::new).
    pub fn from_tensors(
        tensors: &HashMap<String, Tensor>,
        kind: Variance,
        momentum: Option<f64>,
    ) -> Result<Self> {
        let values = |name: &str| -> Result<Vec<f64>> {
            let Some(tensor) = tensors.get(name) else {
                bail!("{OP}: expected tensors mean, variance and count, got no {name}")
            };
            let values = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
            let wrong = |v: &f64| !v.is_finite() || (*v < 0. && name != "mean");
            match values.iter().position(wrong) {
                Some(j) => bail!("{OP}: expected a sensible {name}, got {} at {j}", values[j]),
                None => Ok(values),
            }
        };
        let (mean, variance, count) = (values("mean")?, values("variance")?, values("count")?);
        let stats = Self::new(mean.len(), kind, momentum)?;
        match count[..] {
            [count] if variance.len() == mean.len() => Ok(Self { mean, variance, count, ..stats }),
            _ => bail!(
                "{OP}: expected as many variances as means and one count, got {}, {} and {}",
                variance.len(),
                mean.len(),
                count.len()
            ),
        }
    }
}
