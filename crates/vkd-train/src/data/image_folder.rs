//! Image files in ImageNet's layout: `train/CLASS/FILE` and `val/CLASS/FILE`.

use super::{Content, Dataset, Source};
use crate::recipe::DataConfig;
use candle_core::{Result, bail};
use std::path::{Path, PathBuf};

/// Endings of files that hold images; others are passed over.
pub(super) const ENDINGS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

pub(super) fn read(config: &DataConfig, dir: &Path) -> Result<Dataset> {
    let train = classes(&dir.join("train"))?;
    let val = classes(&dir.join("val"))?;
    let names = |part: &[Class]| part.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    let class_names = names(&train);
    same_classes(dir, &class_names, &names(&val))?;
    let (mut paths, mut labels) = (Vec::new(), Vec::new());
    let mut add = |part: Vec<Class>| {
        for (label, class) in part.into_iter().enumerate() {
            labels.extend(std::iter::repeat_n(label as u32, class.files.len()));
            paths.extend(class.files);
        }
        labels.len()
    };
    let (count, all) = (add(train), add(val));
    let (train, validation, _) = super::cut(config, (0..count).collect(), "training images")?;
    let channels = config.channels.unwrap_or(3);
    Dataset::assemble(
        config,
        Content {
            name: format!("images of {}", super::last_part(dir)),
            size: config.encoded_size()?,
            channels,
            class_names,
            divisor: 255.,
            source: Source::Files { paths, channels },
            labels,
            parts: (train, validation, (count..all).collect()),
        },
    )
}

struct Class {
    name: String,
    files: Vec<PathBuf>,
}

/// The class folders of `train` or `val` with their files, both sorted by name: the order of the logits.
fn classes(part: &Path) -> Result<Vec<Class>> {
    let mut found = Vec::new();
    for path in entries(part, "class folders")? {
        if !path.is_dir() {
            continue;
        }
        let files: Vec<PathBuf> = entries(&path, "image files")?
            .into_iter()
            .filter(|f| is_image(f) && f.is_file())
            .collect();
        if files.is_empty() {
            bail!("{}: expected .jpg, .jpeg, .png or .webp files, got none", path.display())
        }
        found.push(Class { name: super::last_part(&path), files });
    }
    if found.is_empty() {
        bail!("{}: expected a folder for each class, got none", part.display())
    }
    Ok(found)
}

/// What lies in a folder, sorted; hidden entries are passed over.
pub(super) fn entries(dir: &Path, what: &str) -> Result<Vec<PathBuf>> {
    let list = match std::fs::read_dir(dir) {
        Ok(list) => list,
        Err(e) => bail!("{}: expected a folder of {what}: {e}", dir.display()),
    };
    let mut paths = list.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|p| !super::last_part(p).starts_with('.'));
    paths.sort();
    Ok(paths)
}

fn is_image(path: &Path) -> bool {
    let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    ending.is_some_and(|e| ENDINGS.contains(&e.as_str()))
}

fn same_classes(dir: &Path, train: &[String], val: &[String]) -> Result<()> {
    let missing =
        |from: &[String], among: &[String]| from.iter().find(|name| !among.contains(name)).cloned();
    match (missing(train, val), missing(val, train)) {
        (Some(name), _) => bail!("{}: expected val/{name} as in train, got none", dir.display()),
        (_, Some(name)) => bail!("{}: expected train/{name} as in val, got none", dir.display()),
        _ => Ok(()),
    }
}
