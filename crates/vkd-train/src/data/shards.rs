//! Tar shards: `train/*.tar` and `val/*.tar`, in them `KEY.jpg` (or another image) beside `KEY.cls`, a class number in digits.
//!
//! Opening reads the headers and the class files; images stay where they are and are read by their offset.

use super::image_folder::{ENDINGS, entries};
use super::source::Member;
use super::{Content, Dataset, Source};
use crate::recipe::DataConfig;
use candle_core::{Error, Result, bail};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub(super) fn read(config: &DataConfig, dir: &Path) -> Result<Dataset> {
    let (mut tars, mut members, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen = Vec::new();
    let mut count = 0;
    for part in ["train", "val"] {
        let part = dir.join(part);
        count = labels.len();
        for path in entries(&part, "tar shards")? {
            if path.extension().is_some_and(|e| e == "tar") {
                for (member, label) in shard(&path, tars.len())? {
                    members.push(member);
                    labels.push(label);
                }
                tars.push(path);
            }
        }
        if labels.len() == count {
            bail!("{}: expected .tar files with images, got none", part.display())
        }
        seen.push(present(&labels[count..]));
    }
    let class_names = class_names(&dir.join("classes.txt"), &seen[0])?;
    agree(dir, &seen[0], &seen[1], class_names.len())?;
    let (train, validation, _) = super::cut(config, (0..count).collect(), "training images")?;
    let test = (count..labels.len()).collect();
    let channels = config.channels.unwrap_or(3);
    Dataset::assemble(
        config,
        Content {
            name: format!("tar shards of {}", super::last_part(dir)),
            size: config.encoded_size()?,
            channels,
            class_names,
            divisor: 255.,
            source: Source::Shards { tars, members, channels },
            labels,
            parts: (train, validation, test),
        },
    )
}

/// Which classes occur.
fn present(labels: &[u32]) -> Vec<u32> {
    let mut all = labels.to_vec();
    all.sort_unstable();
    all.dedup();
    all
}

/// `classes.txt`, a name a line; without it the numbers themselves.
fn class_names(path: &Path, train: &[u32]) -> Result<Vec<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim_end().lines().map(|l| l.trim().to_owned()).collect()),
        // Without a gap there are as many classes as labels occur: a wild number must not make as many names.
        Err(_) => {
            let gap = (0..).zip(train).find(|(class, label)| class != *label);
            if let Some((class, label)) = gap {
                bail!(
                    "{}: expected images of each class in train, got none of class {class} but some of {label}",
                    super::last_part(path.parent().unwrap_or(path))
                )
            }
            Ok(train.iter().map(u32::to_string).collect())
        }
    }
}

fn agree(dir: &Path, train: &[u32], val: &[u32], classes: usize) -> Result<()> {
    let dir = dir.display();
    if let Some(label) = train.iter().chain(val).find(|l| **l as usize >= classes) {
        bail!("{dir}: expected classes of 0 to {}, got {label}", classes.saturating_sub(1))
    }
    if let Some(class) = (0..classes as u32).find(|c| !train.contains(c)) {
        bail!("{dir}: expected images of each class in train, got none of class {class}")
    }
    match val.iter().find(|l| !train.contains(l)) {
        Some(label) => bail!("{dir}: expected val's classes in train, got none of class {label}"),
        None => Ok(()),
    }
}

#[derive(Default)]
struct Pair {
    image: Option<Member>,
    label: Option<u32>,
}

/// The images of one shard with their classes, in the order of their keys.
fn shard(path: &Path, tar: usize) -> Result<Vec<(Member, u32)>> {
    scan(path, tar).map_err(|e| Error::Msg(format!("{}: {}", path.display(), crate::plain(&e))))
}

fn scan(path: &Path, tar: usize) -> Result<Vec<(Member, u32)>> {
    let length = std::fs::metadata(path)?.len();
    let mut archive = tar::Archive::new(File::open(path)?);
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
    for entry in archive.entries_with_seek()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path()?.to_string_lossy().into_owned();
        let Some((key, ending)) = split(&name) else { continue };
        let pair = pairs.entry(key).or_default();
        if ending == "cls" {
            let mut text = String::new();
            // A class number is short: a long file is not one.
            (&mut entry).take(32).read_to_string(&mut text)?;
            let Ok(label) = text.trim().parse::<u32>() else {
                bail!("{name}: expected a class number, got {text:?}")
            };
            if pair.label.replace(label).is_some() {
                bail!("{name}: expected each key once, got it twice")
            }
        } else if ENDINGS.contains(&ending.as_str()) {
            let (offset, size) = (entry.raw_file_position(), entry.size());
            if offset + size > length {
                bail!("{name}: expected {size} bytes, got {}", length.saturating_sub(offset))
            }
            let member = Member { tar, name: name.clone(), offset, length: size as usize };
            if pair.image.replace(member).is_some() {
                bail!("{name}: expected one image a key, got two")
            }
        }
    }
    let mut found = Vec::with_capacity(pairs.len());
    for (key, pair) in pairs {
        match (pair.image, pair.label) {
            (Some(image), Some(label)) => found.push((image, label)),
            (Some(image), None) => bail!("{}: expected {key}.cls beside it, got none", image.name),
            (None, Some(_)) => bail!("{key}.cls: expected an image of that key, got none"),
            // Other files of a key, such as metadata.
            (None, None) => {}
        }
    }
    Ok(found)
}

/// Key and ending of a member; the ending starts at the first dot of the file's name.
fn split(name: &str) -> Option<(String, String)> {
    let path = PathBuf::from(name);
    let file = path.file_name()?.to_string_lossy().into_owned();
    let (stem, ending) = file.split_once('.')?;
    let key = path.with_file_name(stem).to_string_lossy().into_owned();
    (!stem.is_empty()).then(|| (key, ending.to_lowercase()))
}
