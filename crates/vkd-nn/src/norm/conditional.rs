//! Batch norm whose gain and bias come from outside, sample by sample.

use super::synchronised::synchronised;
use super::{BatchNormConfig, check, move_statistics};
use crate::Replicas;
use crate::ops::{modulate, modulate_relu, native_dtype};
use candle_core::{Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

/// Which statistics a [`ConditionalBatchNorm2d`] divides by.
#[derive(Clone, Debug, PartialEq)]
pub enum BatchStatistics {
    /// The batch's, and the stored ones move towards them: training.
    Moving,
    /// As [`Moving`](Self::Moving), with the statistics of all replicas' rows together.
    Synchronised(Replicas),
    /// The batch's, and nothing is stored: how GANs are often sampled.
    Batch,
    /// The stored ones.
    Stored,
}

/// Batch norm of a channels-last tensor whose gain and bias are a function of what each sample is made of: its class, its noise
/// (de Vries et al., arXiv:1707.00683).
///
/// As in [`BatchNorm2d`](crate::BatchNorm2d) the output divides by the biased variance, and the stored one takes the unbiased.
///
/// # Example
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use vkd_nn::{BatchNormConfig, BatchStatistics, VarStore, conditional_batch_norm2d};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let norm = conditional_batch_norm2d(1, BatchNormConfig::default(), store.builder())?;
/// let xs = Tensor::new(&[[[[1f32]]], [[[3.]]]], &Device::Cpu)?;
/// let (gain, bias) = (Tensor::new(&[[1f32], [5.]], &Device::Cpu)?, Tensor::zeros((2, 1), DType::F32, &Device::Cpu)?);
/// let ys = norm.forward(&xs, &gain, &bias, &BatchStatistics::Batch)?.flatten_all()?.to_vec1::<f32>()?;
/// assert!((ys[0] + 1.).abs() < 1e-4 && (ys[1] - 5.).abs() < 1e-3);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ConditionalBatchNorm2d {
    name: String,
    ones: Tensor,
    zeros: Tensor,
    mean: Tensor,
    variance: Tensor,
    config: BatchNormConfig,
}

/// Creates a [`ConditionalBatchNorm2d`] with the buffers `stored_mean` (zero) and `stored_var` (one), both `(channels)`, f32 where the
/// variables are a half type.
///
/// # Errors
/// Those of [`batch_norm2d`](crate::batch_norm2d).
pub fn conditional_batch_norm2d(
    channels: usize,
    config: BatchNormConfig,
    vb: VarBuilder,
) -> Result<ConditionalBatchNorm2d> {
    check("conditional_batch_norm2d", &vb, channels, config.eps)?;
    if !(config.momentum > 0. && config.momentum <= 1.) {
        bail!(
            "conditional_batch_norm2d {}: expected 0 < momentum <= 1, got {}",
            vb.prefix(),
            config.momentum
        )
    }
    let statistic = |name, value| {
        vb.get_with_hints_dtype(channels, name, Init::Const(value), native_dtype(vb.dtype()))
    };
    Ok(ConditionalBatchNorm2d {
        name: vb.prefix(),
        ones: Tensor::ones(channels, vb.dtype(), vb.device())?,
        zeros: Tensor::zeros(channels, vb.dtype(), vb.device())?,
        mean: statistic("stored_mean", 0.)?.detach(),
        variance: statistic("stored_var", 1.)?.detach(),
        config,
    })
}

impl ConditionalBatchNorm2d {
    /// `(B, H, W, C)` with gain and bias `(B, C)` of each sample to `(B, H, W, C)`.
    ///
    /// # Gradient
    /// Flows to all three, and through the batch's statistics.
    ///
    /// # Errors
    /// Another shape; with the batch's statistics, fewer than two values a channel or statistics that are not finite.
    pub fn forward(
        &self,
        xs: &Tensor,
        gain: &Tensor,
        bias: &Tensor,
        statistics: &BatchStatistics,
    ) -> Result<Tensor> {
        self.check(xs, gain, bias)?;
        modulate(&self.affine(xs, &self.ones, &self.zeros, statistics)?, gain, bias)
    }

    /// `relu(forward(..))`, a pass over the images less each way.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn forward_relu(
        &self,
        xs: &Tensor,
        gain: &Tensor,
        bias: &Tensor,
        statistics: &BatchStatistics,
    ) -> Result<Tensor> {
        self.check(xs, gain, bias)?;
        modulate_relu(&self.affine(xs, &self.ones, &self.zeros, statistics)?, gain, bias)
    }

    fn check(&self, xs: &Tensor, gain: &Tensor, bias: &Tensor) -> Result<()> {
        let (batch, _, _, channels) = xs.dims4()?;
        for (name, given) in [("gain", gain), ("bias", bias)] {
            if given.dims() != [batch, channels] {
                bail!(
                    "conditional_batch_norm2d {}: expected a {name} ({batch}, {channels}), got {:?}",
                    self.name,
                    given.dims()
                )
            }
        }
        Ok(())
    }

    /// With one gain and bias `(C)` for all samples.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn affine(
        &self,
        xs: &Tensor,
        gain: &Tensor,
        bias: &Tensor,
        statistics: &BatchStatistics,
    ) -> Result<Tensor> {
        let what = || format!("conditional_batch_norm2d {}", self.name);
        let named = |e: candle_core::Error| e.context(what());
        let eps = self.config.eps;
        let (ys, stats) = match statistics {
            BatchStatistics::Stored => {
                let (mean, variance) = (&self.mean, &self.variance);
                let ys = vkd_norm::batch_norm_with(xs, gain, bias, mean, variance, eps);
                return ys.map_err(named);
            }
            BatchStatistics::Synchronised(replicas) => {
                synchronised(xs, [gain, bias], eps, replicas.summing())
            }
            _ => vkd_norm::batch_norm(xs, gain, bias, eps),
        }
        .map_err(named)?;
        if *statistics != BatchStatistics::Batch {
            let buffers = [&self.mean, &self.variance];
            move_statistics(what, buffers, self.config.momentum, &stats)?;
        }
        Ok(ys)
    }
}
