//! Inception-v3, whose features the published scores of generators are of.

mod plan;

use crate::cost::recorded;
use crate::model::channels_last;
use crate::{LoadOptions, Model, ModelCost, ModelOutput, load_weights};
use candle_core::{DType, Device, Error, Module, Result, Shape, Tensor, bail};
use candle_nn::VarBuilder;
use plan::{Reached, Step, WIDTH, layers, run};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use vkd_nn::{
    Context, Linear, VarStore, global_avg_pool2d, is_buffer, linear, upsample_bilinear2d,
};

const OP: &str = "inception";

/// Channels of the features at the original width.
const FEATURES: usize = 2048;

/// The smallest image that every window fits into.
const SMALLEST: usize = 75;

/// Which recording of Inception-v3: they differ in classes and pools, so that weights of one make nonsense in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InceptionVariant {
    /// torchvision's `inception_v3`: 1000 classes.
    Torchvision,
    /// The network of 2015-12-05 that FIDs are published of, as its PyTorch port has it: 1008 classes; average pools leave the padding
    /// out of their count, and the last block's pool is a maximum.
    Fid,
}

impl InceptionVariant {
    /// The name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::Torchvision => "torchvision",
            Self::Fid => "fid",
        }
    }

    /// Classes of its head.
    pub fn classes(self) -> usize {
        match self {
            Self::Torchvision => 1000,
            Self::Fid => 1008,
        }
    }
}

/// Settings of an [`InceptionV3`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InceptionConfig {
    /// Which recording.
    pub variant: InceptionVariant,
    /// Height and width that [`prepare`](Self::prepare) brings images to: 299, the default, is what weights are trained at and FIDs are
    /// of; at least 75.
    #[serde(default = "full_size", skip_serializing_if = "is_full_size")]
    pub image_size: usize,
    /// Channels of the first convolution, which all others follow: 32, the default, is the original, and a smaller even number the same
    /// network narrower.
    #[serde(default = "full_width", skip_serializing_if = "is_full_width")]
    pub width: usize,
}

fn full_size() -> usize {
    299
}

fn is_full_size(size: &usize) -> bool {
    *size == full_size()
}

fn full_width() -> usize {
    WIDTH
}

fn is_full_width(width: &usize) -> bool {
    *width == full_width()
}

impl InceptionConfig {
    /// The original sizes.
    pub fn new(variant: InceptionVariant) -> Self {
        Self { variant, image_size: full_size(), width: full_width() }
    }

    /// Width of the features.
    pub fn features(&self) -> usize {
        FEATURES / WIDTH * self.width
    }

    /// Refuses sizes that no network has.
    ///
    /// # Errors
    /// An image below 75 pixels, or a width that is zero or odd.
    pub fn check(&self) -> Result<()> {
        if self.image_size < SMALLEST {
            bail!("{OP}: image_size: expected at least {SMALLEST}, got {}", self.image_size)
        }
        if self.width == 0 || !self.width.is_multiple_of(2) {
            bail!("{OP}: width: expected an even number above 0, got {}", self.width)
        }
        Ok(())
    }

    /// Name and shape of every variable, without allocating any.
    ///
    /// # Errors
    /// Those of [`check`](Self::check).
    pub fn variables(&self) -> Result<BTreeMap<String, Shape>> {
        recorded(|vb| InceptionV3::new(self, vb))
    }

    /// Parameters, and multiply-adds of one image.
    ///
    /// # Errors
    /// Those of [`check`](Self::check).
    ///
    /// # Example
    /// ```
    /// use vkd_models::{InceptionConfig, InceptionVariant};
    /// let cost = InceptionConfig::new(InceptionVariant::Torchvision).cost()?;
    /// // Without the auxiliary head, which has 3,326,696 more.
    /// assert_eq!(cost.parameters, 23_834_568);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn cost(&self) -> Result<ModelCost> {
        let variables = self.variables()?;
        let trained = variables.iter().filter(|(name, _)| !is_buffer(name));
        let parameters = trained.map(|(_, shape)| shape.elem_count()).sum();
        let start = Reached { channels: 3, side: self.image_size, multiply_adds: 0 };
        let all = layers(self.variant);
        let end = all.iter().fold(start, |at, layer| layer.reach(at, self.width));
        let head = self.features() * self.variant.classes();
        Ok(ModelCost { parameters, multiply_adds: end.multiply_adds + head })
    }

    /// Images `(B, 1 or 3, H, W)` from -1 to 1, as a GAN's are, to what the network sees: `(B, 3, image_size, image_size)` from -1 to 1.
    ///
    /// Grey images are repeated for three channels. Another size is brought to `image_size` by bilinear interpolation between the
    /// pixels' middles, without smoothing before a reduction: PyTorch's `interpolate` with `align_corners=False`, as FID's port has it. The
    /// TensorFlow graph of 2015 places the pixels otherwise, so scores by it differ a little.
    ///
    /// Values from -1 to 1 are what both recordings were trained on. torchvision's own transform takes ImageNet's mean from the pixels and
    /// divides by its deviation, and the network, with the `transform_input` of its weights, undoes that again; here neither is done.
    ///
    /// # Errors
    /// Another shape.
    pub fn prepare(&self, images: &Tensor) -> Result<Tensor> {
        let size = self.image_size;
        let colored = match *images.dims() {
            [_, 3, _, _] => images.clone(),
            [_, 1, _, _] => images.repeat((1, 3, 1, 1))?,
            ref dims => bail!("{OP}: expected images (B, 1 or 3, H, W), got {dims:?}"),
        };
        let last = colored.permute((0, 2, 3, 1))?.contiguous()?;
        upsample_bilinear2d(&last, (size, size), false)?.permute((0, 3, 1, 2))
    }
}

/// Inception-v3 (Szegedy et al., arXiv:1512.00567) in evaluation: what scores of generators are measured by, not a network to train.
///
/// Variables have torchvision's names: `Conv2d_1a_3x3.{conv, bn}` and on, `Mixed_5b` to `Mixed_7c` with their branches, `fc`. The
/// auxiliary head, which serves training alone, is not built; what a file holds of it is left alone.
///
/// Taps: `pooled` `(B, 2048)`, the features; `grid` `(B, 2048, H, W)` before their mean. The logits are of the head with its bias.
///
/// # Example: features by weights from a file
/// ```
/// # use candle_core::{DType, Device, Result, Tensor};
/// use vkd_models::{InceptionConfig, InceptionV3, InceptionVariant, Model};
/// use vkd_nn::Context;
/// # fn main() -> Result<()> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("inception.safetensors");
/// # let config = InceptionConfig { width: 2, image_size: 75, ..InceptionConfig::new(InceptionVariant::Fid) };
/// # let store = vkd_nn::VarStore::new(1, DType::F32, &Device::Cpu);
/// # InceptionV3::new(&config, store.builder())?;
/// # candle_core::safetensors::save(&store.tensors().into_iter().collect(), &path)?;
/// // let config = InceptionConfig::new(InceptionVariant::Fid);
/// let network = InceptionV3::load(&config, &path, &Device::Cpu)?;
/// let generated = Tensor::zeros((2, 1, 8, 8), DType::F32, &Device::Cpu)?;
/// let output = network.forward(&config.prepare(&generated)?, &Context::eval())?;
/// assert_eq!(output.tap("pooled")?.dims(), [2, config.features()]);
/// # Ok(())
/// # }
/// ```
pub struct InceptionV3 {
    steps: Vec<Step>,
    fc: Linear,
    /// The head's own.
    bias: Tensor,
}

impl InceptionV3 {
    /// Builds the network under `vb`.
    ///
    /// # Errors
    /// Those of [`InceptionConfig::check`].
    pub fn new(config: &InceptionConfig, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        let mut channels = 3;
        let all = layers(config.variant);
        let steps = all.iter().map(|layer| Step::new(layer, &mut channels, config.width, &vb));
        let steps = steps.collect::<Result<_>>()?;
        let (classes, head) = (config.variant.classes(), vb.pp("fc"));
        let fc = linear(channels, classes, head.clone())?;
        Ok(Self { steps, fc, bias: head.get(classes, "bias")? })
    }

    /// `logits` less the head's bias. The published Inception score (Salimans et al., arXiv:1606.03498) is of their softmax: its code takes
    /// the head's weight alone.
    ///
    /// # Errors
    /// Logits of another number of classes.
    pub fn without_bias(&self, logits: &Tensor) -> Result<Tensor> {
        logits.broadcast_sub(&self.bias)
    }

    /// The network of a `.pth` or `.safetensors` file, in f32, made of constants.
    ///
    /// # Errors
    /// A file that can't be read, a weight that is missing or of another shape (a head of another number of classes is the other
    /// variant's), and a value that is not finite or a variance below zero, by its name.
    pub fn load(config: &InceptionConfig, path: &Path, device: &Device) -> Result<Self> {
        let store = VarStore::new(0, DType::F32, device);
        Self::new(config, store.builder())?;
        let named = |fault: String| Error::Msg(format!("{}: {fault}", path.display()));
        let head = || vec!["fc".to_owned()];
        let report =
            load_weights(&store, path, &LoadOptions { allow: head(), ..Default::default() })?;
        if !report.missing.is_empty() || !report.wrong_shape.is_empty() {
            let variant = config.variant;
            return Err(named(format!(
                "expected the head of variant {} with {} classes, got {report}; torchvision's has 1000, fid's 1008",
                variant.name(),
                variant.classes()
            )));
        }
        for (name, values) in store.tensors() {
            let least = if name.ends_with("running_var") { 0. } else { f32::MIN };
            let values = values.flatten_all()?.to_vec1::<f32>()?;
            // NaN is in no range.
            if let Some(odd) = values.iter().find(|v| !(least..=f32::MAX).contains(*v)) {
                let want = if least == 0. { "variances of at least 0" } else { "finite weights" };
                return Err(named(format!("{name}: expected {want}, got {odd}")));
            }
        }
        Self::new(config, store.frozen())
    }
}

impl Model for InceptionV3 {
    /// Images `(B, 3, H, W)` from -1 to 1 of at least 75 pixels each way; [`InceptionConfig::prepare`] makes them.
    fn forward(&self, images: &Tensor, _ctx: &Context) -> Result<ModelOutput> {
        let xs = channels_last(OP, images, 3)?.contiguous()?;
        let (_, height, width, _) = xs.dims4()?;
        if height.min(width) < SMALLEST {
            bail!("{OP}: expected images of at least {SMALLEST} pixels, got {height}x{width}")
        }
        let grid = run(&self.steps, &xs)?;
        let pooled = global_avg_pool2d(&grid)?;
        Ok(ModelOutput {
            logits: self.fc.forward(&pooled)?,
            distillation_logits: None,
            taps: BTreeMap::from([
                ("grid".to_owned(), grid.permute((0, 3, 1, 2))?),
                ("pooled".to_owned(), pooled),
            ]),
        })
    }
}
