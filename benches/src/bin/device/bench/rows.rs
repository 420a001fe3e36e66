//! The rows of a run, on the disk as they come.

use candle_core::Result;
use serde_json::Value;
use std::path::{Path, PathBuf};
use vkd_models::write_atomically;

/// Rows, and the file that has them.
pub(super) struct Rows {
    path: Option<PathBuf>,
    all: Vec<Value>,
}

impl Rows {
    /// None yet; so says the file, be it an earlier run's.
    ///
    /// # Errors
    /// A file that can't be written.
    pub(super) fn new(path: Option<&Path>) -> Result<Self> {
        let rows = Self { path: path.map(Path::to_owned), all: Vec::new() };
        rows.write()?;
        Ok(rows)
    }

    /// Takes a row, and writes the file anew: it is the old one or the whole new one, whenever the run ends.
    ///
    /// # Errors
    /// A file that can't be written.
    pub(super) fn add(&mut self, row: Value) -> Result<()> {
        self.all.push(row);
        self.write()
    }

    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// One row a line.
    fn write(&self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let lines: Vec<String> = self.all.iter().map(|row| format!("\n  {row}")).collect();
        Ok(write_atomically(path, format!("[{}\n]\n", lines.join(",")).as_bytes())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(path: &Path) -> Result<Value> {
        let text = std::fs::read_to_string(path)?;
        serde_json::from_str(&text).map_err(candle_core::Error::wrap)
    }

    #[test]
    fn each_row_is_on_the_disk_before_the_next() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("rows.json");
        std::fs::write(&path, "an earlier run's")?;
        let mut rows = Rows::new(Some(&path))?;
        assert_eq!(read(&path)?, json!([]));
        let (a, b) = (json!({"name": "a"}), json!({"name": "b", "median_s": 0.5}));
        rows.add(a.clone())?;
        assert_eq!(read(&path)?, json!([a]));
        rows.add(b.clone())?;
        assert_eq!((read(&path)?, rows.count()), (json!([a, b]), 2));
        assert_eq!(std::fs::read_to_string(&path)?.lines().count(), 4);
        // Nothing else is left behind.
        assert_eq!(std::fs::read_dir(folder.path())?.count(), 1);
        Ok(())
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named_before_anything_is_measured() {
        let missing = Path::new("/nowhere/rows.json");
        let message = Rows::new(Some(missing)).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("/nowhere/rows.json"), "{message}");
        assert!(Rows::new(None).is_ok());
    }
}
