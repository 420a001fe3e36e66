//! Crops: the random resized one of training, the centred one of evaluation.

use super::resize::{Region, resize_region};
use crate::data::Image;
use crate::recipe::CropConfig;
use rand::Rng;

/// Draws before a crop gives up on the ranges, as in torchvision.
const ATTEMPTS: usize = 10;

/// A random region of the image, brought to `size` by `size`.
pub(super) fn random_resized_crop(
    image: &Image,
    size: usize,
    config: &CropConfig,
    rng: &mut impl Rng,
) -> Image {
    resize_region(image, draw(image.width, image.height, config, rng), size, size)
}

/// Area uniform in `scale`, ratio uniform in its logarithm; where ten draws don't fit, the largest centred region whose
/// ratio is allowed.
fn draw(width: usize, height: usize, config: &CropConfig, rng: &mut impl Rng) -> Region {
    let area = (width * height) as f64;
    let [low, high] = config.ratio;
    for _ in 0..ATTEMPTS {
        let share = area * rng.random_range(config.scale[0]..=config.scale[1]);
        let ratio = rng.random_range(low.ln()..=high.ln()).exp();
        let w = (share * ratio).sqrt().round() as usize;
        let h = (share / ratio).sqrt().round() as usize;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let top = rng.random_range(0..=height - h);
            let left = rng.random_range(0..=width - w);
            return Region { left, top, width: w, height: h };
        }
    }
    let ratio = width as f64 / height as f64;
    let (w, h) = if ratio < low {
        (width, (width as f64 / low).round() as usize)
    } else if ratio > high {
        ((height as f64 * high).round() as usize, height)
    } else {
        (width, height)
    };
    centered(width, height, w.clamp(1, width), h.clamp(1, height))
}

fn centered(width: usize, height: usize, w: usize, h: usize) -> Region {
    Region { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
}

/// Half of an odd number goes to the even neighbour, as torchvision's centre crop rounds.
fn half_to_even(value: usize) -> usize {
    value / 2 + usize::from(value % 4 == 3)
}

/// The centre of the image: its shorter side is brought to `size / keep` pixels, then `size` by `size` are cut out.
/// An image that is `size` by `size` stays as it is.
pub(crate) fn center_crop(image: Image, size: usize, keep: f64) -> Image {
    if (image.width, image.height) == (size, size) {
        return image;
    }
    let short = ((size as f64 / keep).floor() as usize).max(size);
    let least = image.width.min(image.height);
    let side = |pixels: usize| (pixels * short / least).max(short);
    let (width, height) = (side(image.width), side(image.height));
    let whole = Region { left: 0, top: 0, width: image.width, height: image.height };
    let scaled = resize_region(&image, whole, width, height);
    let (left, top) = (half_to_even(width - size), half_to_even(height - size));
    resize_region(&scaled, Region { left, top, width: size, height: size }, size, size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vkd_nn::stream;

    #[test]
    fn crops_lie_within_the_image_and_their_ranges() {
        let config = CropConfig::default();
        for id in 0..2000 {
            let mut rng = stream(1, "sizes", 0, id);
            let (w, h) = (rng.random_range(1..80), rng.random_range(1..80));
            let r = draw(w, h, &config, &mut rng);
            assert!(r.width >= 1 && r.left + r.width <= w, "{w}x{h}: {r:?}");
            assert!(r.height >= 1 && r.top + r.height <= h, "{w}x{h}: {r:?}");
            if w.min(h) >= 40 && w.max(h) <= 50 {
                // Rounding to whole pixels moves a side by half of one.
                let (rw, rh) = (r.width as f64, r.height as f64);
                let least = (rw + 0.5) * (rh + 0.5) / (w * h) as f64;
                assert!(least >= 0.08, "{w}x{h}: {r:?}");
                assert!((rw + 0.5) / (rh - 0.5) >= 0.75 && (rw - 0.5) / (rh + 0.5) <= 4. / 3.);
            }
        }
    }

    #[test]
    fn an_image_that_is_too_long_gives_its_centre() {
        let r = draw(
            400,
            4,
            &CropConfig { scale: [1., 1.], ..Default::default() },
            &mut stream(0, "", 0, 0),
        );
        assert_eq!(r, Region { left: 197, top: 0, width: 5, height: 4 });
    }

    #[test]
    fn an_odd_margin_is_halved_as_torchvision_does() {
        // Python's round(v / 2).
        assert_eq!([0, 1, 2, 3, 4, 5, 7, 9, 117].map(half_to_even), [0, 0, 1, 2, 2, 2, 4, 4, 58]);
        let image = Image { width: 7, height: 4, channels: 1, pixels: (0..28).collect() };
        assert_eq!(center_crop(image, 4, 1.).pixels[..4], [2, 3, 4, 5]);
    }

    #[test]
    fn the_centre_is_the_centre() {
        // Width 8 of 16: the shorter side is brought to 4, half of which stays.
        let pixels = (0..8 * 16).map(|i| if i % 16 < 8 { 0 } else { 200 }).collect();
        let image = Image { width: 16, height: 8, channels: 1, pixels };
        let out = center_crop(image.clone(), 2, 0.5);
        assert_eq!((out.width, out.height), (2, 2));
        assert!(out.pixels[0] < 20 && out.pixels[1] > 180, "{:?}", out.pixels);
        let square = center_crop(image, 8, 1.);
        assert_eq!(center_crop(square.clone(), 8, 0.5), square);
    }
}
