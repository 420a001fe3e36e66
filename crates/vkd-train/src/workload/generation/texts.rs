//! One feature of the teacher's for each class, of a text that names it.

use crate::data::Dataset;
use crate::hub;
use candle_core::{DType, Error, Result, Tensor, bail};
use std::path::Path;
use vkd_models::TensorFile;

/// Name of the tensor in its file.
const TEXTS: &str = "texts";

/// Features `(classes, width)` in f32 of a `.safetensors` or `.pth` file.
///
/// # Errors
/// A file that can't be read, one without the tensor, another shape, and a row that is not finite or all zero, by its class.
pub(super) fn texts(path: &Path, data: &Dataset, width: usize) -> Result<Tensor> {
    let read = || -> Result<Tensor> {
        let file = TensorFile::read(&hub::local(path)?, None)?;
        let Some(entry) = file.entries.get(TEXTS) else {
            let names: Vec<&str> = file.entries.keys().take(6).map(String::as_str).collect();
            bail!("{}: expected a tensor {TEXTS}, got {}", path.display(), names.join(", "))
        };
        let classes = &data.class_names;
        if entry.shape != [classes.len(), width] {
            bail!(
                "{}: {TEXTS}: expected ({}, {width}), a row of the teacher's width for each class, got {:?}",
                path.display(),
                classes.len(),
                entry.shape
            )
        }
        let texts = entry.float(TEXTS)?.to_dtype(DType::F32)?;
        for (row, class) in texts.to_vec2::<f32>()?.iter().zip(classes) {
            let finite = row.iter().all(|v| v.is_finite());
            if !finite || row.iter().all(|v| *v == 0.) {
                bail!(
                    "{}: {TEXTS}: expected finite values that are not all zero, got others for class {class}",
                    path.display()
                )
            }
        }
        Ok(texts)
    };
    read().map_err(|e| Error::Msg(format!("distill.texts: {}", crate::plain(&e))))
}
