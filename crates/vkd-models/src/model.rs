//! One shape for all models: what they are built from, and what they hand over.

use crate::{
    Cnn, CnnConfig, Deit, DeitConfig, EfficientnetLite, EfficientnetLiteConfig, Regnet,
    RegnetConfig, Resnet, ResnetConfig, Vit, VitConfig,
};
use candle_core::{DType, Result, Tensor, bail};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vkd_nn::Context;

/// A model's family and its sizes; `kind` names the family in a file.
///
/// What the data decides (image size, channels, classes) is not here: see [`ModelConfig`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Architecture {
    /// [`Vit`].
    Vit(VitConfig),
    /// [`Deit`].
    Deit(DeitConfig),
    /// [`Cnn`].
    Cnn(CnnConfig),
    /// [`Resnet`].
    Resnet(ResnetConfig),
    /// [`Regnet`].
    Regnet(RegnetConfig),
    /// [`EfficientnetLite`].
    EfficientnetLite(EfficientnetLiteConfig),
}

/// Everything that decides a model's shape.
///
/// # Example
/// ```
/// # use candle_core::{DType, Device, Result, Tensor};
/// use vkd_models::{Architecture, ModelConfig, ResnetConfig};
/// use vkd_nn::{Context, VarStore};
/// # fn main() -> Result<()> {
/// let config = ModelConfig {
///     image_size: 32,
///     channels: 3,
///     classes: 10,
///     architecture: Architecture::Resnet(ResnetConfig { width: 4, ..ResnetConfig::resnet18() }),
/// };
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let model = config.build(store.builder())?;
/// let images = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu)?;
/// let output = model.forward(&images, &Context::eval())?;
/// assert_eq!(output.logits.dims(), [2, 10]);
/// assert_eq!(output.tap("stage4")?.dims(), [2, 32, 1, 1]);
/// assert_eq!(config.cost()?.parameters, store.parameter_count());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Height and width of the image in pixels.
    pub image_size: usize,
    /// Channels of the image.
    pub channels: usize,
    /// Number of classes.
    pub classes: usize,
    /// Family and sizes.
    #[serde(flatten)]
    pub architecture: Architecture,
}

/// Result of one forward pass.
#[derive(Clone, Debug)]
pub struct ModelOutput {
    /// Class logits `(B, K)`.
    pub logits: Tensor,
    /// Logits `(B, K)` of the distillation token's head; `None` where the model has one head.
    pub distillation_logits: Option<Tensor>,
    /// Features by name. Their rank says how to read them: pooled `(B, C)`, tokens `(B, N, C)`, a grid `(B, C, H, W)`.
    pub taps: BTreeMap<String, Tensor>,
}

impl ModelOutput {
    /// The features of tap `name`.
    ///
    /// # Errors
    /// An unknown name; the message lists the known ones.
    pub fn tap(&self, name: &str) -> Result<&Tensor> {
        named_tap("model", &self.taps, name)
    }

    /// The logits to predict with: the mean of the two heads' where there are two (DeiT, arXiv:2012.12877).
    ///
    /// # Errors
    /// Heads of different shapes.
    pub fn prediction(&self) -> Result<Tensor> {
        match &self.distillation_logits {
            Some(other) => (&self.logits + other)? * 0.5,
            None => Ok(self.logits.clone()),
        }
    }
}

/// A classifier that shows its features.
pub trait Model: Send + Sync {
    /// Images `(B, channels, H, W)` to logits and taps.
    ///
    /// # Errors
    /// Images of another shape, and in training whatever random layers and batch statistics refuse.
    fn forward(&self, images: &Tensor, ctx: &Context) -> Result<ModelOutput>;
}

impl Model for Box<dyn Model> {
    fn forward(&self, images: &Tensor, ctx: &Context) -> Result<ModelOutput> {
        self.as_ref().forward(images, ctx)
    }
}

impl ModelConfig {
    /// Builds the model under `vb`.
    ///
    /// # Errors
    /// A size that is zero or does not fit the others: the field and both values are named.
    pub fn build(&self, vb: VarBuilder) -> Result<Box<dyn Model>> {
        let sizes = [
            ("image_size", self.image_size),
            ("channels", self.channels),
            ("classes", self.classes),
        ];
        at_least_one("model", &sizes)?;
        Ok(match &self.architecture {
            Architecture::Vit(c) => Box::new(Vit::new(c, self, vb)?),
            Architecture::Deit(c) => Box::new(Deit::new(c, self, vb)?),
            Architecture::Cnn(c) => Box::new(Cnn::new(c, self, vb)?),
            Architecture::Resnet(c) => Box::new(Resnet::new(c, self, vb)?),
            Architecture::Regnet(c) => Box::new(Regnet::new(c, self, vb)?),
            Architecture::EfficientnetLite(c) => Box::new(EfficientnetLite::new(c, self, vb)?),
        })
    }

    /// Name and width C of each tap, sorted by name.
    pub fn taps(&self) -> BTreeMap<String, usize> {
        match &self.architecture {
            Architecture::Vit(c) => c.taps(),
            Architecture::Deit(c) => c.taps(),
            Architecture::Cnn(c) => c.taps(),
            Architecture::Resnet(c) => c.taps(),
            Architecture::Regnet(c) => c.taps(),
            Architecture::EfficientnetLite(c) => c.taps(),
        }
    }
}

/// The features of tap `name`, or an error of `what` that lists the known ones.
pub(crate) fn named_tap<'a>(
    what: &str,
    taps: &'a BTreeMap<String, Tensor>,
    name: &str,
) -> Result<&'a Tensor> {
    match taps.get(name) {
        Some(features) => Ok(features),
        None => {
            let known: Vec<&str> = taps.keys().map(String::as_str).collect();
            bail!("{what}: expected a tap named {name}, got {}", known.join(", "))
        }
    }
}

/// Refuses images that are not `(B, channels, H, W)`, and turns the others channels-last.
pub(crate) fn channels_last(what: &str, images: &Tensor, channels: usize) -> Result<Tensor> {
    match images.dims() {
        [_, c, _, _] if *c == channels => images.permute((0, 2, 3, 1)),
        dims => bail!("{what}: expected images (B, {channels}, H, W), got {dims:?}"),
    }
}

/// Taps of a network of stages: `stage1` and on, `grid` for the last of them, all channels first, and `pooled`.
pub(crate) fn stage_taps(stages: &[Tensor], pooled: &Tensor) -> Result<BTreeMap<String, Tensor>> {
    let mut taps = BTreeMap::from([("pooled".to_owned(), pooled.clone())]);
    for (i, stage) in stages.iter().enumerate() {
        let grid = stage.permute((0, 3, 1, 2))?;
        if i + 1 == stages.len() {
            taps.insert("grid".to_owned(), grid.clone());
        }
        taps.insert(format!("stage{}", i + 1), grid);
    }
    Ok(taps)
}

/// The widths that belong to [`stage_taps`].
pub(crate) fn stage_widths(stages: &[usize], pooled: usize) -> BTreeMap<String, usize> {
    let mut taps = BTreeMap::from([("pooled".to_owned(), pooled)]);
    taps.extend(stages.iter().enumerate().map(|(i, &width)| (format!("stage{}", i + 1), width)));
    taps.extend(stages.last().map(|&width| ("grid".to_owned(), width)));
    taps
}

/// Values of a half type in f32, others as they are: candle's own sums, which a broadcast has as its gradient, would lose
/// what a half type can't hold.
pub(crate) fn summable(xs: &Tensor) -> Result<Tensor> {
    match xs.dtype() {
        DType::F16 | DType::BF16 => xs.to_dtype(DType::F32),
        _ => Ok(xs.clone()),
    }
}

/// Names the first size that is zero.
pub(crate) fn at_least_one(what: &str, sizes: &[(&str, usize)]) -> Result<()> {
    if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
        bail!("{what}: {name}: expected at least 1, got 0")
    }
    Ok(())
}

/// Names a rate of stochastic depth that is none.
pub(crate) fn check_rate(what: &str, rate: f64) -> Result<()> {
    if !(0. ..1.).contains(&rate) {
        bail!("{what}: drop_path: expected a rate in [0, 1), got {rate}")
    }
    Ok(())
}
