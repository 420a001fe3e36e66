//! The same from plain tensor ops: slow, differentiable, any device.

use candle_core::{Result, Tensor};

/// Twin of [`super::modulate`].
pub fn modulate(xs: &Tensor, gain: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (samples, channels) = gain.dims2()?;
    let rows = xs.reshape((samples, (), channels))?;
    let ys = rows.broadcast_mul(&gain.unsqueeze(1)?)?.broadcast_add(&bias.unsqueeze(1)?)?;
    ys.reshape(xs.shape())
}
