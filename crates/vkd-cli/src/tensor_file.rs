//! The parametrised weights in a tensor file.

use candle_core::{Device, Error, Result, Tensor, bail};
use candle_nn::VarBuilder;
use std::collections::{BTreeMap, HashMap};
use vkd_models::TensorEntry;
use vkd_ortho::{
    OrthogonalConfig, OrthogonalMap, TorchFault, orthogonal, stiefel_residual, torch_default_map,
    torch_weight,
};

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
    pub(crate) fn find(entries: &BTreeMap<String, TensorEntry>) -> Result<Vec<Self>> {
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
        entries: &BTreeMap<String, TensorEntry>,
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
