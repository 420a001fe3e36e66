//! Inception-v3 as what scores are of.

use crate::fingerprint::file_hash;
use crate::hub;
use crate::recipe::GanCriterionConfig;
use candle_core::{Device, Error, Result, Tensor};
use vkd_models::{InceptionConfig, InceptionV3, Model};
use vkd_nn::{Context, softmax};

/// Images in one pass: at 299 pixels the first layers put out some ten megabytes an image.
const PASS: usize = 25;

/// Inception-v3 by the weights of a recipe.
pub(super) struct Extractor {
    config: InceptionConfig,
    network: InceptionV3,
    /// Variant, file and its hash.
    pub(super) name: String,
}

impl Extractor {
    /// The one that `criterion.inception` names, on `device`; none where there is no such table.
    pub(super) fn of(criterion: &GanCriterionConfig, device: &Device) -> Result<Option<Self>> {
        let Some(name) = criterion.extractor()? else { return Ok(None) };
        let Some(table) = &criterion.inception else { return Ok(None) };
        let config = table.network();
        let load = || InceptionV3::load(&config, &hub::local(&table.weights)?, device);
        Ok(Some(Self { config, network: load().map_err(named)?, name }))
    }

    /// Width of the features.
    pub(super) fn width(&self) -> usize {
        self.config.features()
    }

    /// Classes of its head.
    pub(super) fn classes(&self) -> usize {
        self.config.variant.classes()
    }

    /// Features `(B, width)` and probabilities of its own classes, as the Inception score has them, of images `(B, 1 or 3, H, W)` from -1 to 1.
    pub(super) fn look(&self, images: &Tensor) -> Result<(Tensor, Tensor)> {
        let (mut features, mut probabilities) = (Vec::new(), Vec::new());
        let count = images.dim(0)?;
        for start in (0..count).step_by(PASS) {
            let some = images.narrow(0, start, PASS.min(count - start))?;
            let output = self.network.forward(&self.config.prepare(&some)?, &Context::eval())?;
            features.push(output.tap("pooled")?.clone());
            probabilities.push(softmax(&self.network.without_bias(&output.logits)?)?);
        }
        Ok((Tensor::cat(&features, 0)?, Tensor::cat(&probabilities, 0)?))
    }
}

fn named(e: Error) -> Error {
    Error::Msg(format!("criterion.inception.weights: {}", crate::plain(&e)))
}

impl GanCriterionConfig {
    /// What makes the features that scores are of, where that is not the run's judge: the network with its variant and sizes, and the
    /// name and hash of its file.
    ///
    /// # Errors
    /// A file that can't be read.
    pub fn extractor(&self) -> Result<Option<String>> {
        let Some(table) = &self.inception else { return Ok(None) };
        let (config, path) = (table.network(), hub::local(&table.weights).map_err(named)?);
        let hash = file_hash(&path).map_err(named)?;
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let size = config.image_size;
        let narrow = match config.width == InceptionConfig::new(config.variant).width {
            true => String::new(),
            false => format!(" of width {}", config.width),
        };
        Ok(Some(format!(
            "Inception-v3 ({}{narrow}) at {size}x{size} pixels, {file}, SHA-256 {}…",
            config.variant.name(),
            hash.as_str().unwrap_or_default()
        )))
    }
}
