//! Smooth-L1 against a layer-normed teacher from plain tensor ops: slow, differentiable, any device.

use candle_core::{D, Result, Tensor};

/// Twin of [`super::smooth_l1_layer_norm`].
pub(crate) fn smooth_l1_layer_norm(
    student: &Tensor,
    teacher: &Tensor,
    beta: f64,
    eps: f64,
) -> Result<Tensor> {
    let centred = teacher.broadcast_sub(&teacher.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    let d = (student - normed)?.abs()?;
    let c = d.minimum(beta)?;
    (c.sqr()?.affine(0.5 / beta, 0.)? + (d - c)?)?.mean_all()
}
