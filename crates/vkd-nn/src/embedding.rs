//! A learnt row for each of a fixed number of ids.

use crate::gather_rows;
use candle_core::{Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};

/// A table of learnt rows, looked up by id.
///
/// # Example
/// ```
/// # use candle_core::{DType, Device, Module, Tensor};
/// use vkd_nn::{VarStore, embedding, init};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// let table = embedding(10, 4, init::truncated_normal(0.02), store.builder())?;
/// let rows = table.forward(&Tensor::new(&[[3u32, 9], [0, 3]], &Device::Cpu)?)?;
/// assert_eq!(rows.dims(), &[2, 2, 4]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Embedding {
    weight: Tensor,
}

/// Creates an [`Embedding`] with the variable `weight` `(count, dim)`.
///
/// # Errors
/// No rows, or a zero width.
pub fn embedding(count: usize, dim: usize, init: Init, vb: VarBuilder) -> Result<Embedding> {
    if count == 0 || dim == 0 {
        bail!(
            "embedding {}: expected a count and a width above 0, got {count} and {dim}",
            vb.prefix()
        )
    }
    Ok(Embedding { weight: vb.get_with_hints((count, dim), "weight", init)? })
}

impl Module for Embedding {
    /// Ids of any shape, u8, u32 or i64, to that shape and then `dim`.
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        gather_rows(&self.weight, ids)
    }
}
