//! Mean, spread and interval of a few values.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// Share of intervals that hold the true mean.
pub(crate) const LEVEL: f64 = 0.95;

/// Mean and spread of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) n: usize,
    pub(crate) mean: f64,
    /// Sample standard deviation; `None` for one value.
    pub(crate) deviation: Option<f64>,
    /// 95 % interval of the mean; `None` for one value.
    pub(crate) interval: Option<(f64, f64)>,
}

impl Summary {
    /// `None` without values.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        if n == 1 {
            return Some(Self { n, mean, deviation: None, interval: None });
        }
        let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
        let deviation = (squares / (n - 1) as f64).sqrt();
        let t = StudentsT::new(0., 1., (n - 1) as f64).ok()?.inverse_cdf(0.5 + LEVEL / 2.);
        let half = t * deviation / (n as f64).sqrt();
        Some(Self {
            n,
            mean,
            deviation: Some(deviation),
            interval: Some((mean - half, mean + half)),
        })
    }

    /// The same in another unit.
    pub(crate) fn times(self, factor: f64) -> Self {
        Self {
            n: self.n,
            mean: self.mean * factor,
            deviation: self.deviation.map(|d| d * factor),
            interval: self.interval.map(|(low, high)| (low * factor, high * factor)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_printed_tables() {
        // Values 1..=n have a known deviation, so the half width tells the quantile.
        for (n, t) in [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (31, 2.042)] {
            let values: Vec<f64> = (1..=n).map(f64::from).collect();
            let s = Summary::of(&values).unwrap();
            let (low, high) = s.interval.unwrap();
            let found = (high - low) / 2. * f64::from(n).sqrt() / s.deviation.unwrap();
            // The tables' last digit.
            assert!((found - t).abs() < 5.1e-4, "{n}: {found}");
        }
        let s = Summary::of(&[2., 4., 4., 4., 5., 5., 7., 9.]).unwrap();
        assert!(
            (s.mean, s.n) == (5., 8) && (s.deviation.unwrap() - (32f64 / 7.).sqrt()).abs() < 1e-15
        );
        assert_eq!(Summary::of(&[1.]).unwrap().interval, None);
        assert_eq!(Summary::of(&[]), None);
    }
}
