//! Standardisation of every channel over the rows.

mod cpu;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use crate::dense::{Real, dense, with_slices};
use candle_core::{CpuStorage, CustomOp1, DType, Error, Layout, Result, Shape, Tensor, bail};

const OP: &str = "standardize";

/// Standardises every channel over the rows: mean 0 and standard deviation 1.
///
/// For each column `x` of length M, with its mean μ,
/// ```text
/// y = (x − μ) / sqrt(v + eps² q),   v = Σ (x − μ)² / (M − 1),   q = Σ x² / M
/// ```
/// The variance `v` is the unbiased one, as in the published detection code, which has no guard. The guard here is
/// relative to the channel's own size, so the result does not depend on the unit of a channel. It is below rounding as
/// long as the deviation is well above `eps` times the mean.
///
/// # Shapes
/// - `xs`: `(M, C)` with `M, C >= 1`, any strides; f32 or f64
/// - output: `(M, C)`, contiguous, same dtype and device
///
/// # Gradient
/// Flows to `xs`, through mean, variance and guard. The backward pass recomputes the statistics. In a constant
/// channel it is finite but large: up to 1 / (`eps` times the channel's value).
///
/// # Numerics
/// All arithmetic is in f64, on values scaled by a power of two: no finite input overflows. A constant channel gives
/// exactly zero, and so does a single row (`M = 1`) with a gradient of zero. A channel that is all zero has a gradient
/// of zero. NaN and infinity make their channel NaN. Off the CPU plain tensor ops are used, where an all-zero channel
/// is NaN.
///
/// # Errors
/// `eps` outside (0, 1), a rank other than two, no rows or channels, or another dtype.
///
/// # References
/// V_kD (arXiv:2403.06213), detection: student and teacher tokens, per channel over batch and tokens.
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
    if !(eps > 0. && eps < 1.) {
        bail!("{OP}: expected 0 < eps < 1, got {eps:e}")
    }
    if !matches!(xs.dtype(), DType::F32 | DType::F64) {
        return Err(Error::UnsupportedDTypeForOp(xs.dtype(), OP).bt());
    }
    let (rows, channels) = match *xs.dims() {
        [rows, channels] if rows > 0 && channels > 0 => (rows, channels),
        ref dims => bail!("{OP}: expected (M, C) with M, C >= 1, got {dims:?}"),
    };
    if !xs.device().is_cpu() {
        return reference::standardize(xs, eps);
    }
    xs.contiguous()?.apply_op1(Standardize { rows, channels, eps })
}

struct Standardize {
    rows: usize,
    channels: usize,
    eps: f64,
}

impl CustomOp1 for Standardize {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ys = match storage {
            CpuStorage::F32(_) => self.forward::<f32>(storage, layout)?,
            _ => self.forward::<f64>(storage, layout)?,
        };
        Ok((ys, layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let dxs = match xs.dtype() {
            DType::F32 => self.backward::<f32>(xs, &grad),
            _ => self.backward::<f64>(xs, &grad),
        };
        dxs.map(Some)
    }
}

impl Standardize {
    fn forward<T: Real>(&self, storage: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let xs = dense::<T>(OP, storage, layout)?;
        Ok(T::to_cpu_storage_owned(cpu::forward(xs, self.rows, self.channels, self.eps)))
    }

    fn backward<T: Real>(&self, xs: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let dxs = with_slices::<T, _, 2>(OP, [xs, grad], |[x, g]| {
            Ok(cpu::backward(x, g, self.rows, self.channels, self.eps))
        })?;
        Tensor::from_vec(dxs, xs.shape(), xs.device())
    }
}
