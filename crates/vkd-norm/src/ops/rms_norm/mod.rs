//! Division of each row by its root mean square, times a gain.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod launch;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use crate::checks::check_eps;
use crate::dense::in_native;
use crate::dense::{Real, dense, with_slices};
use crate::ops::program;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, DType, Error, Layout, Result, Shape, Tensor, bail};

const OP: &str = "rms_norm";

/// Root-mean-square norm over the last dimension: `y = x / sqrt(mean(x²) + eps) · weight`.
///
/// Layer norm without its mean and bias. candle-nn's fused form has no gradient.
///
/// # Shapes
/// - `xs`: `(.., C)` with `C >= 1`, any strides; f32, f64, f16 or bf16
/// - `weight`: `(C,)`, the dtype of `xs`
/// - output: the shape of `xs`, contiguous
///
/// # Gradient
/// Flows to both, in one backward pass that reads `xs` again. The sum over rows for `weight` runs over fixed blocks of
/// rows, joined in f64: the number of threads changes no bit.
///
/// # Numerics
/// f32 sums run in f32 lanes; a row whose squares overflow is summed in f64, which serves all of f32, and f64 itself up
/// to 1e150. Half types are computed in f32. A row of
/// zeros gives zeros. NaN makes its row NaN. On a CUDA device half types are read
/// and written as they are, with sums in f32. On other devices plain tensor ops are used.
///
/// # Errors
/// `eps` not finite or under the smallest normal f32, no dimension, `C = 0`, another dtype, or a `weight` of another shape
/// or dtype.
///
/// # References
/// Zhang and Sennrich, arXiv:1910.07467.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_norm::rms_norm;
/// let xs = Tensor::new(&[[3f32, -3.]], &Device::Cpu)?;
/// let weight = Tensor::new(&[1f32, 2.], &Device::Cpu)?;
/// assert_eq!(rms_norm(&xs, &weight, 1e-12)?.to_vec2::<f32>()?, [[1., -2.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn rms_norm(xs: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    check_eps(OP, eps)?;
    if !matches!(xs.dtype(), DType::F32 | DType::F64 | DType::F16 | DType::BF16) {
        return Err(Error::UnsupportedDTypeForOp(xs.dtype(), OP).bt());
    }
    let channels = match xs.dims() {
        [.., channels] if *channels > 0 => *channels,
        dims => bail!("{OP}: expected (.., C) with C >= 1, got {dims:?}"),
    };
    if weight.dims() != [channels] || weight.dtype() != xs.dtype() {
        bail!(
            "{OP}: expected weight of shape [{channels}] and dtype {:?}, got {:?} and {:?}",
            xs.dtype(),
            weight.dims(),
            weight.dtype()
        )
    }
    if program::applies(xs) {
        return xs.contiguous()?.apply_op2(&weight.contiguous()?, RmsNorm { channels, eps });
    }
    in_native(xs, |xs| {
        let weight = weight.to_dtype(xs.dtype())?;
        if !xs.device().is_cpu() {
            return reference::rms_norm(xs, &weight, eps);
        }
        xs.contiguous()?.apply_op2(&weight.contiguous()?, RmsNorm { channels, eps })
    })
}

struct RmsNorm {
    channels: usize,
    eps: f64,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ys = match xs {
            CpuStorage::F32(_) => self.forward::<f32>((xs, xs_layout), (weight, weight_layout))?,
            _ => self.forward::<f64>((xs, xs_layout), (weight, weight_layout))?,
        };
        Ok((ys, xs_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        xs: &CudaStorage,
        xs_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda::forward((xs, xs_layout), (weight, weight_layout), self.channels, self.eps)
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        _ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if xs.device().is_cuda() {
            let (dxs, dw) = cuda::backward(xs, weight, &grad, self.channels, self.eps)?;
            return Ok((xs.track_op().then_some(dxs), weight.track_op().then_some(dw)));
        }
        let (dxs, dw) = match xs.dtype() {
            DType::F32 => self.backward::<f32>(xs, weight, &grad)?,
            _ => self.backward::<f64>(xs, weight, &grad)?,
        };
        // An untracked input needs no gradient, and candle would only add it to zeros.
        Ok((xs.track_op().then_some(dxs), weight.track_op().then_some(dw)))
    }
}

impl RmsNorm {
    fn forward<T: Real>(
        &self,
        xs: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
    ) -> Result<CpuStorage> {
        let (xs, weight) = (dense::<T>(OP, xs.0, xs.1)?, dense::<T>(OP, weight.0, weight.1)?);
        Ok(T::to_cpu_storage_owned(cpu::forward(xs, weight, self.channels, self.eps)))
    }

    fn backward<T: Real>(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        grad: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (dxs, dw) = with_slices::<T, _, 3>(OP, [xs, weight, grad], |[x, w, g]| {
            Ok(cpu::backward(x, w, g, self.channels, self.eps))
        })?;
        Ok((
            Tensor::from_vec(dxs, xs.shape(), xs.device())?,
            Tensor::from_vec(dw, self.channels, xs.device())?,
        ))
    }
}
