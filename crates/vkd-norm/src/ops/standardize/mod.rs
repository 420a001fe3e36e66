//! Standardisation of every channel over the rows.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod launch;
pub(crate) mod reference;
mod statistics;
mod synchronised;
#[cfg(test)]
mod tests;

use crate::checks::check_relative_eps;
use crate::dense::{Real, dense, in_native, with_slices, with_storage};
use crate::flags;
use candle_core::{CpuStorage, CustomOp1, DType, Error, Layout, Result, Shape, Tensor, bail};
use cpu::{Channel, Turn};
pub use statistics::Variance;
pub(crate) use statistics::{ChannelMoments, Rows};
use std::sync::OnceLock;
pub use synchronised::standardize_synchronised;

const OP: &str = "standardize";
const OP_WITH: &str = "standardize_with";

/// Standardises every channel over the rows: mean 0 and standard deviation 1.
///
/// For each column `x` of length M, with its mean μ,
/// ```text
/// y = (x − μ) / D,   D² = v + eps² (v + μ²),   v = Σ (x − μ)² / (M − 1)
/// ```
/// The variance `v` is the unbiased one, as in the published detection code, which has no guard. The guard here is
/// relative to the channel's own size, so the result does not depend on the unit of a channel. It is below rounding as
/// long as the deviation is well above `eps` times the mean. [`standardize_masked`] has the biased variance and leaves
/// out rows, [`standardize_with`] takes the statistics from elsewhere.
///
/// # Shapes
/// - `xs`: `(M, C)` with `M, C >= 1`, any strides; f32, f64, f16 or bf16
/// - output: `(M, C)`, contiguous, same dtype and device
///
/// # Gradient
/// Flows to `xs`, through mean, variance and guard. The backward pass reads the output, and three numbers a channel that
/// the op keeps. In a constant channel it is finite but large: up to 1 / (`eps` times the channel's value).
///
/// # Numerics
/// Sums run in the element type over blocks of rows, about the block's own mean, and are joined in f64: an offset of 1e6
/// deviations costs nothing but what the input itself has lost. Half types are computed in f32. A channel whose squares
/// leave the element type is taken in f64, scaled by a power of two: no finite input overflows. A constant channel gives
/// exactly zero, and so does a single row (`M = 1`) with a gradient of zero. A channel that is all zero has a gradient
/// of zero. NaN and infinity make their channel NaN. Results are the same bit for bit with any number of threads. On a
/// CUDA device half types are read and written as they are, with sums in f32 that are joined in f64, and f64 serves
/// deviations up to 1e150. On other devices plain tensor ops are used, for magnitudes up to half the largest of the dtype.
///
/// # Errors
/// `eps` outside (0, 1), a rank other than two, no rows or channels, or another dtype.
///
/// # References
/// V_kD (arXiv:2403.06213), detection: student and teacher tokens, per channel over batch and tokens. Joining of blocks:
/// Chan, Golub and LeVeque, The American Statistician 37(3), 1983.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_norm::standardize;
/// let xs = Tensor::new(&[[1f32, 7.], [2., 7.], [3., 7.]], &Device::Cpu)?;
/// let ys = standardize(&xs, 1e-6)?.to_vec2::<f32>()?;
/// assert_eq!(ys, [[-1., 0.], [0., 0.], [1., 0.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn standardize(xs: &Tensor, eps: f64) -> Result<Tensor> {
    standardize_masked(xs, None, Variance::Unbiased, eps)
}

/// [`standardize`] with a choice of variance and with rows left out: those of padding.
///
/// A row where `mask` is zero takes no part in the statistics, its output is zero and so is its gradient, and nothing in
/// it is read, be it NaN. The other rows are, bit for bit, what they are without it.
///
/// # Shapes
/// - `xs`, output: as [`standardize`]
/// - `mask`: `(M,)`, u8, on the device of `xs`; nonzero for rows that count
///
/// # Gradient
/// As [`standardize`], over the rows that count.
///
/// # Numerics
/// As [`standardize`]. With one row that counts, output and gradient are zero, and without any as well.
///
/// # Errors
/// Those of [`standardize`], and a mask of another shape or dtype.
///
/// # References
/// As [`standardize`].
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_norm::{Variance, standardize_masked};
/// let xs = Tensor::new(&[[1f32], [3.], [f32::NAN]], &Device::Cpu)?;
/// let mask = Tensor::new(&[1u8, 1, 0], &Device::Cpu)?;
/// let ys = standardize_masked(&xs, Some(&mask), Variance::Biased, 1e-6)?.to_vec2::<f32>()?;
/// assert_eq!(ys, [[-1.], [1.], [0.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn standardize_masked(
    xs: &Tensor,
    mask: Option<&Tensor>,
    variance: Variance,
    eps: f64,
) -> Result<Tensor> {
    let (rows, channels) = check(OP, xs, eps)?;
    if let Some(mask) = mask {
        check_mask(OP, mask, rows)?;
    }
    #[cfg(feature = "cuda")]
    if crate::ops::program::applies(xs) {
        return cuda::standardize(xs, mask, variance, eps);
    }
    let keep = mask.map(kept_places).transpose()?;
    in_native(xs, |xs| {
        if !xs.device().is_cpu() {
            return reference::standardize(xs, mask, variance, eps);
        }
        let kept = kept_rows(rows, keep.as_deref());
        let source = Source::Batch { variance, eps };
        let channels_kept = OnceLock::new();
        xs.contiguous()?.apply_op1(Standardize { channels, kept, keep, source, channels_kept })
    })
}

/// Standardises every channel with given statistics: in evaluation, those that training has gathered.
///
/// For each column `x`, with its `mean` μ and its `variance` v,
/// ```text
/// y = (x − μ) / D,   D² = v + eps² (v + μ²)
/// ```
/// which is [`standardize`] where both are the batch's own.
///
/// # Shapes
/// - `xs`, output: as [`standardize`]
/// - `mean`, `variance`: `(C,)`, f32 or f64, the latter so that nothing is lost
///
/// # Gradient
/// Flows to `xs` alone: the incoming one over D.
///
/// # Numerics
/// Arithmetic in the element type, in f64 for channels that leave it; half types in f32. A channel with mean and variance
/// zero gives zero.
///
/// # Errors
/// Those of [`standardize`]; `mean` or `variance` of another shape, tracked (detach it) or not finite, or a negative
/// variance: with channel and value.
///
/// # References
/// As [`standardize`].
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_norm::standardize_with;
/// let xs = Tensor::new(&[[3f32], [7.]], &Device::Cpu)?;
/// let (mean, variance) = (Tensor::new(&[1f64], &Device::Cpu)?, Tensor::new(&[4f64], &Device::Cpu)?);
/// assert_eq!(standardize_with(&xs, &mean, &variance, 1e-9)?.to_vec2::<f32>()?, [[1.], [3.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn standardize_with(xs: &Tensor, mean: &Tensor, variance: &Tensor, eps: f64) -> Result<Tensor> {
    let (rows, channels) = check(OP_WITH, xs, eps)?;
    let values = |name: &str, t: &Tensor| -> Result<Option<Vec<f64>>> {
        if t.dims() != [channels] {
            bail!("{OP_WITH}: expected {name} of shape [{channels}], got {:?}", t.dims())
        }
        if t.track_op() {
            bail!("{OP_WITH}: expected {name} without gradient, got a tracked tensor; detach it")
        }
        if !t.device().is_cpu() {
            let low = if name == "variance" { 0. } else { f64::MIN };
            flags::expect(OP_WITH, &format!("a sensible {name}"), t, [low, f64::MAX])?;
            return Ok(None);
        }
        let values = t.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        match values.iter().position(|v| !v.is_finite()) {
            Some(j) => bail!("{OP_WITH}: expected finite {name}, got {} in channel {j}", values[j]),
            None => Ok(Some(values)),
        }
    };
    let (means, variances) = (values("mean", mean)?, values("variance", variance)?);
    if let Some((j, v)) = variances.iter().flatten().enumerate().find(|(_, v)| **v < 0.) {
        bail!("{OP_WITH}: expected variance >= 0, got {v} in channel {j}")
    }
    in_native(xs, |xs| {
        if !xs.device().is_cpu() {
            return reference::standardize_with(xs, mean, variance, eps);
        }
        let (Some(means), Some(variances)) = (&means, &variances) else {
            bail!("{OP_WITH}: expected the statistics on the CPU, where xs is")
        };
        let given = means.iter().zip(variances).map(|(&mean, &squares)| {
            Channel::new(&ChannelMoments { inverse_unit: 1., mean, squares }, 1., eps)
        });
        let op = Standardize {
            channels,
            kept: kept_rows(rows, None),
            keep: None,
            source: Source::Given,
            channels_kept: OnceLock::from(given.collect::<Vec<_>>()),
        };
        xs.contiguous()?.apply_op1(op)
    })
}

/// Number of rows that count, and the moments of every channel over them; nothing is recorded.
pub(crate) fn channel_moments(
    op: &'static str,
    xs: &Tensor,
    mask: Option<&Tensor>,
) -> Result<(usize, Vec<ChannelMoments>)> {
    let (rows, channels) = check(op, xs, 0.5)?;
    if let Some(mask) = mask {
        check_mask(op, mask, rows)?;
    }
    #[cfg(feature = "cuda")]
    if crate::ops::program::applies(xs) {
        return cuda::moments(&xs.detach(), mask);
    }
    let keep = mask.map(kept_places).transpose()?;
    let kept = kept_rows(rows, keep.as_deref());
    let cpu = in_native(&xs.detach(), |xs| xs.to_device(&candle_core::Device::Cpu)?.contiguous())?;
    let native = if cpu.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let moments = with_storage(op, &cpu.to_dtype(native)?, |storage, layout| match storage {
        CpuStorage::F32(_) => {
            Ok(Rows { values: dense::<f32>(op, storage, layout)?, channels, kept: &kept }.moments())
        }
        _ => {
            Ok(Rows { values: dense::<f64>(op, storage, layout)?, channels, kept: &kept }.moments())
        }
    })?;
    Ok((kept.len(), moments))
}

/// Rows and channels of `(M, C)`.
fn check(op: &'static str, xs: &Tensor, eps: f64) -> Result<(usize, usize)> {
    check_relative_eps(op, eps)?;
    if !matches!(xs.dtype(), DType::F32 | DType::F64 | DType::F16 | DType::BF16) {
        return Err(Error::UnsupportedDTypeForOp(xs.dtype(), op).bt());
    }
    match *xs.dims() {
        [rows, channels] if rows > 0 && channels > 0 => Ok((rows, channels)),
        ref dims => bail!("{op}: expected (M, C) with M, C >= 1, got {dims:?}"),
    }
}

fn check_mask(op: &'static str, mask: &Tensor, rows: usize) -> Result<()> {
    if mask.dims() != [rows] {
        bail!("{op}: expected a mask of shape [{rows}], got {:?}", mask.dims())
    }
    if mask.dtype() != DType::U8 {
        bail!("{op}: expected a mask of dtype U8, got {:?}", mask.dtype())
    }
    Ok(())
}

/// Which rows count; from a device that is a copy.
fn kept_places(mask: &Tensor) -> Result<Vec<bool>> {
    Ok(mask.to_vec1::<u8>()?.into_iter().map(|keep| keep != 0).collect())
}

fn kept_rows(rows: usize, keep: Option<&[bool]>) -> Vec<usize> {
    (0..rows).filter(|&i| keep.is_none_or(|keep| keep[i])).collect()
}

/// Where the statistics come from.
enum Source {
    /// The rows themselves.
    Batch { variance: Variance, eps: f64 },
    /// Set beforehand.
    Given,
}

struct Standardize {
    channels: usize,
    kept: Vec<usize>,
    keep: Option<Vec<bool>>,
    source: Source,
    /// Set by the forward pass, unless given.
    channels_kept: OnceLock<Vec<Channel>>,
}

impl CustomOp1 for Standardize {
    fn name(&self) -> &'static str {
        match self.source {
            Source::Batch { .. } => OP,
            Source::Given => OP_WITH,
        }
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ys = match storage {
            CpuStorage::F32(_) => self.forward::<f32>(storage, layout)?,
            _ => self.forward::<f64>(storage, layout)?,
        };
        Ok((ys, layout.shape().clone()))
    }

    fn bwd(&self, _xs: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let dxs = match ys.dtype() {
            DType::F32 => self.backward::<f32>(ys, &grad),
            _ => self.backward::<f64>(ys, &grad),
        };
        dxs.map(Some)
    }
}

impl Standardize {
    fn rows<'a, T: Real>(&'a self, values: &'a [T]) -> Rows<'a, T> {
        Rows { values, channels: self.channels, kept: &self.kept }
    }

    fn forward<T: Real>(&self, storage: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let xs = dense::<T>(self.name(), storage, layout)?;
        let channels = self.channels_kept.get_or_init(|| match self.source {
            Source::Given => Vec::new(),
            Source::Batch { variance, eps } => {
                let weight = variance.weight(self.kept.len());
                let moments = self.rows(xs).moments();
                moments.iter().map(|m| Channel::new(m, weight, eps)).collect()
            }
        });
        Ok(T::to_cpu_storage_owned(cpu::forward(xs, self.keep.as_deref(), channels)))
    }

    fn backward<T: Real>(&self, ys: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let Some(channels) = self.channels_kept.get() else {
            bail!("{}: expected a forward pass before the backward pass", self.name())
        };
        let turn = match self.source {
            Source::Given => None,
            Source::Batch { variance, eps } => Some(Turn {
                of_value: (1. + eps * eps) * variance.weight(self.kept.len()),
                of_guard: eps * eps / self.kept.len().max(1) as f64,
            }),
        };
        let dxs = with_slices::<T, _, 2>(self.name(), [ys, grad], |[y, g]| {
            Ok(cpu::backward(self.rows(y), self.rows(g), self.keep.as_deref(), channels, turn))
        })?;
        Tensor::from_vec(dxs, ys.shape(), ys.device())
    }
}
