//! Which detections of one class in one image are right, as pycocotools decides.

use super::average_precision::{Annotation, ScoredBox};

/// Overlaps from 0.5 to 0.95.
pub(super) const THRESHOLDS: usize = 10;
/// Detections that count for a class in an image.
pub(super) const MOST: usize = 100;
/// Areas, both ends included: all, small, medium, large.
pub(super) const AREAS: [[f64; 2]; 4] = [[0., 1e10], [0., 1024.], [1024., 9216.], [9216., 1e10]];

/// What became of one detection; bit `t` of an entry stands for threshold `t`, the entries for [`AREAS`].
pub(super) struct Outcome {
    pub(super) score: f64,
    /// Its place by score in its image and class.
    pub(super) rank: usize,
    /// Took an object.
    pub(super) hit: [u16; 4],
    /// Is neither right nor wrong.
    pub(super) ignored: [u16; 4],
}

impl Outcome {
    /// Whether the detection is right for a size and a threshold; `None` where it is neither right nor wrong.
    pub(super) fn right(&self, area: usize, threshold: usize) -> Option<bool> {
        let bit = |mask: u16| mask & (1 << threshold) != 0;
        if bit(self.ignored[area]) { None } else { Some(bit(self.hit[area])) }
    }
}

/// Outcomes by falling score, and the number of objects that count for each of [`AREAS`].
pub(super) fn match_image(
    objects: Vec<&Annotation>,
    mut detections: Vec<&ScoredBox>,
) -> (Vec<Outcome>, [usize; 4]) {
    detections.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap_or(std::cmp::Ordering::Equal));
    detections.truncate(MOST);
    let overlaps: Vec<f64> =
        detections.iter().flat_map(|d| objects.iter().map(|o| overlap(d, o))).collect();
    let mut outcomes: Vec<Outcome> = detections
        .iter()
        .enumerate()
        .map(|(rank, d)| Outcome { score: d.score, rank, hit: [0; 4], ignored: [0; 4] })
        .collect();
    let mut counts = [0; 4];
    let mut taken = vec![false; objects.len()];
    for (area, range) in AREAS.into_iter().enumerate() {
        let outside = |size: f64| size < range[0] || size > range[1];
        let ignored: Vec<bool> = objects.iter().map(|o| o.crowd || outside(o.area)).collect();
        // Those that count first, each part in the order given.
        let (mut order, rest): (Vec<usize>, Vec<usize>) =
            (0..objects.len()).partition(|o| !ignored[*o]);
        counts[area] = order.len();
        order.extend(rest);
        for t in 0..THRESHOLDS {
            taken.fill(false);
            for (d, outcome) in outcomes.iter_mut().enumerate() {
                let row = &overlaps[d * objects.len()..][..objects.len()];
                let (mut best, mut choice) = (threshold(t).min(1. - 1e-10), None);
                for &o in &order {
                    if taken[o] && !objects[o].crowd {
                        continue;
                    }
                    // One that counts is kept against all that don't.
                    if choice.is_some_and(|c: usize| !ignored[c]) && ignored[o] {
                        break;
                    }
                    if row[o] >= best {
                        (best, choice) = (row[o], Some(o));
                    }
                }
                let passes = match choice {
                    Some(o) => {
                        outcome.hit[area] |= 1 << t;
                        taken[o] = true;
                        ignored[o]
                    }
                    None => outside(detections[d].bbox[2] * detections[d].bbox[3]),
                };
                outcome.ignored[area] |= u16::from(passes) << t;
            }
        }
    }
    (outcomes, counts)
}

/// The thresholds as NumPy's `linspace` has them: ten from 0.5 with a step of a ninth of the span, the last one exact.
fn threshold(t: usize) -> f64 {
    if t + 1 == THRESHOLDS { 0.95 } else { 0.5 + t as f64 * ((0.95 - 0.5) / 9.) }
}

/// Intersection over union; with a crowd, over the detection's area alone.
fn overlap(found: &ScoredBox, object: &Annotation) -> f64 {
    let (d, o) = (found.bbox, object.bbox);
    let shared = |k: usize| (d[k] + d[k + 2]).min(o[k] + o[k + 2]) - d[k].max(o[k]);
    let (w, h) = (shared(0), shared(1));
    if w <= 0. || h <= 0. {
        return 0.;
    }
    let (area, both) = (d[2] * d[3], w * h);
    both / if object.crowd { area } else { area + o[2] * o[3] - both }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(bbox: [f64; 4], crowd: bool) -> Annotation {
        Annotation { image_id: 1, category_id: 1, bbox, area: bbox[2] * bbox[3], crowd }
    }

    fn found(bbox: [f64; 4], score: f64) -> ScoredBox {
        ScoredBox { image_id: 1, category_id: 1, bbox, score }
    }

    #[test]
    fn a_crowd_takes_many_and_an_object_one() {
        let all = [object([0., 0., 10., 10.], false), object([0., 0., 100., 100.], true)];
        let hits = [
            found([0., 0., 10., 10.], 0.9),
            // The object is taken; the crowd takes both of these.
            found([0., 0., 10., 10.], 0.8),
            found([50., 50., 10., 10.], 0.7),
            found([200., 0., 10., 10.], 0.6),
        ];
        let (outcomes, counts) = match_image(all.iter().collect(), hits.iter().collect());
        assert_eq!(counts, [1, 1, 0, 0]);
        let every = (1 << THRESHOLDS) - 1;
        let got: Vec<(u16, u16)> = outcomes.iter().map(|o| (o.hit[0], o.ignored[0])).collect();
        assert_eq!(got, [(every, 0), (every, every), (every, every), (0, 0)]);
        // For the large ones nothing of this counts.
        assert!(outcomes.iter().all(|o| o.ignored[3] == every));
    }

    #[test]
    fn the_surer_comes_first_and_a_hundred_is_enough() {
        let all = [object([0., 0., 10., 10.], false)];
        let many: Vec<ScoredBox> =
            (0..130).map(|i| found([0., 0., 10., 10.], f64::from(i))).collect();
        let (outcomes, _) = match_image(all.iter().collect(), many.iter().collect());
        assert_eq!((outcomes.len(), outcomes[0].score, outcomes[99].score), (100, 129., 30.));
        assert_eq!(outcomes.iter().filter(|o| o.hit[0] > 0).count(), 1);
    }

    #[test]
    fn thresholds_are_those_of_numpy() {
        let got: Vec<f64> = (0..10).map(threshold).collect();
        assert_eq!((got[0], got[9]), (0.5, 0.95));
        assert!(got.iter().enumerate().all(|(i, t)| (t - (0.5 + 0.05 * i as f64)).abs() < 1e-15));
    }
}
