//! The losses from plain tensor ops: slow, differentiable, any device.

use super::Pointwise;
use candle_core::{Result, Tensor};

/// Twin of [`super::pointwise`].
pub(crate) fn pointwise(kind: Pointwise, student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let d = (student - teacher)?;
    match kind {
        Pointwise::Mse => d.sqr()?.mean_all(),
        Pointwise::SmoothL1 { beta } => {
            let d = d.abs()?;
            let c = d.minimum(beta)?;
            (c.sqr()?.affine(0.5 / beta, 0.)? + (d - c)?)?.mean_all()
        }
    }
}
