//! Weights from files with timm's key names, and what of them fitted.

use crate::{TensorFile, plain};
use candle_core::{Error, Result, Tensor, bail};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use vkd_nn::VarStore;

/// What PyTorch puts before every key of a model that it wraps: for several devices or as an average, and compiled.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];
/// What its averaged model has beside them.
const AVERAGED: &str = "n_averaged";

/// How [`load_weights`] reads; the default is a file of exactly the model's tensors.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The dict inside a `.pth` that holds the tensors, `model` in DeiT's own files, `ema.model` for one in a dict within.
    pub key: Option<String>,
    /// Where the model lies in the file: `teacher` for keys `teacher.head.weight`. Keys elsewhere are only reported.
    pub under: Option<String>,
    /// Where the model lies in the store: `student` for variables `student.head.weight`. Variables elsewhere are not looked at.
    pub prefix: Option<String>,
    /// Names whose weights may be missing or of another shape, and then keep their values. A name stands for a variable and
    /// for all variables under it: `head` for `head.weight` and `head.bias`.
    pub allow: Vec<String>,
}

/// What a file and a model have in common, sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Variables that were loaded, by the model's names.
    pub matched: Vec<String>,
    /// Variables that the file lacks, by the model's names.
    pub missing: Vec<String>,
    /// Keys of the file that no variable takes. `num_batches_tracked` is left out: it counts PyTorch's steps and nothing here
    /// reads it.
    pub unexpected: Vec<String>,
    /// The model's name, shape in the model, shape in the file.
    pub wrong_shape: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Keys of the file that are not [under](LoadOptions::under) the model's place in it.
    pub elsewhere: Vec<String>,
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
            ("elsewhere", self.elsewhere.clone()),
        ] {
            // Few files hold more than one model.
            if what == "elsewhere" && names.is_empty() {
                continue;
            }
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
/// Values are converted to the store's dtype. Tensors that no variable takes are reported and left alone. Where every key begins
/// with `module.` or `_orig_mod.`, as DistributedDataParallel, torch.compile and averaged models write them, that is passed over.
///
/// # Errors
/// A file that can't be read, one without keys under [`under`](LoadOptions::under), and a variable that is missing there, of
/// another shape unless [allowed](LoadOptions::allow), or of integers: nothing is changed then, and the message holds the report
/// or the key.
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
    let named = |e: Error| Error::Msg(format!("{}: {}", path.display(), plain(&e)));
    let keys: Vec<&str> = file.entries.keys().map(String::as_str).collect();
    let place = place(&keys, options.under.as_deref()).map_err(named)?;
    let prefix = options.prefix.as_ref().map(|p| format!("{p}.")).unwrap_or_default();
    let mut report = LoadReport::default();
    let mut tensors: HashMap<String, Tensor> = store.tensors().into_iter().collect();
    let variables = store.tensors();
    let variables: BTreeMap<&str, &Tensor> =
        variables.iter().filter_map(|(n, t)| Some((n.strip_prefix(&prefix)?, t))).collect();
    for (&name, variable) in &variables {
        let key = format!("{place}{name}");
        match file.entries.get(&key) {
            None => report.missing.push(name.to_owned()),
            Some(entry) if entry.shape != variable.dims() => {
                let shapes = (variable.dims().to_vec(), entry.shape.clone());
                report.wrong_shape.push((name.to_owned(), shapes.0, shapes.1));
            }
            Some(entry) => {
                tensors.insert(format!("{prefix}{name}"), entry.float(&key).map_err(named)?);
                report.matched.push(name.to_owned());
            }
        }
    }
    for key in &keys {
        match key.strip_prefix(&place) {
            None => report.elsewhere.push((*key).to_owned()),
            Some(name) if variables.contains_key(name) => {}
            Some(name) if name.rsplit('.').next() == Some("num_batches_tracked") => {}
            Some(_) => report.unexpected.push((*key).to_owned()),
        }
    }
    let allowed = |name: &str| {
        let under =
            |n: &String| name.strip_prefix(n).is_some_and(|r| r.is_empty() || r.starts_with('.'));
        options.allow.iter().any(under)
    };
    let faults = report.missing.iter().chain(report.wrong_shape.iter().map(|(name, ..)| name));
    if faults.filter(|name| !allowed(name)).count() > 0 {
        let better = better_place(&keys, |name| variables.contains_key(name));
        let hint = match better {
            Some((prefix, found)) if found > report.matched.len() => format!(
                "; {found} of its names lie under {prefix}: name that prefix (checkpoint_prefix of a teacher, \
                 LoadOptions::under)"
            ),
            _ => String::new(),
        };
        bail!("{}: expected every weight of the model, got {report}{hint}", path.display())
    }
    store.load(&tensors)?;
    Ok(report)
}

/// What stands before the model's names in a file's keys: `under`, and PyTorch's wrappers around all of them.
fn place(keys: &[&str], under: Option<&str>) -> Result<String> {
    let whole = unwrapped(keys, String::new());
    let Some(under) = under.map(|u| u.trim_end_matches('.')) else { return Ok(whole) };
    // As the file has it, or as it is inside the wrapper of the whole.
    for start in [format!("{under}."), format!("{whole}{under}.")] {
        if keys.iter().any(|key| key.starts_with(&start)) {
            return Ok(unwrapped(keys, start));
        }
    }
    let mut first: Vec<_> = keys.iter().filter_map(|key| Some(key.split_once('.')?.0)).collect();
    first.dedup();
    bail!("expected keys under {under}, got some under {}", first.join(", "))
}

/// `start`, and after it each wrapper that all keys under it have.
fn unwrapped(keys: &[&str], mut start: String) -> String {
    loop {
        let mut under = keys.iter().filter_map(|key| key.strip_prefix(&start));
        let Some(first) = under.find(|key| *key != AVERAGED) else { return start };
        let Some(wrapper) = WRAPPERS.into_iter().find(|w| first.starts_with(w)) else {
            return start;
        };
        if !under.all(|key| key == AVERAGED || key.starts_with(wrapper)) {
            return start;
        }
        start.push_str(wrapper);
    }
}

/// The prefix under which most of the names lie, and how many.
fn better_place<'a>(keys: &[&'a str], known: impl Fn(&str) -> bool) -> Option<(&'a str, usize)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for key in keys {
        for (dot, _) in key.match_indices('.').filter(|(dot, _)| known(&key[dot + 1..])) {
            *counts.entry(&key[..dot]).or_default() += 1;
        }
    }
    counts.into_iter().max_by_key(|(_, count)| *count)
}
