//! The thin exponential on a CUDA device.

use super::launch;
use candle_core::{Result, Tensor};
use std::sync::Mutex;
use vkd_norm::program::{Recorded, Source};

const SOURCE: Source = Source {
    module: "vkd_ortho::matrix_exp",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/matrix_exp.ptx")),
};

pub(super) fn matrix_exp(raw: &Tensor) -> Result<Tensor> {
    let raw = raw.contiguous()?;
    let (last, kept) = launch::forward(&SOURCE, &raw.detach())?;
    let kept = Mutex::new(raw.track_op().then_some(kept));
    let backward = move |raw: &Tensor, grad: &Tensor| {
        // A second backward pass computes it again; a lock is only poisoned by a panic.
        let kept = match kept.lock().ok().and_then(|mut kept| kept.take()) {
            Some(kept) => kept,
            None => launch::forward(&SOURCE, &raw.detach())?.1,
        };
        launch::backward(&SOURCE, &kept, grad)
    };
    Recorded { name: super::NAME, source: SOURCE, last, backward }.of(&raw)
}
