//! Students and teachers for distillation on candle.
//!
//! A [`ModelConfig`] names a family, its sizes and the task's; [`ModelConfig::build`] makes the [`Model`] and
//! [`ModelConfig::cost`] counts it beforehand. Every model hands over a [`ModelOutput`]: logits and named taps.
//!
//! | `kind` | model | weights |
//! | --- | --- | --- |
//! | `vit` | [`Vit`], for small images | |
//! | `deit` | [`Deit`], as in timm or with V_kD's stem and token | `deit_*_distilled_patch16_224` |
//! | `cnn` | [`Cnn`], compact | |
//! | `resnet` | [`Resnet`] | `resnet18`, `resnet34`, `resnet50` |
//! | `regnet` | [`Regnet`], RegNetY | `regnety_002` to `regnety_160` |
//! | `efficientnet_lite` | [`EfficientnetLite`] | `efficientnet_lite0` |
//!
//! [`Fcos`] (`kind` `fcos`) and [`Vidt`] (`vidt`) are detectors, built by a [`DetectorConfig`]: one hands over a [`DenseOutput`]
//! of levels, the other a [`QueryOutput`] of classes and boxes, both with taps. [`Generator`] and [`Discriminator`] are a BigGAN
//! for small images, whose discriminator has taps too, [`ClipVision`] is a teacher for it, and [`InceptionV3`] what published scores are measured by.
//!
//! [`load_weights`] reads files with timm's key names; [`Student`] is a distilled network as it is saved, loaded and used.
//! Images are channels first outside and channels last inside.
//!
//! Use a distilled student:
//! ```
//! # use candle_core::{DType, Device, Result, Tensor};
//! # use vkd_models::{Architecture, ModelConfig, Preprocessing, Student, StudentCard, VitConfig};
//! # use vkd_nn::VarStore;
//! # fn main() -> Result<()> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("student.safetensors");
//! # let vit = VitConfig { patch: 2, width: 8, depth: 1, heads: 2, mlp_ratio: 2, drop_path: 0. };
//! # let model = ModelConfig { image_size: 8, channels: 1, classes: 10, architecture: Architecture::Vit(vit) };
//! # let store = VarStore::new(0, DType::F32, &Device::Cpu);
//! # model.build(store.builder())?;
//! # let card = StudentCard::new(model, Preprocessing::grey(16., 0.3, 0.37), (0..10).map(|c| c.to_string()).collect());
//! # Student::save(&path, &card, &store.tensors())?;
//! let student = Student::load(&path, &Device::Cpu)?;
//! let pixels = vec![0u8; 8 * 8]; // one image, rows from the top, in the data set's own range
//! let images = student.preprocess(&[&pixels])?;
//! let probabilities = student.probabilities(&images)?.to_vec2::<f32>()?;
//! let best = (0..10).max_by(|&a, &b| probabilities[0][a].total_cmp(&probabilities[0][b])).unwrap_or(0);
//! println!("{} with {:.0} %", student.card.class_names[best], 100. * probabilities[0][best]);
//! # Ok(())
//! # }
//! ```

mod biggan;
mod clip;
mod cnn;
mod conv_norm;
mod cost;
mod deit;
mod detection;
mod efficientnet_lite;
mod encoder;
mod fcos;
mod inception;
mod model;
mod pickle;
mod regnet;
mod resnet;
mod student;
mod tensor_file;
mod vidt;
mod vit;
mod weights;

pub use biggan::{
    Discriminator, DiscriminatorConfig, DiscriminatorOutput, GanConfig, Generator, GeneratorConfig,
    GeneratorModel,
};
pub use clip::{ClipInput, ClipVision, ClipVisionConfig};
pub use cnn::{Cnn, CnnConfig};
pub use cost::ModelCost;
pub use deit::{Deit, DeitConfig, DistillationToken, Embedding};
pub use detection::{Detector, DetectorArchitecture, DetectorConfig, DetectorOutput, QueryOutput};
pub use efficientnet_lite::{EfficientnetLite, EfficientnetLiteConfig};
pub use fcos::{DenseLevel, DenseOutput, Fcos, FcosConfig, GridShape};
pub use inception::{InceptionConfig, InceptionV3, InceptionVariant};
pub use model::{Architecture, Model, ModelConfig, ModelOutput};
pub use regnet::{Regnet, RegnetConfig};
pub use resnet::{Resnet, ResnetBlock, ResnetConfig};
pub use student::{
    Blueprint, CardOf, DetectorCard, DetectorStudent, GeneratorCard, GeneratorStudent,
    Preprocessing, Resize, Student, StudentCard, StudentKind, StudentOf, card_path, student_kind,
    write_atomically,
};
pub use tensor_file::{TensorEntry, TensorFile};
pub use vidt::{Vidt, VidtConfig};
pub use vit::{Vit, VitConfig};
pub use weights::{LoadOptions, LoadReport, load_weights};

/// An error's text without the stack trace that candle attaches where `RUST_BACKTRACE` is set.
pub fn plain(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => plain(inner),
        candle_core::Error::Context { inner, context } => format!("{context}: {inner}"),
        other => other.to_string(),
    }
}
