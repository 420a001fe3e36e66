//! Tensors with a note, written atomically.

use candle_core::{Device, Result, Tensor, bail};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use vkd_models::write_atomically;

/// Metadata key under which the note is kept.
const NOTE: &str = "vkd";

/// Writes `tensors` and a `note` (any JSON) to a safetensors file.
///
/// # Errors
/// A failed write, a full disk for one; an older file then stays whole.
pub fn save(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    note: &serde_json::Value,
) -> Result<()> {
    // One key: the order of several would be a hash map's.
    let metadata = HashMap::from([(NOTE.to_owned(), note.to_string())]);
    let bytes =
        safetensors::serialize(tensors.iter(), Some(metadata)).map_err(candle_core::Error::wrap)?;
    Ok(write_atomically(path, &bytes)?)
}

/// Reads what [`save`] wrote.
///
/// # Errors
/// A file that is missing, truncated, or no checkpoint; the message names it.
pub fn load(path: &Path) -> Result<(HashMap<String, Tensor>, serde_json::Value)> {
    let name = path.display();
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) => bail!("{name}: expected a checkpoint: {e}"),
    };
    let note = match safetensors::SafeTensors::read_metadata(&bytes) {
        Ok((_, metadata)) => metadata.metadata().as_ref().and_then(|m| m.get(NOTE).cloned()),
        Err(e) => {
            bail!("{name}: expected a whole safetensors file, got {} bytes: {e}", bytes.len())
        }
    };
    let Some(note) = note.and_then(|n| serde_json::from_str(&n).ok()) else {
        bail!(
            "{name}: expected a checkpoint written by vkd, got a safetensors file without its note"
        )
    };
    match candle_core::safetensors::load_buffer(&bytes, &Device::Cpu) {
        Ok(tensors) => Ok((tensors, note)),
        Err(e) => bail!("{name}: {}", crate::plain(&e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_and_a_truncated_file_is_named() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("c.safetensors");
        let tensors = BTreeMap::from([("a".to_owned(), Tensor::new(&[1f32, 2.], &Device::Cpu)?)]);
        save(&path, &tensors, &serde_json::json!({"step": 3}))?;
        let (back, note) = load(&path)?;
        assert_eq!(back["a"].to_vec1::<f32>()?, [1., 2.]);
        assert_eq!(note["step"], 3);
        let whole = std::fs::read(&path)?;
        std::fs::write(&path, &whole[..whole.len() - 1])?;
        let message = load(&path).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("c.safetensors: expected a whole"), "{message}");
        Ok(())
    }

    #[test]
    fn a_failed_write_keeps_the_old_file() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("c.safetensors");
        let old = BTreeMap::from([("a".to_owned(), Tensor::new(&[1f32], &Device::Cpu)?)]);
        save(&path, &old, &serde_json::json!(1))?;
        let before = std::fs::read(&path)?;
        // A folder in the way of the rename stands for a disk that refuses.
        let blocked = folder.path().join("blocked");
        std::fs::create_dir_all(blocked.join("inside"))?;
        assert!(save(&blocked, &old, &serde_json::json!(2)).is_err());
        assert_eq!(std::fs::read(&path)?, before);
        let left: Vec<_> = std::fs::read_dir(folder.path())?.filter_map(|e| e.ok()).collect();
        assert_eq!(left.len(), 2, "no temporary file stays behind");
        Ok(())
    }
}
