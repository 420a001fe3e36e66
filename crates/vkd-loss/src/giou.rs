//! Generalised intersection over union.

use crate::Reduction;
use crate::checks::{finite, widen_pair};
use crate::ops::{RowLoss, row_loss};
use candle_core::{D, Result, Tensor, bail};
use vkd_norm::flags;

const OP: &str = "giou";

/// One less the generalised intersection over union of paired boxes: 0 where they coincide, at most 2 far apart.
///
/// With areas `I` of the intersection, `U` of the union and `H` of the smallest box around both, a pair counts
/// `1 − I/U + (H − U)/H`. It has a slope where two boxes don't touch, and does not depend on the unit of length:
/// see [`boxes::generalized_iou`](crate::boxes::generalized_iou) for the number itself.
///
/// # Shapes
/// - `boxes`, `targets`: `(.., 4)`, the same, corners `(x0, y0, x1, y1)` with `x0 <= x1` and `y0 <= y1`, at least one box; one
///   dtype: f32, f64, or a half type, which is computed in f32
/// - output: rank 0, or `(..)` with [`Reduction::None`]
///
/// # Gradient
/// Flows to `boxes`. Where two edges coincide it is the mean of the slopes to either side, as in PyTorch. `targets` must carry no
/// gradient. One pass each way.
///
/// # Numerics
/// All arithmetic is in f64. There is no guard in a denominator: a part whose denominator is zero is zero, with its slope.
///
/// # Errors
/// Different shapes or dtypes, a last dimension other than 4, no boxes, corners in the wrong order (with the row; on a
/// device they set a bit of [`flags`]), tracked targets (detach them), another dtype, or a NaN or infinity in the input, which is named (where the loss is one
/// number on the CPU).
///
/// # References
/// Rezatofighi et al., arXiv:1902.09630; the box loss of DETR (arXiv:2005.12872) and ViDT (arXiv:2110.03921).
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::{Reduction, giou};
/// let boxes = Tensor::new(&[[0f32, 0., 1., 1.], [0., 0., 1., 1.]], &Device::Cpu)?;
/// let targets = Tensor::new(&[[0f32, 0., 1., 1.], [3., 0., 4., 1.]], &Device::Cpu)?;
/// let loss = giou(&boxes, &targets, Reduction::None)?;
/// assert_eq!(loss.to_vec1::<f32>()?, [0., 1.5]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn giou(boxes: &Tensor, targets: &Tensor, reduction: Reduction) -> Result<Tensor> {
    if boxes.dims().last() != Some(&4) {
        bail!("{OP}: expected boxes (.., 4), got {:?}", boxes.dims())
    }
    let (boxes, targets) = widen_pair(boxes, targets)?;
    let loss = row_loss(RowLoss::Giou, &boxes, &targets, reduction)?;
    if !boxes.device().is_cpu() {
        for (role, boxes) in [("boxes", &boxes), ("targets", &targets)] {
            let what = format!("{role} with x0 <= x1 and y0 <= y1");
            flags::expect(OP, &what, &sides(boxes)?, [0., f64::INFINITY])?;
        }
    }
    finite(OP, loss, &[("boxes", &boxes), ("targets", &targets)])
}

/// Widths and heights of boxes `(.., 4)`, `(.., 2)`.
fn sides(boxes: &Tensor) -> Result<Tensor> {
    let boxes = boxes.detach();
    boxes.narrow(D::Minus1, 2, 2)? - boxes.narrow(D::Minus1, 0, 2)?
}

#[cfg(test)]
mod tests {
    use super::sides;
    use candle_core::{Device, Result, Tensor};

    #[test]
    fn sides_are_below_zero_where_corners_are_in_the_wrong_order() -> Result<()> {
        let boxes = [[0f32, 1., 2., 4.], [3., 0., 1., 0.], [0., 5., 1., 4.]];
        let found = sides(&Tensor::new(&boxes, &Device::Cpu)?)?.to_vec2::<f32>()?;
        assert_eq!(found, [[2., 3.], [-2., 0.], [1., -1.]]);
        Ok(())
    }
}
