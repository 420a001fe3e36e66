//! AdamW on a CUDA device.

use super::{Step, launch};
use candle_core::{DType, Result, Tensor};
use vkd_norm::program::{Source, run_on_tensors};

const SOURCE: Source =
    Source { module: "vkd_nn::adamw", ptx: include_str!(concat!(env!("OUT_DIR"), "/adamw.ptx")) };

/// Parameters of one launch: one a row of its grid.
const MOST: usize = 65535;

/// Updates the first of each list of tensors, and all but the gradient, in place.
pub(super) fn steps(
    dtype: DType,
    parameters: &[(Step, Vec<&Tensor>)],
    clip: Option<&Tensor>,
) -> Result<()> {
    for parameters in parameters.chunks(MOST) {
        let sizes: Vec<_> =
            parameters.iter().map(|(step, tensors)| (tensors[0].elem_count(), *step)).collect();
        let inputs = parameters.iter().flat_map(|(_, all)| all).copied().chain(clip);
        let program = launch::steps(dtype, &sizes, clip.is_some())?;
        run_on_tensors(SOURCE, &program, &inputs.collect::<Vec<_>>())?;
    }
    Ok(())
}
