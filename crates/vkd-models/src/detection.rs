//! One shape for all detectors: what they are built from, and what they hand over.

use crate::model::{at_least_one, named_tap};
use crate::{DenseOutput, Fcos, FcosConfig, ModelCost, Vidt, VidtConfig};
use candle_core::{Result, Shape, Tensor, bail};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use vkd_nn::Context;

/// A detector's family and its sizes; `kind` names the family in a file.
///
/// What the data decides (channels, classes) is not here: see [`DetectorConfig`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DetectorArchitecture {
    /// [`Fcos`].
    Fcos(FcosConfig),
    /// [`Vidt`].
    Vidt(VidtConfig),
}

/// Everything that decides a detector's shape.
///
/// # Example
/// ```
/// # use candle_core::{DType, Device, Result, Tensor};
/// use vkd_models::{DetectorArchitecture, DetectorConfig, DetectorOutput, FcosConfig};
/// use vkd_nn::{Context, VarStore};
/// # fn main() -> Result<()> {
/// let architecture = DetectorArchitecture::Fcos(FcosConfig::student());
/// let config = DetectorConfig { channels: 1, classes: 10, architecture };
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let detector = config.build(store.builder())?;
/// let images = Tensor::zeros((2, 1, 64, 64), DType::F32, &Device::Cpu)?;
/// let DetectorOutput::Dense(output) = detector.forward(&images, None, &Context::eval())? else { unreachable!() };
/// assert_eq!(output.levels[0].logits.dims(), [2, 10, 16, 16]);
/// assert_eq!(config.cost([64, 64])?.parameters, store.parameter_count());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DetectorConfig {
    /// Channels of the image.
    pub channels: usize,
    /// Number of classes.
    pub classes: usize,
    /// Family and sizes.
    #[serde(flatten)]
    pub architecture: DetectorArchitecture,
}

/// Result of one forward pass of any detector.
#[derive(Clone, Debug)]
pub enum DetectorOutput {
    /// Maps of predictions.
    Dense(DenseOutput),
    /// Predictions of queries.
    Queries(QueryOutput),
}

/// A detector that shows its features.
pub trait Detector: Send + Sync {
    /// Images `(B, channels, H, W)`, zero where `padding` `(B, H, W)` is not, to predictions and taps; without it no image is
    /// padded.
    ///
    /// # Errors
    /// Images or a mask of another shape, and in training a context without an id for each sample where layers draw by it.
    fn forward(
        &self,
        images: &Tensor,
        padding: Option<&Tensor>,
        ctx: &Context,
    ) -> Result<DetectorOutput>;
}

impl Detector for Fcos {
    /// Its predictions are where the places are, so padding needs no mask.
    fn forward(&self, images: &Tensor, _: Option<&Tensor>, _: &Context) -> Result<DetectorOutput> {
        Ok(DetectorOutput::Dense(Fcos::forward(self, images)?))
    }
}

impl Detector for Vidt {
    fn forward(
        &self,
        images: &Tensor,
        padding: Option<&Tensor>,
        ctx: &Context,
    ) -> Result<DetectorOutput> {
        Ok(DetectorOutput::Queries(Vidt::forward(self, images, padding, ctx)?))
    }
}

impl DetectorConfig {
    /// Whether a file's `kind` names a detector.
    pub(crate) fn is_kind(kind: &str) -> bool {
        matches!(kind, "fcos" | "vidt")
    }

    /// Builds the detector under `vb`.
    ///
    /// # Errors
    /// A size that is zero or does not fit the others: the field and both values are named.
    pub fn build(&self, vb: VarBuilder) -> Result<Box<dyn Detector>> {
        let Self { channels, classes, .. } = *self;
        at_least_one("detector", &[("channels", channels), ("classes", classes)])?;
        Ok(match &self.architecture {
            DetectorArchitecture::Fcos(c) => Box::new(Fcos::new(c, channels, classes, vb)?),
            DetectorArchitecture::Vidt(c) => Box::new(Vidt::new(c, channels, classes, vb)?),
        })
    }

    /// Name and width C of each tap, sorted by name.
    pub fn taps(&self) -> BTreeMap<String, usize> {
        match &self.architecture {
            DetectorArchitecture::Fcos(c) => {
                c.taps().into_iter().map(|(name, shape)| (name, shape.width)).collect()
            }
            DetectorArchitecture::Vidt(c) => c.taps(),
        }
    }

    /// Name and shape of every variable, without allocating any.
    ///
    /// # Errors
    /// Those of [`build`](Self::build).
    pub fn variables(&self) -> Result<BTreeMap<String, Shape>> {
        match &self.architecture {
            DetectorArchitecture::Fcos(c) => c.variables(self.channels, self.classes),
            DetectorArchitecture::Vidt(c) => c.variables(self.channels, self.classes),
        }
    }

    /// Parameters and the multiply-adds of one image of `size` (height, width).
    ///
    /// # Errors
    /// Those of [`build`](Self::build).
    pub fn cost(&self, size: [usize; 2]) -> Result<ModelCost> {
        match &self.architecture {
            DetectorArchitecture::Fcos(c) => c.cost(self.channels, self.classes, size),
            DetectorArchitecture::Vidt(c) => c.cost(self.channels, self.classes, size),
        }
    }
}

/// Result of one forward pass of a detector whose predictions are tokens, such as [`Vidt`](crate::Vidt).
///
/// With B images, Q queries and K classes. Level 0 is the prediction of the queries as they enter the decoder, the last one
/// that of its last layer; those before the last are auxiliary and learn from losses of their own.
#[derive(Clone, Debug)]
pub struct QueryOutput {
    /// Class logits `(levels, B, Q, K)`, for a sigmoid each: there is no class for nothing.
    pub logits: Tensor,
    /// Boxes `(levels, B, Q, 4)`: centre x and y, width, height, from 0 to 1 of the image without its padding.
    pub boxes: Tensor,
    /// Features by name: a grid `(B, C, H, W)`, tokens `(B, Q, C)` or the tokens of all levels `(levels, B, Q, C)`.
    pub taps: BTreeMap<String, Tensor>,
    /// For each tap that is a grid, where it is padding: `(B, H, W)` of u8, 1 at cells that show no part of the image.
    pub masks: BTreeMap<String, Tensor>,
}

impl QueryOutput {
    /// The features of tap `name`.
    ///
    /// # Errors
    /// An unknown name; the message lists the known ones.
    pub fn tap(&self, name: &str) -> Result<&Tensor> {
        named_tap("detector", &self.taps, name)
    }

    /// Logits `(B, Q, K)` and boxes `(B, Q, 4)` of the last level: the prediction.
    ///
    /// # Errors
    /// An output without levels.
    pub fn prediction(&self) -> Result<(Tensor, Tensor)> {
        match self.logits.dim(0)? {
            0 => bail!("detector: expected at least one level of predictions, got none"),
            levels => Ok((self.logits.get(levels - 1)?, self.boxes.get(levels - 1)?)),
        }
    }
}
