//! The thin Cayley transform on a CUDA device.

use super::launch;
use candle_core::{Result, Tensor};
use vkd_norm::program::{Source, recorded};

const SOURCE: Source = Source {
    module: "vkd_ortho::cayley",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/cayley.ptx")),
};

pub(super) fn cayley(raw: &Tensor) -> Result<Tensor> {
    recorded(super::NAME, SOURCE, raw, launch::forward, launch::backward)
}
