//! Changes of colour and sharpness, each value of 0 to 255 on its own or beside its neighbours, with Pillow's rounding.

use crate::data::{Image, luma};
use rand::Rng;
use rand::seq::SliceRandom;

/// Every value through a table.
pub(super) fn map(mut image: Image, table: impl Fn(u8) -> u8) -> Image {
    let table: [u8; 256] = std::array::from_fn(|v| table(v as u8));
    image.pixels.iter_mut().for_each(|v| *v = table[usize::from(*v)]);
    image
}

/// Values from `threshold` on are inverted.
pub(super) fn solarize(image: Image, threshold: u16) -> Image {
    map(image, |v| if u16::from(v) < threshold { v } else { 255 - v })
}

/// Grey, in as many channels as before.
pub(super) fn gray(mut image: Image) -> Image {
    if image.channels == 3 {
        image.pixels = image.luma().flat_map(|v| [v; 3]).collect();
    }
    image
}

/// From `from` (factor 0) over the image (1) and beyond; towards zero, within a byte.
fn blend(from: f32, value: u8, factor: f32) -> u8 {
    (from + factor * (f32::from(value) - from)) as u8
}

/// 0 is black, 1 the image.
pub(super) fn brightness(image: Image, factor: f32) -> Image {
    map(image, |v| blend(0., v, factor))
}

/// 0 is one grey, the mean of the image's.
pub(super) fn contrast(image: Image, factor: f32) -> Image {
    let count = image.width * image.height;
    let sum: u64 = image.luma().map(u64::from).sum();
    let mean = (sum as f64 / count as f64 + 0.5).floor() as f32;
    map(image, |v| blend(mean, v, factor))
}

/// 0 is the grey image.
pub(super) fn saturation(mut image: Image, factor: f32) -> Image {
    if image.channels == 3 {
        for pixel in image.pixels.chunks_exact_mut(3) {
            let grey = f32::from(luma(pixel));
            pixel.iter_mut().for_each(|v| *v = blend(grey, *v, factor));
        }
    }
    image
}

/// 0 is smoothed by the weights 1 around 5, over 13; the border stays.
pub(super) fn sharpness(image: Image, factor: f32) -> Image {
    let (length, channels) = (image.width * image.channels, image.channels);
    let mut out = image.clone();
    for y in 1..image.height.saturating_sub(1) {
        let rows = [image.row(y - 1), image.row(y), image.row(y + 1)];
        for at in channels..length.saturating_sub(channels) {
            let around: u32 = rows
                .iter()
                .flat_map(|row| [row[at - channels], row[at], row[at + channels]])
                .map(u32::from)
                .sum();
            let smooth = (around + 4 * u32::from(rows[1][at])) as f32 / 13.;
            out.pixels[y * length + at] = blend((smooth + 0.5).floor(), rows[1][at], factor);
        }
    }
    out
}

/// How often each value occurs in a channel.
fn histogram(image: &Image, channel: usize) -> [u32; 256] {
    let mut counts = [0; 256];
    image.pixels.iter().skip(channel).step_by(image.channels).for_each(|v| {
        counts[usize::from(*v)] += 1;
    });
    counts
}

/// Each channel through a table made from its histogram.
fn map_channels(mut image: Image, table: impl Fn(&[u32; 256]) -> [u8; 256]) -> Image {
    for channel in 0..image.channels {
        let table = table(&histogram(&image, channel));
        let step = image.channels;
        image.pixels.iter_mut().skip(channel).step_by(step).for_each(|v| {
            *v = table[usize::from(*v)];
        });
    }
    image
}

/// Each channel stretched to 0 to 255.
pub(super) fn autocontrast(image: Image) -> Image {
    map_channels(image, |counts| {
        let low = counts.iter().position(|n| *n > 0).unwrap_or(0);
        let high = counts.iter().rposition(|n| *n > 0).unwrap_or(0);
        if high <= low {
            return std::array::from_fn(|v| v as u8);
        }
        let scale = 255. / (high - low) as f64;
        std::array::from_fn(|v| (v as f64 * scale - low as f64 * scale) as u8)
    })
}

/// Each channel's values spread so that all are about as frequent.
pub(super) fn equalize(image: Image) -> Image {
    map_channels(image, |counts| {
        let last = counts.iter().rfind(|n| **n > 0).copied().unwrap_or(0);
        let step = (counts.iter().sum::<u32>() - last) / 255;
        if step == 0 {
            return std::array::from_fn(|v| v as u8);
        }
        let mut sum = step / 2;
        std::array::from_fn(|v| {
            let value = (sum / step).min(255) as u8;
            sum += counts[v];
            value
        })
    })
}

/// Brightness, contrast and saturation in a drawn order, each by a factor of `1 ± strength`, as in torchvision.
pub(super) fn color_jitter(mut image: Image, strength: f64, rng: &mut impl Rng) -> Image {
    let mut order = [brightness as fn(Image, f32) -> Image, contrast, saturation];
    order.shuffle(rng);
    for change in order {
        let factor = rng.random_range((1. - strength).max(0.)..=1. + strength);
        image = change(image, factor as f32);
    }
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        Image { width: 4, height: 3, channels: 3, pixels: (0..36).map(|i| (i * 7) as u8).collect() }
    }

    #[test]
    fn a_factor_of_one_changes_nothing() {
        for change in [brightness, contrast, saturation, sharpness] {
            assert_eq!(change(image(), 1.), image());
        }
    }

    #[test]
    fn inverting_twice_and_grey_twice_are_once() {
        let inverted = solarize(image(), 0);
        assert!(inverted.pixels.iter().zip(&image().pixels).all(|(a, b)| a + b == 255));
        assert_eq!(solarize(inverted, 0), image());
        assert_eq!(solarize(image(), 256), image());
        assert_eq!(gray(gray(image())), gray(image()));
        assert_eq!(saturation(image(), 0.), gray(image()));
    }

    #[test]
    fn an_image_of_one_value_survives_the_tables() {
        let flat = Image { width: 3, height: 3, channels: 1, pixels: vec![9; 9] };
        assert_eq!(autocontrast(flat.clone()), flat);
        assert_eq!(equalize(flat.clone()), flat);
        assert_eq!(sharpness(flat.clone(), 0.), flat);
    }
}
