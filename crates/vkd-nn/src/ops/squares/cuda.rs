//! Sums of squares on a CUDA device.

use super::launch;
use candle_core::{DType, Result, Tensor};
use vkd_norm::program::{Source, run_on_tensors};

const SOURCE: Source = Source {
    module: "vkd_nn::squares",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/squares.ptx")),
};

/// Tensors of one launch: one a row of its grid.
const MOST: usize = 65535;

pub(super) fn squares(dtype: DType, tensors: &[&Tensor]) -> Result<Tensor> {
    let some = |tensors: &[&Tensor]| {
        let entries: Vec<usize> = tensors.iter().map(|t| t.elem_count()).collect();
        Ok(run_on_tensors(SOURCE, &launch::squares(dtype, &entries)?, tensors)?.swap_remove(0))
    };
    Tensor::cat(&tensors.chunks(MOST).map(some).collect::<Result<Vec<_>>>()?, 0)
}
