//! What is done to training images at random.

use super::{at_least_one, not_negative};
use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

/// Random transforms of training images, in the order of the fields; by default none.
///
/// The names and numbers are those of timm and DeiT; `docs` of each transform say what it draws.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentConfig {
    /// Random resized crop; without it the centre crop of evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop: Option<CropConfig>,
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// RandAugment by timm's name, for example `rand-m9-mstd0.5-inc1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rand_augment: Option<RandAugmentConfig>,
    /// One of grey, solarise and Gaussian blur for each image.
    pub three_augment: bool,
    /// Strength of the change of brightness, contrast and saturation; 0 for none.
    pub color_jitter: f64,
    /// Probability that a rectangle is erased.
    pub erase: f64,
    /// What an erased rectangle holds.
    pub erase_with: EraseWith,
    /// The alpha of mixup's Beta(alpha, alpha); 0 for no mixup.
    pub mixup: f64,
    /// The alpha of cutmix; 0 for no cutmix.
    pub cutmix: f64,
    /// Probability that a batch is mixed at all.
    pub mix_probability: f64,
    /// Probability of cutmix where both are on.
    pub mix_switch: f64,
    /// How often an epoch's images follow one another, each drawn anew.
    pub repeats: usize,
    /// So many looks of each image, drawn once by seed, image and number of the look, and shown in turn; without a number an
    /// image is drawn anew whenever it comes. Mixing is not part of a look. The teacher in training sees the same ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub views: Option<usize>,
}

/// A random resized crop's ranges.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CropConfig {
    /// Least and largest share of the image's area.
    pub scale: [f64; 2],
    /// Least and largest width over height.
    pub ratio: [f64; 2],
}

/// What an erased rectangle holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EraseWith {
    /// A normal draw for each value.
    #[default]
    Noise,
    /// The mean of the data set.
    Mean,
}

/// RandAugment's settings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RandAugmentConfig {
    /// Mean strength, of 10.
    pub magnitude: f64,
    /// Standard deviation of the strength.
    pub deviation: f64,
    /// Transforms an image.
    pub count: usize,
    /// Probability of each of them.
    pub probability: f64,
    /// Whether every transform grows with the strength; else posterise and solarise weaken, as first published.
    pub increasing: bool,
}

impl Default for AugmentConfig {
    fn default() -> Self {
        Self {
            crop: None,
            flip: 0.,
            rand_augment: None,
            three_augment: false,
            color_jitter: 0.,
            erase: 0.,
            erase_with: EraseWith::default(),
            mixup: 0.,
            cutmix: 0.,
            mix_probability: 1.,
            mix_switch: 0.5,
            repeats: 1,
            views: None,
        }
    }
}

impl Default for CropConfig {
    fn default() -> Self {
        Self { scale: [0.08, 1.], ratio: [3. / 4., 4. / 3.] }
    }
}

impl TryFrom<String> for RandAugmentConfig {
    type Error = String;

    fn try_from(name: String) -> std::result::Result<Self, String> {
        let wrong = |part: &str| {
            format!(
                "rand_augment: expected a name such as rand-m9-mstd0.5-inc1, got {name:?} ({part:?})"
            )
        };
        let mut config =
            Self { magnitude: 10., deviation: 0., count: 2, probability: 0.5, increasing: false };
        let mut parts = name.split('-');
        if parts.next() != Some("rand") {
            return Err(wrong("rand"));
        }
        for part in parts {
            let at = part.find(|c: char| c.is_ascii_digit()).ok_or_else(|| wrong(part))?;
            let (key, digits) = part.split_at(at);
            let value: f64 = digits.parse().map_err(|_| wrong(part))?;
            match key {
                "m" if value <= 10. => config.magnitude = value,
                // timm draws evenly where the deviation is above 100; that isn't here.
                "mstd" if value <= 100. => config.deviation = value,
                "n" if value <= 100. && value.fract() == 0. => config.count = value as usize,
                "p" if value <= 1. => config.probability = value,
                "inc" => config.increasing = value > 0.,
                _ => return Err(wrong(part)),
            }
        }
        Ok(config)
    }
}

impl From<RandAugmentConfig> for String {
    fn from(c: RandAugmentConfig) -> Self {
        format!(
            "rand-m{}-n{}-p{}-mstd{}-inc{}",
            c.magnitude,
            c.count,
            c.probability,
            c.deviation,
            u8::from(c.increasing)
        )
    }
}

impl AugmentConfig {
    pub(super) fn check(&self) -> Result<()> {
        for (key, value) in [
            ("flip", self.flip),
            ("erase", self.erase),
            ("mix_probability", self.mix_probability),
            ("mix_switch", self.mix_switch),
        ] {
            if !(0. ..=1.).contains(&value) {
                bail!("data.augment.{key}: expected a probability in [0, 1], got {value}")
            }
        }
        not_negative(&[
            ("data.augment.color_jitter", self.color_jitter),
            ("data.augment.mixup", self.mixup),
            ("data.augment.cutmix", self.cutmix),
        ])?;
        at_least_one(&[
            ("data.augment.repeats", self.repeats as u64),
            ("data.augment.views", self.views.unwrap_or(1) as u64),
        ])?;
        if let Some(CropConfig { scale, ratio }) = self.crop {
            let ordered = |[low, high]: [f64; 2]| low > 0. && low <= high && high.is_finite();
            if !(ordered(scale) && scale[1] <= 1.) {
                bail!("data.augment.crop.scale: expected shares in (0, 1], in order, got {scale:?}")
            }
            if !ordered(ratio) {
                bail!("data.augment.crop.ratio: expected values above 0, in order, got {ratio:?}")
            }
        }
        Ok(())
    }

    /// Whether batches are mixed, so that labels become soft.
    pub(crate) fn mixes(&self) -> bool {
        self.mixup > 0. || self.cutmix > 0.
    }

    /// A transform of single images that draws, if there is one.
    pub(crate) fn draws(&self) -> Option<&'static str> {
        [
            ("crop", self.crop.is_some()),
            ("flip", self.flip > 0.),
            ("rand_augment", self.rand_augment.is_some()),
            ("three_augment", self.three_augment),
            ("color_jitter", self.color_jitter > 0.),
            ("erase", self.erase > 0.),
        ]
        .into_iter()
        .find_map(|(name, on)| on.then_some(name))
    }

    /// A transform that only makes sense for values of 0 to 255, if there is one.
    pub(crate) fn needs_bytes(&self) -> Option<&'static str> {
        [
            ("rand_augment", self.rand_augment.is_some()),
            ("three_augment", self.three_augment),
            ("color_jitter", self.color_jitter > 0.),
        ]
        .into_iter()
        .find_map(|(name, on)| on.then_some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timms_names_are_read_and_written() {
        let read = |name: &str| RandAugmentConfig::try_from(name.to_owned());
        let paper = read("rand-m9-mstd0.5-inc1").unwrap();
        assert_eq!((paper.magnitude, paper.deviation, paper.count), (9., 0.5, 2));
        assert!(paper.increasing && paper.probability == 0.5);
        assert_eq!(read(&String::from(paper)).unwrap(), paper);
        for bad in [
            "augmix-m3",
            "rand-m",
            "rand-m11",
            "rand-x3",
            "rand-p2",
            "rand-m9.x",
            "rand-mstd101",
            "rand-n1e9",
            "rand-n2.5",
        ] {
            assert!(read(bad).unwrap_err().contains(bad), "{bad}");
        }
    }
}
