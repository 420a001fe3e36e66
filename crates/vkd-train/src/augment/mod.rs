//! Random transforms of training images: one file a transform, and the order in which they follow one another.
//!
//! Every transform draws from a stream of its own, keyed by (seed, its name, step, sample): turning one off changes no draw of
//! another, and neither threads nor the place in a batch change any.

mod affine;
mod blur;
pub(crate) mod boxes;
mod color;
mod crop;
mod erase;
mod flip;
pub(crate) mod mix;
mod rand_augment;
mod resize;
mod shift;
mod three_augment;

pub(crate) use crop::center_crop;
pub use resize::resize;

use crate::data::{Dataset, Image, normalization};
use crate::recipe::{AugmentConfig, DataConfig};
use candle_core::{Result, bail};
use rand::Rng;
use vkd_models::Preprocessing;
use vkd_nn::stream;

/// What becomes of one image on its way to the network.
#[derive(Clone)]
pub(crate) struct Augment {
    config: AugmentConfig,
    shift: usize,
    seed: u64,
    size: usize,
    keep: f64,
    /// What each byte becomes, a table a channel.
    tables: Vec<[f32; 256]>,
    /// What a move uncovers: the mean.
    fill: [u8; 3],
}

impl Augment {
    /// The transforms of a recipe for the images of `data`.
    ///
    /// # Errors
    /// A shift of half the image or more, or a change of colour where values don't reach 255.
    pub(crate) fn new(data: &Dataset, config: &DataConfig, seed: u64) -> Result<Self> {
        if 2 * config.shift >= data.size {
            bail!(
                "data.shift: expected less than half of the {} pixels, got {}",
                data.size,
                config.shift
            )
        }
        let preprocessing = data.preprocessing();
        if let Some(name) = config.augment.needs_bytes()
            && preprocessing.divisor != 255.
        {
            bail!(
                "data.augment.{name}: expected images of 0 to 255, got 0 to {} ({})",
                preprocessing.divisor,
                data.name
            )
        }
        let plain = Self::plain(data, preprocessing);
        Ok(Self { config: config.augment.clone(), shift: config.shift, seed, ..plain })
    }

    /// Nothing random: size and normalisation only.
    pub(crate) fn plain(data: &Dataset, preprocessing: &Preprocessing) -> Self {
        let mean = |c: usize| preprocessing.mean.get(c).or(preprocessing.mean.first()).copied();
        Self {
            config: AugmentConfig::default(),
            shift: 0,
            seed: 0,
            size: data.size,
            keep: data.keep(),
            tables: (0..data.channels).map(|c| normalization::table(preprocessing, c)).collect(),
            fill: std::array::from_fn(|c| {
                (mean(c).unwrap_or(0.) * preprocessing.divisor).round() as u8
            }),
        }
    }

    /// Writes sample `id` of a step to `out`, channel after channel.
    pub(crate) fn sample(&self, image: Image, step: u64, id: u64, out: &mut [f32]) {
        let c = &self.config;
        let rng = |name: &str| stream(self.seed, name, step, id);
        let mut image = match &c.crop {
            Some(crop) => {
                crop::random_resized_crop(&image, self.size, crop, &mut rng("augment.crop"))
            }
            None => crop::center_crop(image, self.size, self.keep),
        };
        if c.flip > 0. && rng("augment.flip").random_bool(c.flip) {
            image = flip::flip(image);
        }
        if self.shift > 0 {
            let (mut rng, s) = (rng("augment.shift"), self.shift as i32);
            let (down, right) = (rng.random_range(-s..=s), rng.random_range(-s..=s));
            image = shift::shift(&image, down, right);
        }
        if let Some(config) = &c.rand_augment {
            let mut rng = rng("augment.rand_augment");
            image = rand_augment::rand_augment(image, config, self.fill, &mut rng);
        }
        if c.three_augment {
            image = three_augment::three_augment(image, &mut rng("augment.three_augment"));
        }
        if c.color_jitter > 0. {
            image = color::color_jitter(image, c.color_jitter, &mut rng("augment.color_jitter"));
        }
        let plane = self.size * self.size;
        for (channel, (values, table)) in out.chunks_exact_mut(plane).zip(&self.tables).enumerate()
        {
            let from = image.pixels[channel..].iter().step_by(image.channels);
            for (value, raw) in values.iter_mut().zip(from) {
                *value = table[usize::from(*raw)];
            }
        }
        if c.erase > 0. {
            let mut rng = rng("augment.erase");
            if rng.random_bool(c.erase) {
                erase::erase(out, self.size, c.erase_with, &mut rng);
            }
        }
    }
}

#[cfg(test)]
mod golden;
