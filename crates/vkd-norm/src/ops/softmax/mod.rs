//! Differentiable softmax and log-softmax over the last dimension.

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

use crate::dense::{Real, dense, in_native, with_slices};
use crate::ops::program;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp1, DType, Device, Error, Layout, Result, Shape, Tensor, bail,
};
pub use cpu::{log_sum_exp, softmax_row};

const SOFTMAX: &str = "softmax";
const LOG: &str = "log_softmax";

/// Softmax over the last dimension; differentiable, unlike candle-nn's fused one.
///
/// # Shapes
/// - `logits`: `(.., C)` with `C >= 1`, any strides; f32, f64, f16 or bf16
/// - output: the same shape and dtype, contiguous
///
/// # Gradient
/// Flows to `logits`; the backward pass needs the output only.
///
/// # Numerics
/// As [`log_softmax`]; a row of negative infinity only is NaN.
///
/// # Errors
/// No dimension, `C = 0`, or another dtype.
///
/// # References
/// Bridle, NeurIPS 1989.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_norm::softmax;
/// let ys = softmax(&Tensor::new(&[1e4f32, 1e4], &Device::Cpu)?)?.to_vec1::<f32>()?;
/// assert_eq!(ys, [0.5, 0.5]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn softmax(logits: &Tensor) -> Result<Tensor> {
    apply(logits, SOFTMAX, reference::softmax)
}

/// Logarithm of the softmax over the last dimension; differentiable, unlike candle-nn's fused softmax.
///
/// # Shapes
/// - `logits`: `(.., C)` with `C >= 1`, any strides; f32, f64, f16 or bf16
/// - output: the same shape and dtype, contiguous
///
/// # Gradient
/// Flows to `logits`; the backward pass needs the output only.
///
/// # Numerics
/// All arithmetic is in f64 (on a CUDA device in f32 unless the logits are f64), less the row's largest entry first; half
/// types are rounded once, at the end. Finite as long as
/// the distance of a logit to the largest fits the dtype: for f16 that is 65504, for bf16 and f32 1e38. Negative infinity
/// masks a class; NaN or positive infinity make the row NaN. Results are the same bit for bit with any number of threads.
///
/// # Errors
/// No dimension, `C = 0`, or another dtype.
///
/// # References
/// As [`softmax`].
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_norm::log_softmax;
/// let ys = log_softmax(&Tensor::new(&[1e4f32, 1e4], &Device::Cpu)?)?.to_vec1::<f32>()?;
/// assert!((ys[0] + 2f32.ln()).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    apply(logits, LOG, reference::log_softmax)
}

fn apply(logits: &Tensor, op: &'static str, twin: fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    if !matches!(logits.dtype(), DType::F32 | DType::F64 | DType::F16 | DType::BF16) {
        return Err(Error::UnsupportedDTypeForOp(logits.dtype(), op).bt());
    }
    let classes = match logits.dims() {
        [.., classes] if *classes > 0 => *classes,
        dims => bail!("{op}: expected (.., C) with C >= 1, got {dims:?}"),
    };
    if program::applies(logits) {
        return logits.contiguous()?.apply_op1(Softmax { op, classes });
    }
    in_native(logits, |logits| match logits.device() {
        Device::Cpu => logits.contiguous()?.apply_op1(Softmax { op, classes }),
        _ => twin(logits),
    })
}

struct Softmax {
    op: &'static str,
    classes: usize,
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ys = match storage {
            CpuStorage::F32(_) => self.forward::<f32>(storage, layout)?,
            _ => self.forward::<f64>(storage, layout)?,
        };
        Ok((ys, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::forward(storage, layout, self.classes, self.log())
    }

    fn bwd(&self, xs: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (ys, grad) = (ys.contiguous()?, grad.contiguous()?);
        #[cfg(feature = "cuda")]
        if xs.device().is_cuda() {
            return cuda::backward(&ys, &grad, self.classes, self.log()).map(Some);
        }
        let dxs = match xs.dtype() {
            DType::F32 => self.backward::<f32>(&ys, &grad),
            _ => self.backward::<f64>(&ys, &grad),
        };
        dxs.map(Some)
    }
}

impl Softmax {
    fn log(&self) -> bool {
        self.op == LOG
    }

    fn forward<T: Real>(&self, storage: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let xs = dense::<T>(self.op, storage, layout)?;
        Ok(T::to_cpu_storage_owned(cpu::forward(xs, self.classes, self.log())))
    }

    fn backward<T: Real>(&self, ys: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let dxs = with_slices::<T, _, 2>(self.op, [ys, grad], |[y, g]| {
            Ok(cpu::backward(y, g, self.classes, self.log()))
        })?;
        Tensor::from_vec(dxs, ys.shape(), ys.device())
    }
}
