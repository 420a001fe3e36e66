//! The product of reflectors on a CUDA device.

use super::launch;
use candle_core::{Result, Tensor};
use vkd_norm::program::{Source, recorded};

const SOURCE: Source = Source {
    module: "vkd_ortho::householder",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/householder.ptx")),
};

pub(super) fn householder_product(raw: &Tensor) -> Result<Tensor> {
    recorded(super::NAME, SOURCE, raw, launch::forward, launch::backward)
}
