//! Pointwise activations, each with its own gradient.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod launch;
pub(crate) mod reference;

use super::{Real, dense, in_native, unsupported};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use vkd_norm::dense::with_slices;
use vkd_norm::program;

/// What a layer does to each value at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    Identity,
    /// [`gelu`].
    Gelu,
    /// [`gelu_tanh`].
    GeluTanh,
    /// [`relu`].
    Relu,
    /// [`relu6`].
    Relu6,
    /// [`silu`].
    Silu,
}

/// `x · Φ(x)` with the exact normal distribution function (Hendrycks and Gimpel, arXiv:1606.08415), as PyTorch's default.
///
/// candle's own GELU has derivative constants cut to six digits; this one's gradient is exact to the dtype.
///
/// # Shapes
/// Any shape and strides; f32 or f64, or a half type [through f32](crate::ops); the output is contiguous.
///
/// # Numerics
/// The distribution function is good to 2e-7 absolute in f32 and to rounding in f64.
///
/// # Errors
/// Another dtype.
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    activate(xs, Activation::Gelu)
}

/// GELU with the distribution function approximated by a tanh: PyTorch's `approximate="tanh"`.
///
/// `x · (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`, evaluated as `x` times a logistic function.
///
/// # Shapes
/// Any shape and strides; f32 or f64, or a half type [through f32](crate::ops); the output is contiguous.
///
/// # Errors
/// Another dtype.
///
/// # References
/// Hendrycks and Gimpel, arXiv:1606.08415.
pub fn gelu_tanh(xs: &Tensor) -> Result<Tensor> {
    activate(xs, Activation::GeluTanh)
}

/// `max(x, 0)`, with gradient 0 at exactly 0 as in PyTorch; candle's own has 1 there.
///
/// # Shapes
/// Any shape and strides; f32 or f64, or a half type [through f32](crate::ops); the output is contiguous. NaN stays NaN.
///
/// # Errors
/// Another dtype.
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    activate(xs, Activation::Relu)
}

/// `min(max(x, 0), 6)`, with gradient 0 at exactly 0 and 6 as in PyTorch.
///
/// # Shapes
/// Any shape and strides; f32 or f64; the output is contiguous. NaN stays NaN.
///
/// # Errors
/// Another dtype.
///
/// # References
/// Sandler et al., arXiv:1801.04381.
pub fn relu6(xs: &Tensor) -> Result<Tensor> {
    activate(xs, Activation::Relu6)
}

/// `x / (1 + exp(-x))`, also called swish.
///
/// # Shapes
/// Any shape and strides; f32 or f64, or a half type [through f32](crate::ops); the output is contiguous.
///
/// # Errors
/// Another dtype.
///
/// # References
/// Elfwing, Uchibe and Doya, arXiv:1702.03118.
pub fn silu(xs: &Tensor) -> Result<Tensor> {
    activate(xs, Activation::Silu)
}

/// The activation by its name: on the CPU, by a kernel, or from plain tensor ops where there is none.
pub(crate) fn activate(xs: &Tensor, activation: Activation) -> Result<Tensor> {
    if program::applies(xs) {
        return xs.contiguous()?.apply_op1(Activate(activation));
    }
    in_native(xs, |xs| match xs.device().is_cpu() {
        true => xs.contiguous()?.apply_op1(Activate(activation)),
        false => reference::activate(xs, activation),
    })
}

/// A dense copy of dense values on a CUDA device.
#[cfg(feature = "cuda")]
pub(crate) fn copy_on_device(s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
    cuda::forward(Activation::Identity, s, l)
}

struct Activate(Activation);

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        match self.0 {
            Activation::Identity => "identity",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::Relu => "relu",
            Activation::Relu6 => "relu6",
            Activation::Silu => "silu",
        }
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = match s {
            CpuStorage::F32(_) => self.forward::<f32>(s, l)?,
            CpuStorage::F64(_) => self.forward::<f64>(s, l)?,
            _ => return Err(unsupported(self.name(), s)),
        };
        Ok((out, l.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::forward(self.0, storage, layout)
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if xs.device().is_cuda() {
            return cuda::backward(self.0, xs, &grad).map(Some);
        }
        match xs.dtype() {
            DType::F32 => self.backward::<f32>(xs, &grad),
            _ => self.backward::<f64>(xs, &grad),
        }
    }
}

impl Activate {
    fn forward<T: Real>(&self, s: &CpuStorage, l: &Layout) -> Result<CpuStorage> {
        Ok(T::to_cpu_storage_owned(cpu::forward(self.0, dense::<T>(self.name(), s, l)?)))
    }

    fn backward<T: Real>(&self, xs: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let dxs = with_slices::<T, _, 2>(self.name(), [xs, grad], |[x, g]| {
            Ok(cpu::backward(self.0, x, g))
        })?;
        Tensor::from_vec(dxs, xs.shape(), xs.device()).map(Some)
    }
}
