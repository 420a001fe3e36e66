//! Resampling as a matrix along each axis.

use super::cpu::{Mode, Tap};
use super::geometry;
use candle_core::{Result, Tensor};

/// The weights of the taps, `(results, pixels)`.
fn matrix(taps: &[Tap], pixels: usize, like: &Tensor) -> Result<Tensor> {
    let mut weights = vec![0f64; taps.len() * pixels];
    for (row, tap) in weights.chunks_mut(pixels).zip(taps) {
        row[tap.low] += 1. - tap.share;
        row[tap.high] += tap.share;
    }
    Tensor::from_vec(weights, (taps.len(), pixels), like.device())?.to_dtype(like.dtype())
}

fn resample(what: &str, xs: &Tensor, size: (usize, usize), mode: Mode) -> Result<Tensor> {
    let g = geometry(what, xs, size, mode)?;
    let ([h, w, c], b, xs) = (g.input, g.batch, xs.contiguous()?);
    let rows = matrix(&g.rows, h, &xs)?.broadcast_matmul(&xs.reshape((b, h, w * c))?)?;
    let both = matrix(&g.cols, w, &xs)?.broadcast_matmul(&rows.reshape((b * size.0, w, c))?)?;
    both.reshape((b, size.0, size.1, c))
}

/// Twin of [`crate::upsample_nearest2d`].
///
/// # Errors
/// Its errors.
pub fn upsample_nearest2d(xs: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    resample("upsample_nearest2d", xs, size, Mode::Nearest)
}

/// Twin of [`crate::upsample_bilinear2d`].
///
/// # Errors
/// Its errors.
pub fn upsample_bilinear2d(
    xs: &Tensor,
    size: (usize, usize),
    align_corners: bool,
) -> Result<Tensor> {
    let mode = if align_corners { Mode::Corners } else { Mode::Edges };
    resample("upsample_bilinear2d", xs, size, mode)
}
