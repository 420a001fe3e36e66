//! Row kernels of smooth-L1 against layer-normed rows, which are never written down.

use vkd_norm::blocks::{fill, map, rows_of};
use vkd_norm::dense::Real;
use vkd_norm::lanes::{sums, vectorized};
use vkd_norm::row_stats::RowStats;

/// Entries of a block: its rows stay in the second cache.
const BLOCK: usize = 1 << 14;

/// What both passes need beside the rows.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    pub(super) channels: usize,
    pub(super) beta: f64,
    pub(super) eps: f64,
}

impl Terms {
    /// The mean over all entries: row sums in lanes of the element type, joined in f64.
    pub(super) fn forward<T: Real>(self, student: &[T], teacher: &[T]) -> f64 {
        let Self { channels, beta, eps } = self;
        let (edge, half, scale) = (T::narrow(beta), T::narrow(0.5), T::narrow(1. / beta));
        let parts = map(student.len() / channels, channels, rows_of(BLOCK, channels), |rows| {
            let rows = rows.start * channels..rows.end * channels;
            let (student, teacher) = (&student[rows.clone()], &teacher[rows]);
            vectorized(
                #[inline(always)]
                || {
                    let mut total = 0.;
                    let pairs = student.chunks_exact(channels).zip(teacher.chunks_exact(channels));
                    for (s, t) in pairs {
                        let stats = RowStats::new(t, eps);
                        total += sums::<_, 2, 1, 32>([s, t], |[s, t]| {
                            let d = s - stats.apply(t);
                            let d = if d < T::zero() { T::zero() - d } else { d };
                            // min(d, beta), in the form that keeps NaN.
                            let c = if d > edge { edge } else { d };
                            [c * scale * c * half + (d - c)]
                        })[0];
                    }
                    total
                },
            )
        });
        parts.iter().sum::<f64>() / student.len() as f64
    }

    /// Gradient of the student for the incoming gradient `grad` of the mean.
    pub(super) fn backward<T: Real>(self, student: &[T], teacher: &[T], grad: f64) -> Vec<T> {
        let Self { channels, beta, eps } = self;
        let (low, high) = (T::narrow(-beta), T::narrow(beta));
        let (over, scale) = (T::narrow(1. / beta), T::narrow(grad / student.len() as f64));
        let size = rows_of(BLOCK, channels);
        let block = |start: usize, out: &mut [T]| {
            let rows = start * channels..start * channels + out.len();
            let (student, teacher) = (&student[rows.clone()], &teacher[rows]);
            vectorized(
                #[inline(always)]
                || {
                    let rows = student.chunks_exact(channels).zip(teacher.chunks_exact(channels));
                    for (ds, (s, t)) in out.chunks_exact_mut(channels).zip(rows) {
                        let stats = RowStats::new(t, eps);
                        for ((ds, &s), &t) in ds.iter_mut().zip(s).zip(t) {
                            let d = s - stats.apply(t);
                            let d = if d > high { high } else { d };
                            let d = if d < low { low } else { d };
                            *ds = d * over * scale;
                        }
                    }
                },
            );
        };
        fill(student.len(), channels, size, block).0
    }
}
