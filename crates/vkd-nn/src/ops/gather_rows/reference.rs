//! The same from plain tensor ops: slow, differentiable, any device.

use candle_core::{DType, Result, Tensor};

/// Twin of [`super::gather_rows`]: a product with a matrix of zeros and ones.
pub fn gather_rows(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (rows, width) = table.dims2()?;
    let all = Tensor::arange(0i64, rows as i64, table.device())?.unsqueeze(0)?;
    let places = ids.flatten_all()?.to_dtype(DType::I64)?.unsqueeze(1)?;
    let chosen = places.broadcast_eq(&all)?.to_dtype(table.dtype())?;
    chosen.matmul(&table.contiguous()?)?.reshape([ids.dims(), &[width]].concat())
}
