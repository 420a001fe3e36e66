//! Batch norm over a batch that replicas share.

use super::BatchNorm2d;
use crate::Context;
use crate::ops::{in_native, native, shared_statistics};
use candle_core::{Result, Tensor, bail};
use vkd_norm::{ChannelStats, RunningStats, SumOverReplicas, Variance};

impl BatchNorm2d {
    /// As [`forward`](Self::forward), with the statistics of all replicas' rows together, and a gradient that goes through
    /// them: replicas that share a batch compute what one would with all of it.
    ///
    /// In training `sum` is called three times: for counts and means, for squares, and in the backward pass for two sums a
    /// channel. So every replica runs the same layers in the same order, in a thread or process of its own. The gradients
    /// of gain and bias are those of a replica's own rows, to be summed with all the others'. In evaluation and when
    /// frozen nothing is exchanged.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and those of `sum`; a replica without rows, which has no statistics.
    pub fn forward_synchronised(
        &self,
        xs: &Tensor,
        ctx: &Context,
        sum: &SumOverReplicas,
    ) -> Result<Tensor> {
        let named = |e: candle_core::Error| e.context(format!("batch_norm2d {}", self.name));
        if !ctx.train || self.frozen {
            return self.forward(xs, ctx);
        }
        let (ys, stats) =
            synchronised(xs, [&self.weight, &self.bias], self.config.eps, sum).map_err(named)?;
        self.update(&stats)?;
        Ok(ys)
    }
}

/// Batch norm with gain and bias `(C)` by the statistics of all replicas' rows, and those.
pub(super) fn synchronised(
    xs: &Tensor,
    [gain, bias]: [&Tensor; 2],
    eps: f64,
    sum: &SumOverReplicas,
) -> Result<(Tensor, ChannelStats)> {
    let stats = shared(xs, gain.elem_count(), sum)?;
    let ys = in_native(xs, |xs| {
        let xs = shared_statistics(xs, &stats, eps, sum)?;
        let (gain, bias) = (native(gain, &xs)?, native(bias, &xs)?);
        vkd_norm::batch_norm_with(&xs, &gain, &bias, stats.mean(), stats.biased(), eps)
    })?;
    Ok((ys, stats))
}

/// Statistics of all replicas' rows.
fn shared(xs: &Tensor, channels: usize, sum: &SumOverReplicas) -> Result<ChannelStats> {
    if xs.dims().last() != Some(&channels) {
        bail!("expected (.., {channels}), got {:?}", xs.dims())
    }
    let rows = xs.elem_count() / channels;
    let mut own = RunningStats::new(channels, Variance::Biased, None)?;
    own.update(&xs.detach().contiguous()?.reshape((rows, channels))?, None)?;
    let values = |t: Tensor| t.to_vec1::<f64>();
    let (of_own, variance) = (values(own.mean(xs.device())?)?, values(own.variance(xs.device())?)?);
    // Means first: the squares are then about the mean of all, where no digits cancel.
    let n = rows as f64;
    let mut sums: Vec<f64> = of_own.iter().map(|mean| n * mean).chain([n]).collect();
    sum(&mut sums)?;
    let all = sums.pop().unwrap_or(n);
    if all < 2. {
        bail!("expected at least 2 values per channel of all replicas, got {all}")
    }
    let mean: Vec<f64> = sums.iter().map(|sum| sum / all).collect();
    let apart = of_own.iter().zip(&mean).map(|(own, mean)| (own - mean).powi(2));
    let mut squares: Vec<f64> =
        variance.iter().zip(apart).map(|(variance, apart)| n * (variance + apart)).collect();
    sum(&mut squares)?;
    let variance = squares.iter().map(|squares| squares / all).collect();
    ChannelStats::new(all as usize, mean, variance)
}
