//! A distilled student as a pair of files: weights and a card.

use crate::{Detector, DetectorConfig, Generator, GeneratorModel, Model, ModelConfig, plain};
use candle_core::{D, DType, Device, Error, Result, Tensor, bail};
use candle_nn::VarBuilder;
use safetensors::tensor::Dtype;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use vkd_nn::{Context, VarStore};

/// How raw pixels become the network's input: `(pixel / divisor - mean) / std`, channel by channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Largest raw value, 16 for the digits and 255 for most others.
    pub divisor: f64,
    /// Mean of the training images after division: of each channel, or one for all.
    #[serde(deserialize_with = "one_or_many")]
    pub mean: Vec<f64>,
    /// Standard deviation of the training images after division: of each channel, or one for all.
    #[serde(deserialize_with = "one_or_many")]
    pub std: Vec<f64>,
}

impl Preprocessing {
    /// One mean and one standard deviation for all channels.
    pub fn grey(divisor: f64, mean: f64, std: f64) -> Self {
        Self { divisor, mean: vec![mean], std: vec![std] }
    }

    /// ImageNet's, as torchvision and timm have them.
    pub fn imagenet() -> Self {
        Self { divisor: 255., mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] }
    }

    /// The network's input for the raw value of one pixel.
    pub fn value(&self, channel: usize, raw: u8) -> f32 {
        let of = |values: &[f64], none| values.get(channel).or(values.first()).map_or(none, |v| *v);
        ((f64::from(raw) / self.divisor - of(&self.mean, 0.)) / of(&self.std, 1.)) as f32
    }

    /// Whether this fits images of so many channels.
    ///
    /// # Errors
    /// Means or deviations that are neither one nor one a channel; values that are not finite; a divisor or deviation that is
    /// not above 0.
    pub fn check(&self, channels: usize) -> Result<()> {
        for (name, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != 1 && values.len() != channels {
                bail!(
                    "preprocessing: {name}: expected 1 or {channels} values, got {}",
                    values.len()
                )
            }
        }
        let positive = |v: &f64| *v > 0. && v.is_finite();
        if !(positive(&self.divisor)
            && self.std.iter().all(positive)
            && self.mean.iter().all(|m| m.is_finite()))
        {
            bail!("preprocessing: expected divisor and std above 0 and finite values, got {self:?}")
        }
        Ok(())
    }
}

/// A number or a list of them: cards of schema 1 have numbers.
fn one_or_many<'de, D: Deserializer<'de>>(input: D) -> std::result::Result<Vec<f64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Values {
        One(f64),
        Many(Vec<f64>),
    }
    Ok(match Values::deserialize(input)? {
        Values::One(value) => vec![value],
        Values::Many(values) => values,
    })
}

/// What is built of a card: a classifier's [`ModelConfig`], a detector's [`DetectorConfig`] or a generator's [`GeneratorModel`].
pub trait Blueprint: Clone + Serialize + DeserializeOwned {
    /// What [`construct`](Self::construct) makes.
    type Built;

    /// Builds the network under `vb`.
    ///
    /// # Errors
    /// A size that is zero or does not fit the others.
    fn construct(&self, vb: VarBuilder) -> Result<Self::Built>;

    /// Channels of an image.
    fn channels(&self) -> usize;

    /// Number of classes.
    fn classes(&self) -> usize;
}

impl Blueprint for ModelConfig {
    type Built = Box<dyn Model>;

    fn construct(&self, vb: VarBuilder) -> Result<Self::Built> {
        self.build(vb)
    }

    fn channels(&self) -> usize {
        self.channels
    }

    fn classes(&self) -> usize {
        self.classes
    }
}

impl Blueprint for DetectorConfig {
    type Built = Box<dyn Detector>;

    fn construct(&self, vb: VarBuilder) -> Result<Self::Built> {
        self.build(vb)
    }

    fn channels(&self) -> usize {
        self.channels
    }

    fn classes(&self) -> usize {
        self.classes
    }
}

impl Blueprint for GeneratorModel {
    type Built = Generator;

    fn construct(&self, vb: VarBuilder) -> Result<Self::Built> {
        Generator::new(&self.generator, self.channels, self.classes, vb)
    }

    fn channels(&self) -> usize {
        self.channels
    }

    fn classes(&self) -> usize {
        self.classes
    }
}

/// What a program needs to know to use a student: the content of `student.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardOf<M> {
    /// Version of this form: [`SCHEMA`](Self::SCHEMA).
    pub schema: u32,
    /// Architecture.
    pub model: M,
    /// From raw pixels to input.
    pub preprocessing: Preprocessing,
    /// Name of each class, in the order of the logits.
    pub class_names: Vec<String>,
    /// How images of any size are resized first, for networks that see more than one size; `None` keeps each as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,
}

/// A resize that keeps the proportions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// The shorter side in pixels.
    pub side: usize,
    /// Longest side in pixels: the shorter is made less where it would be exceeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest: Option<usize>,
    /// Both sides are rounded down to multiples of this.
    pub multiple: usize,
}

/// The card of a classifier.
pub type StudentCard = CardOf<ModelConfig>;

/// The card of a detector.
pub type DetectorCard = CardOf<DetectorConfig>;

/// The card of a generator; its preprocessing says what bytes its values from -1 to 1 are.
pub type GeneratorCard = CardOf<GeneratorModel>;

impl<M: Blueprint> CardOf<M> {
    /// The version that is written. Version 1 knew the plain [`Vit`](crate::Vit) only and is read too.
    pub const SCHEMA: u32 = 2;

    /// A card of the present version.
    pub fn new(model: M, preprocessing: Preprocessing, class_names: Vec<String>) -> Self {
        Self { schema: Self::SCHEMA, model, preprocessing, class_names, resize: None }
    }

    /// A card from JSON of this or the first version.
    ///
    /// # Errors
    /// Other JSON, or another version.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let mut card: serde_json::Value = serde_json::from_slice(json).map_err(Error::wrap)?;
        match card.get("schema").and_then(serde_json::Value::as_u64) {
            Some(2) => {}
            Some(1) => {
                card["schema"] = Self::SCHEMA.into();
                if let Some(model) = card.get_mut("model").and_then(|m| m.as_object_mut()) {
                    model.insert("kind".to_owned(), "vit".into());
                }
            }
            other => bail!("expected schema 1 or {}, got {other:?}", Self::SCHEMA),
        }
        serde_json::from_value(card).map_err(Error::wrap)
    }
}

/// A student that was loaded from its files.
pub struct StudentOf<M: Blueprint> {
    /// The card beside the weights.
    pub card: CardOf<M>,
    model: M::Built,
    device: Device,
}

/// A classifier.
pub type Student = StudentOf<ModelConfig>;

/// A detector.
pub type DetectorStudent = StudentOf<DetectorConfig>;

/// A generator.
pub type GeneratorStudent = StudentOf<GeneratorModel>;

/// What a student does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StudentKind {
    /// It tells an image's class.
    Classifier,
    /// It finds objects in images.
    Detector,
    /// It makes images.
    Generator,
}

impl StudentKind {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classifier => "classifier",
            Self::Detector => "detector",
            Self::Generator => "generator",
        }
    }
}

/// What the student of a weights file does, by its card.
///
/// # Errors
/// A card that is missing or no JSON.
pub fn student_kind(weights: &Path) -> Result<StudentKind> {
    let path = card_path(weights);
    let json = std::fs::read(&path)
        .map_err(|e| message(&path, &format!("expected the student's card, got: {e}")))?;
    let card: serde_json::Value =
        serde_json::from_slice(&json).map_err(|e| message(&path, &e.to_string()))?;
    let model = &card["model"];
    Ok(match model["kind"].as_str() {
        Some(kind) if DetectorConfig::is_kind(kind) => StudentKind::Detector,
        None if model.get("generator").is_some() => StudentKind::Generator,
        _ => StudentKind::Classifier,
    })
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

impl<M: Blueprint> StudentOf<M> {
    /// Writes weights and card; the weights are written last, so that they never lie without a card.
    ///
    /// # Errors
    /// Weights that don't fit the card's architecture, or a failed write; an older pair then stays whole.
    pub fn save(
        weights: &Path,
        card: &CardOf<M>,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<()> {
        let fits: HashMap<_, _> = tensors.iter().map(|(n, t)| (n.clone(), t.clone())).collect();
        Self::assemble(card.clone(), &fits, &Device::Cpu)?;
        let views: Vec<(&String, &Tensor)> = tensors.iter().collect();
        let bytes = safetensors::serialize(views, None).map_err(Error::wrap)?;
        let json = serde_json::to_vec_pretty(card).map_err(Error::wrap)?;
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
        let card = CardOf::from_json(&json).map_err(|e| message(&path, &plain(&e)))?;
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
        Self::assemble(card, &tensors, device).map_err(|e| message(weights, &plain(&e)))
    }

    fn assemble(
        card: CardOf<M>,
        tensors: &HashMap<String, Tensor>,
        device: &Device,
    ) -> Result<Self> {
        let classes = card.model.classes();
        if card.class_names.len() != classes {
            bail!("class_names: expected {classes}, got {}", card.class_names.len())
        }
        card.preprocessing.check(card.model.channels())?;
        let store = VarStore::new(0, DType::F32, device);
        let model = card.model.construct(store.builder())?;
        store.load(tensors)?;
        Ok(Self { card, model, device: device.clone() })
    }

    /// The network itself.
    pub fn network(&self) -> &M::Built {
        &self.model
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The network alone.
    pub fn into_network(self) -> M::Built {
        self.model
    }
}

impl Student {
    /// Raw images, one byte a pixel and channel after channel, to the network's input `(B, C, H, W)`.
    ///
    /// # Errors
    /// An image of another size, by its index.
    pub fn preprocess(&self, images: &[&[u8]]) -> Result<Tensor> {
        let ModelConfig { image_size: size, channels, .. } = self.card.model;
        let mut values = Vec::with_capacity(images.len() * channels * size * size);
        for (i, image) in images.iter().enumerate() {
            if image.len() != channels * size * size {
                bail!("image {i}: expected {channels}·{size}·{size} pixels, got {}", image.len())
            }
            for (c, plane) in image.chunks(size * size).enumerate() {
                values.extend(plane.iter().map(|p| self.card.preprocessing.value(c, *p)));
            }
        }
        Tensor::from_vec(values, (images.len(), channels, size, size), &self.device)
    }

    /// Class logits `(B, K)`, on the student's device, of preprocessed images `(B, C, H, W)`, which may lie anywhere: the mean of the
    /// two heads where there are two.
    ///
    /// # Errors
    /// Images of another shape or dtype.
    pub fn logits(&self, images: &Tensor) -> Result<Tensor> {
        let images = images.to_device(&self.device)?;
        self.model.forward(&images, &Context::eval())?.prediction()
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

fn message(path: &Path, text: &str) -> Error {
    Error::Msg(format!("{}: {text}", path.display()))
}
