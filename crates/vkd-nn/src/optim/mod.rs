//! Optimisers with state by variable name, and what goes around them: clipping, accumulation, averages, schedules.

mod accumulate;
mod adamw;
mod blend;
mod device;
mod ema;
mod lamb;
mod optimizer;
pub(crate) mod schedule;
mod sgd;

pub use accumulate::GradAccumulator;
pub use adamw::{AdamW, AdamWConfig};
pub use ema::Ema;
pub use lamb::{Lamb, LambConfig};
pub use optimizer::{Group, Optimizer, global_norm};
pub use sgd::{Sgd, SgdConfig};

use rayon::prelude::*;

/// What distinguishes one optimiser from another. Not meant to be implemented outside: its arguments stay private.
pub trait Rule: Sync {
    #[doc(hidden)]
    const NAME: &'static str;

    /// Weight decay of a parameter that decays.
    #[doc(hidden)]
    fn weight_decay(&self) -> f64;

    /// Refuses settings out of range.
    #[doc(hidden)]
    fn check(&self) -> candle_core::Result<()>;

    /// Names of the buffers that each parameter has; all start at zero.
    #[doc(hidden)]
    fn slots(&self) -> &'static [&'static str];

    /// Updates `p`, and the slots, of one parameter.
    #[doc(hidden)]
    fn update<T: optimizer::Value>(
        &self,
        at: &optimizer::At,
        p: &mut [T],
        g: &[T],
        slots: &mut [Vec<T>],
    );

    /// The updated `p` of one parameter off the CPU, all tensors flat; the slots are replaced.
    #[doc(hidden)]
    fn update_on_device(
        &self,
        at: &optimizer::At,
        p: &candle_core::Tensor,
        g: &candle_core::Tensor,
        slots: &mut [candle_core::Tensor],
    ) -> candle_core::Result<candle_core::Tensor>;

    /// The updates of all parameters off the CPU.
    #[doc(hidden)]
    fn update_all_on_devices(&self, jobs: &mut [device::Job<'_>]) -> candle_core::Result<()>
    where
        Self: Sized,
    {
        jobs.iter_mut().try_for_each(|job| device::step(self, job))
    }
}

/// Runs `work` on every part of a pass over `len` values, in parallel when that is large; parts are independent, so the
/// result does not depend on the number of threads.
fn for_parts<P: Send>(len: usize, parts: impl Iterator<Item = P>, work: impl Fn(P) + Send + Sync) {
    map_parts(len, parts, work);
}

/// As [`for_parts`], with the results in order.
fn map_parts<P: Send, R: Send>(
    len: usize,
    parts: impl Iterator<Item = P>,
    work: impl Fn(P) -> R + Send + Sync,
) -> Vec<R> {
    if len >= crate::ops::PARALLEL_FROM {
        let parts: Vec<P> = parts.collect();
        parts.into_par_iter().map(work).collect()
    } else {
        parts.map(work).collect()
    }
}
