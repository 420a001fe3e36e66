//! COCO's average precision of boxes, as pycocotools computes it.

use super::coco_match::{Outcome, THRESHOLDS, match_image};
use candle_core::{Error, Result, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::Path;
use vkd_models::write_atomically;
use vkd_tasks::Detection;

/// Recalls at which the precision is read.
const RECALLS: usize = 101;

/// An annotated object.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    /// Its image.
    pub image_id: u64,
    /// Its class.
    pub category_id: u64,
    /// `[x, y, width, height]` in pixels.
    pub bbox: [f64; 4],
    /// Area in pixels, of the object rather than of its box: decides whether it is small, medium or large.
    pub area: f64,
    /// Many objects in one box: what is found there is neither right nor wrong.
    pub crowd: bool,
}

/// What is to be found in a set of images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroundTruth {
    /// Ids of all images, those without objects included.
    pub images: Vec<u64>,
    /// Ids of all classes.
    pub categories: Vec<u64>,
    /// The objects, in any order; of two that overlap a detection alike the later is taken, as pycocotools does.
    pub annotations: Vec<Annotation>,
}

/// A found object, one entry of COCO's results format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoredBox {
    /// Its image.
    pub image_id: u64,
    /// Its class.
    pub category_id: u64,
    /// `[x, y, width, height]` in pixels.
    pub bbox: [f64; 4],
    /// How sure the detector is; the larger the surer.
    pub score: f64,
}

impl ScoredBox {
    /// `detection` of an image as COCO writes it. Its class is an index of ours; `category_id` is what COCO calls it.
    pub fn new(image_id: u64, category_id: u64, detection: &Detection) -> Self {
        let [x0, y0, x1, y1] = detection.bbox.map(f64::from);
        let bbox = [x0, y0, x1 - x0, y1 - y0];
        Self { image_id, category_id, bbox, score: f64::from(detection.score) }
    }
}

/// The twelve figures of COCO's box task. `None` where there is nothing to find, which pycocotools writes as −1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AveragePrecision {
    /// Mean over the overlaps 0.50, 0.55, .., 0.95.
    pub ap: Option<f64>,
    /// At an overlap of 0.5.
    pub ap50: Option<f64>,
    /// At an overlap of 0.75.
    pub ap75: Option<f64>,
    /// Of objects of up to 32² pixels.
    pub ap_small: Option<f64>,
    /// Of objects from 32² to 96² pixels.
    pub ap_medium: Option<f64>,
    /// Of objects from 96² pixels.
    pub ap_large: Option<f64>,
    /// Share of objects found with one detection an image and class.
    pub ar1: Option<f64>,
    /// With ten.
    pub ar10: Option<f64>,
    /// With a hundred.
    pub ar100: Option<f64>,
    /// The same, of small objects.
    pub ar_small: Option<f64>,
    /// Of medium ones.
    pub ar_medium: Option<f64>,
    /// Of large ones.
    pub ar_large: Option<f64>,
    /// Each class by itself, by ascending id.
    pub categories: Vec<CategoryPrecision>,
}

/// Figures of one class over objects of all sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CategoryPrecision {
    /// The class.
    pub category_id: u64,
    /// Mean over the overlaps 0.50, 0.55, .., 0.95.
    pub ap: Option<f64>,
    /// At an overlap of 0.5.
    pub ap50: Option<f64>,
    /// Share of objects found with a hundred detections an image.
    pub ar100: Option<f64>,
}

impl AveragePrecision {
    /// The figures in the order of `COCOeval.stats`, −1 where there is none.
    pub fn stats(&self) -> [f64; 12] {
        let Self { ap, ap50, ap75, ap_small, ap_medium, ap_large, .. } = self;
        let Self { ar1, ar10, ar100, ar_small, ar_medium, ar_large, .. } = self;
        let precisions = [ap, ap50, ap75, ap_small, ap_medium, ap_large];
        let recalls = [ar1, ar10, ar100, ar_small, ar_medium, ar_large];
        let mut all = precisions.into_iter().chain(recalls);
        std::array::from_fn(|_| all.next().copied().flatten().unwrap_or(-1.))
    }
}

/// COCO's average precision and recall of `found`, in any order.
///
/// Follows `COCOeval` of pycocotools 2.0.11 digit by digit. What decides the digits: a class's detections in an image are taken by
/// score, ties in the order given, at most 100; each takes the free object that it overlaps most, if by at least the threshold,
/// and rather one that counts than one that doesn't; of equal ones the later. A crowd is overlapped by the share of the detection
/// within it, and can be taken many times. What takes an object that doesn't count (a crowd, or another size), or takes none and
/// is itself of another size, is neither right nor wrong. Precision is made falling and read at 101 recalls.
///
/// One difference: an annotation may have any id, where in pycocotools an object with the id 0 can't be found.
///
/// Classes and images are worked on in parallel; the result does not depend on the number of threads.
///
/// # Errors
/// An annotation whose image or class is not listed, a detection whose image is not listed (one of an unknown class is passed
/// over), a box that is not finite or has a negative side, an area that is not finite, or a score that is NaN; the entry is named.
///
/// # References
/// Lin et al., arXiv:1405.0312; pycocotools, `cocoeval.py`.
///
/// # Example
/// ```
/// use vkd_train::metrics::{Annotation, GroundTruth, ScoredBox, average_precision};
/// let bbox = [10., 10., 50., 40.];
/// let object = Annotation { image_id: 7, category_id: 1, bbox, area: 2000., crowd: false };
/// let truth = GroundTruth { images: vec![7], categories: vec![1], annotations: vec![object] };
/// let found = [
///     ScoredBox { image_id: 7, category_id: 1, bbox: [200., 10., 50., 40.], score: 0.9 },
///     ScoredBox { image_id: 7, category_id: 1, bbox, score: 0.8 },
/// ];
/// let scores = average_precision(&truth, &found)?;
/// assert_eq!((scores.ap50, scores.ar1, scores.ar10, scores.ap_small), (Some(0.5), Some(0.), Some(1.), None));
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn average_precision(truth: &GroundTruth, found: &[ScoredBox]) -> Result<AveragePrecision> {
    let ids = |ids: &[u64]| {
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        sorted
    };
    let (images, categories) = (ids(&truth.images), ids(&truth.categories));
    let objects = placed_objects(truth, &images, &categories)?;
    let detections = placed_detections(found, &images, &categories)?;
    let groups = groups(&objects, &detections);
    let matched: Vec<_> = groups
        .par_iter()
        .map(|group| {
            let objects =
                objects[group.objects.clone()].iter().map(|p| &truth.annotations[p.index]);
            let detections = detections[group.detections.clone()].iter().map(|p| &found[p.index]);
            match_image(objects.collect(), detections.collect())
        })
        .collect();
    let curves: Vec<Curves> = (0..categories.len())
        .into_par_iter()
        .map(|category| {
            let start = groups.partition_point(|g| g.category < category);
            let end = groups.partition_point(|g| g.category <= category);
            Curves::new(&matched[start..end])
        })
        .collect();
    Ok(summary(&categories, &curves))
}

/// Writes detections in COCO's results format: a JSON list that pycocotools' `loadRes` reads. Whole or not at all.
///
/// Without any detection it is the empty list, which `loadRes` can't read: it looks at the first entry.
///
/// # Errors
/// A box or score that is not finite (JSON has no such number), or a file that can't be written; with its path.
pub fn write_results(path: &Path, found: &[ScoredBox]) -> Result<()> {
    let odd = |b: &ScoredBox| !b.score.is_finite() || b.bbox.iter().any(|v| !v.is_finite());
    if let Some(at) = found.iter().position(odd) {
        bail!("{}: detection {at}: expected finite numbers, got {:?}", path.display(), found[at])
    }
    let text = serde_json::to_vec(found).map_err(Error::wrap)?;
    write_atomically(path, &text).map_err(|e| Error::Msg(format!("{}: {e}", path.display())))
}

/// An entry of a list at its place: class, then image, then its own order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Placed {
    category: usize,
    image: usize,
    index: usize,
}

fn check_box(what: &str, index: usize, bbox: &[f64; 4]) -> Result<()> {
    if !bbox.iter().all(|v| v.is_finite()) || bbox[2] < 0. || bbox[3] < 0. {
        bail!("{what} {index}: expected a finite box with sides of at least 0, got {bbox:?}")
    }
    Ok(())
}

fn placed_objects(truth: &GroundTruth, images: &[u64], categories: &[u64]) -> Result<Vec<Placed>> {
    let mut placed = Vec::with_capacity(truth.annotations.len());
    for (index, one) in truth.annotations.iter().enumerate() {
        check_box("annotation", index, &one.bbox)?;
        if !one.area.is_finite() {
            bail!("annotation {index}: expected a finite area, got {}", one.area)
        }
        let (image, category) =
            (images.binary_search(&one.image_id), categories.binary_search(&one.category_id));
        let (Ok(image), Ok(category)) = (image, category) else {
            bail!(
                "annotation {index}: expected a listed image and category, got {} and {}",
                one.image_id,
                one.category_id
            )
        };
        placed.push(Placed { category, image, index });
    }
    placed.par_sort_unstable();
    Ok(placed)
}

fn placed_detections(
    found: &[ScoredBox],
    images: &[u64],
    categories: &[u64],
) -> Result<Vec<Placed>> {
    let mut placed = Vec::with_capacity(found.len());
    for (index, one) in found.iter().enumerate() {
        check_box("detection", index, &one.bbox)?;
        if one.score.is_nan() {
            bail!("detection {index}: expected a score, got NaN")
        }
        let Ok(image) = images.binary_search(&one.image_id) else {
            bail!("detection {index}: expected a listed image, got {}", one.image_id)
        };
        if let Ok(category) = categories.binary_search(&one.category_id) {
            placed.push(Placed { category, image, index });
        }
    }
    placed.par_sort_unstable();
    Ok(placed)
}

/// One class in one image.
struct Group {
    category: usize,
    objects: std::ops::Range<usize>,
    detections: std::ops::Range<usize>,
}

/// All pairs of class and image with an object or a detection, in order.
fn groups(objects: &[Placed], detections: &[Placed]) -> Vec<Group> {
    let key = |p: &Placed| (p.category, p.image);
    let run = |list: &[Placed], start: usize, at| {
        start + list[start..].iter().take_while(|p| key(p) == at).count()
    };
    let (mut groups, mut object, mut detection) = (Vec::new(), 0, 0);
    loop {
        let next = objects.get(object).into_iter().chain(detections.get(detection)).map(key).min();
        let Some(at) = next else { return groups };
        let ends = (run(objects, object, at), run(detections, detection, at));
        groups.push(Group {
            category: at.0,
            objects: object..ends.0,
            detections: detection..ends.1,
        });
        (object, detection) = ends;
    }
}

/// Precision and recall of one class.
struct Curves {
    /// By size and threshold, the mean precision over the recalls; `None` without objects of that size.
    precision: [Option<[f64; THRESHOLDS]>; 4],
    /// By size and threshold, the last recall.
    recall: [Option<[f64; THRESHOLDS]>; 4],
    /// Over all sizes with one and with ten detections.
    recall_of_few: [Option<[f64; THRESHOLDS]>; 2],
}

impl Curves {
    fn new(images: &[(Vec<Outcome>, [usize; 4])]) -> Self {
        let mut all: Vec<&Outcome> = images.iter().flat_map(|(outcomes, _)| outcomes).collect();
        // Stable: of equal scores the lower image id first.
        all.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap_or(std::cmp::Ordering::Equal));
        let objects: [usize; 4] = std::array::from_fn(|a| images.iter().map(|(_, n)| n[a]).sum());
        let mut curves = Self { precision: [None; 4], recall: [None; 4], recall_of_few: [None; 2] };
        for area in (0..4).filter(|a| objects[*a] > 0) {
            let both: [(f64, f64); THRESHOLDS] = std::array::from_fn(|t| {
                let verdicts = all.iter().filter_map(|o| o.right(area, t));
                curve(verdicts, objects[area] as f64)
            });
            curves.precision[area] = Some(both.map(|(precision, _)| precision));
            curves.recall[area] = Some(both.map(|(_, recall)| recall));
        }
        if objects[0] > 0 {
            for (slot, few) in [1, 10].into_iter().enumerate() {
                curves.recall_of_few[slot] = Some(std::array::from_fn(|t| {
                    let right = |o: &&&Outcome| o.rank < few && o.right(0, t) == Some(true);
                    all.iter().filter(right).count() as f64 / objects[0] as f64
                }));
            }
        }
        curves
    }
}

/// Mean precision over the recalls, and the last recall, from hits and misses by falling score.
fn curve(hits: impl Iterator<Item = bool>, objects: f64) -> (f64, f64) {
    let (mut right, mut wrong) = (0., 0.);
    let (mut recalls, mut precisions) = (Vec::new(), Vec::new());
    for hit in hits {
        if hit {
            right += 1.;
        } else {
            wrong += 1.;
        }
        recalls.push(right / objects);
        precisions.push(right / (wrong + right + f64::EPSILON));
    }
    for i in (1..precisions.len()).rev() {
        if precisions[i] > precisions[i - 1] {
            precisions[i - 1] = precisions[i];
        }
    }
    let (mut sum, mut at) = (0., 0);
    for step in 0..RECALLS {
        let wanted = if step + 1 == RECALLS { 1. } else { step as f64 * 0.01 };
        while recalls.get(at).is_some_and(|r| *r < wanted) {
            at += 1;
        }
        sum += precisions.get(at).copied().unwrap_or(0.);
    }
    (sum / RECALLS as f64, recalls.last().copied().unwrap_or(0.))
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0., 0), |(sum, count), v| (sum + v, count + 1));
    if count > 0 { Some(sum / f64::from(count)) } else { None }
}

fn summary(categories: &[u64], curves: &[Curves]) -> AveragePrecision {
    type Values = Option<[f64; THRESHOLDS]>;
    let all = |of: &dyn Fn(&Curves) -> Values| mean(curves.iter().filter_map(of).flatten());
    let at = |t: usize| mean(curves.iter().filter_map(|c| c.precision[0].map(|p| p[t])));
    let precision = |area: usize| all(&|c: &Curves| c.precision[area]);
    let recall = |area: usize| all(&|c: &Curves| c.recall[area]);
    let few = |slot: usize| all(&|c: &Curves| c.recall_of_few[slot]);
    let one = |(id, c): (&u64, &Curves)| CategoryPrecision {
        category_id: *id,
        ap: c.precision[0].and_then(|p| mean(p.into_iter())),
        ap50: c.precision[0].map(|p| p[0]),
        ar100: c.recall[0].and_then(|r| mean(r.into_iter())),
    };
    AveragePrecision {
        ap: precision(0),
        ap50: at(0),
        ap75: at(5),
        ap_small: precision(1),
        ap_medium: precision(2),
        ap_large: precision(3),
        ar1: few(0),
        ar10: few(1),
        ar100: recall(0),
        ar_small: recall(1),
        ar_medium: recall(2),
        ar_large: recall(3),
        categories: categories.iter().zip(curves).map(one).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precision_is_read_from_the_right() {
        // Two of four objects: right, wrong, right. Precision falls to 2/3 from recall 1/4 on, and ends at 1/2.
        let (precision, recall) = curve([true, false, true].into_iter(), 4.);
        assert_eq!(recall, 0.5);
        // Recalls 0 to 0.25 are 26 of 101, those to 0.5 another 25.
        assert!((precision - (26. + 25. * 2. / 3.) / 101.).abs() < 1e-12, "{precision}");
        assert_eq!(curve(std::iter::empty(), 4.), (0., 0.));
    }
}
