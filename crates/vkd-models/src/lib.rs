//! Students and teachers for distillation on candle.
//!
//! A [`Vit`] student with class and distillation tokens, a compact [`Cnn`] teacher, and [`Student`]: a distilled network
//! as it is saved, loaded and used. Each model exposes its features beside its logits without changing its forward.
//!
//! Use a distilled student:
//! ```
//! # use candle_core::{DType, Device, Result, Tensor};
//! # use vkd_models::{Preprocessing, Student, StudentCard, Vit, VitConfig};
//! # use vkd_nn::VarStore;
//! # fn main() -> Result<()> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("student.safetensors");
//! # let config = VitConfig { image_size: 8, channels: 1, classes: 10, patch: 2, width: 8, depth: 1, heads: 2, mlp_ratio: 2, drop_path: 0. };
//! # let store = VarStore::new(0, DType::F32, &Device::Cpu);
//! # Vit::new(&config, store.builder())?;
//! # let card = StudentCard { schema: 1, model: config, preprocessing: Preprocessing { divisor: 16., mean: 0.3, std: 0.37 }, class_names: (0..10).map(|c| c.to_string()).collect() };
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

mod cnn;
mod student;
mod vit;

pub use cnn::{Cnn, CnnConfig, CnnOutput};
pub use student::{Preprocessing, Student, StudentCard, card_path, write_atomically};
pub use vit::{Vit, VitConfig, VitOutput};
