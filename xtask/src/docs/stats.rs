//! Means, sample standard deviations and Student's t, for a handful of seeds.

/// The arithmetic mean.
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The sample standard deviation (n - 1); `None` for fewer than two values.
pub(super) fn deviation(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

/// The 95 % interval of the mean, by Student's t with n - 1 degrees of freedom.
pub(super) fn interval(values: &[f64]) -> Option<(f64, f64)> {
    let deviation = deviation(values)?;
    let half = t_quantile(values.len() - 1) * deviation / (values.len() as f64).sqrt();
    Some((mean(values) - half, mean(values) + half))
}

/// The t with P(|T| < t) = 0.95, by halving an interval.
fn t_quantile(freedom: usize) -> f64 {
    let (mut low, mut high) = (0.0, 20.0);
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        if probability_within(middle, freedom) < 0.95 { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// P(|T| < t) for a whole number of degrees of freedom.
///
/// Abramowitz and Stegun 26.7.3 and 26.7.4: with θ = atan(t / √ν) the probability is a finite sum
/// of cosines, so no table and no approximation is needed.
fn probability_within(t: f64, freedom: usize) -> f64 {
    let theta = (t / (freedom as f64).sqrt()).atan();
    let (sine, cosine) = theta.sin_cos();
    let odd = freedom % 2 == 1;
    let mut term = if odd { cosine } else { 1.0 };
    let mut sum = 0.0;
    let mut power = if odd { 1 } else { 0 };
    while power + 2 <= freedom {
        sum += term;
        power += 2;
        term *= cosine * cosine * (power - 1) as f64 / power as f64;
    }
    if odd { (theta + sine * sum) * std::f64::consts::FRAC_2_PI } else { sine * sum }
}

#[cfg(test)]
mod tests {
    use super::{deviation, interval, mean, t_quantile};

    #[test]
    fn mean_and_deviation_of_known_numbers() {
        let values = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        assert_eq!(mean(&values), 5.0);
        // The squares sum to 32.
        assert!((deviation(&values).unwrap() - (32.0f64 / 7.0).sqrt()).abs() < 1e-15);
        assert_eq!(deviation(&[1.0]), None);
    }

    #[test]
    fn quantiles_are_those_of_the_printed_tables() {
        for (freedom, t) in [
            (1, 12.706),
            (2, 4.303),
            (3, 3.182),
            (4, 2.776),
            (5, 2.571),
            (8, 2.306),
            (9, 2.262),
            (19, 2.093),
            (30, 2.042),
            (120, 1.980),
        ] {
            assert!((t_quantile(freedom) - t).abs() < 5.1e-4, "{freedom}: {}", t_quantile(freedom));
        }
    }

    #[test]
    fn interval_of_known_numbers() {
        // Mean 3, deviation sqrt(2.5), half width 2.776445 * sqrt(2.5 / 5).
        let (low, high) = interval(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert!((low - 1.036_757).abs() < 1e-5 && (high - 4.963_243).abs() < 1e-5, "{low} {high}");
        assert_eq!(interval(&[1.0]), None);
    }
}
