//! Tensors with a note, written atomically.

use candle_core::{Device, Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use vkd_models::write_atomically;

/// Metadata key under which note and checksum are kept.
const KEY: &str = "vkd";

/// What stands in the metadata beside the tensors.
#[derive(Serialize, Deserialize)]
struct Metadata {
    /// CRC-32C of everything behind the header: a file of the right length may still hold other bits.
    crc32c: u32,
    note: serde_json::Value,
}

/// Writes `tensors` and a `note` (any JSON) to a safetensors file.
///
/// # Errors
/// A failed write, a full disk for one; an older file then stays whole.
pub fn save(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    note: &serde_json::Value,
) -> Result<()> {
    // The checksum stands before what it sums over, so the tensors are laid out twice; their order does not depend
    // on the metadata.
    let crc32c = crc32c::crc32c(data(&serialize(tensors, None)?));
    let metadata = serde_json::to_string(&Metadata { crc32c, note: note.clone() })
        .map_err(candle_core::Error::wrap)?;
    // One key: the order of several would be a hash map's.
    let bytes = serialize(tensors, Some(HashMap::from([(KEY.to_owned(), metadata)])))?;
    Ok(write_atomically(path, &bytes)?)
}

fn serialize(
    tensors: &BTreeMap<String, Tensor>,
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>> {
    safetensors::serialize(tensors.iter(), metadata).map_err(candle_core::Error::wrap)
}

/// A safetensors file behind its header: the header's length as eight bytes, the header, the data.
fn data(file: &[u8]) -> &[u8] {
    let Some((length, rest)) = file.split_first_chunk::<8>() else { return &[] };
    usize::try_from(u64::from_le_bytes(*length)).ok().and_then(|n| rest.get(n..)).unwrap_or(&[])
}

/// Reads what [`save`] wrote.
///
/// # Errors
/// A file that is missing, truncated, changed since it was written, or no checkpoint; the message names it.
pub fn load(path: &Path) -> Result<(HashMap<String, Tensor>, serde_json::Value)> {
    let name = path.display();
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) => bail!("{name}: expected a checkpoint: {e}"),
    };
    let text = match safetensors::SafeTensors::read_metadata(&bytes) {
        Ok((_, metadata)) => metadata.metadata().as_ref().and_then(|m| m.get(KEY).cloned()),
        Err(e) => {
            bail!("{name}: expected a whole safetensors file, got {} bytes: {e}", bytes.len())
        }
    };
    let Some(Metadata { crc32c, note }) = text.and_then(|t| serde_json::from_str(&t).ok()) else {
        bail!(
            "{name}: expected a checkpoint written by vkd, got a safetensors file without its note"
        )
    };
    let got = crc32c::crc32c(data(&bytes));
    if got != crc32c {
        bail!("{name}: expected the checksum {crc32c:08x}, got {got:08x}: the file is damaged")
    }
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
        let mut flipped = whole;
        if let Some(last) = flipped.last_mut() {
            *last ^= 1;
        }
        std::fs::write(&path, &flipped)?;
        let message = load(&path).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("c.safetensors: expected the checksum"), "{message}");
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
