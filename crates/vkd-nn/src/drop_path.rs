//! Stochastic depth.

use crate::Context;
use candle_core::{Result, Tensor, bail};
use rand::Rng;

/// Drops whole samples of a residual branch with probability `rate` and scales the others by `1 / (1 - rate)` (Huang et
/// al., arXiv:1603.09382). Does nothing in evaluation or at rate 0.
///
/// Sample `i`'s draw is a function of the context's seed and step, of `name` and of its sample id.
///
/// # Shapes
/// `xs`: `(B, ..)`, with one sample id each in the context; the output has the same shape.
///
/// # Errors
/// A rate outside `[0, 1)`, a scalar in training, or a context with another number of sample ids than the batch has rows.
pub fn drop_path(xs: &Tensor, rate: f64, name: &str, ctx: &Context) -> Result<Tensor> {
    let batch = match xs.dims().first() {
        Some(&batch) => batch,
        None if ctx.train && rate != 0. => {
            bail!("drop_path {name}: expected (B, ..), got a scalar")
        }
        None => 0,
    };
    let Some(mask) = drop_path_scales(batch, rate, name, ctx)? else { return Ok(xs.clone()) };
    let mut shape = vec![1; xs.rank()];
    shape[0] = batch;
    let mask = Tensor::from_vec(mask, shape, xs.device())?.to_dtype(xs.dtype())?;
    xs.broadcast_mul(&mask)
}

/// The factors that [`drop_path`] multiplies a batch of `batch` samples with: 0 or `1 / (1 - rate)`; none where it does
/// nothing.
///
/// # Errors
/// A rate outside `[0, 1)`, or a context with another number of sample ids than `batch`.
pub fn drop_path_scales(
    batch: usize,
    rate: f64,
    name: &str,
    ctx: &Context,
) -> Result<Option<Vec<f64>>> {
    if !(0. ..1.).contains(&rate) {
        bail!("drop_path {name}: expected a rate in [0, 1), got {rate}")
    }
    if !ctx.train || rate == 0. {
        return Ok(None);
    }
    if ctx.sample_ids.len() != batch {
        bail!(
            "drop_path {name}: expected {batch} sample ids in the context, got {}",
            ctx.sample_ids.len()
        )
    }
    let keep =
        |id: &u64| if ctx.rng(name, *id).random::<f64>() < rate { 0. } else { 1. / (1. - rate) };
    Ok(Some(ctx.sample_ids.iter().map(keep).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vkd_testkit::{gradcheck, normal};

    #[test]
    fn follows_the_sample_and_keeps_the_mean() -> Result<()> {
        let xs = normal(&[4000, 2], candle_core::DType::F64, 1)?.ones_like()?;
        let ids: Vec<u64> = (0..4000).collect();
        let all = drop_path(&xs, 0.25, "b", &Context::train(3, 7, ids))?.to_vec2::<f64>()?;
        assert!(all.iter().all(|r| r[0] == r[1] && (r[0] == 0. || r[0] == 4. / 3.)));
        let mean = all.iter().map(|r| r[0]).sum::<f64>() / 4000.;
        assert!((mean - 1.).abs() < 0.05, "{mean}");
        // The same samples in another batch are dropped alike.
        let part = drop_path(&xs.narrow(0, 0, 3)?, 0.25, "b", &Context::train(3, 7, [9, 100, 7]))?;
        assert_eq!(part.to_vec2::<f64>()?, [all[9].clone(), all[100].clone(), all[7].clone()]);
        Ok(())
    }

    #[test]
    fn evaluation_is_the_identity_and_bad_input_is_named() -> Result<()> {
        let xs = normal(&[3, 2], candle_core::DType::F64, 1)?;
        assert_eq!(
            drop_path(&xs, 0.9, "b", &Context::eval())?.to_vec2::<f64>()?,
            xs.to_vec2::<f64>()?
        );
        assert!(drop_path(&xs, 1., "b", &Context::eval()).is_err());
        assert!(drop_path(&xs, 0.5, "b", &Context::train(0, 0, [1])).is_err());
        let scalar = xs.sum_all()?;
        assert!(drop_path(&scalar, 0.5, "b", &Context::train(0, 0, [])).is_err());
        gradcheck(|x| drop_path(&x[0], 0.5, "b", &Context::train(0, 0, [1, 2, 3])), &[xs])
    }
}
