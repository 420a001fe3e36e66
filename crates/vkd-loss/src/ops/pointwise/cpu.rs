//! Kernels of the losses by element: one pass each way.

use super::Pointwise;
use crate::dense::Real;
use candle_core::{Result, bail};

const LANES: usize = 16;
/// Entries summed in the element type before the sum moves on in f64.
const BLOCK: usize = 1024;

/// The sum over entries divided by `divisor`, or every entry where there is none.
pub(super) fn forward<T: Real>(
    kind: Pointwise,
    student: &[T],
    teacher: &[T],
    divisor: Option<f64>,
) -> Result<Vec<T>> {
    Ok(match kind {
        Pointwise::Mse => collect(student, teacher, divisor, |s, t| (s - t) * (s - t)),
        Pointwise::SmoothL1 { beta } => {
            let (edge, half, scale) = (T::narrow(beta), T::narrow(0.5), T::narrow(1. / beta));
            collect(student, teacher, divisor, |s, t| {
                let d = s - t;
                let d = if d < T::zero() { T::zero() - d } else { d };
                // min(d, beta), in the form that keeps NaN.
                let c = if d > edge { edge } else { d };
                c * scale * c * half + (d - c)
            })
        }
        Pointwise::L1 => collect(student, teacher, divisor, |s, t| {
            let d = s - t;
            if d < T::zero() { T::zero() - d } else { d }
        }),
        Pointwise::Bce => {
            check_shares(kind, "probabilities", teacher)?;
            collect(student, teacher, divisor, |x, t| {
                let (x, t) = (x.wide(), t.wide());
                // log(1 + exp(x)) − x t, without an exponential that can overflow.
                T::narrow(x.max(0.) - x * t + (-x.abs()).exp().ln_1p())
            })
        }
        Pointwise::Focal { alpha, gamma } => {
            check_shares(kind, "targets", teacher)?;
            collect(student, teacher, divisor, |x, t| T::narrow(focal(x, t, alpha, gamma)[0]))
        }
    })
}

fn check_shares<T: Real>(kind: Pointwise, role: &str, shares: &[T]) -> Result<()> {
    match shares.iter().position(|t| !(0. ..=1.).contains(&t.wide())) {
        Some(at) => {
            let got = shares[at].wide();
            bail!("{}: expected {role} in [0, 1], got {got} in entry {at}", kind.op())
        }
        None => Ok(()),
    }
}

/// Value and slope of one entry of the focal loss.
#[inline(always)]
fn focal<T: Real>(x: T, t: T, alpha: f64, gamma: f64) -> [f64; 2] {
    let (x, t) = (x.wide(), t.wide());
    // Both σ(x) and σ(−x) to full precision, from one exponential that can't overflow.
    let e = (-x.abs()).exp();
    let (large, small) = (1. / (1. + e), e / (1. + e));
    let (p, n) = if x >= 0. { (large, small) } else { (small, large) };
    let entropy = x.max(0.) - x * t + e.ln_1p();
    let wrong = p * (1. - t) + n * t;
    let (weight, steepness) = match gamma {
        0. => (1., 0.),
        // gamma · wrongᵞ / wrong has no limit of its own where wrong underflows, but p n has one there: zero.
        _ if wrong == 0. => (0., 0.),
        2. => (wrong * wrong, 2. * wrong),
        _ => (wrong.powf(gamma), gamma * (wrong.powf(gamma) / wrong)),
    };
    let share = alpha * t + (1. - alpha) * (1. - t);
    let slope = (p - t) * weight + entropy * steepness * p * n * (1. - 2. * t);
    [share * entropy * weight, share * slope]
}

#[inline(always)]
fn collect<T: Real>(
    student: &[T],
    teacher: &[T],
    divisor: Option<f64>,
    f: impl Fn(T, T) -> T,
) -> Vec<T> {
    match divisor {
        Some(divisor) => vec![T::narrow(sum(student, teacher, f) / divisor)],
        None => student.iter().zip(teacher).map(|(&s, &t)| f(s, t)).collect(),
    }
}

#[inline(always)]
fn sum<T: Real>(student: &[T], teacher: &[T], f: impl Fn(T, T) -> T) -> f64 {
    let mut total = 0f64;
    for (s, t) in student.chunks(BLOCK).zip(teacher.chunks(BLOCK)) {
        let mut lanes = [T::zero(); LANES];
        let (s_chunks, t_chunks) = (s.chunks_exact(LANES), t.chunks_exact(LANES));
        let (s_rest, t_rest) = (s_chunks.remainder(), t_chunks.remainder());
        for (s, t) in s_chunks.zip(t_chunks) {
            for i in 0..LANES {
                lanes[i] += f(s[i], t[i]);
            }
        }
        for (i, (&s, &t)) in s_rest.iter().zip(t_rest).enumerate() {
            lanes[i] += f(s, t);
        }
        total += lanes.iter().map(|x| x.wide()).sum::<f64>();
    }
    total
}

/// Gradient of the student; `grad` is that of the one loss, or of every entry.
pub(super) fn backward<T: Real>(
    kind: Pointwise,
    student: &[T],
    teacher: &[T],
    grad: &[T],
    divisor: Option<f64>,
) -> Vec<T> {
    match kind {
        Pointwise::Mse => spread(student, teacher, grad, divisor, 2., |s, t| s - t),
        Pointwise::SmoothL1 { beta } => {
            let (low, high) = (T::narrow(-beta), T::narrow(beta));
            let over = T::narrow(1. / beta);
            spread(student, teacher, grad, divisor, 1., |s, t| {
                let d = s - t;
                let d = if d > high { high } else { d };
                let d = if d < low { low } else { d };
                d * over
            })
        }
        Pointwise::L1 => spread(student, teacher, grad, divisor, 1., |s, t| {
            let d = s - t;
            let one = T::narrow(1.);
            if d > T::zero() {
                one
            } else if d < T::zero() {
                T::zero() - one
            } else {
                // Zero, or NaN, which stays.
                d
            }
        }),
        Pointwise::Bce => spread(student, teacher, grad, divisor, 1., |x, t| {
            T::narrow(1. / (1. + (-x.wide()).exp()) - t.wide())
        }),
        Pointwise::Focal { alpha, gamma } => spread(student, teacher, grad, divisor, 1., |x, t| {
            T::narrow(focal(x, t, alpha, gamma)[1])
        }),
    }
}

/// `gain · f` times the incoming gradient of the entry.
#[inline(always)]
fn spread<T: Real>(
    student: &[T],
    teacher: &[T],
    grad: &[T],
    divisor: Option<f64>,
    gain: f64,
    f: impl Fn(T, T) -> T,
) -> Vec<T> {
    let share = match divisor {
        Some(divisor) => gain * grad.first().map_or(0., |g| g.wide()) / divisor,
        None => gain,
    };
    let scale = T::narrow(share);
    // `f` stands here once: called in two loops it is not inlined, and neither is vectorised.
    let mut ds: Vec<T> = student.iter().zip(teacher).map(|(&s, &t)| f(s, t) * scale).collect();
    if divisor.is_none() {
        ds.iter_mut().zip(grad).for_each(|(d, &g)| *d *= g);
    }
    ds
}
