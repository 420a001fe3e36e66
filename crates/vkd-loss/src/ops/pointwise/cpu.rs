//! Kernels of the losses that are a mean over entries of a function of `student - teacher`.

use super::Pointwise;
use crate::dense::Real;

const LANES: usize = 16;
/// Entries summed in the element type before the sum moves on in f64.
const BLOCK: usize = 1024;

/// The mean over all entries.
pub(super) fn forward<T: Real>(kind: Pointwise, student: &[T], teacher: &[T]) -> f64 {
    let sum = match kind {
        Pointwise::Mse => sum(student, teacher, |d| d * d),
        Pointwise::SmoothL1 { beta } => {
            let (edge, half, scale) = (T::narrow(beta), T::narrow(0.5), T::narrow(1. / beta));
            sum(student, teacher, |d| {
                let d = if d < T::zero() { T::zero() - d } else { d };
                // min(d, beta), in the form that keeps NaN.
                let c = if d > edge { edge } else { d };
                c * scale * c * half + (d - c)
            })
        }
    };
    sum / student.len() as f64
}

#[inline(always)]
fn sum<T: Real>(student: &[T], teacher: &[T], f: impl Fn(T) -> T) -> f64 {
    let mut total = 0f64;
    for (s, t) in student.chunks(BLOCK).zip(teacher.chunks(BLOCK)) {
        let mut lanes = [T::zero(); LANES];
        let (s_chunks, t_chunks) = (s.chunks_exact(LANES), t.chunks_exact(LANES));
        let (s_rest, t_rest) = (s_chunks.remainder(), t_chunks.remainder());
        for (s, t) in s_chunks.zip(t_chunks) {
            for i in 0..LANES {
                lanes[i] += f(s[i] - t[i]);
            }
        }
        for (i, (&s, &t)) in s_rest.iter().zip(t_rest).enumerate() {
            lanes[i] += f(s - t);
        }
        total += lanes.iter().map(|x| x.wide()).sum::<f64>();
    }
    total
}

/// Gradient of the student for the incoming gradient `grad` of the mean.
pub(super) fn backward<T: Real>(
    kind: Pointwise,
    student: &[T],
    teacher: &[T],
    grad: f64,
) -> Vec<T> {
    let share = grad / student.len() as f64;
    let pairs = student.iter().zip(teacher);
    match kind {
        Pointwise::Mse => {
            let scale = T::narrow(2. * share);
            pairs.map(|(&s, &t)| (s - t) * scale).collect()
        }
        Pointwise::SmoothL1 { beta } => {
            let (low, high) = (T::narrow(-beta), T::narrow(beta));
            let (over, scale) = (T::narrow(1. / beta), T::narrow(share));
            pairs
                .map(|(&s, &t)| {
                    let d = s - t;
                    let d = if d > high { high } else { d };
                    let d = if d < low { low } else { d };
                    d * over * scale
                })
                .collect()
        }
    }
}
