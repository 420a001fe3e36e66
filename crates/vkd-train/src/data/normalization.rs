//! From bytes to what networks see, per channel.

use candle_core::{Result, bail};
use vkd_models::Preprocessing;

/// `(pixel / divisor - mean) / std` with a mean and a deviation for each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalization {
    /// Largest possible pixel value.
    pub divisor: f64,
    /// Mean of each channel after division.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel after division.
    pub std: Vec<f64>,
}

impl Normalization {
    /// Checks the numbers.
    ///
    /// # Errors
    /// Another number of means or deviations than channels, a deviation that is not above zero, or values that are not
    /// finite.
    pub fn new(divisor: f64, mean: Vec<f64>, std: Vec<f64>, channels: usize) -> Result<Self> {
        if mean.len() != channels || std.len() != channels {
            bail!(
                "normalization: expected {channels} means and deviations, one a channel, got {} and {}",
                mean.len(),
                std.len()
            )
        }
        let finite = mean.iter().chain(&std).all(|v| v.is_finite());
        if !(divisor > 0. && divisor.is_finite() && finite && std.iter().all(|s| *s > 0.)) {
            bail!(
                "normalization: expected finite means and deviations above 0, got {mean:?} and {std:?}"
            )
        }
        Ok(Self { divisor, mean, std })
    }

    /// Mean and deviation of each channel over interleaved pixels.
    pub(crate) fn of<'a>(
        images: impl Iterator<Item = &'a [u8]>,
        channels: usize,
        divisor: f64,
    ) -> Self {
        let mut histograms = vec![[0u64; 256]; channels];
        for image in images {
            for pixel in image.chunks_exact(channels) {
                for (histogram, value) in histograms.iter_mut().zip(pixel) {
                    histogram[usize::from(*value)] += 1;
                }
            }
        }
        let (mut means, mut stds) = (Vec::new(), Vec::new());
        for histogram in &histograms {
            let (mut sum, mut squares, mut count) = (0f64, 0f64, 0f64);
            for (value, times) in histogram.iter().enumerate() {
                // Whole numbers below 2^53: the sums are exact, so their difference doesn't cancel.
                let (value, times) = (value as f64, *times as f64);
                sum += value * times;
                squares += value * value * times;
                count += times;
            }
            let mean = sum / count;
            let std = (squares / count - mean * mean).max(0.).sqrt() / divisor;
            means.push(mean / divisor);
            // Images that are all of one value have no scale to divide by.
            stds.push(if std > 0. { std } else { 1. });
        }
        Self { divisor, mean: means, std: stds }
    }

    /// What each byte becomes in `channel`.
    pub(crate) fn table(&self, channel: usize) -> [f32; 256] {
        let (mean, std) = (self.mean[channel], self.std[channel]);
        std::array::from_fn(|raw| ((raw as f64 / self.divisor - mean) / std) as f32)
    }

    /// The number of channels.
    pub fn channels(&self) -> usize {
        self.mean.len()
    }

    /// The form of a student's card, which has one mean and one deviation for all channels: their averages.
    pub fn to_preprocessing(&self) -> Preprocessing {
        let average = |values: &[f64]| match values {
            [one] => *one,
            many => many.iter().sum::<f64>() / many.len() as f64,
        };
        Preprocessing { divisor: self.divisor, mean: average(&self.mean), std: average(&self.std) }
    }

    /// What a student's card says, for `channels`.
    pub fn from_preprocessing(card: &Preprocessing, channels: usize) -> Self {
        Self {
            divisor: card.divisor,
            mean: vec![card.mean; channels],
            std: vec![card.std; channels],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_measured_apart() {
        let pixels = [0u8, 10, 200, 255, 10, 0];
        let n = Normalization::of([&pixels[..]].into_iter(), 3, 255.);
        assert_eq!(n.mean, [0.5, 10. / 255., 100. / 255.]);
        // The second channel never changes.
        assert_eq!(n.std, [0.5, 1., 100. / 255.]);
        assert_eq!(n.table(0)[255], 1.);
        assert_eq!(n.table(2)[100], 0.);
    }

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        for (mean, std) in [(vec![0.; 2], vec![1.; 3]), (vec![0.; 3], vec![0.; 3])] {
            assert!(Normalization::new(255., mean, std, 3).is_err());
        }
        assert!(Normalization::new(255., vec![f64::NAN], vec![1.], 1).is_err());
    }
}
