//! The loss of detectors with queries: each object is matched to one query.

use super::{ImageSize, Objects, hungarian};
use candle_core::{D, DType, Device, Result, Tensor, bail};
use vkd_loss::boxes::{cxcywh_to_xyxy, generalized_iou};
use vkd_loss::{FocalConfig, Reduction, Term, giou, l1, sigmoid_focal};
use vkd_norm::Replicas;

/// What a detector with queries predicts, after each of L decoder levels; the last is the one that counts.
#[derive(Clone, Debug)]
pub struct QueryPredictions {
    /// Class logits `(L, B, Q, K)`, without one for the background.
    pub logits: Tensor,
    /// Boxes `(L, B, Q, 4)` as `(cx, cy, w, h)`, each in [0, 1] of the image without its padding.
    pub boxes: Tensor,
}

impl QueryPredictions {
    /// The four sizes L, B, Q and K.
    ///
    /// # Errors
    /// Shapes that don't belong together, or no level.
    pub(crate) fn dims(&self, images: usize) -> Result<(usize, usize, usize, usize)> {
        let (levels, batch, queries, classes) = self.logits.dims4()?;
        if self.boxes.dims() != [levels, batch, queries, 4] {
            bail!(
                "query predictions: expected boxes [{levels}, {batch}, {queries}, 4], got {:?}",
                self.boxes.dims()
            )
        }
        if levels == 0 || batch != images {
            bail!(
                "query predictions: expected at least one level of {images} images, got logits {:?}",
                self.logits.dims()
            )
        }
        Ok((levels, batch, queries, classes))
    }
}

/// Factors of the three parts of a matching cost or a loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SetWeights {
    /// Of the classes; 2.
    pub class: f64,
    /// Of the L1 distance of `(cx, cy, w, h)`; 5.
    pub l1: f64,
    /// Of the generalised intersection over union; 2.
    pub giou: f64,
}

impl Default for SetWeights {
    fn default() -> Self {
        Self { class: 2., l1: 5., giou: 2. }
    }
}

/// Set prediction (DETR, arXiv:2005.12872) with the focal loss, as Deformable DETR and ViDT (arXiv:2110.03921) train.
///
/// Every level is matched by itself: with `p` the class's probability, a query costs an object
/// ```text
/// class · (pos(p) − neg(p)) + l1 · |box − box'|₁ − giou · GIoU,
/// pos(p) = α (1 − p)^γ · −ln(p + 1e-8),   neg(p) = (1 − α) p^γ · −ln(1 − p + 1e-8)
/// ```
/// and [`hungarian`] finds the cheapest pairs. The loss has three terms a level: [`sigmoid_focal`] over all queries, [`l1`] and
/// [`giou`] over the pairs, each a sum divided by the number of objects in the batch, at least 1. With more objects than queries
/// the dearest stay without one.
///
/// The matching is the host's work, so that each call on a device waits for one copy of all levels' logits and boxes.
///
/// The defaults are those of ViDT, which the published V_kD code keeps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SetCriterion {
    /// Of the class loss and the class cost.
    pub focal: FocalConfig,
    /// Factors of the cost.
    pub costs: SetWeights,
    /// Factors of the terms.
    pub weights: SetWeights,
    /// One more factor of the terms of all levels but the last; 1.
    pub auxiliary: f64,
}

impl Default for SetCriterion {
    fn default() -> Self {
        let (costs, weights) = (SetWeights::default(), SetWeights::default());
        Self { focal: FocalConfig::default(), costs, weights, auxiliary: 1. }
    }
}

/// One object as the matcher sees it.
struct Wanted {
    class: u32,
    /// `(cx, cy, w, h)` in [0, 1].
    center: [f64; 4],
}

impl SetCriterion {
    /// The terms `class`, `l1` and `giou` of the last level, then those of the others as `class.0`, `l1.0`, ...
    ///
    /// `objects` and `sizes` have one entry an image; a size is that of the image without padding, in the pixels of its objects.
    /// A batch without any object has box terms of zero, still on the tape.
    ///
    /// # Errors
    /// Counts or shapes that differ, objects that are none ([`Objects::check`]), a size of zero, or predictions that are not finite;
    /// the image and the query are named.
    pub fn terms(
        &self,
        predictions: &QueryPredictions,
        objects: &[Objects],
        sizes: &[ImageSize],
    ) -> Result<Vec<Term>> {
        self.terms_among(predictions, objects, sizes, None)
    }

    /// [`terms`](Self::terms) of a batch of which these images are one replica's part: the objects that they are divided by are the
    /// whole batch's, so that their mean over replicas is the whole batch's.
    ///
    /// # Errors
    /// Those of [`terms`](Self::terms), and those of the way to the others.
    pub fn terms_among(
        &self,
        predictions: &QueryPredictions,
        objects: &[Objects],
        sizes: &[ImageSize],
        replicas: Option<&Replicas>,
    ) -> Result<Vec<Term>> {
        let (levels, _, _, classes) = predictions.dims(objects.len())?;
        let wanted = wanted(objects, sizes, classes)?;
        let count = wanted.iter().map(Vec::len).sum::<usize>() as f64;
        let count = match replicas {
            None => count.max(1.),
            Some(replicas) => replicas.divisor(count, 1.)?,
        };
        let seen = seen(&predictions.logits, &predictions.boxes)?;
        let mut terms = Vec::new();
        for level in std::iter::once(levels - 1).chain(0..levels - 1) {
            let (end, factor) = match level + 1 == levels {
                true => (String::new(), 1.),
                false => (format!(".{level}"), self.auxiliary),
            };
            let (logits, boxes) = (predictions.logits.get(level)?, predictions.boxes.get(level)?);
            let pairs = self.matched(&seen.get(level)?, &wanted)?;
            let values = self.level(&logits, &boxes, &wanted, pairs, count)?;
            let weights = [self.weights.class, self.weights.l1, self.weights.giou];
            for ((name, weight), value) in
                ["class", "l1", "giou"].into_iter().zip(weights).zip(values)
            {
                let weight = factor * weight;
                terms.push(Term { name: format!("{name}{end}"), weight, value });
            }
        }
        Ok(terms)
    }

    /// Pairs `(query, object)` of every image for one level: logits `(B, Q, K)`, boxes `(B, Q, 4)`.
    ///
    /// # Errors
    /// Those of [`terms`](Self::terms).
    pub fn pairs(
        &self,
        logits: &Tensor,
        boxes: &Tensor,
        objects: &[Objects],
        sizes: &[ImageSize],
    ) -> Result<Vec<Vec<(usize, usize)>>> {
        let stacked = QueryPredictions { logits: logits.unsqueeze(0)?, boxes: boxes.unsqueeze(0)? };
        let (.., classes) = stacked.dims(objects.len())?;
        self.matched(&seen(logits, boxes)?, &wanted(objects, sizes, classes)?)
    }

    /// [`pairs`](Self::pairs) of what was [`seen`] of one level.
    fn matched(&self, seen: &Tensor, wanted: &[Vec<Wanted>]) -> Result<Vec<Vec<(usize, usize)>>> {
        let images = seen.to_vec3::<f64>()?.into_iter().zip(wanted).enumerate();
        images
            .map(|(image, (queries, wanted))| {
                let odd = |row: &Vec<f64>| row.iter().any(|v| !v.is_finite());
                if let Some(query) = queries.iter().position(odd) {
                    let (logits, found) = parts(&queries[query]);
                    bail!(
                        "set criterion: image {image}, query {query}: expected finite logits and boxes, got {logits:?} and {found:?}"
                    )
                }
                hungarian(&self.costs(&queries, wanted), queries.len(), wanted.len())
            })
            .collect()
    }

    /// Costs of every query (row) and object (column) of one image.
    fn costs(&self, queries: &[Vec<f64>], wanted: &[Wanted]) -> Vec<f64> {
        let FocalConfig { alpha, gamma } = self.focal;
        // The usual power without a call for a general one.
        let power = |p: f64| if gamma == 2. { p * p } else { p.powf(gamma) };
        // ln(1 + u) for the guard's share of a probability: nearly always too small to need a logarithm.
        let guard = |u: f64| if u < 1e-5 { u * (1. - 0.5 * u) } else { u.ln_1p() };
        let class = |logit: f64| {
            let e = (-logit).exp();
            let p = 1. / (1. + e);
            // -ln(p + 1e-8) and -ln(1 - p + 1e-8) by one logarithm: p is 1 / (1 + e), its rest e / (1 + e).
            let (near, far) = match e.is_normal() && e < 1e300 {
                true => {
                    let log = (1. + e).ln();
                    let share = 1e-8 * (1. + e);
                    (log - guard(share), log + logit - guard(share / e))
                }
                false => (-(p + 1e-8).ln(), -(1. - p + 1e-8).ln()),
            };
            alpha * power(1. - p) * near - (1. - alpha) * power(p) * far
        };
        let placed: Vec<[f64; 4]> = wanted.iter().map(|object| corners(object.center)).collect();
        // Of each class once: objects of the same class share it.
        let mut classes: Vec<u32> = wanted.iter().map(|object| object.class).collect();
        classes.sort_unstable();
        classes.dedup();
        let which: Vec<usize> = wanted
            .iter()
            .map(|object| classes.partition_point(|class| *class < object.class))
            .collect();
        let mut of_classes = vec![0.; classes.len()];
        let mut costs = Vec::with_capacity(queries.len() * wanted.len());
        for query in queries {
            let (logits, found) = parts(query);
            for (cost, index) in of_classes.iter_mut().zip(&classes) {
                *cost = self.costs.class * class(logits[*index as usize]);
            }
            let found: [f64; 4] = std::array::from_fn(|i| found[i]);
            let around = corners(found);
            let objects = wanted.iter().zip(&placed).zip(&which);
            costs.extend(objects.map(|((Wanted { center, .. }, placed), which)| {
                let distance: f64 = found.iter().zip(center).map(|(a, b)| (a - b).abs()).sum();
                of_classes[*which] + self.costs.l1 * distance
                    - self.costs.giou * generalized_iou(around, *placed)
            }));
        }
        costs
    }

    /// Values of the three terms of matched `pairs`, over a number of `objects`.
    fn level(
        &self,
        logits: &Tensor,
        boxes: &Tensor,
        wanted: &[Vec<Wanted>],
        pairs: Vec<Vec<(usize, usize)>>,
        objects: f64,
    ) -> Result<[Tensor; 3]> {
        let (batch, queries, classes) = logits.dims3()?;
        let mut targets = vec![classes as u32; batch * queries];
        let (mut rows, mut centers) = (Vec::new(), Vec::new());
        for (image, pairs) in pairs.into_iter().enumerate() {
            for (query, object) in pairs {
                let Wanted { class, center } = wanted[image][object];
                let row = image * queries + query;
                targets[row] = class;
                rows.push(row as u32);
                centers.extend(center);
            }
        }
        let device = logits.device();
        let targets = Tensor::from_vec(targets, (batch, queries), device)?;
        let class = (sigmoid_focal(logits, &targets, self.focal, Reduction::Sum)? / objects)?;
        if rows.is_empty() {
            let none = nothing(boxes)?.to_dtype(class.dtype())?;
            return Ok([class, none.clone(), none]);
        }
        let dtype = class.dtype();
        let count = rows.len();
        let rows = Tensor::from_vec(rows, count, device)?;
        let found = boxes.reshape((batch * queries, 4))?.index_select(&rows, 0)?.to_dtype(dtype)?;
        let centers = Tensor::from_vec(centers, (count, 4), device)?.to_dtype(dtype)?;
        let distance = l1(&found, &centers, Reduction::Sum)?;
        let overlap = giou(&cxcywh_to_xyxy(&found)?, &cxcywh_to_xyxy(&centers)?, Reduction::Sum)?;
        Ok([class, (distance / objects)?, (overlap / objects)?])
    }
}

/// Zero on the tape of finite `xs`. A factor 0 of a number would be off it: candle leaves such branches out.
///
/// The product comes first: a sum may be too large for the dtype, and infinity times zero is NaN, as it is for an entry that is
/// not finite itself.
pub(super) fn nothing(xs: &Tensor) -> Result<Tensor> {
    (xs * xs.zeros_like()?)?.sum_all()
}

/// Logits `(.., Q, K)` and boxes `(.., Q, 4)` as one f64 tensor `(.., Q, K + 4)` on the CPU: from a device in one copy, in their own
/// dtype.
fn seen(logits: &Tensor, boxes: &Tensor) -> Result<Tensor> {
    let (logits, boxes) = (logits.detach(), boxes.detach());
    let both = match logits.dtype() == boxes.dtype() {
        true => Tensor::cat(&[&logits, &boxes], D::Minus1)?,
        false => {
            Tensor::cat(&[logits.to_dtype(DType::F64)?, boxes.to_dtype(DType::F64)?], D::Minus1)?
        }
    };
    both.to_device(&Device::Cpu)?.to_dtype(DType::F64)
}

/// Logits and box of one query.
fn parts(query: &[f64]) -> (&[f64], &[f64]) {
    query.split_at(query.len().saturating_sub(4))
}

fn corners([cx, cy, w, h]: [f64; 4]) -> [f64; 4] {
    [cx - w / 2., cy - h / 2., cx + w / 2., cy + h / 2.]
}

/// The objects of every image, relative to its size.
fn wanted(objects: &[Objects], sizes: &[ImageSize], classes: usize) -> Result<Vec<Vec<Wanted>>> {
    if objects.len() != sizes.len() {
        bail!("set criterion: expected {} image sizes, got {}", objects.len(), sizes.len())
    }
    let images = objects.iter().zip(sizes).enumerate();
    images
        .map(|(image, (objects, size))| {
            if let Err(e) = objects.check(classes) {
                bail!("set criterion: image {image}: {e}")
            }
            if size.width == 0 || size.height == 0 {
                bail!("set criterion: image {image}: expected a size above 0, got {size:?}")
            }
            let (w, h) = (size.width as f64, size.height as f64);
            let one = |(corners, class): (&[f32; 4], &u32)| {
                let [x0, y0, x1, y1] = corners.map(f64::from);
                let center = [(x0 + x1) / 2. / w, (y0 + y1) / 2. / h, (x1 - x0) / w, (y1 - y0) / h];
                Wanted { class: *class, center }
            };
            Ok(objects.boxes.iter().zip(&objects.classes).map(one).collect())
        })
        .collect()
}

#[cfg(test)]
mod tests;
