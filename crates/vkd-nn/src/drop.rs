//! Dropout and stochastic depth.

use crate::Context;
use crate::ops::keep;
use candle_core::{Result, Tensor, bail};
use rand::Rng;

/// Sets single values to zero with probability `rate` and scales the others by `1 / (1 - rate)` (Srivastava et al., JMLR
/// 15, 2014). Does nothing in evaluation or at rate 0.
///
/// The draws of sample `i` are a function of the context's seed and step, of `name` and of its sample id.
///
/// # Shapes
/// `xs`: `(B, ..)`, with one sample id each in the context; the output has the same shape.
///
/// # Gradient
/// Flows through the values that are kept. What is dropped is zero, be it NaN.
///
/// # Numerics
/// A draw is one 32-bit number, so a rate is met to 2⁻³².
///
/// # Errors
/// A rate outside `[0, 1)`, a scalar in training, or a context with another number of sample ids than the batch has rows.
///
/// # Example
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use vkd_nn::{Context, dropout};
/// let xs = Tensor::ones((2, 1000), DType::F32, &Device::Cpu)?;
/// let ys = dropout(&xs, 0.5, "head", &Context::train(7, 0, [10, 11]))?;
/// let kept = ys.sum_all()?.to_scalar::<f32>()? / 2.;
/// assert!((kept - 1000.).abs() < 100.);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn dropout(xs: &Tensor, rate: f64, name: &str, ctx: &Context) -> Result<Tensor> {
    drop("dropout", xs, rate, name, ctx, |values| values)
}

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
    drop("drop_path", xs, rate, name, ctx, |_| 1)
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
    if !active("drop_path", rate, name, ctx)? {
        return Ok(None);
    }
    check_ids("drop_path", batch, name, ctx)?;
    let scale =
        |id: &u64| if ctx.rng(name, *id).random::<f64>() < rate { 0. } else { 1. / (1. - rate) };
    Ok(Some(ctx.sample_ids.iter().map(scale).collect()))
}

/// Whether anything is dropped; an error on a rate that is none.
fn active(op: &str, rate: f64, name: &str, ctx: &Context) -> Result<bool> {
    if !(0. ..1.).contains(&rate) {
        bail!("{op} {name}: expected a rate in [0, 1), got {rate}")
    }
    Ok(ctx.train && rate != 0.)
}

fn check_ids(op: &str, batch: usize, name: &str, ctx: &Context) -> Result<()> {
    if ctx.sample_ids.len() != batch {
        bail!(
            "{op} {name}: expected {batch} sample ids in the context, got {}",
            ctx.sample_ids.len()
        )
    }
    Ok(())
}

/// `draws` says how many draws a sample of so many values has.
fn drop(
    op: &str,
    xs: &Tensor,
    rate: f64,
    name: &str,
    ctx: &Context,
    draws: fn(usize) -> usize,
) -> Result<Tensor> {
    if !active(op, rate, name, ctx)? {
        return Ok(xs.clone());
    }
    let Some(&batch) = xs.dims().first() else {
        bail!("{op} {name}: expected (B, ..), got a scalar")
    };
    check_ids(op, batch, name, ctx)?;
    let values = xs.elem_count() / batch.max(1);
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let draws = draws(values);
    let mut kept = vec![false; batch * draws];
    let ids = &ctx.sample_ids;
    crate::ops::for_chunks(&mut kept, draws, |sample, kept| {
        let mut rng = ctx.rng(name, ids[sample]);
        if draws == 1 {
            kept.fill(rng.random::<f64>() >= rate);
        } else {
            // Half the random bits of a double per value: they are most of the time of this op.
            let below = (rate * 2f64.powi(32)) as u32;
            kept.iter_mut().for_each(|kept| *kept = rng.random::<u32>() >= below);
        }
    });
    keep(xs, kept, values / draws, 1. / (1. - rate))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::reference;
    use candle_core::DType;
    use vkd_testkit::{OpCase, gradcheck, normal};

    #[test]
    fn follows_the_sample_and_keeps_the_mean() -> Result<()> {
        let xs = normal(&[4000, 2], DType::F64, 1)?.ones_like()?;
        let ids: Vec<u64> = (0..4000).collect();
        let all = drop_path(&xs, 0.25, "b", &Context::train(3, 7, ids.clone()))?;
        let all = all.to_vec2::<f64>()?;
        assert!(all.iter().all(|r| r[0] == r[1] && (r[0] == 0. || r[0] == 4. / 3.)));
        let mean = all.iter().map(|r| r[0]).sum::<f64>() / 4000.;
        assert!((mean - 1.).abs() < 0.05, "{mean}");
        let Some(scales) = drop_path_scales(4000, 0.25, "b", &Context::train(3, 7, ids.clone()))?
        else {
            bail!("nothing is dropped")
        };
        assert!(all.iter().zip(&scales).all(|(row, scale)| row[0] == *scale));
        assert!(drop_path_scales(4000, 0.25, "b", &Context::eval())?.is_none());
        let single = dropout(&xs, 0.25, "b", &Context::train(3, 7, ids))?.to_vec2::<f64>()?;
        let mean = single.iter().flatten().sum::<f64>() / 8000.;
        // Five deviations of a mean over 8000 draws of variance 1/3.
        assert!((mean - 1.).abs() < 0.033, "{mean}");
        assert!(single.iter().flatten().all(|&y| y == 0. || y == 4. / 3.));
        assert!(single.iter().any(|r| r[0] != r[1]));
        // The same samples in another batch are dropped alike.
        let ctx = Context::train(3, 7, [9, 100, 7]);
        for (f, all) in [(drop_path as fn(&_, _, &_, &_) -> _, all), (dropout, single)] {
            let part: Tensor = f(&xs.narrow(0, 0, 3)?, 0.25, "b", &ctx)?;
            let same = [all[9].clone(), all[100].clone(), all[7].clone()];
            assert_eq!(part.to_vec2::<f64>()?, same);
        }
        Ok(())
    }

    #[test]
    fn the_op_agrees_with_its_twin() -> Result<()> {
        for (dims, run) in [(vec![6, 4], 1), (vec![3, 2, 5], 10), (vec![7], 1), (vec![2, 6], 3)] {
            let inputs = [normal(&dims, DType::F64, 1)?];
            let kept: Vec<bool> = (0..inputs[0].elem_count() / run).map(|i| i % 3 != 1).collect();
            let case = OpCase {
                what: "keep",
                inputs: &inputs,
                active: 1,
                f64_tolerance: 0.,
                f32_tolerance: 1e-6,
            };
            case.has_teeth(
                |x| keep(&x[0], kept.clone(), run, 1.25),
                |x| reference::keep(&x[0], &kept, run, 1.25),
            )?;
        }
        assert!(keep(&normal(&[2, 3], DType::F32, 1)?, vec![true; 4], 1, 1.).is_err());
        // What is dropped is zero, whatever it was, in a half type too.
        let nan = Tensor::new(&[f32::NAN, 1.], &candle_core::Device::Cpu)?;
        assert_eq!(keep(&nan, vec![false, true], 1, 2.)?.to_vec1::<f32>()?, [0., 2.]);
        let half = keep(&nan.to_dtype(DType::BF16)?, vec![false, true], 1, 2.)?;
        assert_eq!(half.to_dtype(DType::F32)?.to_vec1::<f32>()?, [0., 2.]);
        Ok(())
    }

    #[test]
    fn evaluation_is_the_identity_and_bad_input_is_named() -> Result<()> {
        let xs = normal(&[3, 2], DType::F64, 1)?;
        for f in [dropout as fn(&Tensor, f64, &str, &Context) -> Result<Tensor>, drop_path] {
            assert_eq!(f(&xs, 0.9, "b", &Context::eval())?.to_vec2::<f64>()?, xs.to_vec2::<f64>()?);
            for rate in [1., -0.1, f64::NAN] {
                let message = f(&xs, rate, "b", &Context::eval()).unwrap_err().to_string();
                assert!(message.contains("b: expected a rate in [0, 1)"), "{message}");
            }
            assert!(f(&xs, 0.5, "b", &Context::train(0, 0, [1])).is_err());
            let scalar = xs.sum_all()?;
            assert!(f(&scalar, 0.5, "b", &Context::train(0, 0, [])).is_err());
            let none = xs.narrow(0, 0, 0)?;
            assert_eq!(f(&none, 0.5, "b", &Context::train(0, 0, []))?.dims(), &[0, 2]);
            let ctx = Context::train(0, 0, [1, 2, 3]);
            gradcheck(|x| f(&x[0], 0.5, "b", &ctx), std::slice::from_ref(&xs))?;
        }
        Ok(())
    }
}
