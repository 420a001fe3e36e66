//! RandAugment (arXiv:1909.13719) with timm's transforms and strengths.

use super::affine::{affine, rotation};
use super::color::{
    autocontrast, brightness, contrast, equalize, map, saturation, sharpness, solarize,
};
use crate::data::Image;
use crate::recipe::RandAugmentConfig;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_distr::{Distribution, StandardNormal};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transform {
    AutoContrast,
    Equalize,
    Invert,
    Rotate,
    Posterize,
    Solarize,
    SolarizeAdd,
    Color,
    Contrast,
    Brightness,
    Sharpness,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
}

use Transform::{
    AutoContrast, Brightness, Color, Contrast, Equalize, Invert, Posterize, Rotate, Sharpness,
    ShearX, ShearY, Solarize, SolarizeAdd, TranslateX, TranslateY,
};

pub(super) const ALL: [Transform; 15] = [
    AutoContrast,
    Equalize,
    Invert,
    Rotate,
    Posterize,
    Solarize,
    SolarizeAdd,
    Color,
    Contrast,
    Brightness,
    Sharpness,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
];

/// `count` transforms drawn with replacement, each applied with its probability and a drawn strength; what a move uncovers
/// becomes `fill`.
pub(super) fn rand_augment(
    mut image: Image,
    config: &RandAugmentConfig,
    fill: [u8; 3],
    rng: &mut impl Rng,
) -> Image {
    for _ in 0..config.count {
        let Some(transform) = ALL.choose(rng) else { break };
        let normal: f64 = StandardNormal.sample(rng);
        let level = ((config.magnitude + config.deviation * normal) / 10.).clamp(0., 1.);
        let negative = rng.random_bool(0.5);
        if rng.random_bool(config.probability) {
            image = apply(image, *transform, level, negative, config.increasing, fill);
        }
    }
    image
}

/// One transform at `level` of 0 to 1.
pub(super) fn apply(
    image: Image,
    transform: Transform,
    level: f64,
    negative: bool,
    increasing: bool,
    fill: [u8; 3],
) -> Image {
    let signed = |value: f64| if negative { -value } else { value };
    let factor = match increasing {
        true => (1. + signed(0.9 * level)).max(0.1) as f32,
        false => (1.8 * level + 0.1) as f32,
    };
    // Strong is few bits and a low threshold, where all grow; else the other way about.
    let reversed = |steps: usize| match (steps as f64 * level) as usize {
        down if increasing => steps - down,
        up => up,
    };
    match transform {
        AutoContrast => autocontrast(image),
        Equalize => equalize(image),
        Invert => map(image, |v| 255 - v),
        Rotate => affine(&image, &rotation(&image, signed(30. * level)), fill),
        Posterize => {
            let kept = reversed(4).min(8);
            map(image, |v| v & !((1u16 << (8 - kept)) - 1) as u8)
        }
        Solarize => solarize(image, reversed(256) as u16),
        SolarizeAdd => {
            let more = ((110. * level) as u8).min(128);
            map(image, |v| if v < 128 { v.saturating_add(more) } else { v })
        }
        Color => saturation(image, factor),
        Contrast => contrast(image, factor),
        Brightness => brightness(image, factor),
        Sharpness => sharpness(image, factor),
        ShearX => affine(&image, &[1., signed(0.3 * level), 0., 0., 1., 0.], fill),
        ShearY => affine(&image, &[1., 0., 0., signed(0.3 * level), 1., 0.], fill),
        TranslateX => {
            let by = signed(0.45 * level) * image.width as f64;
            affine(&image, &[1., 0., by, 0., 1., 0.], fill)
        }
        TranslateY => {
            let by = signed(0.45 * level) * image.height as f64;
            affine(&image, &[1., 0., 0., 0., 1., by], fill)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vkd_nn::stream;

    fn image() -> Image {
        let pixels = (0..8 * 8 * 3).map(|i| (i * 5) as u8).collect();
        Image { width: 8, height: 8, channels: 3, pixels }
    }

    #[test]
    fn strength_zero_leaves_what_grows_alone() {
        for transform in ALL {
            if !matches!(transform, AutoContrast | Equalize | Invert | Posterize) {
                let out = apply(image(), transform, 0., true, true, [0; 3]);
                assert_eq!(out, image(), "{transform:?}");
            }
        }
    }

    #[test]
    fn posterise_and_solarise_turn_round() {
        // Of eight bits, none stays at full strength where all grow.
        let out = |level, increasing| apply(image(), Posterize, level, false, increasing, [0; 3]);
        assert_eq!(out(1., true).pixels, vec![0; 192]);
        assert_eq!(out(0., false), out(1., true));
        assert!(out(0.5, true).pixels.iter().all(|v| v % 64 == 0));
        let out = |level, increasing| apply(image(), Solarize, level, false, increasing, [0; 3]);
        assert_eq!(out(1., false), image());
        assert_eq!(out(1., true), map(image(), |v| 255 - v));
    }

    #[test]
    fn every_draw_keeps_the_size_and_probability_zero_keeps_all() -> std::result::Result<(), String>
    {
        let config = RandAugmentConfig::try_from("rand-m9-mstd0.5-inc1".to_owned())?;
        for id in 0..200 {
            let out = rand_augment(image(), &config, [1, 2, 3], &mut stream(0, "ra", 0, id));
            assert_eq!(out.pixels.len(), image().pixels.len());
        }
        let never = RandAugmentConfig { probability: 0., ..config };
        assert_eq!(rand_augment(image(), &never, [0; 3], &mut stream(0, "ra", 0, 1)), image());
        Ok(())
    }
}
