//! Whitening on a CUDA device.

use super::launch::Plan;
use crate::ops::program::{Recorded, Source};
use candle_core::{Result, Tensor};
use std::sync::Mutex;

const SOURCE: Source = Source {
    module: "vkd_norm::whiten",
    ptx: include_str!(concat!(env!("OUT_DIR"), "/whiten.ptx")),
};

pub(super) fn whiten(op: &'static str, plan: Plan, xs: &Tensor) -> Result<Tensor> {
    let xs = xs.contiguous()?;
    let (last, kept) = plan.forward(&SOURCE, &xs.detach())?;
    let kept = Mutex::new(xs.track_op().then_some(kept));
    let backward = move |xs: &Tensor, grad: &Tensor| {
        // A second backward pass computes it again; a lock is only poisoned by a panic.
        let kept = match kept.lock().ok().and_then(|mut kept| kept.take()) {
            Some(kept) => kept,
            None => plan.forward(&SOURCE, &xs.detach())?.1,
        };
        plan.backward(&SOURCE, &kept, grad)
    };
    Recorded { name: op, source: SOURCE, last, backward }.of(&xs)
}
