//! Whitening on a CUDA device.

use super::launch::Plan;
use crate::ops::program::{Source, recorded};
use candle_core::{Result, Tensor};

const SOURCE: Source = Source {
    module: "vkd_norm::whiten",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/whiten.ptx")),
};

pub(super) fn whiten(op: &'static str, plan: Plan, xs: &Tensor) -> Result<Tensor> {
    recorded(
        op,
        SOURCE,
        xs,
        move |runner, xs| plan.forward(runner, xs),
        move |runner, kept, grad| plan.backward(runner, kept, grad),
    )
}
