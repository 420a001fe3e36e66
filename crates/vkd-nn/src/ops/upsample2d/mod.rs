//! Channels-last images at another size.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod kernel_tests;
#[cfg(any(feature = "cuda", test))]
mod launch;
pub(crate) mod reference;

use super::window::addressable;
use super::{dense, in_native, with_dtype};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use cpu::{Geometry, Mode, Tap};
use std::sync::Arc;
use vkd_norm::program;

/// The pixel nearest to each position of a result of `size` (rows, columns): pixel `⌊i·H / H'⌋`.
///
/// # Shapes
/// - `xs`: `(B, H, W, C)`, channels last, any strides; f32 or f64, or a half type [through f32](crate::ops)
/// - output: `(B, H', W', C)`, contiguous; any sizes, larger or smaller
///
/// # Gradient
/// Flows to `xs`: each pixel sums the gradients of its copies.
///
/// # Numerics
/// The position is a quotient of whole numbers. PyTorch rounds a scale in f32 first, which at a few sizes picks the pixel
/// before.
///
/// # Errors
/// Another rank, an empty image or result, a result that memory can't address, a dtype other than f64, f32, bf16 and f16.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[1f32, 2.], &Device::Cpu)?.reshape((1, 1, 2, 1))?;
/// let ys = vkd_nn::upsample_nearest2d(&xs, (1, 4))?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [1., 1., 2., 2.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn upsample_nearest2d(xs: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    let geometry = geometry("upsample_nearest2d", xs, size, Mode::Nearest)?;
    let op = Resample { geometry: Arc::new(geometry) };
    if program::applies(xs) {
        return xs.contiguous()?.apply_op1(op);
    }
    in_native(xs, |xs| match xs.device().is_cpu() {
        true => xs.contiguous()?.apply_op1(op),
        false => reference::upsample_nearest2d(xs, size),
    })
}

/// Bilinear interpolation at the positions of a result of `size` (rows, columns).
///
/// The pixels are squares, and the images' outer edges coincide; with `align_corners` the centres of the outer pixels do.
/// A result smaller than the image is not smoothed first: this is PyTorch's function without `antialias`.
///
/// # Shapes
/// Those of [`upsample_nearest2d`].
///
/// # Gradient
/// Flows to `xs`, by the exact adjoint: each pixel gets each result's gradient times its weight there.
///
/// # Errors
/// Those of [`upsample_nearest2d`].
pub fn upsample_bilinear2d(
    xs: &Tensor,
    size: (usize, usize),
    align_corners: bool,
) -> Result<Tensor> {
    let mode = if align_corners { Mode::Corners } else { Mode::Edges };
    let geometry = geometry("upsample_bilinear2d", xs, size, mode)?;
    let op = Resample { geometry: Arc::new(geometry) };
    if program::applies(xs) {
        return xs.contiguous()?.apply_op1(op);
    }
    in_native(xs, |xs| match xs.device().is_cpu() {
        true => xs.contiguous()?.apply_op1(op),
        false => reference::upsample_bilinear2d(xs, size, align_corners),
    })
}

fn geometry(what: &str, xs: &Tensor, size: (usize, usize), mode: Mode) -> Result<Geometry> {
    let [batch, h, w, c] = xs.dims() else {
        bail!("{what}: expected (B, H, W, C), got {:?}", xs.dims())
    };
    if [*h, *w, *c, size.0, size.1].contains(&0) {
        bail!("{what}: expected sizes above 0, got {:?} to {size:?}", xs.dims())
    }
    addressable(what, &[*batch, size.0, size.1, *c])?;
    // Taps are stored per row and column: a batch of none must not hide lengths that can't be.
    addressable(what, &[size.0, size_of::<Tap>()])?;
    addressable(what, &[size.1, size_of::<Tap>()])?;
    let (rows, cols) = (mode.taps(*h, size.0), mode.taps(*w, size.1));
    Ok(Geometry { batch: *batch, input: [*h, *w, *c], rows, cols, mode })
}

struct Resample {
    geometry: Arc<Geometry>,
}

struct Adjoint {
    geometry: Arc<Geometry>,
}

impl CustomOp1 for Resample {
    fn name(&self) -> &'static str {
        "upsample2d"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (g, name) = (&self.geometry, self.name());
        let out = with_dtype!(name, s, T => cpu::resample(g, dense::<T>(name, s, l)?));
        Ok((out, g.result()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::forward(&self.geometry, s, l)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if grad.device().is_cuda() {
            return cuda::backward(&self.geometry, &grad).map(Some);
        }
        let op = Adjoint { geometry: self.geometry.clone() };
        Ok(Some(grad.apply_op1_no_bwd(&op)?))
    }
}

impl CustomOp1 for Adjoint {
    fn name(&self) -> &'static str {
        "upsample2d-bwd"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (g, name) = (&self.geometry, self.name());
        let out = with_dtype!(name, s, T => cpu::adjoint(g, dense::<T>(name, s, l)?));
        let [h, w, c] = g.input;
        Ok((out, Shape::from((g.batch, h, w, c))))
    }
}
