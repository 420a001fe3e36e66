//! Smooth-L1 against a layer-normed teacher from layer norm and plain tensor ops: slow, differentiable, any device.

use candle_core::{Result, Tensor};
use vkd_norm::layer_norm;

/// Twin of [`super::smooth_l1_layer_norm`].
pub(crate) fn smooth_l1_layer_norm(
    student: &Tensor,
    teacher: &Tensor,
    beta: f64,
    eps: f64,
) -> Result<Tensor> {
    let d = (student - layer_norm(teacher, eps)?)?.abs()?;
    let c = d.minimum(beta)?;
    (c.sqr()?.affine(0.5 / beta, 0.)? + (d - c)?)?.mean_all()
}
