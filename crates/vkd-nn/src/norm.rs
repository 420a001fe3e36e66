//! Layers that normalise: batch, group and RMS norm over vkd-norm's ops.

mod conditional;
mod synchronised;

pub use conditional::{BatchStatistics, ConditionalBatchNorm2d, conditional_batch_norm2d};

use crate::Context;
use crate::ops::native_dtype;
use candle_core::{DType, Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use vkd_norm::{ChannelStats, flags};

/// Momentum and eps of [`batch_norm2d`]; the default is PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormConfig {
    /// Added to the variance; default 1e-5.
    pub eps: f64,
    /// Share of the batch in the new running statistics; default 0.1.
    pub momentum: f64,
}

impl Default for BatchNormConfig {
    fn default() -> Self {
        Self { eps: 1e-5, momentum: 0.1 }
    }
}

/// Batch norm of a channels-last tensor (Ioffe and Szegedy, arXiv:1502.03167): `(B, H, W, C)`, or any `(.., C)`.
///
/// In training the batch's own statistics are used, the gradient flows through them, and the running ones move by
/// `momentum` towards them. In evaluation, and always once [`frozen`](Self::frozen), the running ones are used. As in
/// PyTorch the output divides by the biased variance, and the running one takes the unbiased.
///
/// A batch with one value a channel has no variance: in training that is an error.
///
/// # Example
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use vkd_nn::{BatchNormConfig, Context, VarStore, batch_norm2d};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let norm = batch_norm2d(1, BatchNormConfig { momentum: 0.5, ..Default::default() }, store.builder())?;
/// let xs = Tensor::new(&[[1f32], [3.]], &Device::Cpu)?;
/// norm.forward(&xs, &Context::train(0, 0, []))?;
/// assert_eq!(store.tensors()["running_mean"].to_vec1::<f32>()?, [1.]);
/// assert_eq!(store.parameters().len(), 2);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct BatchNorm2d {
    name: String,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    config: BatchNormConfig,
    frozen: bool,
}

/// Creates a [`BatchNorm2d`] with variables `weight` (one) and `bias` (zero) and buffers `running_mean` (zero) and
/// `running_var` (one), all `(channels)`; the buffers are f32 where the variables are a half type.
///
/// # Errors
/// No channels, an `eps` that is not finite or under the smallest normal f32, or a momentum outside (0, 1].
pub fn batch_norm2d(
    channels: usize,
    config: BatchNormConfig,
    vb: VarBuilder,
) -> Result<BatchNorm2d> {
    check("batch_norm2d", &vb, channels, config.eps)?;
    if !(config.momentum > 0. && config.momentum <= 1.) {
        bail!("batch_norm2d {}: expected 0 < momentum <= 1, got {}", vb.prefix(), config.momentum)
    }
    let get = |name, value| vb.get_with_hints(channels, name, Init::Const(value));
    let statistic = |name, value| {
        // A half type would round small moves of a running statistic away.
        vb.get_with_hints_dtype(channels, name, Init::Const(value), native_dtype(vb.dtype()))
    };
    Ok(BatchNorm2d {
        name: vb.prefix(),
        weight: get("weight", 1.)?,
        bias: get("bias", 0.)?,
        // A builder of loaded tensors may hand out tracked ones; statistics are constants.
        running_mean: statistic("running_mean", 0.)?.detach(),
        running_var: statistic("running_var", 1.)?.detach(),
        config,
        frozen: false,
    })
}

impl BatchNorm2d {
    /// The layer with its running statistics held: used in training too, and never moved. Gain and bias still train.
    pub fn frozen(mut self) -> Self {
        self.frozen = true;
        self
    }

    /// `(.., C)` to `(.., C)`; in training the running statistics move. With [replicas](Context::replicas) in the context it is
    /// [`forward_synchronised`](Self::forward_synchronised) with them.
    ///
    /// # Errors
    /// Another number of channels, and in training fewer than two values a channel or statistics that are not finite.
    pub fn forward(&self, xs: &Tensor, ctx: &Context) -> Result<Tensor> {
        if let Some(replicas) = &ctx.replicas
            && ctx.train
            && !self.frozen
        {
            return self.forward_synchronised(xs, ctx, replicas.summing());
        }
        let (ys, stats) = self.forward_with_stats(xs, ctx)?;
        if let Some(stats) = stats {
            self.update(&stats)?;
        }
        Ok(ys)
    }

    /// Scale and shift `(C)` of every channel by the running statistics: what the layer is in evaluation.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn affine(&self) -> Result<(Tensor, Tensor)> {
        let deviation = (&self.running_var + self.config.eps)?.sqrt()?;
        let scale = (&self.weight / deviation.to_dtype(self.weight.dtype())?)?;
        let mean = self.running_mean.to_dtype(self.weight.dtype())?;
        let shift = (&self.bias - (mean * &scale)?)?;
        Ok((scale, shift))
    }

    /// As [`forward`](Self::forward), but the batch's statistics are returned and the running ones stay: for replicas that
    /// [join](ChannelStats::joined) theirs before each [updates](Self::update). None in evaluation and when frozen.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_with_stats(
        &self,
        xs: &Tensor,
        ctx: &Context,
    ) -> Result<(Tensor, Option<ChannelStats>)> {
        let Self { weight, bias, .. } = self;
        let named = |e: candle_core::Error| e.context(format!("batch_norm2d {}", self.name));
        if ctx.train && !self.frozen {
            let (ys, stats) =
                vkd_norm::batch_norm(xs, weight, bias, self.config.eps).map_err(named)?;
            return Ok((ys, Some(stats)));
        }
        let (mean, variance) = (&self.running_mean, &self.running_var);
        let ys = vkd_norm::batch_norm_with(xs, weight, bias, mean, variance, self.config.eps);
        Ok((ys.map_err(named)?, None))
    }

    /// Moves the running statistics towards `stats`.
    ///
    /// # Errors
    /// Another number of channels, a single value a channel, or statistics that are not finite: nothing is changed then.
    pub fn update(&self, stats: &ChannelStats) -> Result<()> {
        let what = || format!("batch_norm2d {}", self.name);
        move_statistics(what, [&self.running_mean, &self.running_var], self.config.momentum, stats)
    }
}

/// Moves the buffers of mean and variance towards `stats`. On the CPU it refuses what is not finite and changes nothing; on a device,
/// where nobody waits to hear of it, a buffer takes it and a flag is raised.
fn move_statistics(
    what: impl Fn() -> String,
    [mean, variance]: [&Tensor; 2],
    momentum: f64,
    stats: &ChannelStats,
) -> Result<()> {
    let unbiased = stats.unbiased()?;
    let both = [("mean", mean, stats.mean()), ("variance", variance, &unbiased)];
    for (name, buffer, values) in both {
        if values.dims() != buffer.dims() {
            bail!(
                "{}: expected statistics of {} channels, got {}",
                what(),
                buffer.elem_count(),
                values.elem_count()
            )
        }
        if !values.device().is_cpu() {
            flags::expect("batch norm", &format!("a finite {name}"), values, [f64::MIN, f64::MAX])?;
            continue;
        }
        let values = values.to_vec1::<f64>()?;
        if let Some(j) = values.iter().position(|v| !v.is_finite()) {
            bail!("{}: expected a finite {name}, got {} in channel {j}", what(), values[j])
        }
    }
    for (_, buffer, values) in both {
        let old = buffer.detach().to_dtype(DType::F64)?;
        let apart = (values.to_device(buffer.device())? - &old)?;
        let new = (old + (apart * momentum)?)?.to_dtype(buffer.dtype())?;
        // Into the memory that the store's variable shares.
        buffer.detach().slice_set(&new, 0, 0)?;
    }
    Ok(())
}

/// Group norm of a channels-last tensor with learnt gain and bias (Wu and He, arXiv:1803.08494).
#[derive(Clone, Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

/// Creates a [`GroupNorm`] with variables `weight` (one) and `bias` (zero), both `(channels)`.
///
/// # Errors
/// No channels, groups that do not divide them, or an `eps` that is not finite or under the smallest normal f32.
pub fn group_norm(groups: usize, channels: usize, eps: f64, vb: VarBuilder) -> Result<GroupNorm> {
    check("group_norm", &vb, channels, eps)?;
    if groups == 0 || !channels.is_multiple_of(groups) {
        bail!(
            "group_norm {}: expected groups that divide {channels} channels, got {groups}",
            vb.prefix()
        )
    }
    Ok(GroupNorm {
        weight: vb.get_with_hints(channels, "weight", Init::Const(1.))?,
        bias: vb.get_with_hints(channels, "bias", Init::Const(0.))?,
        groups,
        eps,
    })
}

impl Module for GroupNorm {
    /// `(B, .., C)` to `(B, .., C)`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        vkd_norm::group_norm(xs, self.groups, &self.weight, &self.bias, self.eps)
    }
}

/// RMS norm over the last dimension with learnt gain (Zhang and Sennrich, arXiv:1910.07467).
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

/// Creates an [`RmsNorm`] with the variable `weight` (one), `(dim)`.
///
/// # Errors
/// A zero width, or an `eps` that is not finite or under the smallest normal f32.
pub fn rms_norm(dim: usize, eps: f64, vb: VarBuilder) -> Result<RmsNorm> {
    check("rms_norm", &vb, dim, eps)?;
    Ok(RmsNorm { weight: vb.get_with_hints(dim, "weight", Init::Const(1.))?, eps })
}

impl Module for RmsNorm {
    /// `(.., dim)` to `(.., dim)`.
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        vkd_norm::rms_norm(xs, &self.weight, self.eps)
    }
}

fn check(layer: &str, vb: &VarBuilder, width: usize, eps: f64) -> Result<()> {
    if width == 0 || !(eps >= f64::from(f32::MIN_POSITIVE) && eps.is_finite()) {
        bail!("{layer} {}: expected a width and an eps above 0, got {width} and {eps}", vb.prefix())
    }
    Ok(())
}
