//! Moments as a safetensors file: `count`, `mean`, `scatter`, `cubic`, `quartic` and `squares`, all F64.

use super::{Moments, Sums};
use candle_core::{DType, Device, Error, Result, Tensor, bail, safetensors};
use std::collections::HashMap;
use std::fs::{File, remove_file, rename};
use std::path::Path;

impl Moments {
    /// Writes a safetensors file; the same bits come back from [`load`](Self::load).
    ///
    /// The file appears whole or not at all: it is written beside its place and then renamed.
    ///
    /// # Errors
    /// Those of the file system, with the path.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let d = self.channels();
        let tensor =
            |values: &[f64], dims: &[usize]| Tensor::from_vec(values.to_vec(), dims, &Device::Cpu);
        let sums = &self.sums;
        let tensors = HashMap::from([
            ("count", tensor(&[sums.count], &[])?),
            ("mean", tensor(&self.mean, &[d])?),
            ("scatter", tensor(&sums.second, &[d, d])?),
            ("cubic", tensor(&sums.cubic, &[d])?),
            ("quartic", tensor(&[sums.quartic], &[])?),
            ("squares", tensor(&[sums.squares], &[])?),
        ]);
        let Some(name) = path.file_name() else {
            bail!("moments: expected the path of a file, got {}", path.display())
        };
        let mut beside = std::ffi::OsString::from(".");
        beside.push(name);
        beside.push(format!(".{}.part", std::process::id()));
        let beside = path.with_file_name(beside);
        let written = safetensors::save(&tensors, &beside)
            .and_then(|()| Ok(File::open(&beside)?.sync_all()?))
            .and_then(|()| Ok(rename(&beside, path)?));
        written.map_err(|e| {
            // What is left of it is of no use; that it may not be there is no news.
            let _ = remove_file(&beside);
            Error::Msg(format!("moments: expected to write {}, got {e}", path.display()))
        })
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// A file that can't be read, lacks a tensor, or holds one of another shape or dtype, or sums that belong to no rows:
    /// the message has the path and the tensor.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let shown = path.display();
        let tensors = std::fs::read(path)
            .map_err(Error::from)
            .and_then(|bytes| safetensors::load_buffer(&bytes, &Device::Cpu))
            .map_err(|e| Error::Msg(format!("{shown}: expected a safetensors file, got {e}")))?;
        let get = |name: &str, dims: Option<&[usize]>| -> Result<Vec<f64>> {
            let Some(tensor) = tensors.get(name) else {
                bail!("{shown}: expected a tensor {name} of moments, got none")
            };
            let fits = match dims {
                Some(dims) => tensor.dims() == dims,
                None => tensor.rank() == 1 && tensor.elem_count() > 0,
            };
            if !fits || tensor.dtype() != DType::F64 {
                let want = dims.map_or("(d,)".to_owned(), |dims| format!("{dims:?}"));
                bail!(
                    "{shown}: expected {name} {want} of F64, got {:?} of {:?}",
                    tensor.dims(),
                    tensor.dtype()
                )
            }
            tensor.flatten_all()?.to_vec1()
        };
        let mean = get("mean", None)?;
        let d = mean.len();
        let scalar = |name| Ok::<_, Error>(get(name, Some(&[]))?[0]);
        let sums = Sums {
            count: scalar("count")?,
            first: vec![0.; d],
            second: get("scatter", Some(&[d, d]))?,
            cubic: get("cubic", Some(&[d]))?,
            quartic: scalar("quartic")?,
            squares: scalar("squares")?,
        };
        let moments = Self { mean, sums };
        moments.check(&format!("{shown}"))?;
        Ok(moments)
    }
}
