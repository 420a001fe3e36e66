//! Mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899) of whole batches, as timm's batch mode.

use crate::recipe::AugmentConfig;
use candle_core::{Error, Result};
use rand::Rng;
use rand_distr::{Beta, Distribution};

/// One draw for a batch: what each image keeps of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mix {
    /// Nothing is mixed.
    Off,
    /// The share of the image itself.
    Mixup(f64),
    /// The rectangle that comes from the partner: top, bottom, left, right.
    Cutmix([usize; 4]),
}

/// Draws for square images of `size`.
///
/// # Errors
/// An alpha that makes no Beta distribution.
pub(crate) fn draw(config: &AugmentConfig, size: usize, rng: &mut impl Rng) -> Result<Mix> {
    if !config.mixes() || !rng.random_bool(config.mix_probability) {
        return Ok(Mix::Off);
    }
    let cutmix = match (config.mixup > 0., config.cutmix > 0.) {
        (true, true) => rng.random_bool(config.mix_switch),
        (_, cutmix) => cutmix,
    };
    let alpha = if cutmix { config.cutmix } else { config.mixup };
    let share = Beta::new(alpha, alpha).map_err(Error::wrap)?.sample(rng);
    if !cutmix {
        return Ok(Mix::Mixup(share));
    }
    let side = (size as f64 * (1. - share).sqrt()) as usize;
    let mut span = || {
        let center = rng.random_range(0..size);
        (center.saturating_sub(side / 2), (center + side.div_ceil(2)).min(size))
    };
    let ((top, bottom), (left, right)) = (span(), span());
    Ok(Mix::Cutmix([top, bottom, left, right]))
}

impl Mix {
    /// The share of itself that an image of `size` keeps.
    pub(crate) fn share(self, size: usize) -> f64 {
        match self {
            Self::Off => 1.,
            Self::Mixup(share) => share,
            Self::Cutmix([top, bottom, left, right]) => {
                1. - ((bottom - top) * (right - left)) as f64 / (size * size) as f64
            }
        }
    }

    /// Mixes each image of the batch with the one as far from the other end; of an odd number the middle one stays.
    pub(crate) fn images(self, values: &mut [f32], channels: usize, size: usize) {
        let length = channels * size * size;
        let half = values.len() / length / 2;
        let (front, back) = values.split_at_mut(half * length);
        for (a, b) in front.chunks_exact_mut(length).zip(back.rchunks_exact_mut(length)) {
            match self {
                Self::Off => {}
                Self::Mixup(share) => {
                    let (own, other) = (share as f32, (1. - share) as f32);
                    for (x, y) in a.iter_mut().zip(b) {
                        (*x, *y) = (own * *x + other * *y, own * *y + other * *x);
                    }
                }
                Self::Cutmix([top, bottom, left, right]) => {
                    for row in (0..channels).flat_map(|c| (top..bottom).map(move |y| c * size + y))
                    {
                        let columns = row * size + left..row * size + right;
                        a[columns.clone()].swap_with_slice(&mut b[columns]);
                    }
                }
            }
        }
    }

    /// The labels that belong to [`images`](Self::images): a row of class shares each, which sums to one.
    pub(crate) fn labels(self, labels: &[u32], classes: usize, size: usize) -> Vec<f32> {
        let share = self.share(size);
        let mut rows = vec![0f32; labels.len() * classes];
        for (row, (own, other)) in
            rows.chunks_exact_mut(classes).zip(labels.iter().zip(labels.iter().rev()))
        {
            if own == other {
                row[*own as usize] = 1.;
            } else {
                row[*own as usize] = share as f32;
                row[*other as usize] = (1. - share) as f32;
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vkd_nn::stream;

    const BOTH: AugmentConfig = AugmentConfig {
        crop: None,
        flip: 0.,
        rand_augment: None,
        three_augment: false,
        color_jitter: 0.,
        erase: 0.,
        erase_with: crate::recipe::EraseWith::Noise,
        mixup: 0.8,
        cutmix: 1.,
        mix_probability: 1.,
        mix_switch: 0.5,
        repeats: 1,
        views: None,
    };

    #[test]
    fn targets_sum_to_one_and_follow_the_pixels() -> Result<()> {
        let (size, labels) = (6, [0u32, 3, 1, 1, 2]);
        let mut kinds = [0, 0];
        for step in 0..200 {
            let mix = draw(&BOTH, size, &mut stream(2, "mix", step, 0))?;
            kinds[usize::from(matches!(mix, Mix::Cutmix(_)))] += 1;
            let targets = mix.labels(&labels, 4, size);
            // Images that hold their class's number tell by their mean what they are made of.
            let mut images: Vec<f32> =
                labels.iter().flat_map(|l| vec![*l as f32; 3 * size * size]).collect();
            mix.images(&mut images, 3, size);
            for (row, image) in targets.chunks(4).zip(images.chunks(3 * size * size)) {
                // Two f32 shares, each rounded once.
                assert!((row.iter().sum::<f32>() - 1.).abs() <= f32::EPSILON);
                let class: f32 = row.iter().enumerate().map(|(k, p)| k as f32 * p).sum();
                let mean = image.iter().sum::<f32>() / image.len() as f32;
                // A sum of 108 values of up to 3.
                assert!((class - mean).abs() < 108. * 3. * f32::EPSILON, "{mix:?}");
            }
        }
        assert!(kinds[0] > 60 && kinds[1] > 60, "{kinds:?}");
        Ok(())
    }

    #[test]
    fn a_rectangle_has_the_drawn_side_where_the_border_does_not_cut_it() -> Result<()> {
        let cutmix = AugmentConfig { mixup: 0., ..BOTH };
        let mut odd = 0;
        for step in 0..200 {
            let Mix::Cutmix([top, bottom, left, right]) =
                draw(&cutmix, 9, &mut stream(4, "mix", step, 0))?
            else {
                return Err(Error::msg("expected a rectangle"));
            };
            if top > 0 && left > 0 && bottom < 9 && right < 9 {
                assert_eq!(bottom - top, right - left);
                odd += (bottom - top) % 2;
            }
        }
        assert!(odd > 10, "{odd}");
        Ok(())
    }

    #[test]
    fn off_means_off() -> Result<()> {
        let never = AugmentConfig { mix_probability: 0., ..BOTH };
        assert_eq!(draw(&never, 4, &mut stream(0, "mix", 0, 0))?, Mix::Off);
        assert_eq!(draw(&AugmentConfig::default(), 4, &mut stream(0, "mix", 0, 0))?, Mix::Off);
        assert_eq!(Mix::Off.labels(&[1, 0], 2, 4), [0., 1., 1., 0.]);
        let mixup = AugmentConfig { cutmix: 0., ..BOTH };
        assert!(matches!(draw(&mixup, 4, &mut stream(0, "mix", 0, 0))?, Mix::Mixup(_)));
        Ok(())
    }
}
