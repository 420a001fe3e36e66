//! ThreeAugment of DeiT III (arXiv:2204.07118): grey, solarise or blur.

use super::blur::gaussian_blur;
use super::color::{gray, solarize};
use crate::data::Image;
use rand::Rng;

/// One of the three with equal chances; the blur's radius is uniform in 0.1 to 2.
pub(super) fn three_augment(image: Image, rng: &mut impl Rng) -> Image {
    match rng.random_range(0..3) {
        0 => gray(image),
        1 => solarize(image, 128),
        _ => gaussian_blur(image, rng.random_range(0.1..=2.)),
    }
}
