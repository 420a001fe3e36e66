//! Rows of answers, as tensors and as a file.

use crate::checkpoint;
use crate::checkpoints::unfinished;
use crate::folder::named;
use candle_core::{DType, Device, Result, Tensor, bail};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use vkd_tasks::{FeatureMap, Layout, NetworkOutput};

/// Bytes of a row beside its answer: id and checksum.
pub(super) const OVERHEAD: u64 = 12;

const LOGITS: &str = "logits";
const TAP: &str = "tap.";
const IDS: &str = "ids";
const IMAGES: &str = "images";
const PREFIX: &str = "part-";
const SUFFIX: &str = ".safetensors";

/// Answers to so many images.
#[derive(Default)]
pub(super) struct Rows {
    /// Image and look: a sample id, times in a batch taken off.
    pub(super) ids: Vec<u64>,
    /// CRC-32C of the pixels that the teacher saw.
    pub(super) images: Vec<u32>,
    /// By name, a row each.
    pub(super) answers: BTreeMap<String, Tensor>,
}

/// The parts of an output that are remembered, by name, on the CPU: memory and files are the host's.
pub(super) fn parts(
    output: &NetworkOutput,
    taps: &BTreeSet<String>,
) -> Result<BTreeMap<String, Tensor>> {
    let logits = output.logits.to_device(&Device::Cpu)?;
    let mut all = BTreeMap::from([(LOGITS.to_owned(), logits)]);
    for name in taps {
        let features = output.tap("teacher", name)?.tensor().to_device(&Device::Cpu)?;
        all.insert(format!("{TAP}{name}"), features);
    }
    Ok(all)
}

/// The output that [`parts`] took apart, on `device`. The rank of a tap is its layout, as everywhere in this crate.
pub(super) fn output(parts: BTreeMap<String, Tensor>, device: &Device) -> Result<NetworkOutput> {
    let Some(logits) = parts.get(LOGITS) else { bail!("teacher.cache: expected logits, got none") };
    let mut output = NetworkOutput::new(logits.to_device(device)?);
    for (name, tensor) in &parts {
        if let Some(name) = name.strip_prefix(TAP) {
            let layout = match tensor.rank() {
                2 => Layout::Pooled,
                3 => Layout::Tokens,
                _ => Layout::Grid,
            };
            let tensor = tensor.to_device(device)?;
            output = output.with_tap(name, FeatureMap::new(tensor, layout)?);
        }
    }
    Ok(output)
}

/// CRC-32C of each image's pixels.
pub(super) fn checksums(images: &Tensor) -> Result<Vec<u32>> {
    let rows = images.to_dtype(DType::F32)?.flatten_from(1)?.to_vec2::<f32>()?;
    let sum = |row: &Vec<f32>| {
        let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
        crc32c::crc32c(&bytes)
    };
    Ok(rows.iter().map(sum).collect())
}

/// The first row in which two tensors of one shape differ in a bit.
pub(super) fn first_difference(a: &Tensor, b: &Tensor) -> Result<Option<usize>> {
    // Every half value is an f32 value.
    let bits = |t: &Tensor| -> Result<Vec<Vec<u32>>> {
        let rows = t.to_dtype(DType::F32)?.flatten_from(1)?.to_vec2::<f32>()?;
        Ok(rows.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect())
    };
    Ok(bits(a)?.iter().zip(&bits(b)?).position(|(a, b)| a != b))
}

/// Whether a file's name is one of ours.
pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

impl Rows {
    /// A file name for these rows: the same for the same images.
    pub(super) fn file_name(&self) -> String {
        let ids: Vec<u8> = self.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let images: Vec<u8> = self.images.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let (ids, images) = (crc32c::crc32c(&ids), crc32c::crc32c(&images));
        format!("{PREFIX}{ids:08x}{images:08x}{SUFFIX}")
    }

    /// Writes the rows, atomically and with a checksum; `key` is what they belong to.
    ///
    /// # Errors
    /// A failed write.
    pub(super) fn save(&self, path: &Path, key: &str) -> Result<()> {
        let mut tensors = self.answers.clone();
        let ids: Vec<i64> = self.ids.iter().map(|id| *id as i64).collect();
        tensors.insert(IDS.to_owned(), Tensor::new(ids, &Device::Cpu)?);
        tensors.insert(IMAGES.to_owned(), Tensor::new(self.images.clone(), &Device::Cpu)?);
        checkpoint::save(path, &tensors, &json!(key))
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// A file that is damaged, belongs to something else than `key`, or has other answers than for `taps`.
    pub(super) fn load(path: &Path, key: &str, taps: &BTreeSet<String>) -> Result<Self> {
        let (mut tensors, note) = checkpoint::load(path)?;
        let wrong = |what: &str| {
            candle_core::Error::Msg(format!("{}: expected {what}, got others", path.display()))
        };
        if note.as_str() != Some(key) {
            return Err(wrong("the answers of this teacher to these images"));
        }
        let mut take = |name: &str| tensors.remove(name).ok_or_else(|| wrong(name));
        let ids: Vec<i64> = take(IDS)?.to_vec1()?;
        let images: Vec<u32> = take(IMAGES)?.to_vec1()?;
        let names = taps.iter().map(|tap| format!("{TAP}{tap}")).chain([LOGITS.to_owned()]);
        let answers =
            names.map(|n| Ok((n.clone(), take(&n)?))).collect::<Result<BTreeMap<_, _>>>()?;
        let lengths = answers.values().map(|t| t.dim(0)).collect::<Result<Vec<_>>>()?;
        if lengths.iter().chain([&images.len()]).any(|n| *n != ids.len()) {
            return Err(wrong("as many answers as images"));
        }
        Ok(Self { ids: ids.into_iter().map(|id| id as u64).collect(), images, answers })
    }
}

/// Removes the answers in a folder that a run keeps for itself, and nothing else.
///
/// # Errors
/// A file that can't be removed.
pub(crate) fn clear(dir: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    for folder in entries.flatten().map(|entry| entry.path()) {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_ours(&name) || unfinished(&name) {
                std::fs::remove_file(entry.path()).map_err(|e| named(&entry.path(), &e))?;
            }
        }
        // Stays where something else lies in it.
        std::fs::remove_dir(&folder).ok();
    }
    std::fs::remove_dir(dir).ok();
    Ok(())
}
