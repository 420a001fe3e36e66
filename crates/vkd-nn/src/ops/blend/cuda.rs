//! Blending on a CUDA device.

use super::{Pair, launch};
use candle_core::{DType, Result, Tensor};
use vkd_norm::program::{Source, run_on_tensors};

const SOURCE: Source =
    Source { module: "vkd_nn::blend", ptx: include_str!(concat!(env!("OUT_DIR"), "/blend.ptx")) };

/// Pairs of one launch: one a row of its grid.
const MOST: usize = 65535;

pub(super) fn blend(dtype: DType, pairs: &[&Pair]) -> Result<()> {
    for pairs in pairs.chunks(MOST) {
        let sizes: Vec<_> = pairs.iter().map(|p| (p.to.elem_count(), p.keep, p.take)).collect();
        let inputs: Vec<&Tensor> = pairs.iter().flat_map(|p| [&p.to, &p.from]).collect();
        run_on_tensors(SOURCE, &launch::blend(dtype, &sizes)?, &inputs)?;
    }
    Ok(())
}
