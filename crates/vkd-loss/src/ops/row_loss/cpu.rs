//! Row kernels, all arithmetic in f64.

use super::RowLoss;
use crate::boxes;
use crate::dense::Real;
use candle_core::{Result, bail};

/// `⟨s, s⟩`, `⟨t, t⟩` and `⟨s, t⟩`.
fn products<T: Real>(s: &[T], t: &[T]) -> [f64; 3] {
    s.iter().zip(t).fold([0.; 3], |[ss, tt, st], (s, t)| {
        let (s, t) = (s.wide(), t.wide());
        [ss + s * s, tt + t * t, st + s * t]
    })
}

fn distance<T: Real>(s: &[T], t: &[T]) -> f64 {
    s.iter().zip(t).map(|(s, t)| (s.wide() - t.wide()).powi(2)).sum::<f64>().sqrt()
}

/// A row of four as a box.
fn corners<T: Real>(row: &[T]) -> [f64; 4] {
    std::array::from_fn(|i| row.get(i).map_or(0., |x| x.wide()))
}

fn check_boxes<T: Real>(op: &str, role: &str, rows: &[T], channels: usize) -> Result<()> {
    for (row, b) in rows.chunks_exact(channels).map(corners).enumerate() {
        if b[2] < b[0] || b[3] < b[1] {
            bail!("{op}: expected {role} with x0 <= x1 and y0 <= y1, got {b:?} in row {row}")
        }
    }
    Ok(())
}

/// Slope of `1 − GIoU` for the corners of `s`.
fn giou_slope(s: [f64; 4], t: [f64; 4]) -> [f64; 4] {
    let [intersection, union, hull] = boxes::areas(s, t);
    // GIoU = I/U + U/H − 1, where U grows with the area of s and shrinks with I.
    let over = |part: f64, whole: f64| if whole == 0. { 0. } else { part / whole };
    let shared = over(intersection, union);
    let by_area = over(1., hull) - over(shared, union);
    let by_intersection = over(1., union) - by_area;
    let by_hull = -over(over(union, hull), hull);
    // Where edges coincide, the mean of both sides.
    let step = |a: f64, b: f64| if a > b { 1. } else { f64::from(u8::from(a == b)) / 2. };
    let side = |k: usize| s[k + 2] - s[k];
    let overlap = |k: usize| s[k + 2].min(t[k + 2]) - s[k].max(t[k]);
    let reach = |k: usize| s[k + 2].max(t[k + 2]) - s[k].min(t[k]);
    let touch = overlap(0) > 0. && overlap(1) > 0.;
    let mut slope = [0.; 4];
    for k in 0..2 {
        let other = 1 - k;
        let inner = if touch { overlap(other) * by_intersection } else { 0. };
        let (area, outer) = (side(other) * by_area, reach(other) * by_hull);
        let (low, high) = (k, k + 2);
        slope[low] = area + inner * step(s[low], t[low]) + outer * step(t[low], s[low]);
        slope[high] = -(area + inner * step(t[high], s[high]) + outer * step(s[high], t[high]));
    }
    slope
}

/// The sum over rows divided by `divisor`, or every row's loss where there is none.
pub(super) fn forward<T: Real>(
    kind: RowLoss,
    student: &[T],
    teacher: &[T],
    channels: usize,
    divisor: Option<f64>,
) -> Result<Vec<T>> {
    if let RowLoss::Giou = kind {
        check_boxes(kind.op(), "boxes", student, channels)?;
        check_boxes(kind.op(), "targets", teacher, channels)?;
    }
    let rows = student.chunks_exact(channels).zip(teacher.chunks_exact(channels));
    let entries = rows.map(|(s, t)| match kind {
        RowLoss::Distance => distance(s, t),
        RowLoss::Giou => 1. - boxes::generalized_iou(corners(s), corners(t)),
        RowLoss::Cosine { eps } => {
            let [ss, tt, st] = products(s, t);
            let lengths = [ss.sqrt(), tt.sqrt()];
            if lengths.iter().any(|length| *length <= eps) {
                1.
            } else {
                let entry = 1. - st / lengths[0] / lengths[1];
                // Below zero is rounding. NaN passes.
                if entry < 0. { 0. } else { entry }
            }
        }
    });
    Ok(match divisor {
        Some(divisor) => vec![T::narrow(entries.sum::<f64>() / divisor)],
        None => entries.map(T::narrow).collect(),
    })
}

/// Gradient of the student; `grad` is that of the one loss, or of every row.
pub(super) fn backward<T: Real>(
    kind: RowLoss,
    student: &[T],
    teacher: &[T],
    grad: &[T],
    channels: usize,
    divisor: Option<f64>,
) -> Vec<T> {
    let rows = student.chunks_exact(channels).zip(teacher.chunks_exact(channels));
    let mut ds = Vec::with_capacity(student.len());
    for (i, (s, t)) in rows.enumerate() {
        let at = if divisor.is_some() { 0 } else { i };
        let share = grad.get(at).map_or(0., |g| g.wide()) / divisor.unwrap_or(1.);
        match kind {
            RowLoss::Distance => {
                let length = distance(s, t);
                let scale = if length == 0. { 0. } else { share / length };
                ds.extend(s.iter().zip(t).map(|(s, t)| T::narrow(scale * (s.wide() - t.wide()))));
            }
            RowLoss::Giou => {
                ds.extend(giou_slope(corners(s), corners(t)).map(|slope| T::narrow(share * slope)));
            }
            RowLoss::Cosine { eps } => {
                let [ss, tt, st] = products(s, t);
                let both = ss.sqrt() * tt.sqrt();
                let (a, b) = if ss.sqrt() <= eps || tt.sqrt() <= eps {
                    (0., 0.)
                } else {
                    (share * (st / both) / ss, -share / both)
                };
                ds.extend(s.iter().zip(t).map(|(s, t)| T::narrow(a * s.wide() + b * t.wide())));
            }
        }
    }
    ds
}
