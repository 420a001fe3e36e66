//! Random erasing (arXiv:1708.04896) on normalised values, as in timm.

use crate::recipe::EraseWith;
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

const ATTEMPTS: usize = 10;

/// Erases a rectangle of 2 % to a third of a square image's area, of ratio 0.3 to 3.3, in all channels.
pub(super) fn erase(values: &mut [f32], size: usize, with: EraseWith, rng: &mut impl Rng) {
    let Some((top, left, height, width)) = rectangle(size, rng) else { return };
    for plane in values.chunks_exact_mut(size * size) {
        for row in plane.chunks_exact_mut(size).skip(top).take(height) {
            for value in &mut row[left..left + width] {
                *value = match with {
                    EraseWith::Noise => StandardNormal.sample(rng),
                    // The values are normalised, so their mean is zero.
                    EraseWith::Mean => 0.,
                };
            }
        }
    }
}

/// Top, left, height and width; none where ten draws don't fit.
fn rectangle(size: usize, rng: &mut impl Rng) -> Option<(usize, usize, usize, usize)> {
    let bound = 0.3f64.ln().abs();
    for _ in 0..ATTEMPTS {
        let (share, ratio) = (rng.random_range(0.02..=1. / 3.), rng.random_range(-bound..=bound));
        if let Some((height, width)) = sides(size, share, ratio) {
            let top = rng.random_range(0..=size - height);
            let left = rng.random_range(0..=size - width);
            return Some((top, left, height, width));
        }
    }
    None
}

/// Height and width of a rectangle with this share of a square's area and this logarithm of height over width; none where
/// it does not fit.
pub(super) fn sides(size: usize, share: f64, ratio: f64) -> Option<(usize, usize)> {
    let (area, ratio) = (share * (size * size) as f64, ratio.exp());
    let [height, width] =
        [area * ratio, area / ratio].map(|side| side.sqrt().round_ties_even() as usize);
    (height < size && width < size).then_some((height, width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vkd_nn::stream;

    #[test]
    fn pixels_outside_the_rectangle_stay() {
        for (id, with) in (0..100).zip([EraseWith::Noise, EraseWith::Mean].into_iter().cycle()) {
            let before: Vec<f32> = (0..2 * 81).map(|i| i as f32 + 100.).collect();
            let mut after = before.clone();
            erase(&mut after, 9, with, &mut stream(3, "erase", 0, id));
            let drawn = rectangle(9, &mut stream(3, "erase", 0, id));
            let inside = |i: usize| {
                let (y, x) = (i % 81 / 9, i % 9);
                drawn.is_some_and(|(t, l, h, w)| (t..t + h).contains(&y) && (l..l + w).contains(&x))
            };
            for i in 0..before.len() {
                // Values of 100 and more are beyond any normal draw.
                assert_eq!(after[i] != before[i], inside(i), "{id}: {i}");
            }
        }
    }
}
