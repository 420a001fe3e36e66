//! Shared parts of the benchmarks: the list of works, floors, peak memory, and rows.
//!
//! Invariant: a floor is fixed per work in `shapes.toml` and timed in the same run as the work, so
//! neither a wasteful formula nor a slow machine can make a ratio look better than it is.
//! Criterion times the works; `cargo xtask bench` gathers the rows.

mod alloc;
mod floor;
mod machine;
mod peer;
mod product;
mod shapes;
mod suite;

pub use machine::{commit, description as machine, threads};
pub use peer::{Answer, Peer};
pub use product::{Dtype, Product};
pub use shapes::{PeerWork, Shapes, Work};
pub use suite::{Suite, data, gradient, run};

/// The middle of some numbers, which it sorts; NaN of none.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
