//! Layer norm over the last dimension, with and without gain and bias.

pub mod cpu;
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
use crate::dense::{Real, dense, in_native, with_slices};
use crate::ops::program;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp3, DType, Device, Error, Layout, Result, Shape, Tensor, bail,
};

const OP: &str = "layer_norm";
const OP_AFFINE: &str = "layer_norm_affine";

/// Layer norm over the last dimension, without gain and bias.
///
/// For each row `x` of length C, with its mean μ and its biased variance σ²,
/// ```text
/// y = (x − μ) / sqrt(σ² + eps)
/// ```
/// The variance is the biased one, as in PyTorch. Use this and not candle-nn's `LayerNorm`, which silently cuts the
/// tape.
///
/// # Shapes
/// - `xs`: `(.., C)` with `C >= 1`, any strides; f32, f64, f16 or bf16
/// - output: the same shape, contiguous, same dtype and device
///
/// # Gradient
/// Flows to `xs`. The backward pass reads `xs` again and takes the statistics again, in the walk over the row that the
/// gradient needs anyhow; nothing is kept.
///
/// # Numerics
/// Statistics are taken in one walk over the row, relative to the mean of its first 32 entries, and in two where that
/// lies more than a deviation off. So rows with a mean far above their deviation lose nothing: about 5e-7 absolute in f32
/// with a mean of 1e4 deviations. f32 sums run in f32 lanes; a row whose squares overflow takes its statistics in f64,
/// which serves magnitudes up to half the largest f32 (beyond, infinity may come out); f64 itself serves deviations up to
/// 1e150. Half types are computed in f32. Results are the same bit for bit with any number of threads. A constant row
/// gives zero. NaN and infinity make their row NaN. On a CUDA device half types are read and written as they are, with sums in
/// f32. On other devices plain tensor ops are used.
///
/// # Errors
/// `eps` not finite or under the smallest normal f32, no dimension, `C = 0`, or another dtype.
///
/// # References
/// Ba, Kiros and Hinton, arXiv:1607.06450. V_kD (arXiv:2403.06213) normalises the pooled teacher features so in
/// classification; its code uses `eps = 1e-5`.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_norm::layer_norm;
/// let xs = Tensor::new(&[[1f32, 3.], [10., 10.]], &Device::Cpu)?;
/// let ys = layer_norm(&xs, 1e-5)?.to_vec2::<f32>()?;
/// assert!((ys[0][1] - 1.).abs() < 1e-5 && ys[1] == [0., 0.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn layer_norm(xs: &Tensor, eps: f64) -> Result<Tensor> {
    let channels = check(OP, xs, eps)?;
    if program::applies(xs) {
        return xs.contiguous()?.apply_op1(LayerNorm { channels, eps });
    }
    in_native(xs, |xs| match xs.device() {
        Device::Cpu => xs.contiguous()?.apply_op1(LayerNorm { channels, eps }),
        _ => reference::layer_norm(xs, eps),
    })
}

/// Layer norm over the last dimension with gain and bias: [`layer_norm`] times `weight` plus `bias`, in one pass.
///
/// # Shapes
/// - `xs`: `(.., C)` with `C >= 1`, any strides; f32, f64, f16 or bf16
/// - `weight`, `bias`: `(C,)`, the dtype of `xs`
/// - output: the shape of `xs`, contiguous
///
/// # Gradient
/// Flows to all three, in one backward pass that recomputes the statistics. The sums over rows for `weight` and `bias`
/// run over fixed blocks of rows, joined in f64: the number of threads changes no bit.
///
/// # Numerics
/// As [`layer_norm`].
///
/// # Errors
/// Those of [`layer_norm`], and a `weight` or `bias` of another shape or dtype.
///
/// # References
/// Ba, Kiros and Hinton, arXiv:1607.06450.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_norm::layer_norm_affine;
/// let xs = Tensor::new(&[[1f64, 3.]], &Device::Cpu)?;
/// let (weight, bias) = (Tensor::new(&[2f64, 2.], &Device::Cpu)?, Tensor::new(&[5f64, 5.], &Device::Cpu)?);
/// let ys = layer_norm_affine(&xs, &weight, &bias, 1e-12)?.to_vec2::<f64>()?;
/// assert!((ys[0][0] - 3.).abs() < 1e-9 && (ys[0][1] - 7.).abs() < 1e-9);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn layer_norm_affine(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let channels = check(OP_AFFINE, xs, eps)?;
    for (name, t) in [("weight", weight), ("bias", bias)] {
        if t.dims() != [channels] {
            bail!("{OP_AFFINE}: expected {name} of shape [{channels}], got {:?}", t.dims())
        }
        if t.dtype() != xs.dtype() {
            bail!("{OP_AFFINE}: expected {name} of dtype {:?}, got {:?}", xs.dtype(), t.dtype())
        }
    }
    if program::applies(xs) {
        let op = LayerNormAffine { channels, eps };
        return xs.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op);
    }
    in_native(xs, |xs| {
        let (weight, bias) = (weight.to_dtype(xs.dtype())?, bias.to_dtype(xs.dtype())?);
        if !xs.device().is_cpu() {
            return reference::layer_norm_affine(xs, &weight, &bias, eps);
        }
        let op = LayerNormAffine { channels, eps };
        xs.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
    })
}

/// Checks the arguments and returns the length of the rows.
fn check(op: &'static str, xs: &Tensor, eps: f64) -> Result<usize> {
    check_eps(op, eps)?;
    if !matches!(xs.dtype(), DType::F32 | DType::F64 | DType::F16 | DType::BF16) {
        return Err(Error::UnsupportedDTypeForOp(xs.dtype(), op).bt());
    }
    match xs.dims() {
        [.., channels] if *channels > 0 => Ok(*channels),
        dims => bail!("{op}: expected (.., C) with C >= 1, got {dims:?}"),
    }
}

struct LayerNorm {
    channels: usize,
    eps: f64,
}

impl CustomOp1 for LayerNorm {
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

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::forward(&[(storage, layout)], self.channels, self.eps)
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if xs.device().is_cuda() {
            return Ok(Some(cuda::backward(xs, None, &grad, self.channels, self.eps)?.0));
        }
        let dxs = match xs.dtype() {
            DType::F32 => self.backward::<f32>(xs, &grad),
            _ => self.backward::<f64>(xs, &grad),
        };
        dxs.map(Some)
    }
}

impl LayerNorm {
    fn forward<T: Real>(&self, storage: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let xs = dense::<T>(OP, storage, layout)?;
        Ok(T::to_cpu_storage_owned(cpu::forward(xs, None, self.channels, self.eps)))
    }

    fn backward<T: Real>(&self, xs: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let dxs = with_slices::<T, _, 2>(OP, [xs, grad], |[x, g]| {
            Ok(cpu::backward(x, None, g, self.channels, self.eps).0)
        })?;
        Tensor::from_vec(dxs, xs.shape(), xs.device())
    }
}

struct LayerNormAffine {
    channels: usize,
    eps: f64,
}

impl CustomOp3 for LayerNormAffine {
    fn name(&self) -> &'static str {
        OP_AFFINE
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
        let (weight, bias) = ((weight, weight_layout), (bias, bias_layout));
        let ys = match xs {
            CpuStorage::F32(_) => self.forward::<f32>((xs, xs_layout), weight, bias)?,
            _ => self.forward::<f64>((xs, xs_layout), weight, bias)?,
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
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let inputs = [(xs, xs_layout), (weight, weight_layout), (bias, bias_layout)];
        cuda::forward(&inputs, self.channels, self.eps)
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
        #[cfg(feature = "cuda")]
        if xs.device().is_cuda() {
            let (dxs, of_affine) =
                cuda::backward(xs, Some(weight), &grad, self.channels, self.eps)?;
            let [dw, db] = of_affine.map_or([None, None], |sums| sums.map(Some));
            let db = db.filter(|_| bias.track_op());
            let dw = dw.filter(|_| weight.track_op());
            return Ok((xs.track_op().then_some(dxs), dw, db));
        }
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

impl LayerNormAffine {
    fn forward<T: Real>(
        &self,
        xs: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: (&CpuStorage, &Layout),
    ) -> Result<CpuStorage> {
        let xs = dense::<T>(OP_AFFINE, xs.0, xs.1)?;
        let weight = dense::<T>(OP_AFFINE, weight.0, weight.1)?;
        let bias = dense::<T>(OP_AFFINE, bias.0, bias.1)?;
        let ys = cpu::forward(xs, Some((weight, bias)), self.channels, self.eps);
        Ok(T::to_cpu_storage_owned(ys))
    }

    fn backward<T: Real>(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        grad: &Tensor,
    ) -> Result<[Tensor; 3]> {
        let (dxs, dw, db) = with_slices::<T, _, 3>(OP_AFFINE, [xs, weight, grad], |[x, w, g]| {
            Ok(cpu::backward(x, Some(w), g, self.channels, self.eps))
        })?;
        Ok([
            Tensor::from_vec(dxs, xs.shape(), xs.device())?,
            Tensor::from_vec(dw, self.channels, xs.device())?,
            Tensor::from_vec(db, self.channels, xs.device())?,
        ])
    }
}
