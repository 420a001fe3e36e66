//! Resizing with a bicubic filter that widens as it shrinks, as Pillow does it.

use crate::data::Image;
use candle_core::{Result, bail};

/// Bits after the point of a weight: with eight bits of a pixel and two for the sum's overshoot it fits an `i32`.
const BITS: u32 = 32 - 8 - 2;

/// Most pixels that are asked for at once.
const MOST_PIXELS: usize = 1 << 28;

/// Keys' cubic (IEEE Trans. ASSP 29(6), 1981) with the slope `a` at one.
pub(super) fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1. {
        ((a + 2.) * x - (a + 3.)) * x * x + 1.
    } else if x < 2. {
        a * (((x - 5.) * x + 8.) * x - 4.)
    } else {
        0.
    }
}

/// The inputs of one output value, and their weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Weights for `to` values out of `from`: the filter is centred on the output's place and as wide as the step.
fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let width = scale.max(1.);
    let support = 2. * width;
    (0..to)
        .map(|i| {
            let center = (i as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.) as usize;
            let last = ((center + support + 0.5) as usize).min(from);
            let raw: Vec<f64> =
                (first..last).map(|at| cubic((at as f64 + 0.5 - center) / width, -0.5)).collect();
            let sum: f64 = raw.iter().sum();
            let unit = f64::from(1u32 << BITS) / sum;
            let weights = raw.iter().map(|w| (w * unit).round() as i32).collect();
            Taps { first, weights }
        })
        .collect()
}

fn byte(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// `image` at `width` by `height` pixels.
///
/// One direction after the other, rounded to bytes in between: Pillow's `resize(.., BICUBIC)` to one grey level. The order is
/// that of Pillow 13, which begins with the columns where the height shrinks by more than twice what the width does; up to 12
/// it always began with the rows.
///
/// # Errors
/// No pixels asked for, or more than 2²⁸.
///
/// # Example
/// ```
/// use vkd_train::{Image, resize};
///
/// let image = Image::new(4, 4, 1, vec![7; 16])?;
/// assert_eq!(resize(&image, 3, 2)?.pixels(), [7; 6]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn resize(image: &Image, width: usize, height: usize) -> Result<Image> {
    check(width, height)?;
    let whole = Region { left: 0, top: 0, width: image.width, height: image.height };
    Ok(resize_region(image, whole, width, height))
}

/// Refuses sizes that [`resize`] refuses.
pub(super) fn check(width: usize, height: usize) -> Result<()> {
    if width == 0 || height == 0 {
        bail!("resize: expected at least one pixel, got {width}x{height}")
    }
    // A thin image with a large shorter side must not take all memory.
    if width.saturating_mul(height) > MOST_PIXELS {
        bail!("resize: expected at most {MOST_PIXELS} pixels, got {width}x{height}")
    }
    Ok(())
}

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) left: usize,
    pub(super) top: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

/// [`resize`] of a region that lies in the image, as if it had been cut out first.
pub(super) fn resize_region(image: &Image, region: Region, width: usize, height: usize) -> Image {
    let columns_first = columns_first([region.width, region.height], [width, height]);
    if width == region.width || columns_first {
        let narrow = down(image, region, height);
        let whole = Region { left: 0, top: 0, height, ..region };
        return if width == region.width { narrow } else { across(&narrow, whole, width) };
    }
    let wide = across(image, region, width);
    let whole = Region { left: 0, top: 0, width, ..region };
    if height == region.height { wide } else { down(&wide, whole, height) }
}

/// Whether Pillow 13 resizes the columns before the rows; each size is a width and a height.
fn columns_first(from: [usize; 2], to: [usize; 2]) -> bool {
    let shrunk = from[1].saturating_sub(to[1]);
    shrunk > 2 * from[0].saturating_sub(to[0])
}

/// The region's rows at `width` pixels.
fn across(image: &Image, region: Region, width: usize) -> Image {
    let pixels = match image.channels {
        1 => across_channels::<1>(image, region, width),
        _ => across_channels::<3>(image, region, width),
    };
    Image { width, height: region.height, channels: image.channels, pixels }
}

fn across_channels<const C: usize>(image: &Image, region: Region, width: usize) -> Vec<u8> {
    let taps = taps(region.width, width);
    let mut out = Vec::with_capacity(width * region.height * C);
    for y in region.top..region.top + region.height {
        let row = &image.row(y)[region.left * C..(region.left + region.width) * C];
        for tap in &taps {
            let mut sums = [1i32 << (BITS - 1); C];
            let from = row[tap.first * C..].chunks_exact(C);
            for (pixel, weight) in from.zip(&tap.weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            out.extend(sums.map(byte));
        }
    }
    out
}

/// The region's columns at `height` pixels: whole rows are summed at once, so that the inner loop runs along memory.
fn down(image: &Image, region: Region, height: usize) -> Image {
    let (start, length) = (region.left * image.channels, region.width * image.channels);
    let row = |y: usize| &image.row(region.top + y)[start..start + length];
    let mut pixels = Vec::with_capacity(height * length);
    if height == region.height {
        (0..height).for_each(|y| pixels.extend_from_slice(row(y)));
    } else {
        let mut sums = vec![0i32; length];
        for tap in taps(region.height, height) {
            sums.fill(1 << (BITS - 1));
            for (y, weight) in (tap.first..).zip(&tap.weights) {
                for (sum, value) in sums.iter_mut().zip(row(y)) {
                    *sum += i32::from(*value) * weight;
                }
            }
            pixels.extend(sums.iter().map(|sum| byte(*sum)));
        }
    }
    Image { width: region.width, height, channels: image.channels, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_sum_to_one_within_their_rounding() {
        for (from, to) in [(5, 3), (3, 5), (256, 224), (1000, 7), (1, 9), (9, 1)] {
            for tap in taps(from, to) {
                assert!(tap.first + tap.weights.len() <= from);
                let off = tap.weights.iter().sum::<i32>() - (1 << BITS);
                assert!(off.unsigned_abs() as usize <= tap.weights.len(), "{from} to {to}: {off}");
            }
        }
    }

    #[test]
    fn columns_come_first_where_the_height_shrinks_by_more_than_twice_as_much() {
        for (from, to, first) in [
            ([100, 100], [90, 80], false),
            ([100, 100], [90, 79], true),
            ([500, 375], [341, 256], false),
            ([375, 500], [256, 341], false),
            ([50, 100], [60, 99], true),
            ([50, 100], [60, 200], false),
            ([100, 50], [60, 60], false),
        ] {
            assert_eq!(columns_first(from, to), first, "{from:?} to {to:?}");
        }
    }

    #[test]
    fn the_same_size_changes_nothing() -> Result<()> {
        let image = Image::new(5, 3, 3, (0..45).collect())?;
        assert_eq!(resize(&image, 5, 3)?, image);
        assert!(resize(&image, 0, 3).is_err());
        Ok(())
    }
}
