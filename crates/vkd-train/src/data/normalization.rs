//! From bytes to what networks see, per channel.

use vkd_models::Preprocessing;

/// Mean and deviation of each channel over interleaved pixels.
pub(crate) fn measure<'a>(
    images: impl Iterator<Item = &'a [u8]>,
    channels: usize,
    divisor: f64,
) -> Preprocessing {
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
    Preprocessing { divisor, mean: means, std: stds }
}

/// What each byte becomes in `channel`.
pub(crate) fn table(preprocessing: &Preprocessing, channel: usize) -> [f32; 256] {
    std::array::from_fn(|raw| preprocessing.value(channel, raw as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_measured_apart() {
        let pixels = [0u8, 10, 200, 255, 10, 0];
        let p = measure([&pixels[..]].into_iter(), 3, 255.);
        assert_eq!(p.mean, [0.5, 10. / 255., 100. / 255.]);
        // The second channel never changes.
        assert_eq!(p.std, [0.5, 1., 100. / 255.]);
        assert_eq!(table(&p, 0)[255], 1.);
        assert_eq!(table(&p, 2)[100], 0.);
    }
}
