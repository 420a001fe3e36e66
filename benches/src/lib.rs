//! Shared parts of the benchmarks: the list of works, floors, peak memory, and rows.
//!
//! Invariant: a floor is fixed per work in `shapes.toml` and timed in the same run as the work, so
//! neither a wasteful formula nor a slow machine can make a ratio look better than it is.
//! Criterion times the works; `cargo xtask bench` gathers the rows.

mod alloc;
mod floor;
mod machine;
mod peer;
mod shapes;
mod suite;

pub use shapes::{PeerWork, Shapes, Work};
pub use suite::{Suite, data, gradient, run};
