//! Channels-last images at another size.

mod cpu;
pub(crate) mod reference;

use super::window::addressable;
use super::{dense, in_native, with_dtype};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use cpu::{Geometry, Tap};
use std::sync::Arc;

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
    let geometry = geometry("upsample_nearest2d", xs, size, nearest)?;
    let op = Resample { geometry: Arc::new(geometry) };
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
    let taps = if align_corners { linear_corners } else { linear_edges };
    let geometry = geometry("upsample_bilinear2d", xs, size, taps)?;
    let op = Resample { geometry: Arc::new(geometry) };
    in_native(xs, |xs| match xs.device().is_cpu() {
        true => xs.contiguous()?.apply_op1(op),
        false => reference::upsample_bilinear2d(xs, size, align_corners),
    })
}

/// The taps of an axis that goes from one length to another, both above zero.
type Taps = fn(from: usize, to: usize) -> Vec<Tap>;

fn nearest(from: usize, to: usize) -> Vec<Tap> {
    // u128, for the product of two sizes.
    let pixel = |i: usize| (i as u128 * from as u128 / to as u128) as usize;
    (0..to).map(|i| Tap { low: pixel(i), high: pixel(i), share: 0. }).collect()
}

fn linear_edges(from: usize, to: usize) -> Vec<Tap> {
    let scale = from as f64 / to as f64;
    (0..to).map(|i| between(((i as f64 + 0.5) * scale - 0.5).max(0.), from)).collect()
}

fn linear_corners(from: usize, to: usize) -> Vec<Tap> {
    let scale = if to > 1 { (from - 1) as f64 / (to - 1) as f64 } else { 0. };
    (0..to).map(|i| between(i as f64 * scale, from)).collect()
}

fn between(position: f64, length: usize) -> Tap {
    let low = (position as usize).min(length - 1);
    let high = (low + 1).min(length - 1);
    Tap { low, high, share: if high > low { position - low as f64 } else { 0. } }
}

fn geometry(what: &str, xs: &Tensor, size: (usize, usize), taps: Taps) -> Result<Geometry> {
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
    let (rows, cols) = (taps(*h, size.0), taps(*w, size.1));
    Ok(Geometry { batch: *batch, input: [*h, *w, *c], rows, cols })
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
        Ok((out, Shape::from((g.batch, g.rows.len(), g.cols.len(), g.input[2]))))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let op = Adjoint { geometry: self.geometry.clone() };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&op)?))
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
