//! Sizes of the two networks, and what follows from them alone.

use super::{Discriminator, Generator};
use crate::ModelCost;
use crate::cost::recorded;
use crate::model::at_least_one;
use candle_core::{Result, Shape, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vkd_nn::is_buffer;

/// Most stages or blocks: images of 2^12 pixels are beyond these networks.
const MOST: usize = 12;

/// Sizes of a [`Generator`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorConfig {
    /// Numbers of noise for each image.
    pub noise: usize,
    /// Channels of every block; BigGAN's `ch` is a quarter of it.
    pub width: usize,
    /// Height and width of the first map; 4 in BigGAN.
    #[serde(default = "four")]
    pub bottom: usize,
    /// Residual blocks, each of which doubles height and width: images have `bottom · 2^stages` pixels a side.
    pub stages: usize,
    /// Width of one class embedding that all batch norms share through linear maps; none (BigGAN's choice for CIFAR): each batch norm
    /// has tables of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<usize>,
    /// Whether each block sees a part of the noise of its own; needs `shared`, and `stages + 1` parts of equal size.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hierarchical: bool,
    /// Blocks, counted from zero, that are followed by self-attention.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attention: Vec<usize>,
}

/// Sizes of a [`Discriminator`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiscriminatorConfig {
    /// Channels of every block; BigGAN's `ch` is a quarter of it.
    pub width: usize,
    /// Residual blocks.
    pub blocks: usize,
    /// How many of them, from the first on, halve height and width.
    pub halvings: usize,
    /// Widths of linear maps that make the tap `head` of the pooled features, without anything between them; none: no such tap.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub head: Vec<usize>,
    /// Blocks, counted from zero, that are followed by self-attention.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attention: Vec<usize>,
}

/// The two networks of a GAN.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GanConfig {
    /// Makes images.
    pub generator: GeneratorConfig,
    /// Tells them from real ones.
    pub discriminator: DiscriminatorConfig,
}

/// A generator as a file's card describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorModel {
    /// Channels of an image.
    pub channels: usize,
    /// Number of classes.
    pub classes: usize,
    /// Sizes.
    pub generator: GeneratorConfig,
}

fn four() -> usize {
    4
}

impl GeneratorConfig {
    /// BigGAN's for CIFAR, 32×32 (`ch` 64): 4.3 million parameters with 10 classes.
    pub fn cifar() -> Self {
        Self { noise: 128, width: 256, stages: 3, ..Self::digits() }
    }

    /// For 8×8 images on two cores.
    pub fn digits() -> Self {
        Self {
            noise: 32,
            width: 32,
            bottom: four(),
            stages: 1,
            shared: None,
            hierarchical: false,
            attention: Vec::new(),
        }
    }

    /// For 28×28 images on two cores.
    pub fn mnist() -> Self {
        Self { noise: 64, width: 32, bottom: 7, stages: 2, ..Self::digits() }
    }

    /// Pixels of an image's side.
    pub fn image_size(&self) -> usize {
        self.bottom << self.stages.min(MOST)
    }

    /// Height and width after block `i`.
    pub(super) fn side(&self, i: usize) -> usize {
        self.bottom << (i + 1)
    }

    /// Noise of the first map, and of each block.
    pub(super) fn parts(&self) -> [usize; 2] {
        let part = self.noise / (self.stages + 1);
        if self.hierarchical { [part, part] } else { [self.noise, 0] }
    }

    pub(super) fn check(&self, channels: usize, classes: usize) -> Result<()> {
        const WHAT: &str = "generator";
        let sizes = [
            ("channels", channels),
            ("classes", classes),
            ("noise", self.noise),
            ("width", self.width),
            ("bottom", self.bottom),
            ("stages", self.stages),
            ("shared", self.shared.unwrap_or(1)),
        ];
        at_least_one(WHAT, &sizes)?;
        check_blocks(WHAT, "stages", self.stages, &self.attention)?;
        if self.hierarchical && self.shared.is_none() {
            bail!("{WHAT}: hierarchical: expected a shared embedding beside the noise, got none")
        }
        if self.hierarchical && !self.noise.is_multiple_of(self.stages + 1) {
            bail!(
                "{WHAT}: noise: expected {} parts of equal size, got {}",
                self.stages + 1,
                self.noise
            )
        }
        Ok(())
    }

    /// Name and shape of every variable, without allocating any.
    ///
    /// # Errors
    /// Those of [`Generator::new`].
    pub fn variables(&self, channels: usize, classes: usize) -> Result<BTreeMap<String, Shape>> {
        recorded(|vb| Generator::new(self, channels, classes, vb))
    }

    /// Parameters, and the multiply-adds of one image, without building the model; what spectral norm costs once a batch is
    /// not among them.
    ///
    /// # Errors
    /// Those of [`Generator::new`].
    pub fn cost(&self, channels: usize, classes: usize) -> Result<ModelCost> {
        let attention = self.attention.iter().map(|&i| attended(self.side(i).pow(2), self.width));
        let places = |name: &[&str]| match *name {
            // Before the map is doubled: the same numbers.
            ["blocks", i, "0", "conv_sc"] => {
                i.parse().map_or(0, |i: usize| self.side(i).pow(2) / 4)
            }
            ["blocks", i, "0", "conv1" | "conv2"] | ["blocks", i, "1", _] => {
                i.parse().map_or(0, |i: usize| self.side(i).pow(2))
            }
            ["output_layer", "2"] => self.image_size().pow(2),
            ["linear"] => 1,
            // A table is looked up, a shared embedding goes through linear maps.
            ["blocks", _, "0", _, _] if self.shared.is_some() => 1,
            _ => 0,
        };
        Ok(cost(&self.variables(channels, classes)?, places, attention.sum()))
    }
}

impl DiscriminatorConfig {
    /// BigGAN's for CIFAR, 32×32 (`ch` 64): 4.2 million parameters with 10 classes.
    pub fn cifar() -> Self {
        Self { width: 256, blocks: 4, halvings: 2, head: Vec::new(), attention: Vec::new() }
    }

    /// For 8×8 images on two cores.
    pub fn digits() -> Self {
        Self { width: 32, blocks: 3, halvings: 1, ..Self::cifar() }
    }

    /// For 28×28 images on two cores.
    pub fn mnist() -> Self {
        Self { width: 32, blocks: 3, halvings: 2, ..Self::cifar() }
    }

    /// Width of each tap: `block1` and on, `pooled`, and `head` where there is one.
    pub fn taps(&self) -> BTreeMap<String, usize> {
        let blocks = (1..=self.blocks).map(|i| (format!("block{i}"), self.width));
        let head = self.head.last().map(|&width| ("head".to_owned(), width));
        blocks.chain([("pooled".to_owned(), self.width)]).chain(head).collect()
    }

    pub(super) fn check(&self, channels: usize, classes: usize) -> Result<()> {
        const WHAT: &str = "discriminator";
        let sizes = [
            ("channels", channels),
            ("classes", classes),
            ("width", self.width),
            ("blocks", self.blocks),
            ("head", self.head.iter().copied().min().unwrap_or(1)),
        ];
        at_least_one(WHAT, &sizes)?;
        check_blocks(WHAT, "blocks", self.blocks, &self.attention)?;
        if self.halvings > self.blocks {
            bail!(
                "{WHAT}: halvings: expected at most {} blocks, got {}",
                self.blocks,
                self.halvings
            )
        }
        Ok(())
    }

    /// Name and shape of every variable, without allocating any.
    ///
    /// # Errors
    /// Those of [`Discriminator::new`].
    pub fn variables(&self, channels: usize, classes: usize) -> Result<BTreeMap<String, Shape>> {
        recorded(|vb| Discriminator::new(self, channels, classes, vb))
    }

    /// Parameters, and the multiply-adds of one image of `size` pixels a side, without building the model.
    ///
    /// # Errors
    /// Those of [`Discriminator::new`].
    pub fn cost(&self, channels: usize, classes: usize, size: usize) -> Result<ModelCost> {
        // Places before and after block `i`.
        let at = |i: usize| (size >> i.min(self.halvings)).pow(2);
        let attention = self.attention.iter().map(|&i| attended(at(i + 1), self.width));
        let places = |name: &[&str]| match *name {
            ["blocks", i, "0", "conv_sc"] | ["blocks", i, "1", _] => {
                i.parse().map_or(0, |i: usize| at(i + 1))
            }
            ["blocks", i, ..] => i.parse().map_or(0, at),
            // Its product with the features is one row's.
            ["embed"] => 0,
            _ => 1,
        };
        let variables = self.variables(channels, classes)?;
        Ok(cost(&variables, places, attention.sum::<usize>() + self.width))
    }
}

fn check_blocks(what: &str, name: &str, blocks: usize, attention: &[usize]) -> Result<()> {
    if blocks > MOST {
        bail!("{what}: {name}: expected at most {MOST}, got {blocks}")
    }
    if let Some(i) = attention.iter().find(|i| **i >= blocks) {
        bail!("{what}: attention: expected blocks below {blocks}, got {i}")
    }
    Ok(())
}

/// Widths of an attention's keys and values.
pub(super) fn attention_widths(width: usize) -> [usize; 2] {
    [(width / 8).max(1), (width / 2).max(1)]
}

/// Multiply-adds of the two products of an attention over so many places: keys and values are pooled to a quarter.
fn attended(places: usize, width: usize) -> usize {
    places * (places / 4) * attention_widths(width).iter().sum::<usize>()
}

/// `places` says how often the weight of a layer, given by the parts of its name, is applied to one image.
fn cost(
    variables: &BTreeMap<String, Shape>,
    places: impl Fn(&[&str]) -> usize,
    more: usize,
) -> ModelCost {
    let trained = variables.iter().filter(|(name, _)| !is_buffer(name));
    let parameters = trained.map(|(_, shape)| shape.elem_count()).sum();
    let work = variables.iter().filter_map(|(name, shape)| {
        let layer: Vec<&str> = name.strip_suffix(".weight")?.split('.').collect();
        Some(shape.elem_count() * places(&layer))
    });
    ModelCost { parameters, multiply_adds: work.sum::<usize>() + more }
}
