//! The base on a CUDA device.

use crate::base::{Base, Resident};
use candle_core::{Result, Tensor};
use vkd_norm::program::{Source, applies, run_on_tensors};

const SOURCE: Source = Source {
    module: "vkd_ortho::base_product",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/base_product.ptx")),
};

/// Brings the reflectors up to what `base` holds now, without waiting for it; whether there are kernels for that.
pub(crate) fn renewed(base: &Base, now: &Tensor) -> Result<bool> {
    let Some(resident) = base.resident().filter(|_| applies(now) && now.is_contiguous()) else {
        return Ok(false);
    };
    let Resident { stored, state, .. } = resident;
    let [v, t, signs] = base.factors();
    run_on_tensors(SOURCE, &base.renewal()?, &[now, stored, v, t, signs, state])?;
    Ok(true)
}
