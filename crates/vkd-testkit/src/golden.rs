//! Recorded results of other programs.

use candle_core::{Device, Result, Tensor, bail};
use std::collections::HashMap;
use std::path::PathBuf;

/// Tensors of one file under `crates/vkd-testkit/golden`; `golden/README.md` says what made each.
pub struct Golden {
    name: String,
    tensors: HashMap<String, Tensor>,
}

impl Golden {
    /// Opens `golden/NAME.safetensors`.
    pub fn open(name: &str) -> Result<Self> {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("golden")
            .join(format!("{name}.safetensors"));
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu)?;
        Ok(Self { name: name.to_owned(), tensors })
    }

    /// The tensor named `key`; an absent key is an error, never a skipped check.
    pub fn get(&self, key: &str) -> Result<Tensor> {
        match self.tensors.get(key) {
            Some(t) => Ok(t.clone()),
            None => bail!("golden {}: no tensor named {key}", self.name),
        }
    }

    /// All keys, sorted.
    pub fn keys(&self) -> Vec<&str> {
        let mut keys: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys
    }
}
