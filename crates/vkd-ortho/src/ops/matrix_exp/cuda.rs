//! The thin exponential on a CUDA device.

use super::launch;
use candle_core::{Result, Tensor};
use vkd_norm::program::{Source, recorded};

const SOURCE: Source = Source {
    module: "vkd_ortho::matrix_exp",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/matrix_exp.ptx")),
};

pub(super) fn matrix_exp(raw: &Tensor) -> Result<Tensor> {
    recorded(super::NAME, SOURCE, raw, launch::forward, launch::backward)
}
