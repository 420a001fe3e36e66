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
    if step >= total {
        return floor;
    }
    if step < warmup {
        return base * (step + 1) as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / (total - warmup) as f64;
    floor + (base - floor) * 0.5 * (1. + (PI * progress).cos())
}

#[cfg(test)]
mod tests {
    use super::cosine;

    #[test]
    fn starts_at_base_falls_and_ends_at_floor() {
        let rates: Vec<f64> = (0..50).map(|s| cosine(s, 50, 5, 1., 0.1)).collect();
        assert!(rates[..5].windows(2).all(|w| w[0] < w[1]), "warm-up rises");
        assert_eq!(rates[5], 1.);
        assert!(rates[5..].windows(2).all(|w| w[0] > w[1]), "then falls");
        assert_eq!(cosine(50, 50, 5, 1., 0.1), 0.1);
        assert_eq!(cosine(3, 3, 3, 1., 0.1), 0.1);
        assert_eq!(cosine(5, 3, 10, 1., 0.1), 0.1, "past the end of a warm-up that is cut short");
    }
}
