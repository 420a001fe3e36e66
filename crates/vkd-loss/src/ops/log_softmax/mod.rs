//! Differentiable log-softmax over the last dimension.

pub(crate) mod cpu;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use crate::dense::{Real, check_float, dense, with_storage};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

const OP: &str = "log_softmax";

/// Logarithm of the softmax over the last dimension; differentiable, unlike candle-nn's fused softmax.
///
/// # Shapes
/// - `logits`: `(.., C)` with `C >= 1`, any strides; f32 or f64
/// - output: the same shape, contiguous
///
/// # Gradient
/// Flows to `logits`; the backward pass needs the output only.
///
/// # Numerics
/// All arithmetic is in f64, less the row's largest entry first; finite for any finite input. Negative infinity masks a
/// class; NaN or positive infinity make the row NaN.
///
/// # Errors
/// No dimension, `C = 0`, or another dtype.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::log_softmax;
/// let ys = log_softmax(&Tensor::new(&[1e4f32, 1e4], &Device::Cpu)?)?.to_vec1::<f32>()?;
/// assert!((ys[0] + 2f32.ln()).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    check_float(OP, logits)?;
    let classes = match logits.dims() {
        [.., classes] if *classes > 0 => *classes,
        dims => bail!("{OP}: expected (.., C) with C >= 1, got {dims:?}"),
    };
    if !logits.device().is_cpu() {
        return reference::log_softmax(logits);
    }
    logits.contiguous()?.apply_op1(LogSoftmax { classes })
}

struct LogSoftmax {
    classes: usize,
}

impl CustomOp1 for LogSoftmax {
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

    fn bwd(&self, xs: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (ys, grad) = (ys.contiguous()?, grad.contiguous()?);
        let dxs = match xs.dtype() {
            DType::F32 => self.backward::<f32>(&ys, &grad),
            _ => self.backward::<f64>(&ys, &grad),
        };
        dxs.map(Some)
    }
}

impl LogSoftmax {
    fn forward<T: Real>(&self, storage: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let xs = dense::<T>(OP, storage, layout)?;
        Ok(T::to_cpu_storage_owned(cpu::forward(xs, self.classes)))
    }

    fn backward<T: Real>(&self, ys: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let dxs = with_storage(OP, ys, |y, y_layout| {
            with_storage(OP, grad, |g, g_layout| {
                let (y, g) = (dense::<T>(OP, y, y_layout)?, dense::<T>(OP, g, g_layout)?);
                Ok(cpu::backward(y, g, self.classes))
            })
        })?;
        Tensor::from_vec(dxs, ys.shape(), ys.device())
    }
}
