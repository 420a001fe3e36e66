//! Centring from plain tensor ops in two passes, for the twins of the norms.

use candle_core::{Result, Tensor};

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
