//! Centring and scaling from plain tensor ops, for the twins of the norms.

use candle_core::{DType, Device, Result, Tensor};

/// Means over `dims`, kept as sizes of one, and `xs` less them.
///
/// As in the kernels, everything is first taken relative to a value near the mean, which is a constant on the tape: a set
/// of equal values gives exactly zero, and a mean far above the deviation costs nothing. Magnitudes up to half the largest
/// of the dtype.
pub(super) fn centred(xs: &Tensor, dims: &[usize]) -> Result<(Tensor, Tensor)> {
    let count = dims.iter().map(|d| xs.dims()[*d]).product::<usize>() as f64;
    let fixed = xs.detach();
    let mut first = fixed.clone();
    for &d in dims {
        first = first.narrow(d, 0, 1)?;
    }
    // Divided before they are added, so that the sum does not overflow.
    let near = ((fixed.broadcast_sub(&first)? / count)?.sum_keepdim(dims)? + first)?;
    let rest = xs.broadcast_sub(&near)?;
    let left = (&rest / count)?.sum_keepdim(dims)?;
    Ok(((near + &left)?, rest.broadcast_sub(&left)?))
}

/// `xs / sqrt(mean(xs²) + eps)`, with the mean over `dims`.
///
/// Large sets are taken over their largest magnitude, which drops out again: so no square overflows.
pub(super) fn over_root(xs: &Tensor, dims: &[usize], eps: f64) -> Result<Tensor> {
    let count = dims.iter().map(|d| xs.dims()[*d]).product::<usize>() as f64;
    let mut size = xs.detach().abs()?;
    for &d in dims {
        size = size.max_keepdim(d)?;
    }
    let size = size.maximum(1.)?;
    let scaled = xs.broadcast_div(&size)?;
    let squares = (scaled.sqr()?.sum_keepdim(dims)? / count)?;
    scaled.broadcast_div(&(squares + (size.recip()?.sqr()? * eps)?)?.sqrt()?)
}

/// Statistics for `xs` in f64, where `xs` is, or on the CPU if its device has no f64.
pub(super) fn wide(statistics: &Tensor, xs: &Tensor) -> Result<Tensor> {
    match xs.device().is_metal() {
        true => statistics.to_device(&Device::Cpu)?.to_dtype(DType::F64),
        false => statistics.to_device(xs.device())?.to_dtype(DType::F64),
    }
}

/// `(xs - mean) * inverse` by columns, with [`wide`] numbers of which nothing is lost to the dtype.
pub(super) fn columns(xs: &Tensor, mean: &Tensor, inverse: &Tensor) -> Result<Tensor> {
    let own = |t: &Tensor| t.to_dtype(xs.dtype())?.to_device(xs.device());
    let near = own(mean)?;
    let left = own(&(mean - wide(&near, xs)?)?)?;
    xs.broadcast_sub(&near)?.broadcast_sub(&left)?.broadcast_mul(&own(inverse)?)
}
