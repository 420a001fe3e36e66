//! The normalisers, forward and backward, on a batch of tokens.

use std::process::ExitCode;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, Var, bail};
use rayon::prelude::*;
use vkd_benches::{Suite, Work, data, gradient, run};
use vkd_norm::{
    Shrinkage, WhitenConfig, WhitenMethod, layer_norm, layer_norm_affine, standardize, whiten,
    whiten_cholesky,
};

const EPS: f64 = 1e-5;

fn step(
    work: &Work,
    norm: fn(&Tensor) -> Result<Tensor>,
) -> Result<impl FnMut() -> Result<Tensor> + use<>> {
    let xs = Var::from_tensor(&data(work.matrix()?, 7)?)?;
    Ok(move || gradient(&norm(&xs)?, &xs))
}

/// Copies forward, and hands the gradient on: the row that says what candle's tape costs by itself.
struct Copy;

impl CustomOp1 for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let CpuStorage::F32(xs) = xs else { bail!("copy: expected f32") };
        let mut ys = vec![0f32; xs.len()];
        let parts = ys.par_chunks_mut(1 << 14).zip(xs.par_chunks(1 << 14));
        parts.for_each(|(y, x)| y.copy_from_slice(x));
        Ok((CpuStorage::F32(ys), layout.shape().clone()))
    }

    fn bwd(&self, _xs: &Tensor, _ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.clone()))
    }
}

fn works(suite: &mut Suite) -> Result<()> {
    suite.works("norm/copy", |work| step(work, |x| x.apply_op1(Copy)))?;
    suite.works("norm/layer_norm", |work| step(work, |x| layer_norm(x, EPS)))?;
    suite.works("norm/layer_norm_affine", |work| {
        let xs = Var::from_tensor(&data(work.matrix()?, 7)?)?;
        let weight = Var::from_tensor(&data(work.matrix()?.1, 8)?)?;
        let bias = Var::from_tensor(&data(work.matrix()?.1, 9)?)?;
        Ok(move || gradient(&layer_norm_affine(&xs, &weight, &bias, EPS)?, &xs))
    })?;
    suite.works("norm/standardize", |work| step(work, |x| standardize(x, EPS)))?;
    suite.works("norm/whiten_cholesky", |work| step(work, |x| whiten_cholesky(x, EPS)))?;
    for (name, method) in [
        ("norm/whiten_zca", WhitenMethod::Zca),
        ("norm/whiten_newton_schulz", WhitenMethod::NewtonSchulz { iterations: 5 }),
    ] {
        suite.works(name, |work| {
            let config = WhitenConfig {
                method,
                shrinkage: Shrinkage::Absolute(EPS),
                ..WhitenConfig::default()
            };
            let xs = Var::from_tensor(&data(work.matrix()?, 7)?)?;
            Ok(move || gradient(&whiten(&xs, config)?, &xs))
        })?;
    }
    Ok(())
}

fn main() -> ExitCode {
    run(works)
}
