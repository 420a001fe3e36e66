//! Geometry of boxes: two ways to write them, and how far two overlap.

use candle_core::{D, Result, Tensor, bail};

/// Centre and size `(cx, cy, w, h)` to corners `(x0, y0, x1, y1)`, over the last dimension, on the tape.
///
/// # Errors
/// A last dimension other than 4.
///
/// ```
/// # use candle_core::{Device, Tensor}; use vkd_loss::boxes::{cxcywh_to_xyxy, xyxy_to_cxcywh};
/// let boxes = Tensor::new(&[[2f32, 3., 2., 4.]], &Device::Cpu)?;
/// let corners = cxcywh_to_xyxy(&boxes)?;
/// assert_eq!(corners.to_vec2::<f32>()?, [[1., 1., 3., 5.]]);
/// assert_eq!(xyxy_to_cxcywh(&corners)?.to_vec2::<f32>()?, [[2., 3., 2., 4.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn cxcywh_to_xyxy(boxes: &Tensor) -> Result<Tensor> {
    let [center, size] = halves("cxcywh_to_xyxy", boxes)?;
    let half = (size * 0.5)?;
    Tensor::cat(&[&(&center - &half)?, &(&center + &half)?], D::Minus1)
}

/// Corners `(x0, y0, x1, y1)` to centre and size `(cx, cy, w, h)`: the inverse of [`cxcywh_to_xyxy`].
///
/// # Errors
/// A last dimension other than 4.
pub fn xyxy_to_cxcywh(boxes: &Tensor) -> Result<Tensor> {
    let [low, high] = halves("xyxy_to_cxcywh", boxes)?;
    Tensor::cat(&[&((&low + &high)? * 0.5)?, &(&high - &low)?], D::Minus1)
}

fn halves(op: &str, boxes: &Tensor) -> Result<[Tensor; 2]> {
    if boxes.dims().last() != Some(&4) {
        bail!("{op}: expected boxes (.., 4), got {:?}", boxes.dims())
    }
    Ok([boxes.narrow(D::Minus1, 0, 2)?, boxes.narrow(D::Minus1, 2, 2)?])
}

/// Intersection over union of two boxes given by their corners `[x0, y0, x1, y1]`, in [0, 1]; 0 where both are points.
///
/// ```
/// # use vkd_loss::boxes::iou;
/// assert_eq!(iou([0., 0., 2., 1.], [1., 0., 3., 1.]), 1. / 3.);
/// ```
pub fn iou(a: [f64; 4], b: [f64; 4]) -> f64 {
    let [intersection, union, _] = areas(a, b);
    share(intersection, union)
}

/// Generalised intersection over union, in [-1, 1]: the [`iou`] less the share of the smallest box around both that neither
/// covers (arXiv:1902.09630).
///
/// Two boxes whose hull has no area have no such share.
///
/// ```
/// # use vkd_loss::boxes::generalized_iou;
/// assert_eq!(generalized_iou([0., 0., 1., 1.], [0., 0., 1., 1.]), 1.);
/// assert_eq!(generalized_iou([0., 0., 1., 1.], [3., 0., 4., 1.]), -0.5);
/// ```
#[inline]
pub fn generalized_iou(a: [f64; 4], b: [f64; 4]) -> f64 {
    let [intersection, union, hull] = areas(a, b);
    // Below zero is rounding. NaN passes.
    let gap = if hull < union { 0. } else { hull - union };
    share(intersection, union) - share(gap, hull)
}

/// Areas of intersection, union and hull.
#[inline]
pub(crate) fn areas(a: [f64; 4], b: [f64; 4]) -> [f64; 3] {
    let area = |c: [f64; 4]| (c[2] - c[0]) * (c[3] - c[1]);
    let overlap = |k: usize| (a[k + 2].min(b[k + 2]) - a[k].max(b[k])).max(0.);
    let reach = |k: usize| a[k + 2].max(b[k + 2]) - a[k].min(b[k]);
    let intersection = overlap(0) * overlap(1);
    [intersection, area(a) + area(b) - intersection, reach(0) * reach(1)]
}

/// `part / whole`, 0 of nothing.
#[inline]
fn share(part: f64, whole: f64) -> f64 {
    if whole == 0. { 0. } else { part / whole }
}
