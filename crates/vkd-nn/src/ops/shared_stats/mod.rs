//! Batch statistics that replicas share: the part of batch norm's gradient that goes through them.
//!
//! With statistics that are constants, batch norm hands its input the gradient g. Where they are those of all rows together,
//! it is `g - mean(g) - h mean(g h)`, h the normalised value and the means over all rows: two sums a channel are all that
//! replicas exchange.

mod cpu;
mod device;

use crate::ops::{Real, dense, in_native, unsupported};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use cpu::Channels;
use vkd_norm::dense::with_slices;
use vkd_norm::{ChannelStats, SumOverReplicas};

const OP: &str = "shared_statistics";

/// The values of `xs`, with a gradient that goes through `stats`, the statistics of all replicas' rows together.
///
/// [`batch_norm_with`](vkd_norm::batch_norm_with) the same statistics comes after it: together they are batch norm over all
/// rows. [`BatchNorm2d::forward_synchronised`](crate::BatchNorm2d::forward_synchronised) does both.
///
/// # Shapes
/// - `xs`: `(.., C)`, any strides; f32 or f64, or a half type [through f32](crate::ops); the output is a copy
///
/// # Gradient
/// Flows to `xs`. The backward pass calls `sum` once, with [`shared_sums`], and makes [`shared_gradient`] of the result.
///
/// # Devices
/// The CPU, and CUDA devices, where the backward pass is made of tensor ops in f64 and its sums are copied to the host.
///
/// # Errors
/// Another number of channels than the statistics have, another dtype; in the backward pass those of `sum`.
pub fn shared_statistics(
    xs: &Tensor,
    stats: &ChannelStats,
    eps: f64,
    sum: &SumOverReplicas,
) -> Result<Tensor> {
    check(xs, xs, stats)?;
    let op = Shared { stats: stats.clone(), eps, sum: sum.clone() };
    in_native(xs, |xs| xs.contiguous()?.apply_op1(op))
}

/// Sums over the rows at hand of the gradient, per channel, and then of its products with the normalised values: what
/// replicas add up before [`shared_gradient`]. Nothing is recorded.
///
/// # Shapes
/// - `grad`, `xs`: `(.., C)`, f32 or f64
/// - output: 2·C numbers
///
/// # Errors
/// Different shapes or dtypes, or another number of channels than the statistics have.
pub fn shared_sums(grad: &Tensor, xs: &Tensor, stats: &ChannelStats, eps: f64) -> Result<Vec<f64>> {
    check(grad, xs, stats)?;
    if !xs.device().is_cpu() {
        return device::sums(grad, xs, stats, eps);
    }
    let (grad, xs) = (grad.contiguous()?, xs.contiguous()?);
    fn run<T: Real>(grad: &Tensor, xs: &Tensor, s: &ChannelStats, eps: f64) -> Result<Vec<f64>> {
        let channels = Channels::<T>::of(&s.mean().to_vec1()?, &s.biased().to_vec1()?, eps);
        with_slices::<T, _, 2>(OP, [grad, xs], |[g, x]| Ok(channels.sums(g, x)))
    }
    match xs.dtype() {
        DType::F32 => run::<f32>(&grad, &xs, stats, eps),
        _ => run::<f64>(&grad, &xs, stats, eps),
    }
}

/// The gradient in `xs` through the shared statistics, from the [`shared_sums`] of all replicas. Nothing is recorded.
///
/// # Errors
/// Those of [`shared_sums`], and another number of sums than 2·C.
pub fn shared_gradient(
    grad: &Tensor,
    xs: &Tensor,
    stats: &ChannelStats,
    eps: f64,
    sums: &[f64],
) -> Result<Tensor> {
    check(grad, xs, stats)?;
    if sums.len() != 2 * stats.channels() {
        bail!("{OP}: expected {} sums, got {}", 2 * stats.channels(), sums.len())
    }
    if !xs.device().is_cpu() {
        return device::gradient(grad, xs, stats, eps, sums);
    }
    let (grad, xs) = (grad.contiguous()?, xs.contiguous()?);
    fn run<T: Real>(
        tensors: [&Tensor; 2],
        s: &ChannelStats,
        eps: f64,
        sums: &[f64],
    ) -> Result<Tensor> {
        let channels = Channels::<T>::of(&s.mean().to_vec1()?, &s.biased().to_vec1()?, eps);
        let dxs = with_slices::<T, _, 2>(OP, tensors, |[g, x]| {
            Ok(channels.gradient(g, x, sums, s.rows()))
        })?;
        Tensor::from_vec(dxs, tensors[1].shape(), tensors[1].device())
    }
    match xs.dtype() {
        DType::F32 => run::<f32>([&grad, &xs], stats, eps, sums),
        _ => run::<f64>([&grad, &xs], stats, eps, sums),
    }
}

fn check(grad: &Tensor, xs: &Tensor, stats: &ChannelStats) -> Result<()> {
    let channels = stats.channels();
    if xs.dims().last() != Some(&channels) {
        bail!("{OP}: expected (.., {channels}), got {:?}", xs.dims())
    }
    if grad.dims() != xs.dims() || grad.dtype() != xs.dtype() {
        bail!(
            "{OP}: expected a gradient {:?} of {:?}, got {:?} of {:?}",
            xs.dims(),
            xs.dtype(),
            grad.dims(),
            grad.dtype()
        )
    }
    Ok(())
}

struct Shared {
    stats: ChannelStats,
    eps: f64,
    sum: SumOverReplicas,
}

impl CustomOp1 for Shared {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = match s {
            CpuStorage::F32(_) => CpuStorage::F32(dense(OP, s, l)?.to_vec()),
            CpuStorage::F64(_) => CpuStorage::F64(dense(OP, s, l)?.to_vec()),
            _ => return Err(unsupported(OP, s)),
        };
        Ok((out, l.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        crate::ops::activation::copy_on_device(s, l)
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut sums = shared_sums(grad, xs, &self.stats, self.eps)?;
        (self.sum)(&mut sums)?;
        shared_gradient(grad, xs, &self.stats, self.eps, &sums).map(Some)
    }
}
