//! AdamW on a CUDA device.

use super::{Step, launch};
use candle_core::{Result, Tensor};
use vkd_norm::program::{Source, run_on_tensors};

const SOURCE: Source =
    Source { module: "vkd_nn::adamw", ptx: include_str!(concat!(env!("OUT_DIR"), "/adamw.ptx")) };

/// The new value and the new moments of flat tensors.
pub(super) fn step(step: Step, [p, g, m, v]: [&Tensor; 4]) -> Result<[Tensor; 3]> {
    let program = launch::step(step, p.dtype(), p.elem_count())?;
    let [p, m, v] = run_on_tensors(SOURCE, &program, &[p, g, m, v])?.try_into().map_err(|_| {
        candle_core::Error::Msg("adamw: expected three buffers of the program".to_owned())
    })?;
    Ok([p, m, v])
}
