//! Weights from files with timm's key names, and what of them fitted.

use crate::TensorFile;
use candle_core::{Result, Tensor, bail};
use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use vkd_nn::VarStore;

/// How [`load_weights`] reads; the default is a file of exactly the model's tensors.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The dict inside a `.pth` that holds the tensors, `model` in DeiT's own files.
    pub key: Option<String>,
    /// Where the model lies in the store: `student` for variables `student.head.weight`. Variables elsewhere are not looked at.
    pub prefix: Option<String>,
    /// Names whose weights may be missing or of another shape, and then keep their values. A name stands for a variable and
    /// for all variables under it: `head` for `head.weight` and `head.bias`.
    pub allow: Vec<String>,
}

/// What a file and a model have in common. Names are the file's, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Loaded.
    pub matched: Vec<String>,
    /// Variables that the file lacks.
    pub missing: Vec<String>,
    /// Tensors that no variable takes. `num_batches_tracked` is left out: it counts PyTorch's steps and nothing here reads it.
    pub unexpected: Vec<String>,
    /// Name, shape in the model, shape in the file.
    pub wrong_shape: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = |(name, want, got): &(String, Vec<usize>, Vec<usize>)| {
            format!("{name} expected {want:?}, got {got:?}")
        };
        write!(f, "{} matched", self.matched.len())?;
        for (what, names) in [
            ("missing", self.missing.clone()),
            ("unexpected", self.unexpected.clone()),
            ("of the wrong shape", self.wrong_shape.iter().map(shape).collect()),
        ] {
            write!(f, "; {} {what}", names.len())?;
            // A model of another family differs in hundreds: some are enough to see how.
            let shown = &names[..names.len().min(6)];
            if !shown.is_empty() {
                let more = if shown.len() < names.len() { ", .." } else { "" };
                write!(f, " ({}{more})", shown.join(", "))?;
            }
        }
        Ok(())
    }
}

/// Sets the variables of a model from a `.safetensors`, `.pth` or `.pt` file with the model's key names, which are timm's.
///
/// Values are converted to the store's dtype. Tensors that no variable takes are reported and left alone.
///
/// # Errors
/// A file that can't be read, and a variable that is missing there or of another shape unless
/// [allowed](LoadOptions::allow): nothing is changed then, and the message holds the report.
///
/// # Example
/// ```
/// # use candle_core::{DType, Device, Result};
/// use vkd_models::{Architecture, LoadOptions, ModelConfig, ResnetConfig, load_weights};
/// use vkd_nn::VarStore;
/// # fn main() -> Result<()> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("resnet.safetensors");
/// let architecture = Architecture::Resnet(ResnetConfig { width: 2, ..ResnetConfig::resnet18() });
/// let config = |classes| ModelConfig { image_size: 32, channels: 3, classes, architecture: architecture.clone() };
/// # let old = VarStore::new(1, DType::F32, &Device::Cpu);
/// # config(1000).build(old.builder())?;
/// # candle_core::safetensors::save(&old.tensors().into_iter().collect(), &path)?;
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let model = config(10).build(store.builder())?;
/// // Another number of classes: the head stays as it is.
/// let options = LoadOptions { allow: vec!["fc".into()], ..LoadOptions::default() };
/// let report = load_weights(&store, &path, &options)?;
/// assert_eq!((report.missing.len(), report.wrong_shape.len()), (0, 2));
/// # Ok(())
/// # }
/// ```
pub fn load_weights(store: &VarStore, path: &Path, options: &LoadOptions) -> Result<LoadReport> {
    let file = TensorFile::read(path, options.key.as_deref())?;
    let prefix = options.prefix.as_ref().map(|p| format!("{p}.")).unwrap_or_default();
    let mut report = LoadReport::default();
    let mut tensors: HashMap<String, Tensor> = store.tensors().into_iter().collect();
    let variables = store.tensors();
    let mut variables: Vec<_> =
        variables.iter().filter_map(|(n, t)| Some((n.strip_prefix(&prefix)?, t))).collect();
    variables.sort_unstable_by_key(|(name, _)| *name);
    for (name, variable) in &variables {
        match file.entries.get(*name) {
            None => report.missing.push((*name).to_owned()),
            Some(entry) if entry.shape != variable.dims() => {
                let shapes = (variable.dims().to_vec(), entry.shape.clone());
                report.wrong_shape.push(((*name).to_owned(), shapes.0, shapes.1));
            }
            Some(entry) => {
                tensors.insert(format!("{prefix}{name}"), entry.float(name)?);
                report.matched.push((*name).to_owned());
            }
        }
    }
    let known = |name: &str| variables.binary_search_by_key(&name, |(n, _)| n).is_ok();
    let counter = |name: &str| name.rsplit('.').next() == Some("num_batches_tracked");
    let unexpected = file.entries.keys().filter(|name| !known(name) && !counter(name));
    report.unexpected = unexpected.cloned().collect();
    let allowed = |name: &str| {
        let under =
            |n: &String| name.strip_prefix(n).is_some_and(|r| r.is_empty() || r.starts_with('.'));
        options.allow.iter().any(under)
    };
    let faults = report.missing.iter().chain(report.wrong_shape.iter().map(|(name, ..)| name));
    if faults.filter(|name| !allowed(name)).count() > 0 {
        bail!("{}: expected every weight of the model, got {report}", path.display())
    }
    store.load(&tensors)?;
    Ok(report)
}
