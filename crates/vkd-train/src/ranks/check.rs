//! What ranks must have alike.

use super::{Ranks, of_rank};
use candle_core::{DType, Result, Tensor};
use serde_json::Value;
use std::collections::BTreeMap;

impl Ranks {
    /// Refuses ranks that would train something else: `settings` by name, such as version, recipe and data, must be the same on all.
    ///
    /// # Errors
    /// On every rank: the first setting that differs, with the rank and both values.
    pub fn agree(&self, settings: &BTreeMap<String, Value>) -> Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let text = serde_json::to_vec(settings).map_err(candle_core::Error::wrap)?;
        let all = self.gather(&text)?;
        let read = |bytes: &[u8]| -> Result<BTreeMap<String, Value>> {
            serde_json::from_slice(bytes).map_err(candle_core::Error::wrap)
        };
        let first = read(&all[0])?;
        for (rank, other) in all.iter().enumerate().skip(1) {
            let other = read(other)?;
            let names = first.keys().chain(other.keys());
            let absent = Value::Null;
            let of = |of: &BTreeMap<String, Value>, name: &String| {
                of.get(name).unwrap_or(&absent).to_string()
            };
            for name in names {
                let (want, got) = (of(&first, name), of(&other, name));
                if want != got {
                    return self.said_by_first(format!(
                        "ranks: {name}: expected the same on all, got {want} on rank 0 and {got} on rank {rank}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// What all have found alike: the first rank says it.
    fn said_by_first(&self, message: String) -> Result<()> {
        match self.leads() {
            true => Err(candle_core::Error::Msg(message)),
            false => Err(of_rank(0, &message)),
        }
    }

    /// Compares a checksum of every tensor, bit by bit.
    ///
    /// # Errors
    /// On every rank: the first one, by name, that differs from the first rank's, with the rank.
    pub fn same_tensors(&self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let mut sums = Vec::with_capacity(4 * tensors.len());
        for tensor in tensors.values() {
            // No number of a narrower type is lost in f64.
            let values = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
            let sum = values.iter().fold(0, |sum, v| crc32c::crc32c_append(sum, &v.to_le_bytes()));
            sums.extend(sum.to_le_bytes());
        }
        let all = self.gather(&sums)?;
        let names: Vec<&String> = tensors.keys().collect();
        for (rank, other) in all.iter().enumerate() {
            if other.len() != all[0].len() {
                let (want, got) = (all[0].len() / 4, other.len() / 4);
                return self.said_by_first(format!(
                    "ranks: expected {want} variables on all, got {got} on rank {rank}"
                ));
            }
            let pairs = all[0].chunks_exact(4).zip(other.chunks_exact(4));
            if let Some(at) = pairs.into_iter().position(|(a, b)| a != b) {
                return self.said_by_first(format!(
                    "ranks: expected the same variables on all, got another {} on rank {rank} than on rank 0",
                    names.get(at).map_or("variable", |name| name.as_str())
                ));
            }
        }
        Ok(())
    }
}
