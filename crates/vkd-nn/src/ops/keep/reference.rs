//! The same from plain tensor ops: slow, differentiable, any device.

use candle_core::{Result, Tensor};

/// Twin of [`super::keep`].
pub(crate) fn keep(xs: &Tensor, kept: &[bool], run: usize, scale: f64) -> Result<Tensor> {
    let mask: Vec<u8> = kept.iter().map(|&kept| u8::from(kept)).collect();
    let runs = (kept.len(), run);
    let mask = Tensor::from_vec(mask, (kept.len(), 1), xs.device())?;
    let mask = mask.broadcast_as(runs)?.contiguous()?;
    let ys = (xs.reshape(runs)? * scale)?;
    mask.where_cond(&ys, &ys.zeros_like()?)?.reshape(xs.shape())
}
