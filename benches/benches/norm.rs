//! The normalisers, forward and backward, on a batch of tokens.

use std::process::ExitCode;

use candle_core::{Result, Tensor, Var};
use vkd_benches::{Suite, Work, data, gradient, run};

const EPS: f64 = 1e-5;

fn step(
    work: &Work,
    norm: fn(&Tensor, f64) -> Result<Tensor>,
) -> Result<impl FnMut() -> Result<Tensor> + use<>> {
    let xs = Var::from_tensor(&data(work.matrix()?, 7)?)?;
    Ok(move || gradient(&norm(&xs, EPS)?, &xs))
}

fn works(suite: &mut Suite) -> Result<()> {
    suite.works("norm/layer_norm", |work| step(work, vkd_norm::layer_norm))?;
    suite.works("norm/standardize", |work| step(work, vkd_norm::standardize))?;
    suite.works("norm/whiten_cholesky", |work| step(work, vkd_norm::whiten_cholesky))
}

fn main() -> ExitCode {
    run(works)
}
