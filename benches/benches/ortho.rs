//! The three orthogonal maps at the projector's sizes, forward and backward.

use std::process::ExitCode;

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use candle_nn::{VarBuilder, VarMap};
use vkd_benches::{Suite, Work, data, gradient, run};
use vkd_ortho::{OrthogonalConfig, OrthogonalMap, Stiefel};

/// The residual of the result, and one forward and one backward pass of `map` from a free (n, k)
/// matrix.
fn step(
    work: &Work,
    map: fn(&Tensor) -> Result<Tensor>,
) -> Result<(f64, impl FnMut() -> Result<Tensor> + use<>)> {
    // Uniform values in (-1, 1) have the standard deviation 1 / sqrt(3).
    let raw = Var::from_tensor(&(data(work.matrix()?, 7)? * (work.scale * 3f64.sqrt()))?)?;
    let residual = vkd_ortho::stiefel_residual(&map(raw.as_tensor())?)?;
    Ok((residual, move || gradient(&map(&raw)?, &raw)))
}

/// The same of a layer's whole weight, its constant base included.
fn stiefel(work: &Work) -> Result<(f64, impl FnMut() -> Result<Tensor> + use<>)> {
    let (n, k) = work.matrix()?;
    let store = VarMap::new();
    let vb = VarBuilder::from_varmap(&store, DType::F32, &Device::Cpu);
    let weight = Stiefel::new(n, k, OrthogonalConfig::new(OrthogonalMap::Cayley, 1), vb)?;
    let raw = store.data().lock().ok().and_then(|vars| vars.get("raw").cloned());
    let Some(raw) = raw else { bail!("no parameter in the store") };
    raw.set(&(data((n, k), 7)? * (work.scale * 3f64.sqrt()))?)?;
    Ok((weight.residual()?, move || gradient(&weight.weight()?, &raw)))
}

fn works(suite: &mut Suite) -> Result<()> {
    suite.orthogonal_works("ortho/cayley", |work| step(work, vkd_ortho::cayley))?;
    suite.orthogonal_works("ortho/stiefel", stiefel)?;
    suite.orthogonal_works("ortho/matrix_exp", |work| step(work, vkd_ortho::matrix_exp))?;
    suite.orthogonal_works("ortho/householder_product", |work| {
        step(work, vkd_ortho::householder_product)
    })
}

fn main() -> ExitCode {
    run(works)
}
