//! From predictions to detections.

use super::dense::shapes;
use super::{DenseLevel, ImageSize, QueryPredictions};
use candle_core::{DType, Result, Tensor, bail};
use vkd_loss::boxes::iou;

/// One found object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    /// Corners `[x0, y0, x1, y1]` in pixels.
    pub bbox: [f32; 4],
    /// Its class.
    pub class: u32,
    /// How sure the detector is, in [0, 1].
    pub score: f32,
}

/// What of a dense detector's predictions is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DenseDecoding {
    /// Classes less probable than this are no detection; 0.05.
    pub threshold: f32,
    /// Detections that a level hands on; 1000.
    pub per_level: usize,
    /// A box that overlaps a surer one of its class by more than this goes; 0.6.
    pub overlap: f64,
    /// Detections of an image; 100.
    pub most: usize,
}

impl Default for DenseDecoding {
    /// FCOS's numbers.
    fn default() -> Self {
        Self { threshold: 0.05, per_level: 1000, overlap: 0.6, most: 100 }
    }
}

/// Detections of every image, the surest first, from a dense detector's pyramid (FCOS, arXiv:1904.01355).
///
/// A location counts for a class with the geometric mean of the class's probability and its centerness. Boxes are clipped to
/// the image and those left without area go, then [`suppress`] takes what is found twice.
///
/// # Errors
/// Shapes that differ, strides that don't grow, or predictions that are not finite.
pub fn decode_dense(
    levels: &[DenseLevel],
    sizes: &[ImageSize],
    config: DenseDecoding,
) -> Result<Vec<Vec<Detection>>> {
    let (shapes, classes) = shapes(levels, sizes.len())?;
    let mut images: Vec<Vec<Detection>> = vec![Vec::new(); sizes.len()];
    for (level, shape) in levels.iter().zip(shapes) {
        let values = |name: &str, map: &Tensor| {
            finite(&format!("dense detector: {name} of stride {}", shape.stride), map)
        };
        let logits = values("logits", &level.logits)?;
        let distances = values("distances", &level.distances)?;
        let centers = values("centerness", &level.centerness)?;
        let n = shape.len();
        for (image, size) in sizes.iter().enumerate() {
            let mut found = Vec::new();
            for class in 0..classes {
                for at in 0..n {
                    let p = sigmoid(logits[(image * classes + class) * n + at]);
                    if p > config.threshold {
                        let score = (p * sigmoid(centers[image * n + at])).sqrt();
                        let side = |k: usize| distances[(image * 4 + k) * n + at];
                        let [x, y] = shape.pixel(at);
                        let bbox = [x - side(0), y - side(1), x + side(2), y + side(3)];
                        found.push(Detection {
                            bbox: clip(bbox, *size),
                            class: class as u32,
                            score,
                        });
                    }
                }
            }
            found.retain(|d| d.bbox[2] > d.bbox[0] && d.bbox[3] > d.bbox[1]);
            images[image].extend(surest(found, config.per_level));
        }
    }
    let kept = images.into_iter().map(|found| surest(suppress(found, config.overlap), config.most));
    Ok(kept.collect())
}

/// Detections of every image, the surest first, from the last level of a detector with queries: the `most` largest
/// probabilities over queries and classes, 100 in DETR's descendants. A query may count for several classes; nothing is
/// suppressed. Boxes are in pixels of `sizes`, not clipped.
///
/// # Errors
/// Shapes that differ, or predictions that are not finite.
pub fn decode_queries(
    predictions: &QueryPredictions,
    sizes: &[ImageSize],
    most: usize,
) -> Result<Vec<Vec<Detection>>> {
    let (levels, _, queries, classes) = predictions.dims(sizes.len())?;
    let logits = finite("query predictions: logits", &predictions.logits.get(levels - 1)?)?;
    let boxes = finite("query predictions: boxes", &predictions.boxes.get(levels - 1)?)?;
    let image = |(image, size): (usize, &ImageSize)| {
        let (w, h) = (size.width as f32, size.height as f32);
        let one = |at: usize| {
            let row = image * queries + at / classes;
            let [cx, cy, bw, bh]: [f32; 4] = std::array::from_fn(|i| boxes[row * 4 + i]);
            Detection {
                bbox: [
                    (cx - bw / 2.) * w,
                    (cy - bh / 2.) * h,
                    (cx + bw / 2.) * w,
                    (cy + bh / 2.) * h,
                ],
                class: (at % classes) as u32,
                score: sigmoid(logits[row * classes + at % classes]),
            }
        };
        surest((0..queries * classes).map(one).collect(), most)
    };
    Ok(sizes.iter().enumerate().map(image).collect())
}

/// Non-maximum suppression within each class: the surest first, without those that overlap a kept one by more than `overlap`.
///
/// ```
/// use vkd_tasks::{Detection, suppress};
/// let of = |x: f32, class, score| Detection { bbox: [x, 0., x + 10., 10.], class, score };
/// let kept = suppress(vec![of(0., 1, 0.5), of(1., 1, 0.9), of(0., 2, 0.4), of(8., 1, 0.3)], 0.6);
/// assert_eq!(kept, [of(1., 1, 0.9), of(0., 2, 0.4), of(8., 1, 0.3)]);
/// ```
pub fn suppress(found: Vec<Detection>, overlap: f64) -> Vec<Detection> {
    let count = found.len();
    let mut kept: Vec<Detection> = Vec::new();
    for one in surest(found, count) {
        let corners = |d: &Detection| d.bbox.map(f64::from);
        let again =
            |d: &Detection| d.class == one.class && iou(corners(d), corners(&one)) > overlap;
        if !kept.iter().any(again) {
            kept.push(one);
        }
    }
    kept
}

/// The `most` of highest score, in order; of equal ones the earlier.
fn surest(mut found: Vec<Detection>, most: usize) -> Vec<Detection> {
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    found.truncate(most);
    found
}

fn sigmoid(logit: f32) -> f32 {
    1. / (1. + (-logit).exp())
}

fn clip([x0, y0, x1, y1]: [f32; 4], size: ImageSize) -> [f32; 4] {
    let (w, h) = (size.width as f32, size.height as f32);
    [x0.clamp(0., w), y0.clamp(0., h), x1.clamp(0., w), y1.clamp(0., h)]
}

/// Values on the host, where detections are made: not part of a training's step.
fn finite(what: &str, xs: &Tensor) -> Result<Vec<f32>> {
    let values = xs.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    match values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        Some((at, odd)) => bail!("{what}: entry {at}: expected finite predictions, got {odd}"),
        None => Ok(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detection::locations::sides;
    use crate::{DenseCriterion, Objects, SetCriterion};
    use candle_core::Device;

    const SIZE: ImageSize = ImageSize { height: 32, width: 32 };

    /// Maps of a detector that is sure of two boxes, each at the location nearest to its middle.
    fn pyramid(boxes: &[([f32; 4], usize)]) -> Result<Vec<DenseLevel>> {
        [(4, 8), (8, 4)]
            .into_iter()
            .enumerate()
            .map(|(level, (stride, side))| {
                let n = side * side;
                let mut logits = vec![-20f32; 3 * n];
                let (mut distances, mut centers) = (vec![1f32; 4 * n], vec![-20f32; n]);
                for (bbox, class) in boxes.iter().skip(level).step_by(2) {
                    let middle = |k: usize| (bbox[k] + bbox[k + 2]) / 2.;
                    let index = |k: usize| (middle(k) / stride as f32 - 0.5).round() as usize;
                    let at = index(1) * side + index(0);
                    let pixel = [index(0), index(1)].map(|i| (i as f32 + 0.5) * stride as f32);
                    logits[class * n + at] = 20.;
                    centers[at] = 20.;
                    for (k, d) in sides(pixel, *bbox).into_iter().enumerate() {
                        distances[k * n + at] = d;
                    }
                }
                let map = |values, channels| {
                    Tensor::from_vec(values, (1, channels, side, side), &Device::Cpu)
                };
                let (logits, distances) = (map(logits, 3)?, map(distances, 4)?);
                Ok(DenseLevel { logits, distances, centerness: map(centers, 1)?, stride })
            })
            .collect()
    }

    #[test]
    fn a_sure_dense_detector_finds_its_boxes_and_has_no_loss() -> Result<()> {
        // The middle of the first is a location itself.
        let boxes = [([5., 6., 15., 14.], 2), ([10., 8., 30., 31.], 0)];
        let levels = pyramid(&boxes)?;
        let found = decode_dense(&levels, &[SIZE], DenseDecoding::default())?.remove(0);
        assert_eq!(found.len(), 2);
        for (bbox, class) in boxes {
            let one = found.iter().find(|d| d.class as usize == class).unwrap();
            assert!(one.bbox.iter().zip(bbox).all(|(a, b)| (a - b).abs() < 1e-5), "{one:?}");
            assert!(one.score > 0.999);
        }
        let objects = Objects { boxes: vec![boxes[0].0], classes: vec![2] };
        let nearest = DenseCriterion { radius: 0.3, ..Default::default() };
        let terms = nearest.terms(&levels[..1], &[objects])?;
        for term in terms {
            assert!(term.value.to_scalar::<f32>()? < 1e-6, "{}", term.name);
        }
        Ok(())
    }

    #[test]
    fn boxes_are_clipped_and_thresholds_hold() -> Result<()> {
        let levels = pyramid(&[([-3., -2., 12., 13.], 1)])?;
        let one = decode_dense(&levels, &[SIZE], DenseDecoding::default())?.remove(0);
        assert_eq!((one.len(), one[0].class), (1, 1));
        assert_eq!(one[0].bbox[..2], [0., 0.]);
        let all = DenseDecoding { threshold: 0., overlap: 1., ..Default::default() };
        assert_eq!(decode_dense(&levels, &[SIZE], all)?[0].len(), 100);
        let few = DenseDecoding { per_level: 3, ..all };
        assert_eq!(decode_dense(&levels, &[SIZE], few)?[0].len(), 6);
        let sure = DenseDecoding { threshold: 1., ..all };
        assert!(decode_dense(&levels, &[SIZE], sure)?[0].is_empty());
        let mut broken = levels.clone();
        broken[0].logits = (&broken[0].logits * f64::NAN)?;
        let e = decode_dense(&broken, &[SIZE], all).unwrap_err().to_string();
        let wanted =
            "dense detector: logits of stride 4: entry 0: expected finite predictions, got NaN";
        assert!(e.contains(wanted), "{e}");
        assert!(decode_dense(&levels, &[SIZE; 2], all).is_err());
        Ok(())
    }

    #[test]
    fn queries_come_by_score_in_pixels() -> Result<()> {
        let logits = Tensor::new(
            &[[[[9f32, -9., -9.], [-9., 1., 3.]]], [[[-2., 0., -3.], [1., -5., 2.]]]],
            &Device::Cpu,
        )?;
        let boxes = Tensor::new(
            &[[[[0.9f32; 4], [0.9; 4]]], [[[0.5, 0.5, 0.5, 1.], [0.25, 0.5, 0.5, 0.5]]]],
            &Device::Cpu,
        )?;
        let predictions = QueryPredictions { logits, boxes };
        let size = ImageSize { height: 20, width: 40 };
        let found = decode_queries(&predictions, &[size], 3)?.remove(0);
        let classes: Vec<u32> = found.iter().map(|d| d.class).collect();
        assert_eq!(classes, [2, 0, 1]);
        assert_eq!(found[0].bbox, [0., 5., 20., 15.]);
        assert_eq!(found[2].bbox, [10., 0., 30., 20.]);
        assert!((found[2].score - 0.5).abs() < 1e-7);
        assert_eq!(decode_queries(&predictions, &[size], 100)?[0].len(), 6);
        assert!(decode_queries(&predictions, &[size; 2], 100).is_err());
        // What is decoded is what the criterion compares: a box that is found costs nothing.
        let objects = Objects { boxes: vec![found[0].bbox], classes: vec![2] };
        let terms = SetCriterion::default().terms(&predictions, &[objects], &[size])?;
        assert!(
            terms[1].value.to_scalar::<f32>()? < 1e-6 && terms[2].value.to_scalar::<f32>()? < 1e-6
        );
        Ok(())
    }
}
