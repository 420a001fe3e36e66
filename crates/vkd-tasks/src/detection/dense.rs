//! The loss of dense, anchor-free detectors.

use super::Objects;
use super::locations::{LevelShape, assign, centerness, sides};
use super::set::nothing;
use candle_core::{D, DType, Result, Tensor, bail};
use vkd_loss::{FocalConfig, Reduction, Term, bce_with_logits, giou, sigmoid_focal};
use vkd_norm::Replicas;

/// What a dense detector predicts on one level of its pyramid; the location `(x, y)` of a map is the pixel
/// `((x + 0.5) · stride, (y + 0.5) · stride)`.
#[derive(Clone, Debug)]
pub struct DenseLevel {
    /// Class logits `(B, K, h, w)`, without one for the background.
    pub logits: Tensor,
    /// Distances `(B, 4, h, w)` of the location to the left, top, right and bottom side of its box, in pixels, at least 0.
    pub distances: Tensor,
    /// Logits `(B, 1, h, w)` of how near the location lies to the middle of its box.
    pub centerness: Tensor,
    /// Pixels from one location to the next.
    pub stride: usize,
}

impl DenseLevel {
    /// Checks that the three maps belong together.
    pub(super) fn shape(&self, images: usize, classes: usize) -> Result<LevelShape> {
        let (_, _, height, width) = self.logits.dims4()?;
        for (name, map, channels) in [
            ("logits", &self.logits, classes),
            ("distances", &self.distances, 4),
            ("centerness", &self.centerness, 1),
        ] {
            if map.dims() != [images, channels, height, width] {
                bail!(
                    "dense level of stride {}: expected {name} [{images}, {channels}, {height}, {width}], got {:?}",
                    self.stride,
                    map.dims()
                )
            }
        }
        Ok(LevelShape { stride: self.stride, height, width })
    }
}

/// Checks a pyramid: its shapes, finest level first, and its number of classes.
pub(super) fn shapes(levels: &[DenseLevel], images: usize) -> Result<(Vec<LevelShape>, usize)> {
    let classes = match levels.first() {
        Some(level) => level.logits.dim(1)?,
        None => bail!("dense detector: expected at least one level, got none"),
    };
    let shapes = levels.iter().map(|l| l.shape(images, classes)).collect::<Result<Vec<_>>>()?;
    let strides: Vec<usize> = shapes.iter().map(|s| s.stride).collect();
    if strides[0] == 0 || strides.windows(2).any(|w| w[0] >= w[1]) {
        bail!("dense detector: expected strides from fine to coarse, got {strides:?}")
    }
    Ok((shapes, classes))
}

/// Dense prediction as FCOS trains it (arXiv:1904.01355): every location may predict the box around it.
///
/// A location learns an object where it lies in the object's box and within `radius` strides of its middle, both ways, and where
/// the farthest side of the box is as far as its level's share: at least `reach` strides of the level before and at most
/// `reach` of its own (the first and last level take what is smaller and larger). With `reach` 8 and strides from 8 these are the
/// paper's 64, 128, 256 and 512 pixels. Of several objects the smallest is learnt.
///
/// The terms are `class`, [`sigmoid_focal`] over all locations divided by the number of those with an object (at least 1);
/// `giou`, the mean of [`giou`] over the latter, weighed by how near each lies to the middle, as the authors' later code does;
/// and `centerness`, the mean cross entropy with `sqrt(min(l, r) / max(l, r) · min(t, b) / max(t, b))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DenseCriterion {
    /// Of the class loss.
    pub focal: FocalConfig,
    /// Size of the largest objects of a level, in its strides; 8.
    pub reach: f64,
    /// Size of the middle of a box, in strides; 1.5.
    pub radius: f64,
}

impl Default for DenseCriterion {
    fn default() -> Self {
        Self { focal: FocalConfig::default(), reach: 8., radius: 1.5 }
    }
}

/// What the locations with an object learn.
#[derive(Default)]
struct Positives {
    /// Index into the locations of all images.
    rows: Vec<u32>,
    pixels: Vec<f32>,
    boxes: Vec<f32>,
    centerness: Vec<f32>,
}

impl DenseCriterion {
    /// The terms `class`, `giou` and `centerness`, each of weight 1; `objects` has one entry an image.
    ///
    /// A batch without any object has box terms of zero, still on the tape.
    ///
    /// # Errors
    /// No level, strides that don't grow, shapes that differ, objects that are none ([`Objects::check`], with their image), a `reach`
    /// or `radius` that isn't above 0, or predictions that are not finite.
    pub fn terms(&self, levels: &[DenseLevel], objects: &[Objects]) -> Result<Vec<Term>> {
        self.terms_among(levels, objects, None)
    }

    /// [`terms`](Self::terms) of a batch of which these images are one replica's part: what they are divided by counts the whole
    /// batch, so that their mean over replicas is the whole batch's.
    ///
    /// # Errors
    /// Those of [`terms`](Self::terms), and those of the way to the others.
    pub fn terms_among(
        &self,
        levels: &[DenseLevel],
        objects: &[Objects],
        replicas: Option<&Replicas>,
    ) -> Result<Vec<Term>> {
        let (shapes, classes) = shapes(levels, objects.len())?;
        for (name, value) in [("reach", self.reach), ("radius", self.radius)] {
            if !(value > 0. && value.is_finite()) {
                bail!("dense criterion: expected a finite {name} above 0, got {value}")
            }
        }
        let locations: usize = shapes.iter().map(|s| s.len()).sum();
        let (targets, positives) = self.targets(&shapes, objects, classes)?;
        let device = levels[0].logits.device();
        let targets = Tensor::from_vec(targets, (objects.len(), locations), device)?;
        let count = positives.rows.len();
        let total: f64 = positives.centerness.iter().map(|c| f64::from(*c)).sum();
        let (locations_found, total) = match replicas {
            None => (count.max(1) as f64, total),
            Some(all) => (all.divisor(count as f64, 1.)?, all.divisor(total, 0.)?),
        };

        let logits = rows(levels, |l| &l.logits)?;
        let class = sigmoid_focal(&logits, &targets, self.focal, Reduction::Sum)?;
        let dtype = class.dtype();
        let class = (class / locations_found)?;
        let distances = rows(levels, |l| &l.distances)?;
        let nearness = rows(levels, |l| &l.centerness)?;
        let (overlap, near) = if count == 0 {
            let none = |xs: &Tensor| nothing(xs)?.to_dtype(dtype);
            (none(&distances)?, none(&nearness)?)
        } else {
            let Positives { rows, pixels, boxes, centerness } = positives;
            let rows = Tensor::from_vec(rows, count, device)?;
            let pick = |xs: &Tensor, width: usize| {
                xs.reshape((objects.len() * locations, width))?
                    .index_select(&rows, 0)?
                    .to_dtype(dtype)
            };
            let fixed = |values, width: usize| {
                Tensor::from_vec(values, (count, width), device)?.to_dtype(dtype)
            };
            let signs = Tensor::new(&[-1f32, -1., 1., 1.], device)?.to_dtype(dtype)?;
            let found = (pick(&distances, 4)?.broadcast_mul(&signs)? + fixed(pixels, 4)?)?;
            let weights = fixed(centerness, 1)?;
            let entries = giou(&found, &fixed(boxes, 4)?, Reduction::None)?;
            // A location inside its box has some centerness: the total is above zero.
            let overlap = ((entries * weights.squeeze(D::Minus1)?)?.sum_all()? / total)?;
            let near = bce_with_logits(&pick(&nearness, 1)?, &weights, Reduction::Mean)?;
            let near = match replicas {
                None => near,
                Some(_) => (near * (count as f64 / locations_found))?,
            };
            (overlap, near)
        };
        let named = [("class", class), ("giou", overlap), ("centerness", near)];
        named.into_iter().map(|(name, value)| finite_term(name, value)).collect()
    }

    fn targets(
        &self,
        shapes: &[LevelShape],
        objects: &[Objects],
        classes: usize,
    ) -> Result<(Vec<u32>, Positives)> {
        let pixels: Vec<[f32; 2]> =
            shapes.iter().flat_map(|s| (0..s.len()).map(|at| s.pixel(at))).collect();
        let mut targets = vec![classes as u32; objects.len() * pixels.len()];
        let mut found = Positives::default();
        for (image, objects) in objects.iter().enumerate() {
            if let Err(e) = objects.check(classes) {
                bail!("dense criterion: image {image}: {e}")
            }
            let chosen = assign(shapes, objects, self.reach as f32, self.radius as f32);
            for (at, object) in chosen.into_iter().enumerate() {
                let Some(object) = object else { continue };
                let row = image * pixels.len() + at;
                let ([x, y], corners) = (pixels[at], objects.boxes[object]);
                targets[row] = objects.classes[object];
                found.rows.push(row as u32);
                found.pixels.extend([x, y, x, y]);
                found.boxes.extend(corners);
                found.centerness.push(centerness(sides([x, y], corners)));
            }
        }
        Ok((targets, found))
    }
}

/// The maps of all levels as rows `(B, N, channels)`.
fn rows(levels: &[DenseLevel], map: impl Fn(&DenseLevel) -> &Tensor) -> Result<Tensor> {
    let flat = levels.iter().map(|l| map(l).flatten_from(2)).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&flat, 2)?.transpose(1, 2)?.contiguous()
}

/// Single entries of a loss carry NaN on, so it is looked for here. On a device a term is a number that a training loop reads anyway.
fn finite_term(name: &str, value: Tensor) -> Result<Term> {
    if value.device().is_cpu() {
        let number = value.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        if !number.is_finite() {
            bail!("dense criterion: {name}: expected a finite loss, got {number}")
        }
    }
    Ok(Term { name: name.to_owned(), weight: 1., value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use vkd_testkit::{Tolerance, assert_close, gradcheck, normal, to_f64, uniform};

    fn level(maps: &[Tensor], stride: usize) -> DenseLevel {
        let [logits, distances, centerness] = std::array::from_fn(|i| maps[i].clone());
        DenseLevel { logits, distances, centerness, stride }
    }

    fn maps(images: usize, side: usize, dtype: DType, seed: u64) -> Result<Vec<Tensor>> {
        Ok(vec![
            normal(&[images, 3, side, side], dtype, seed)?,
            uniform(&[images, 4, side, side], dtype, seed + 1, 1., 20.)?,
            normal(&[images, 1, side, side], dtype, seed + 2)?,
        ])
    }

    fn known() -> [Objects; 2] {
        let first =
            Objects { boxes: vec![[3., 3., 17., 15.], [2., 1., 31., 30.]], classes: vec![2, 0] };
        [first, Objects { boxes: vec![[20., 18., 29., 30.]], classes: vec![1] }]
    }

    /// The loss again, location by location in plain numbers.
    #[test]
    fn every_location_counts_as_the_paper_says() -> Result<()> {
        let (fine, coarse) = (maps(2, 8, DType::F64, 1)?, maps(2, 4, DType::F64, 5)?);
        let levels = [level(&fine, 4), level(&coarse, 8)];
        let criterion = DenseCriterion { reach: 4., ..Default::default() };
        let known = known();
        let terms = criterion.terms(&levels, &known)?;
        let (mut class, mut overlap, mut near, mut weight, mut count) = (0., 0., 0., 0., 0.);
        let (shapes, _) = shapes(&levels, 2)?;
        for (image, objects) in known.iter().enumerate() {
            let chosen = assign(&shapes, objects, 4., 1.5);
            assert!(chosen.iter().flatten().count() > 3);
            let mut start = 0;
            for (level, shape) in levels.iter().zip(&shapes) {
                let entry = |map: &Tensor, channel: usize, at: usize| -> Result<f64> {
                    map.get(image)?.get(channel)?.flatten_all()?.get(at)?.to_scalar()
                };
                for at in 0..shape.len() {
                    let object = chosen[start + at];
                    for k in 0..3 {
                        let p = 1. / (1. + (-entry(&level.logits, k, at)?).exp());
                        class += if object.is_some_and(|o| objects.classes[o] as usize == k) {
                            -0.25 * (1. - p).powi(2) * p.ln()
                        } else {
                            -0.75 * p.powi(2) * (1. - p).ln()
                        };
                    }
                    let Some(object) = object else { continue };
                    let [x, y] = shape.pixel(at).map(f64::from);
                    let [x0, y0, x1, y1] = objects.boxes[object].map(f64::from);
                    let d: Vec<f64> =
                        (0..4).map(|k| entry(&level.distances, k, at)).collect::<Result<_>>()?;
                    let (l, t, r, b) = (x - x0, y - y0, x1 - x, y1 - y);
                    let middle = (l.min(r) / l.max(r) * t.min(b) / t.max(b)).sqrt();
                    let found = [x - d[0], y - d[1], x + d[2], y + d[3]];
                    let giou = vkd_loss::boxes::generalized_iou(found, [x0, y0, x1, y1]);
                    overlap += middle * (1. - giou);
                    let p = 1. / (1. + (-entry(&level.centerness, 0, at)?).exp());
                    near -= middle * p.ln() + (1. - middle) * (1. - p).ln();
                    weight += middle;
                    count += 1.;
                }
                start += shape.len();
            }
        }
        let want =
            [("class", class / count), ("giou", overlap / weight), ("centerness", near / count)];
        for (term, (name, want)) in terms.iter().zip(want) {
            assert_eq!((term.name.as_str(), term.weight), (name, 1.));
            let want = Tensor::new(want, &Device::Cpu)?;
            // Targets are f32 numbers.
            assert_close(name, &term.value, &want, Tolerance::relative(1e-6))?;
        }
        Ok(())
    }

    #[test]
    fn gradients_are_those_of_differences() -> Result<()> {
        let known = known();
        let total = |x: &[Tensor]| {
            let levels = [level(&x[..3], 4), level(&x[3..], 8)];
            let criterion = DenseCriterion { reach: 4., ..Default::default() };
            vkd_loss::weighted_sum(&criterion.terms(&levels, &known)?)
        };
        gradcheck(total, &[maps(2, 8, DType::F64, 1)?, maps(2, 4, DType::F64, 5)?].concat())
    }

    #[test]
    fn nothing_to_find_still_trains_the_classes() -> Result<()> {
        let vars =
            maps(1, 4, DType::F32, 1)?.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let terms =
            DenseCriterion::default().terms(&[level(&tensors, 8)], &[Objects::default()])?;
        let grads = vkd_loss::weighted_sum(&terms)?.backward()?;
        let grad = |i: usize| to_f64(grads.get(&vars[i]).unwrap());
        assert!(grad(0)?.iter().all(|g| *g > 0.));
        assert!(grad(1)?.iter().chain(&grad(2)?).all(|g| *g == 0.));
        Ok(())
    }

    #[test]
    fn odd_input_is_named() -> Result<()> {
        let maps = maps(2, 4, DType::F32, 1)?;
        let criterion = DenseCriterion::default();
        let error =
            |levels: &[DenseLevel]| criterion.terms(levels, &known()).unwrap_err().to_string();
        assert!(error(&[]).contains("expected at least one level, got none"));
        let e = error(&[level(&maps, 8), level(&maps, 8)]);
        assert!(e.contains("strides from fine to coarse, got [8, 8]"), "{e}");
        let mut odd = level(&maps, 8);
        odd.centerness = odd.distances.clone();
        assert!(
            error(&[odd]).contains("stride 8: expected centerness [2, 1, 4, 4], got [2, 4, 4, 4]")
        );
        let mut nan = level(&maps, 8);
        nan.distances = (&maps[1] * f64::NAN)?;
        assert!(error(&[nan]).contains("giou: expected a finite loss, got NaN"));
        let few = [maps[0].narrow(1, 0, 2)?, maps[1].clone(), maps[2].clone()];
        assert!(
            error(&[level(&few, 8)]).contains("image 0: objects: box 0: expected a class below 2")
        );
        let refused = |odd: Objects| {
            let objects = [known()[0].clone(), odd];
            criterion.terms(&[level(&maps, 8)], &objects).unwrap_err().to_string()
        };
        let [_, good] = known();
        let short = refused(Objects { classes: vec![], ..good.clone() });
        assert!(
            short.contains("image 1: objects: expected 1 classes, one a box, got 0"),
            "{short}"
        );
        let nan = refused(Objects { boxes: vec![[f32::NAN, 0., 1., 1.]], ..good });
        assert!(nan.contains("image 1: objects: box 0: expected finite corners"), "{nan}");
        let none = DenseCriterion { radius: 0., ..criterion };
        let e = none.terms(&[level(&maps, 8)], &known()).unwrap_err().to_string();
        assert!(e.contains("expected a finite radius above 0, got 0"), "{e}");
        Ok(())
    }
}
