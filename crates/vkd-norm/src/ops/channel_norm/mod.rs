//! Batch norm and group norm of channels-last tensors: one op, since both shift and scale by what sets of columns say.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod launch;
pub(crate) mod reference;
mod stats;
#[cfg(test)]
mod tests;

use crate::checks::check_eps;
use crate::dense::in_native;
use crate::dense::{Real, dense, with_slices};
use candle_core::{CpuStorage, CustomOp3, DType, Error, Layout, Result, Shape, Tensor, bail};
use cpu::{Column, Grid};
pub use stats::ChannelStats;

const BATCH: &str = "batch_norm";
const WITH: &str = "batch_norm_with";
const GROUP: &str = "group_norm";

/// Batch norm in training: every channel less its mean over the batch, over its deviation, times `weight` plus `bias`.
///
/// For each channel `x` of N values, with its mean μ and its biased variance σ²,
/// ```text
/// y = (x − μ) / sqrt(σ² + eps) · weight + bias
/// ```
/// Channels come last. The statistics are returned as well, for running ones; see [`ChannelStats`].
///
/// # Shapes
/// - `xs`: `(.., C)` with `C >= 1` and at least two values a channel, any strides; f32, f64, f16 or bf16
/// - `weight`, `bias`: `(C,)`, the dtype of `xs`
/// - output: the shape of `xs`, contiguous
///
/// # Gradient
/// Flows to all three, through mean and variance. The backward pass reads `xs` again and keeps two numbers a channel.
///
/// # Numerics
/// Statistics as in [`standardize`](crate::standardize): a mean far above the deviation costs nothing. Half types are computed
/// in f32. A constant channel gives `bias`. Magnitudes go up to half the largest f32, in f64 up to 1e150. NaN and infinity make their channel NaN. Results are the same bit for bit with
/// any number of threads. On a CUDA device half types are read and written as they are, with sums in f32 that are joined in f64;
/// on other devices plain tensor ops are used. Off the CPU the statistics are copied.
///
/// # Errors
/// `eps` not finite or under the smallest normal f32, fewer than two values a channel (one has no variance, as PyTorch
/// refuses it too), no channels, another dtype, or a `weight` or `bias` of another shape or dtype.
///
/// # References
/// Ioffe and Szegedy, arXiv:1502.03167.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_norm::batch_norm;
/// let xs = Tensor::new(&[[1f64], [3.]], &Device::Cpu)?;
/// let (weight, bias) = (Tensor::new(&[2f64], &Device::Cpu)?, Tensor::new(&[5f64], &Device::Cpu)?);
/// let (ys, stats) = batch_norm(&xs, &weight, &bias, 1e-12)?;
/// assert!((ys.to_vec2::<f64>()?[1][0] - 7.).abs() < 1e-9);
/// assert_eq!((stats.mean().to_vec1::<f64>()?, stats.unbiased()?.to_vec1::<f64>()?), (vec![2.], vec![2.]));
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn batch_norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<(Tensor, ChannelStats)> {
    let channels = check(BATCH, xs, [weight, bias], eps)?;
    let rows = xs.elem_count() / channels;
    if rows < 2 {
        bail!("{BATCH}: expected at least 2 values per channel in training, got {rows}")
    }
    // Once, and recorded: statistics and op read the same memory.
    let xs = xs.contiguous()?;
    #[cfg(feature = "cuda")]
    if crate::ops::program::applies(&xs) {
        let grid = Grid { samples: 1, rows, channels, groups: channels };
        let of = launch::Channels { op: BATCH, grid, dtype: xs.dtype(), eps };
        let (ys, moments) = cuda::channel_norm(of, [&xs, weight, bias], None)?;
        let Some(moments) = moments else { bail!("{BATCH}: expected the batch's moments") };
        return Ok((ys, ChannelStats::of_moments(rows, &moments)?));
    }
    let stats = ChannelStats::of(BATCH, &xs)?;
    let ys = in_native(&xs, |xs| {
        let (weight, bias) = (weight.to_dtype(xs.dtype())?, bias.to_dtype(xs.dtype())?);
        if !xs.device().is_cpu() {
            return reference::channel_norm(xs, channels, 1, &weight, &bias, eps);
        }
        let grid = Grid { samples: 1, rows, channels, groups: channels };
        let columns = Column::of(&stats.mean().to_vec1()?, &stats.biased().to_vec1()?, eps);
        let op = ChannelNorm { op: BATCH, grid, columns, follows: true };
        xs.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
    })?;
    Ok((ys, stats))
}

/// Batch norm with given statistics: in evaluation, or with frozen ones.
///
/// # Shapes
/// - as [`batch_norm`], and any number of values
/// - `mean`, `variance`: `(C,)`, any float dtype
///
/// # Gradient
/// Flows to `xs`, `weight` and `bias`; `mean` and `variance` are constants.
///
/// # Numerics
/// As [`batch_norm`].
///
/// # Errors
/// As [`batch_norm`], and statistics of another shape, tracked ones (detach them), or a variance below zero or a value
/// that is not finite, with its channel. On a device, where nobody waits to hear of it, such values make their channel NaN.
///
/// # References
/// Ioffe and Szegedy, arXiv:1502.03167.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_norm::batch_norm_with;
/// let row = |x: f32| Tensor::new(&[x], &Device::Cpu);
/// let xs = Tensor::new(&[[5f32]], &Device::Cpu)?;
/// let ys = batch_norm_with(&xs, &row(1.)?, &row(0.)?, &row(3.)?, &row(4.)?, 1e-12)?;
/// assert_eq!(ys.to_vec2::<f32>()?, [[1.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn batch_norm_with(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    mean: &Tensor,
    variance: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let channels = check(WITH, xs, [weight, bias], eps)?;
    let means = stats::given(WITH, "mean", mean, channels)?;
    let variances = stats::given(WITH, "variance", variance, channels)?;
    #[cfg(feature = "cuda")]
    if crate::ops::program::applies(xs) {
        let grid =
            Grid { samples: 1, rows: xs.elem_count() / channels, channels, groups: channels };
        let of = launch::Channels { op: WITH, grid, dtype: xs.dtype(), eps };
        // One dtype for both, in which neither loses digits.
        let dtype = if mean.dtype() == variance.dtype() { mean.dtype() } else { DType::F64 };
        let own = |t: &Tensor| t.to_device(xs.device())?.to_dtype(dtype)?.contiguous();
        let given = Some([own(mean)?, own(variance)?]);
        return Ok(cuda::channel_norm(of, [xs, weight, bias], given)?.0);
    }
    in_native(xs, |xs| {
        let (weight, bias) = (weight.to_dtype(xs.dtype())?, bias.to_dtype(xs.dtype())?);
        if !xs.device().is_cpu() {
            return reference::batch_norm_with(xs, &weight, &bias, mean, variance, eps);
        }
        let (Some(means), Some(variances)) = (&means, &variances) else {
            bail!("{WITH}: expected the statistics on the CPU, where xs is")
        };
        let rows = xs.elem_count() / channels;
        let grid = Grid { samples: 1, rows, channels, groups: channels };
        let columns = Column::of(means, variances, eps);
        let op = ChannelNorm { op: WITH, grid, columns, follows: false };
        xs.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
    })
}

/// Group norm: each sample's values of `groups` sets of neighbouring channels less their mean, over their deviation,
/// times `weight` plus `bias`.
///
/// One group is layer norm over all but the batch, as many groups as channels is instance norm. Channels come last.
///
/// # Shapes
/// - `xs`: `(B, .., C)` with `C` a multiple of `groups`, any strides; f32, f64, f16 or bf16
/// - `weight`, `bias`: `(C,)`, the dtype of `xs`
/// - output: the shape of `xs`, contiguous
///
/// # Gradient
/// Flows to all three. The backward pass reads `xs` again and keeps two numbers a sample and channel.
///
/// # Numerics
/// As [`batch_norm`]; a group of one value gives `bias`.
///
/// # Errors
/// `eps` not finite or under the smallest normal f32, fewer than two dimensions, groups that do not divide the channels,
/// another dtype, or a `weight` or `bias` of another shape or dtype.
///
/// # References
/// Wu and He, arXiv:1803.08494.
///
/// # Example
/// ```
/// # use candle_core::{DType, Device, Tensor}; use vkd_norm::group_norm;
/// let xs = Tensor::new(&[[1f32, 3., 10., 30.]], &Device::Cpu)?;
/// let (weight, bias) = (xs.ones_like()?.squeeze(0)?, xs.zeros_like()?.squeeze(0)?);
/// let ys = group_norm(&xs, 2, &weight, &bias, 1e-12)?.to_vec2::<f32>()?;
/// assert_eq!(ys, [[-1., 1., -1., 1.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn group_norm(
    xs: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let channels = check(GROUP, xs, [weight, bias], eps)?;
    if xs.rank() < 2 {
        bail!("{GROUP}: expected (B, .., C), got {:?}", xs.dims())
    }
    if groups == 0 || !channels.is_multiple_of(groups) {
        bail!("{GROUP}: expected groups that divide {channels} channels, got {groups}")
    }
    #[cfg(feature = "cuda")]
    if crate::ops::program::applies(xs) {
        let samples = xs.dim(0)?;
        let grid = Grid { samples, rows: xs.elem_count() / (samples * channels), channels, groups };
        let of = launch::Channels { op: GROUP, grid, dtype: xs.dtype(), eps };
        return Ok(cuda::channel_norm(of, [xs, weight, bias], None)?.0);
    }
    in_native(xs, |xs| {
        let (weight, bias) = (weight.to_dtype(xs.dtype())?, bias.to_dtype(xs.dtype())?);
        let samples = xs.dim(0)?;
        if !xs.device().is_cpu() {
            return reference::channel_norm(xs, groups, samples, &weight, &bias, eps);
        }
        let xs = xs.contiguous()?;
        let rows = xs.elem_count() / (samples * channels).max(1);
        let grid = Grid { samples, rows, channels, groups };
        let columns = match xs.dtype() {
            DType::F32 => with_slices::<f32, _, 1>(GROUP, [&xs], |[x]| Ok(grid.columns(x, eps)))?,
            _ => with_slices::<f64, _, 1>(GROUP, [&xs], |[x]| Ok(grid.columns(x, eps)))?,
        };
        let op = ChannelNorm { op: GROUP, grid, columns, follows: true };
        xs.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
    })
}

/// Checks what all three share and returns the number of channels.
fn check(op: &'static str, xs: &Tensor, affine: [&Tensor; 2], eps: f64) -> Result<usize> {
    check_eps(op, eps)?;
    if !matches!(xs.dtype(), DType::F32 | DType::F64 | DType::F16 | DType::BF16) {
        return Err(Error::UnsupportedDTypeForOp(xs.dtype(), op).bt());
    }
    let channels = match xs.dims() {
        [.., channels] if *channels > 0 => *channels,
        dims => bail!("{op}: expected (.., C) with C >= 1, got {dims:?}"),
    };
    for (name, t) in ["weight", "bias"].into_iter().zip(affine) {
        if t.dims() != [channels] {
            bail!("{op}: expected {name} of shape [{channels}], got {:?}", t.dims())
        }
        if t.dtype() != xs.dtype() {
            bail!("{op}: expected {name} of dtype {:?}, got {:?}", xs.dtype(), t.dtype())
        }
    }
    Ok(channels)
}

struct ChannelNorm {
    op: &'static str,
    grid: Grid,
    /// Of every sample, one after the other.
    columns: Vec<Column>,
    /// Whether the statistics are the input's own, so that the gradient goes through them.
    follows: bool,
}

impl CustomOp3 for ChannelNorm {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let affine = [(weight, weight_layout), (bias, bias_layout)];
        let ys = match xs {
            CpuStorage::F32(_) => self.forward::<f32>((xs, xs_layout), affine)?,
            _ => self.forward::<f64>((xs, xs_layout), affine)?,
        };
        Ok((ys, xs_layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let [dxs, dw, db] = match xs.dtype() {
            DType::F32 => self.backward::<f32>(xs, weight, &grad)?,
            _ => self.backward::<f64>(xs, weight, &grad)?,
        };
        // An untracked input needs no gradient, and candle would only add it to zeros.
        Ok((
            xs.track_op().then_some(dxs),
            weight.track_op().then_some(dw),
            bias.track_op().then_some(db),
        ))
    }
}

impl ChannelNorm {
    fn forward<T: Real>(
        &self,
        xs: (&CpuStorage, &Layout),
        [weight, bias]: [(&CpuStorage, &Layout); 2],
    ) -> Result<CpuStorage> {
        let xs = dense::<T>(self.op, xs.0, xs.1)?;
        let weight = dense::<T>(self.op, weight.0, weight.1)?;
        let bias = dense::<T>(self.op, bias.0, bias.1)?;
        Ok(T::to_cpu_storage_owned(self.grid.forward(xs, &self.columns, weight, bias)))
    }

    fn backward<T: Real>(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        grad: &Tensor,
    ) -> Result<[Tensor; 3]> {
        let inputs = [xs, weight, grad];
        let (dxs, dw, db) = with_slices::<T, _, 3>(self.op, inputs, |[x, w, g]| {
            Ok(self.grid.backward(x, &self.columns, w, g, self.follows))
        })?;
        let channels = self.grid.channels;
        Ok([
            Tensor::from_vec(dxs, xs.shape(), xs.device())?,
            Tensor::from_vec(dw, channels, xs.device())?,
            Tensor::from_vec(db, channels, xs.device())?,
        ])
    }
}
