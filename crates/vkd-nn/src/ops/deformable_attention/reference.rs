//! Deformable attention from tensor ops: the four pixels around each location by index, and a product with their shares.

use super::geometry;
use candle_core::{DType, Result, Tensor};

/// Twin of [`crate::deformable_attention`], for finite values and weights. It computes in the operands' dtype: in a half type its
/// positions would have no digits left for a fraction.
///
/// # Errors
/// Its errors on shapes.
pub fn deformable_attention(
    values: &Tensor,
    levels: &[(usize, usize)],
    locations: &Tensor,
    weights: &Tensor,
) -> Result<Tensor> {
    let g = geometry(values.dims(), levels, locations.dims(), weights.dims())?;
    // One row a head of a sample: (B·heads, ..).
    let (rows, taps) = (g.batch * g.heads, g.queries * g.points);
    let values = values.transpose(1, 2)?.reshape((rows, g.pixels, g.dim))?;
    let by_head = |xs: &Tensor| xs.transpose(1, 2)?.contiguous();
    let (locations, weights) = (by_head(locations)?, by_head(weights)?);
    let mut sum: Option<Tensor> = None;
    for (i, level) in g.levels.iter().enumerate() {
        let map = values.narrow(1, level.start, level.rows * level.cols)?.contiguous()?;
        let at = locations.narrow(3, i, 1)?;
        let weight = weights.narrow(3, i, 1)?.reshape((rows, taps))?;
        let pixel = |axis: usize, length: usize| -> Result<(Tensor, Tensor)> {
            let position = at.narrow(5, axis, 1)?.reshape((rows, taps))?;
            let position = near(&position.affine(length as f64, -0.5)?, length)?;
            let first = position.floor()?.detach();
            Ok((first.clone(), (position - first)?))
        };
        let (x, right) = pixel(0, level.cols)?;
        let (y, down) = pixel(1, level.rows)?;
        for (row, share_down) in [(y.clone(), down.affine(-1., 1.)?), ((y + 1.)?, down)] {
            for (col, share_right) in
                [(x.clone(), right.affine(-1., 1.)?), ((&x + 1.)?, right.clone())]
            {
                let (row, row_inside) = inside(&row, level.rows)?;
                let (col, col_inside) = inside(&col, level.cols)?;
                let index = (row * level.cols as f64)?.add(&col)?.to_dtype(DType::U32)?;
                let index = index.unsqueeze(2)?.expand((rows, taps, g.dim))?.contiguous()?;
                let share = ((&share_down * share_right)? * (row_inside * col_inside)?)?;
                let share = (share * &weight)?.unsqueeze(2)?;
                let part = map.gather(&index, 1)?.broadcast_mul(&share)?;
                sum = Some(match sum {
                    Some(sum) => (sum + part)?,
                    None => part,
                });
            }
        }
    }
    let Some(sum) = sum else {
        candle_core::bail!("deformable_attention: expected at least one level, got none")
    };
    let by_query = sum.reshape((g.batch, g.heads, g.queries, g.points, g.dim))?.sum(3)?;
    by_query.transpose(1, 2)?.reshape((g.batch, g.queries, g.heads * g.dim))
}

/// A position beyond the map at most so far that no pixel is next to it: of an infinite one no share could be found.
///
/// By choice and not by minimum and maximum, which lose a NaN on some devices.
fn near(position: &Tensor, length: usize) -> Result<Tensor> {
    let (low, high): (f64, f64) = (-2., length as f64 + 1.);
    let ones = position.ones_like()?;
    let near = position.lt(low)?.where_cond(&(&ones * low)?, position)?;
    near.gt(high)?.where_cond(&(ones * high)?, &near)
}

/// A row or column that the map has, and 1 where it is the one that was asked for, else 0.
fn inside(at: &Tensor, length: usize) -> Result<(Tensor, Tensor)> {
    let kept = at.clamp(0., (length - 1) as f64)?;
    let same = kept.eq(at)?.to_dtype(at.dtype())?;
    Ok((kept, same))
}
