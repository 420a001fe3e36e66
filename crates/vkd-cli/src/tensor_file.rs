//! Tensor files of vkd and PyTorch, and the parametrised weights in them.

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use candle_nn::VarBuilder;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, View};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use vkd_ortho::{
    OrthogonalConfig, OrthogonalMap, TorchFault, orthogonal, stiefel_residual, torch_default_map,
    torch_weight,
};

/// One stored tensor, bytes as they lie in the file.
pub(crate) struct Entry {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Entry {
    pub(crate) fn of(tensor: &Tensor) -> Result<Self> {
        let tensor = tensor.contiguous()?;
        let (dtype, shape) = (View::dtype(&tensor), tensor.dims().to_vec());
        Ok(Self { dtype, shape, bytes: View::data(&tensor).into_owned() })
    }

    /// As a tensor; integers and the exotic floats are refused.
    pub(crate) fn float(&self, key: &str) -> Result<Tensor> {
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

    pub(crate) fn view(&self) -> Result<TensorView<'_>> {
        TensorView::new(self.dtype, self.shape.clone(), &self.bytes).map_err(Error::wrap)
    }
}

/// All tensors of a file by name, and the metadata of a safetensors file.
pub(crate) struct TensorFile {
    pub(crate) entries: BTreeMap<String, Entry>,
    pub(crate) metadata: Option<HashMap<String, String>>,
}

impl TensorFile {
    /// Reads `.safetensors`, or `.pth` and `.pt` as `torch.save` writes them.
    pub(crate) fn read(path: &Path, key: Option<&str>) -> Result<Self> {
        let name = path.display();
        match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors") if key.is_some() => {
                bail!("{name}: expected --key only for .pth and .pt, got a safetensors file")
            }
            Some("safetensors") => Self::safetensors(path),
            Some("pth" | "pt") => Self::pickle(path, key),
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
        let entry = |view: TensorView<'_>| Entry {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            bytes: view.data().to_vec(),
        };
        let entries = file.iter().map(|(key, view)| (key.to_owned(), entry(view))).collect();
        Ok(Self { entries, metadata: header.metadata().clone() })
    }

    fn pickle(path: &Path, key: Option<&str>) -> Result<Self> {
        let name = path.display();
        std::fs::File::open(path).map_err(|e| Error::msg(format!("{name}: {e}")))?;
        let expected = |got: &str| {
            Error::msg(format!(
                "{name}: expected a zip of torch.save with a dict of tensors, got: {got}"
            ))
        };
        // The reader may panic on a pickle that no torch has written; the hook that reports panics as ours must not speak.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let read = std::panic::catch_unwind(|| candle_core::pickle::read_all_with_key(path, key));
        std::panic::set_hook(hook);
        let tensors = read
            .map_err(|_| expected("a pickle that can't be read"))?
            .map_err(|e| expected(&vkd_train::plain(&e)))?;
        if tensors.is_empty() {
            bail!(
                "{name}: expected a dict of tensors, got none; `--key model` reads the dict stored under `model`"
            )
        }
        crate::note(&format!(
            "note: {name}: only float, int64, uint32 and uint8 tensors of a .pth can be read; anything else in it is left out"
        ));
        let entries = tensors
            .into_iter()
            .map(|(key, tensor)| Ok((key, Entry::of(&tensor)?)))
            .collect::<Result<_>>()?;
        Ok(Self { entries, metadata: None })
    }
}

/// A weight that is stored as what it is made of.
pub(crate) struct Parametrised {
    /// Name of the plain weight.
    pub(crate) name: String,
    /// Keys that the plain weight replaces; the parameter first.
    pub(crate) keys: Vec<String>,
    /// Stored by PyTorch, not by vkd.
    pub(crate) torch: bool,
}

/// A parametrised weight, built.
pub(crate) struct Built {
    pub(crate) weight: Tensor,
    pub(crate) map: OrthogonalMap,
    pub(crate) residual: f64,
    pub(crate) fault: Option<TorchFault>,
}

impl Parametrised {
    /// All of them in a file, PyTorch's and vkd's; half a pair is an error.
    pub(crate) fn find(entries: &BTreeMap<String, Entry>) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for key in entries.keys() {
            if let Some((stem, rest)) = key.rsplit_once("parametrizations.") {
                let Some((tensor, part)) = rest.split_once('.') else { continue };
                let group = format!("{stem}parametrizations.{tensor}");
                let (original, base) = (format!("{group}.original"), format!("{group}.0.base"));
                match part {
                    "original" => {
                        let keys = [original, base].into_iter().filter(|k| entries.contains_key(k));
                        found.push(Self {
                            name: format!("{stem}{tensor}"),
                            keys: keys.collect(),
                            torch: true,
                        });
                    }
                    "0.base" if entries.contains_key(&original) => {}
                    "0.base" => bail!("{key}: expected {original} beside it, got none"),
                    // The parts of a spectral or a weight norm, say.
                    _ => bail!("{key}: expected the parts of `orthogonal`, original and 0.base"),
                }
            } else if let Some(stem) = key.strip_suffix("raw")
                && (stem.is_empty() || stem.ends_with('.'))
                && entries.contains_key(&format!("{stem}base"))
            {
                let keys = vec![key.clone(), format!("{stem}base")];
                found.push(Self { name: format!("{stem}weight"), keys, torch: false });
            }
        }
        for (at, weight) in found.iter().enumerate() {
            let (name, parameter) = (&weight.name, &weight.keys[0]);
            if entries.contains_key(name) {
                bail!("{name}: expected no plain weight beside {parameter}, got one")
            }
            if let Some(other) = found[..at].iter().find(|other| other.name == *name) {
                bail!("{name}: expected one parametrisation, got {} and {parameter}", other.keys[0])
            }
        }
        Ok(found)
    }

    /// Whether the file alone says nothing of the map: PyTorch at least has a rule.
    pub(crate) fn needs_map(&self) -> bool {
        !self.torch
    }

    /// Builds the weight; without a map PyTorch's rule picks it.
    pub(crate) fn build(
        &self,
        entries: &BTreeMap<String, Entry>,
        map: Option<OrthogonalMap>,
    ) -> Result<Built> {
        let parts =
            self.keys.iter().map(|k| entries[k].float(k)).collect::<Result<Vec<Tensor>>>()?;
        let named = |e: Error| Error::msg(format!("{}: {}", self.keys[0], vkd_train::plain(&e)));
        let (weight, map, fault) = if self.torch {
            let [.., rows, columns] = *parts[0].dims() else {
                bail!("{}: expected (.., rows, columns), got {:?}", self.keys[0], parts[0].dims())
            };
            let map = map.unwrap_or_else(|| torch_default_map(rows, columns));
            let built = torch_weight(map, &parts[0], parts.get(1)).map_err(named)?;
            (built.weight, map, built.fault)
        } else {
            let Some(map) = map else {
                bail!("{}: expected --map: a file of vkd does not name the map", self.keys[0])
            };
            (vkd_weight(map, &parts[0], &parts[1]).map_err(named)?, map, None)
        };
        let residual = stiefel_residual(&weight)?;
        Ok(Built { weight, map, residual, fault })
    }
}

/// The weight of an `OrthogonalProjector`, `(n, k)`: a wide layer's is the transpose, which the file does not tell.
fn vkd_weight(map: OrthogonalMap, raw: &Tensor, base: &Tensor) -> Result<Tensor> {
    let (n, k) = raw.dims2()?;
    if base.dims() != raw.dims() || base.dtype() != raw.dtype() {
        bail!(
            "expected `base` as `raw`, {:?} {:?}, got {:?} {:?}",
            raw.dims(),
            raw.dtype(),
            base.dims(),
            base.dtype()
        )
    }
    // The layer would take a base of zeros for a fresh one and draw it.
    if !(stiefel_residual(base)? < 0.5) || n < k {
        bail!("expected a tall orthonormal `base`, got {:?}", base.dims())
    }
    let parts = HashMap::from([("raw".to_owned(), raw.clone()), ("base".to_owned(), base.clone())]);
    let vb = VarBuilder::from_tensors(parts, raw.dtype(), &Device::Cpu);
    orthogonal(k, n, OrthogonalConfig::new(map, 0), vb)?.weight()
}
