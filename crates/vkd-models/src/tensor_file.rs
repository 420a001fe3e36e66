//! Tensor files of vkd and PyTorch.

use crate::pickle;
use candle_core::{DType, Device, Error, Result, Tensor, bail};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, View};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// One stored tensor, bytes as they lie in the file.
pub struct TensorEntry {
    /// Type of the values.
    pub dtype: Dtype,
    /// Sizes.
    pub shape: Vec<usize>,
    /// Values in row-major order, little-endian.
    pub bytes: Vec<u8>,
}

impl TensorEntry {
    /// The bytes of a tensor.
    ///
    /// # Errors
    /// A device that can't be read.
    pub fn of(tensor: &Tensor) -> Result<Self> {
        let tensor = tensor.contiguous()?;
        let (dtype, shape) = (View::dtype(&tensor), tensor.dims().to_vec());
        Ok(Self { dtype, shape, bytes: View::data(&tensor).into_owned() })
    }

    /// As a tensor; `key` names it in messages.
    ///
    /// # Errors
    /// Integers and the exotic floats.
    pub fn float(&self, key: &str) -> Result<Tensor> {
        match self.dtype {
            Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64 => Tensor::from_raw_buffer(
                &self.bytes,
                DType::try_from(self.dtype)?,
                &self.shape,
                &Device::Cpu,
            ),
            other => bail!("{key}: expected a float dtype, got {other}"),
        }
    }

    /// As safetensors writes it.
    ///
    /// # Errors
    /// Bytes that don't fit shape and dtype.
    pub fn view(&self) -> Result<TensorView<'_>> {
        TensorView::new(self.dtype, self.shape.clone(), &self.bytes).map_err(Error::wrap)
    }
}

/// All tensors of a file by name, and the metadata of a safetensors file.
pub struct TensorFile {
    /// The tensors.
    pub entries: BTreeMap<String, TensorEntry>,
    /// The metadata; `None` for a pickle and for a file without.
    pub metadata: Option<HashMap<String, String>>,
}

impl TensorFile {
    /// Reads `.safetensors`, or `.pth` and `.pt` as `torch.save` writes them since PyTorch 1.6. `key` names the dict inside a
    /// pickle that holds the tensors, `model` for one, or `ema.model` for one in a dict within. Tensors are read as they show
    /// themselves, whatever the strides of their storage; values of a pickle that are no tensors are left out.
    ///
    /// # Errors
    /// Another extension, a file that is missing, cut short or none of these, a pickle without tensors under the key (the
    /// message lists the keys with tensors), and, by its key, a tensor that is not dense or of a dtype that safetensors lacks.
    /// A panic of the pickle's reader is turned into an error; the process's panic hook is silent meanwhile.
    pub fn read(path: &Path, key: Option<&str>) -> Result<Self> {
        let name = path.display();
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") if key.is_some() => {
                bail!("{name}: expected --key only for .pth and .pt, got a safetensors file")
            }
            Some("safetensors") => Self::safetensors(path),
            Some("pth" | "pt") => Ok(Self { entries: pickle::read(path, key)?, metadata: None }),
            _ => bail!("{name}: expected a file named .safetensors, .pth or .pt"),
        }
    }

    fn safetensors(path: &Path) -> Result<Self> {
        let name = path.display();
        let bytes = std::fs::read(path).map_err(|e| Error::msg(format!("{name}: {e}")))?;
        let fault = |e| {
            Error::msg(format!(
                "{name}: expected a whole safetensors file, got {} bytes: {e}",
                bytes.len()
            ))
        };
        let file = SafeTensors::deserialize(&bytes).map_err(fault)?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(fault)?;
        let entry = |view: TensorView<'_>| TensorEntry {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            bytes: view.data().to_vec(),
        };
        let entries = file.iter().map(|(key, view)| (key.to_owned(), entry(view))).collect();
        Ok(Self { entries, metadata: header.metadata().clone() })
    }
}
