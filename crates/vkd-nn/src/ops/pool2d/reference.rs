//! Pools as a choice of, or a product with, what lies under each tap.

use super::{Geometry, Pool2dConfig};
use candle_core::{Result, Tensor};

/// For each tap of the kernel the pixel under it, `(B, H', W', C)`, and whether it is one, `(H', W')`.
fn taps(xs: &Tensor, g: &Geometry) -> Result<Vec<(Tensor, Tensor)>> {
    let (xs, w) = (xs.contiguous()?, &g.window);
    let along = |axis: usize, tap: usize| -> Result<(Tensor, Tensor)> {
        let at = |i: usize| w.pixel(axis, i, tap, g.input[axis]);
        let (mut pixels, mut inside) = (vec![], vec![]);
        for i in 0..g.output[axis] {
            pixels.push(at(i).unwrap_or(0) as u32);
            inside.push(if at(i).is_some() { 1f64 } else { 0. });
        }
        Ok((Tensor::new(pixels, xs.device())?, Tensor::new(inside, xs.device())?))
    };
    let mut all = Vec::new();
    for i in 0..w.kernel[0] {
        let (rows, rows_inside) = along(0, i)?;
        for j in 0..w.kernel[1] {
            let (cols, cols_inside) = along(1, j)?;
            let inside = rows_inside.unsqueeze(1)?.broadcast_mul(&cols_inside)?;
            let inside = inside.to_dtype(xs.dtype())?.unsqueeze(2)?;
            all.push((xs.index_select(&rows, 1)?.index_select(&cols, 2)?, inside));
        }
    }
    Ok(all)
}

/// Twin of [`crate::max_pool2d`], where all values are distinct and finite.
///
/// # Errors
/// Its errors on shapes and configuration.
pub fn max_pool2d(xs: &Tensor, config: Pool2dConfig) -> Result<Tensor> {
    let g = config.geometry("max_pool2d", xs)?;
    let mut best: Option<Tensor> = None;
    for (pixels, inside) in taps(xs, &g)? {
        let inside = inside.broadcast_as(pixels.shape())?;
        let low = pixels.zeros_like()?.affine(0., -1e30)?;
        let pixels = inside.ne(0.)?.where_cond(&pixels, &low)?;
        best = Some(match best {
            Some(best) => best.gt(&pixels)?.where_cond(&best, &pixels)?,
            None => pixels,
        });
    }
    match best {
        Some(best) => Ok(best),
        None => candle_core::bail!("max_pool2d: expected a kernel of at least one tap"),
    }
}

/// Twin of [`crate::avg_pool2d`].
///
/// # Errors
/// Its errors on shapes and configuration.
pub fn avg_pool2d(xs: &Tensor, config: Pool2dConfig) -> Result<Tensor> {
    let g = config.geometry("avg_pool2d", xs)?;
    let ([rows, cols], w) = (g.output, &g.window);
    let mut sum = Tensor::zeros((g.batch, rows, cols, g.input[2]), xs.dtype(), xs.device())?;
    let mut count = Tensor::zeros((rows, cols, 1), xs.dtype(), xs.device())?;
    for (pixels, inside) in taps(xs, &g)? {
        sum = (sum + pixels.broadcast_mul(&inside)?)?;
        count = (count + inside)?;
    }
    if config.count_padding {
        let along = |axis: usize, size: usize| -> Vec<f64> {
            let end = size + 2 * w.padding[axis];
            let starts = (0..g.output[axis]).map(|i| i * w.stride[axis]);
            starts.map(|start| (start + w.kernel[axis]).min(end) as f64 - start as f64).collect()
        };
        let rows = Tensor::new(along(0, g.input[0]), xs.device())?.reshape((rows, 1, 1))?;
        let cols = Tensor::new(along(1, g.input[1]), xs.device())?.reshape((1, cols, 1))?;
        count = rows.broadcast_mul(&cols)?.to_dtype(xs.dtype())?;
    }
    sum.broadcast_div(&count)
}
