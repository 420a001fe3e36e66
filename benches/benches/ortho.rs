//! The three orthogonal maps at the projector's sizes, forward and backward.

use std::process::ExitCode;

use candle_core::{Result, Tensor, Var};
use vkd_benches::{Suite, Work, data, gradient, run};

/// One forward and one backward pass of `map` from a free (n, k) matrix.
fn step(
    work: &Work,
    map: fn(&Tensor) -> Result<Tensor>,
) -> Result<impl FnMut() -> Result<Tensor> + use<>> {
    let (n, k) = work.matrix()?;
    // The scale of a layer's initial values; at 1 the exponential would spend its time on scaling.
    let raw = Var::from_tensor(&(data((n, k), 7)? * (1.0 / (n as f64).sqrt()))?)?;
    Ok(move || gradient(&map(&raw)?, &raw))
}

fn works(suite: &mut Suite) -> Result<()> {
    suite.works("ortho/cayley", |work| step(work, vkd_ortho::cayley))?;
    suite.works("ortho/matrix_exp", |work| step(work, vkd_ortho::matrix_exp))?;
    suite.works("ortho/householder_product", |work| step(work, vkd_ortho::householder_product))
}

fn main() -> ExitCode {
    run(works)
}
