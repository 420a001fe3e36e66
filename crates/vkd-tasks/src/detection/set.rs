//! The loss of detectors with queries: each object is matched to one query.

use super::{ImageSize, Objects, hungarian};
use candle_core::{DType, Result, Tensor, bail};
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
        let mut terms = Vec::new();
        for level in std::iter::once(levels - 1).chain(0..levels - 1) {
            let (end, factor) = match level + 1 == levels {
                true => (String::new(), 1.),
                false => (format!(".{level}"), self.auxiliary),
            };
            let (logits, boxes) = (predictions.logits.get(level)?, predictions.boxes.get(level)?);
            let values = self.level(&logits, &boxes, &wanted, count)?;
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
        self.matched(logits, boxes, &wanted(objects, sizes, classes)?)
    }

    fn matched(
        &self,
        logits: &Tensor,
        boxes: &Tensor,
        wanted: &[Vec<Wanted>],
    ) -> Result<Vec<Vec<(usize, usize)>>> {
        let wide = |x: &Tensor| x.detach().to_dtype(DType::F64)?.to_vec3::<f64>();
        let images = wide(logits)?.into_iter().zip(wide(boxes)?).zip(wanted).enumerate();
        images
            .map(|(image, ((logits, boxes), wanted))| {
                let odd = |row: &Vec<f64>| row.iter().any(|v| !v.is_finite());
                if let Some(query) = logits.iter().zip(&boxes).position(|(l, b)| odd(l) || odd(b)) {
                    bail!(
                        "set criterion: image {image}, query {query}: expected finite logits and boxes, got {:?} and {:?}",
                        logits[query],
                        boxes[query]
                    )
                }
                hungarian(&self.costs(&logits, &boxes, wanted), logits.len(), wanted.len())
            })
            .collect()
    }

    /// Costs of every query (row) and object (column) of one image.
    fn costs(&self, logits: &[Vec<f64>], boxes: &[Vec<f64>], wanted: &[Wanted]) -> Vec<f64> {
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
        let mut costs = Vec::with_capacity(logits.len() * wanted.len());
        for (logits, found) in logits.iter().zip(boxes) {
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

    /// Values of the three terms, over a number of `objects`.
    fn level(
        &self,
        logits: &Tensor,
        boxes: &Tensor,
        wanted: &[Vec<Wanted>],
        objects: f64,
    ) -> Result<[Tensor; 3]> {
        let (batch, queries, classes) = logits.dims3()?;
        let mut targets = vec![classes as u32; batch * queries];
        let (mut rows, mut centers) = (Vec::new(), Vec::new());
        for (image, pairs) in self.matched(logits, boxes, wanted)?.into_iter().enumerate() {
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
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use vkd_testkit::{Golden, Tolerance, assert_close, gradcheck, normal, to_f64, uniform};

    fn objects(classes: &[u32], centers: &[f64], size: ImageSize) -> Objects {
        let (w, h) = (size.width as f64, size.height as f64);
        let boxes = centers.chunks_exact(4).map(|c| {
            let [x0, y0, x1, y1] = corners([c[0], c[1], c[2], c[3]]);
            [x0 * w, y0 * h, x1 * w, y1 * h].map(|v| v as f32)
        });
        Objects { boxes: boxes.collect(), classes: classes.to_vec() }
    }

    struct Recorded {
        golden: Golden,
        predictions: QueryPredictions,
        objects: Vec<Objects>,
        sizes: Vec<ImageSize>,
    }

    fn recorded(dtype: DType) -> Result<Recorded> {
        let golden = Golden::open("detection")?;
        let (mut known, mut sizes) = (Vec::new(), Vec::new());
        for image in 0..2 {
            let size = golden.get("input.image_sizes")?.get(image)?.to_vec1::<f32>()?;
            let size = ImageSize { height: size[0] as usize, width: size[1] as usize };
            let of = |part: &str| golden.get(&format!("target.image{image}.{part}"));
            let classes = of("labels")?.to_dtype(DType::U32)?.to_vec1::<u32>()?;
            known.push(objects(&classes, &to_f64(&of("boxes")?)?, size));
            sizes.push(size);
        }
        let predictions = QueryPredictions {
            logits: golden.get("out.logits")?.to_dtype(dtype)?,
            boxes: golden.get("out.boxes")?.to_dtype(dtype)?,
        };
        Ok(Recorded { golden, predictions, objects: known, sizes })
    }

    /// Recorded numbers are rounded to f32 once, and so are our objects, in pixels.
    const ROUNDED: Tolerance = Tolerance { relative: 1e-6, absolute: 0. };

    #[test]
    fn costs_pairs_and_losses_are_vidts() -> Result<()> {
        for dtype in [DType::F64, DType::F32] {
            let Recorded { golden, predictions, objects, sizes } = recorded(dtype)?;
            let criterion = SetCriterion::default();
            let wanted = wanted(&objects, &sizes, 7)?;
            for level in 0..3 {
                let (logits, boxes) =
                    (predictions.logits.get(level)?, predictions.boxes.get(level)?);
                let pairs = criterion.pairs(&logits, &boxes, &objects, &sizes)?;
                let costs = golden.get(&format!("match.level{level}.cost"))?;
                for (image, (start, count)) in [(0, 3), (3, 2)].into_iter().enumerate() {
                    let wide = |x: &Tensor| x.get(image)?.to_dtype(DType::F64)?.to_vec2::<f64>();
                    let got = criterion.costs(&wide(&logits)?, &wide(&boxes)?, &wanted[image]);
                    let got = Tensor::from_vec(got, (8, count), &Device::Cpu)?;
                    let want = costs.get(image)?.narrow(1, start, count)?;
                    assert_close("costs", &got, &want, ROUNDED)?;
                    let side = |s: &str| -> Result<Vec<u32>> {
                        let key = format!("match.level{level}.image{image}.{s}");
                        golden.get(&key)?.to_dtype(DType::U32)?.to_vec1()
                    };
                    let want: Vec<(usize, usize)> = side("queries")?
                        .into_iter()
                        .zip(side("targets")?)
                        .map(|(q, t)| (q as usize, t as usize))
                        .collect();
                    assert_eq!(pairs[image], want, "level {level}, image {image}");
                }
            }
            let terms = criterion.terms(&predictions, &objects, &sizes)?;
            let names: Vec<&str> = terms.iter().map(|t| t.name.as_str()).collect();
            let all =
                ["class", "l1", "giou", "class.0", "l1.0", "giou.0", "class.1", "l1.1", "giou.1"];
            assert_eq!(names, all);
            let mut total = 0.;
            for term in &terms {
                let (name, end) = term.name.split_once('.').unwrap_or((&term.name, ""));
                let published = match name {
                    "class" => "loss_ce",
                    "l1" => "loss_bbox",
                    _ => "loss_giou",
                };
                let end = if end.is_empty() { String::new() } else { format!("_{end}") };
                let want = golden.get(&format!("loss.{published}{end}"))?;
                assert_close(&term.name, &term.value, &want, ROUNDED)?;
                total += term.weight * to_f64(&term.value)?[0];
            }
            // Plus four times the distillation, the whole loss of the published training step.
            let of = |key: &str| Ok::<_, candle_core::Error>(to_f64(&golden.get(key)?)?[0]);
            total += 4. * of("loss.loss_distil")?;
            let want = of("loss.total")?;
            assert!((total - want).abs() < 1e-6 * want, "{total} {want}");
        }
        Ok(())
    }

    #[test]
    fn auxiliary_terms_have_a_factor_of_their_own() -> Result<()> {
        let Recorded { predictions, objects, sizes, .. } = recorded(DType::F32)?;
        let criterion = SetCriterion { auxiliary: 0.5, ..SetCriterion::default() };
        let terms = criterion.terms(&predictions, &objects, &sizes)?;
        let weights: Vec<f64> = terms.iter().map(|term| term.weight).collect();
        assert_eq!(weights, [2., 5., 2., 1., 2.5, 1., 1., 2.5, 1.]);
        Ok(())
    }

    #[test]
    fn gradients_are_those_of_differences() -> Result<()> {
        let sizes = [ImageSize { height: 50, width: 80 }; 2];
        let known = [
            objects(&[0, 2], &[0.3, 0.3, 0.2, 0.4, 0.6, 0.7, 0.3, 0.2], sizes[0]),
            objects(&[1], &[0.5, 0.5, 0.9, 0.8], sizes[1]),
        ];
        let logits = normal(&[2, 2, 4, 3], DType::F64, 1)?;
        let boxes = uniform(&[2, 2, 4, 4], DType::F64, 2, 0.1, 0.9)?;
        let criterion = SetCriterion::default();
        let total = |x: &[Tensor]| {
            let predictions = QueryPredictions { logits: x[0].clone(), boxes: x[1].clone() };
            vkd_loss::weighted_sum(&criterion.terms(&predictions, &known, &sizes)?)
        };
        gradcheck(total, &[logits, boxes])
    }

    #[test]
    fn nothing_to_find_still_trains_the_classes() -> Result<()> {
        let (logits, boxes) = (
            Var::from_tensor(&normal(&[1, 1, 4, 3], DType::F32, 1)?)?,
            Var::from_tensor(&uniform(&[1, 1, 4, 4], DType::F32, 2, 0.1, 0.9)?)?,
        );
        let predictions = QueryPredictions {
            logits: logits.as_tensor().clone(),
            boxes: boxes.as_tensor().clone(),
        };
        let size = [ImageSize { height: 5, width: 5 }];
        let terms = SetCriterion::default().terms(&predictions, &[Objects::default()], &size)?;
        let grads = vkd_loss::weighted_sum(&terms)?.backward()?;
        assert!(to_f64(grads.get(&logits).unwrap())?.iter().all(|g| *g > 0.));
        assert!(to_f64(grads.get(&boxes).unwrap())?.iter().all(|g| *g == 0.));
        // More objects than queries: every query has one.
        let many = objects(&[0; 6], &[0.5, 0.5, 0.2, 0.2].repeat(6), size[0]);
        let terms = SetCriterion::default().terms(&predictions, &[many], &size)?;
        assert!(to_f64(&terms[1].value)?[0] > 0.);
        Ok(())
    }

    #[test]
    fn odd_input_is_named() -> Result<()> {
        let size = [ImageSize { height: 5, width: 5 }];
        let logits = normal(&[1, 1, 4, 3], DType::F32, 1)?;
        let boxes = uniform(&[1, 1, 4, 4], DType::F32, 2, 0.1, 0.9)?;
        let known = objects(&[2], &[0.5, 0.5, 0.2, 0.2], size[0]);
        let error = |logits: &Tensor, boxes: &Tensor, known: &[Objects], size: &[ImageSize]| {
            let predictions = QueryPredictions { logits: logits.clone(), boxes: boxes.clone() };
            SetCriterion::default().terms(&predictions, known, size).unwrap_err().to_string()
        };
        let one = std::slice::from_ref(&known);
        assert!(error(&logits, &logits, one, &size).contains("expected boxes [1, 1, 4, 4], got"));
        assert!(error(&logits, &boxes, &[], &[]).contains("of 0 images"));
        assert!(error(&logits, &boxes, one, &[]).contains("expected 1 image sizes, got 0"));
        let none = [ImageSize { height: 0, width: 5 }];
        assert!(error(&logits, &boxes, one, &none).contains("image 0: expected a size above 0"));
        let few = logits.narrow(3, 0, 2)?;
        assert!(
            error(&few, &boxes, one, &size)
                .contains("image 0: objects: box 0: expected a class below 2, got 2")
        );
        let short = [Objects { classes: vec![], ..known.clone() }];
        assert!(
            error(&logits, &boxes, &short, &size).contains("image 0: objects: expected 1 classes")
        );
        let nan = [Objects { boxes: vec![[f32::NAN, 0., 1., 1.]], ..known.clone() }];
        assert!(
            error(&logits, &boxes, &nan, &size).contains("image 0: objects: box 0: expected fin")
        );
        let large = (boxes.ones_like()? * f64::from(f32::MAX))?;
        assert_eq!(to_f64(&nothing(&large)?)?, [0.]);
        let e = error(&(&logits * f64::NAN)?, &boxes, one, &size);
        assert!(e.contains("image 0, query 0: expected finite logits and boxes"), "{e}");
        Ok(())
    }
}
