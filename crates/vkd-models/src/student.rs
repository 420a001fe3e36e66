//! A distilled student as a pair of files: weights and a card.

use crate::{Vit, VitConfig};
use candle_core::{D, DType, Device, Result, Tensor, bail};
use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use vkd_nn::{Context, VarStore};

/// How raw pixels become the network's input: `(pixel / divisor - mean) / std`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Largest raw value, 16 for the digits and 255 for MNIST.
    pub divisor: f64,
    /// Mean of the training images after division.
    pub mean: f64,
    /// Standard deviation of the training images after division.
    pub std: f64,
}

/// What a program needs to know to use a student: the content of `student.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudentCard {
    /// Version of this form; 1.
    pub schema: u32,
    /// Architecture.
    pub model: VitConfig,
    /// From raw pixels to input.
    pub preprocessing: Preprocessing,
    /// Name of each class, in the order of the logits.
    pub class_names: Vec<String>,
}

/// A student that was loaded from its files.
pub struct Student {
    /// The card beside the weights.
    pub card: StudentCard,
    model: Vit,
    device: Device,
}

/// Where the card of a weights file lies: `student.json` beside `student.safetensors`.
pub fn card_path(weights: &Path) -> PathBuf {
    weights.with_extension("json")
}

/// Writes a file so that it is either the old one or the whole new one, whatever happens in between: to a temporary file
/// in the same folder, flushed to the disk, then renamed.
///
/// # Errors
/// A folder that is missing or can't be written, a full disk; the message names `path`.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let named =
        |e: std::io::Error| std::io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".vkd-").suffix(".tmp");
    // Temporary files are private; the result is an ordinary file, as open as the user's umask says.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(named)?;
    file.write_all(bytes).map_err(named)?;
    file.as_file().sync_all().map_err(named)?;
    file.persist(path).map_err(|e| named(e.error))?;
    // The rename itself must reach the disk too; not every platform lets a folder be opened.
    if let Ok(folder) = std::fs::File::open(folder) {
        folder.sync_all().ok();
    }
    Ok(())
}

impl Student {
    /// Writes weights and card; the weights are written last, so that they never lie without a card.
    ///
    /// # Errors
    /// Weights that don't fit the card's architecture, or a failed write; an older pair then stays whole.
    pub fn save(
        weights: &Path,
        card: &StudentCard,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<()> {
        let fits: HashMap<_, _> = tensors.iter().map(|(n, t)| (n.clone(), t.clone())).collect();
        Self::assemble(card.clone(), &fits, &Device::Cpu)?;
        let views: Vec<(&String, &Tensor)> = tensors.iter().collect();
        let bytes = safetensors::serialize(views, None).map_err(candle_core::Error::wrap)?;
        let json = serde_json::to_vec_pretty(card).map_err(candle_core::Error::wrap)?;
        write_atomically(&card_path(weights), &json)?;
        write_atomically(weights, &bytes)?;
        Ok(())
    }

    /// Loads a student from its weights file and the card beside it.
    ///
    /// # Errors
    /// A missing or unreadable file, a card of another schema, or weights that don't fit the card: the message names the
    /// file and every key that is missing, unexpected or of the wrong shape.
    pub fn load(weights: &Path, device: &Device) -> Result<Self> {
        let path = card_path(weights);
        let json = std::fs::read(&path)
            .map_err(|e| message(&path, &format!("expected the student's card, got: {e}")))?;
        let card: StudentCard =
            serde_json::from_slice(&json).map_err(|e| message(&path, &e.to_string()))?;
        if card.schema != 1 {
            bail!("{}: expected schema 1, got {}", path.display(), card.schema)
        }
        let bytes = std::fs::read(weights).map_err(|e| message(weights, &e.to_string()))?;
        // The header is checked first, so that a truncated file gets this message and not a panic further down.
        let header = safetensors::SafeTensors::deserialize(&bytes).map_err(|e| {
            message(
                weights,
                &format!("expected a whole safetensors file, got {} bytes: {e}", bytes.len()),
            )
        })?;
        if let Some((name, view)) = header.iter().find(|(_, v)| v.dtype() != Dtype::F32) {
            bail!("{}: {name}: expected F32, got {:?}", weights.display(), view.dtype())
        }
        let tensors = candle_core::safetensors::load_buffer(&bytes, device)?;
        Self::assemble(card, &tensors, device).map_err(|e| message(weights, &e.to_string()))
    }

    fn assemble(
        card: StudentCard,
        tensors: &HashMap<String, Tensor>,
        device: &Device,
    ) -> Result<Self> {
        if card.class_names.len() != card.model.classes {
            bail!("class_names: expected {}, got {}", card.model.classes, card.class_names.len())
        }
        let Preprocessing { divisor, mean, std } = card.preprocessing;
        if !(divisor > 0. && std > 0. && mean.is_finite() && divisor.is_finite() && std.is_finite())
        {
            bail!(
                "preprocessing: expected divisor and std above 0 and finite values, got {:?}",
                card.preprocessing
            )
        }
        let store = VarStore::new(0, DType::F32, device);
        let model = Vit::new(&card.model, store.builder())?;
        store.load(tensors)?;
        Ok(Self { card, model, device: device.clone() })
    }

    /// Raw images, one byte a pixel and channel after channel, to the network's input `(B, C, H, W)`.
    ///
    /// # Errors
    /// An image of another size, by its index.
    pub fn preprocess(&self, images: &[&[u8]]) -> Result<Tensor> {
        let VitConfig { image_size: size, channels, .. } = self.card.model;
        let Preprocessing { divisor, mean, std } = self.card.preprocessing;
        let mut values = Vec::with_capacity(images.len() * channels * size * size);
        for (i, image) in images.iter().enumerate() {
            if image.len() != channels * size * size {
                bail!("image {i}: expected {channels}·{size}·{size} pixels, got {}", image.len())
            }
            values.extend(image.iter().map(|p| ((f64::from(*p) / divisor - mean) / std) as f32));
        }
        Tensor::from_vec(values, (images.len(), channels, size, size), &self.device)
    }

    /// Class logits `(B, K)` of preprocessed images `(B, C, H, W)`: the mean of the two heads.
    ///
    /// # Errors
    /// Images of another shape or dtype.
    pub fn logits(&self, images: &Tensor) -> Result<Tensor> {
        let output = self.model.forward(images, &Context::eval())?;
        (output.logits + output.distillation_logits)? * 0.5
    }

    /// Class probabilities `(B, K)` of preprocessed images `(B, C, H, W)`.
    ///
    /// # Errors
    /// Images of another shape or dtype.
    pub fn probabilities(&self, images: &Tensor) -> Result<Tensor> {
        let logits = self.logits(images)?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
        shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)
    }
}

fn message(path: &Path, text: &str) -> candle_core::Error {
    candle_core::Error::Msg(format!("{}: {text}", path.display()))
}
