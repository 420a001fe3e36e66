//! Row kernels, all arithmetic in f64.

use super::RowLoss;
use crate::dense::Real;

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

/// The sum over rows divided by `divisor`, or every row's loss where there is none.
pub(super) fn forward<T: Real>(
    kind: RowLoss,
    student: &[T],
    teacher: &[T],
    channels: usize,
    divisor: Option<f64>,
) -> Vec<T> {
    let rows = student.chunks_exact(channels).zip(teacher.chunks_exact(channels));
    let entries = rows.map(|(s, t)| match kind {
        RowLoss::Distance => distance(s, t),
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
    match divisor {
        Some(divisor) => vec![T::narrow(entries.sum::<f64>() / divisor)],
        None => entries.map(T::narrow).collect(),
    }
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
