//! Learning-rate schedules: pure functions of the step.

use std::f64::consts::PI;

/// Linear warm-up to `base`, then a half cosine down to `floor` (Loshchilov and Hutter, arXiv:1608.03983).
///
/// `step` counts from 0; the warm-up's first step already has `base / warmup`, and steps at or past `total` stay at
/// `floor`.
///
/// ```
/// use vkd_nn::cosine;
/// assert_eq!(cosine(0, 100, 0, 1e-3, 0.), 1e-3);
/// assert!(cosine(99, 100, 0, 1e-3, 0.) < 1e-6);
/// assert_eq!(cosine(4, 100, 10, 1e-3, 0.), 0.5e-3);
/// ```
pub fn cosine(step: u64, total: u64, warmup: u64, base: f64, floor: f64) -> f64 {
    falling(step, total, warmup, base, floor, |progress| 0.5 * (1. + (PI * progress).cos()))
}

/// Linear warm-up to `base`, then a straight line down to `floor`; otherwise as [`cosine`].
///
/// ```
/// use vkd_nn::linear_decay;
/// assert_eq!([0, 1, 2, 6, 10].map(|s| linear_decay(s, 10, 2, 8., 0.)), [4., 8., 8., 4., 0.]);
/// ```
pub fn linear_decay(step: u64, total: u64, warmup: u64, base: f64, floor: f64) -> f64 {
    falling(step, total, warmup, base, floor, |progress| 1. - progress)
}

/// Linear warm-up to `base`, which each milestone at or before `step` multiplies by `factor`.
///
/// ```
/// use vkd_nn::step_decay;
/// assert_eq!([0, 1, 4, 5, 9].map(|s| step_decay(s, &[5, 8], 2, 1., 0.5)), [0.5, 1., 1., 0.5, 0.25]);
/// ```
pub fn step_decay(step: u64, milestones: &[u64], warmup: u64, base: f64, factor: f64) -> f64 {
    let passed = milestones.iter().filter(|&&m| m <= step).count();
    let rate = (0..passed).fold(base, |rate, _| rate * factor);
    rate * warm(step, warmup)
}

/// Share of the full rate during warm-up.
fn warm(step: u64, warmup: u64) -> f64 {
    if step < warmup { (step + 1) as f64 / warmup as f64 } else { 1. }
}

fn falling(
    step: u64,
    total: u64,
    warmup: u64,
    base: f64,
    floor: f64,
    left: impl Fn(f64) -> f64,
) -> f64 {
    if step >= total {
        return floor;
    }
    if step < warmup {
        return base * warm(step, warmup);
    }
    let progress = (step - warmup) as f64 / (total - warmup) as f64;
    floor + (base - floor) * left(progress)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_at_base_fall_and_end_at_floor() {
        for schedule in [cosine, linear_decay] {
            let rates: Vec<f64> = (0..50).map(|s| schedule(s, 50, 5, 1., 0.1)).collect();
            assert!(rates[..5].windows(2).all(|w| w[0] < w[1]), "warm-up rises");
            assert_eq!(rates[5], 1.);
            assert!(rates[5..].windows(2).all(|w| w[0] > w[1]), "then falls");
            assert_eq!(schedule(50, 50, 5, 1., 0.1), 0.1);
            assert_eq!(schedule(3, 3, 3, 1., 0.1), 0.1);
            assert_eq!(schedule(5, 3, 10, 1., 0.1), 0.1, "past the end of a warm-up cut short");
        }
    }

    #[test]
    fn milestones_multiply_in_any_order_and_number() {
        assert_eq!(step_decay(9, &[], 0, 0.5, 0.1), 0.5);
        assert_eq!(step_decay(9, &[9, 3, 30], 0, 1., 0.5), 0.25);
        assert_eq!(step_decay(8, &[9, 3, 30], 0, 1., 0.5), 0.5);
        assert_eq!(step_decay(0, &[0], 4, 1., 0.5), 0.125, "warm-up of what is left");
    }
}
