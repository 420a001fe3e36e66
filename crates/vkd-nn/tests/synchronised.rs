//! Batch norm over replicas: two threads with a part of the batch each do what one does with all of it.

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use std::sync::Arc;
use vkd_nn::{BatchNormConfig, Context, SumOverReplicas, VarStore, batch_norm2d};
use vkd_testkit::{Tolerance, assert_close, normal, sums_among};

const CHANNELS: usize = 3;

/// What a replica has: value of the loss, output, gradients of input, gain and bias, and both running statistics.
type Results = (f64, Vec<Tensor>);

/// One replica, alone where `sum` is absent. The loss is a cubic of the output, so that no gradient vanishes.
fn replica(
    xs: &Tensor,
    cot: &Tensor,
    affine: &[Tensor; 2],
    sum: Option<&SumOverReplicas>,
) -> Result<Results> {
    let store = VarStore::new(1, DType::F64, &Device::Cpu);
    let config = BatchNormConfig { eps: 1e-3, momentum: 0.3 };
    let norm = batch_norm2d(CHANNELS, config, store.builder())?;
    for (name, var) in store.parameters() {
        var.set(&affine[usize::from(name == "bias")])?;
    }
    let xs = Var::from_tensor(xs)?;
    let ctx = Context::train(0, 0, []);
    let ys = match sum {
        Some(sum) => norm.forward_synchronised(&xs, &ctx, sum)?,
        None => norm.forward(&xs, &ctx)?,
    };
    let loss = (ys.powf(3.)? * cot)?.sum_all()?;
    let grads = loss.backward()?;
    let mut all = vec![ys.detach()];
    let parameters = store.parameters();
    for var in [&xs, &parameters[1].1, &parameters[0].1] {
        match grads.get(var) {
            Some(grad) => all.push(grad.clone()),
            None => bail!("no gradient"),
        }
    }
    for name in ["running_mean", "running_var"] {
        all.push(store.tensors()[name].copy()?);
    }
    Ok((loss.to_scalar()?, all))
}

/// Two replicas, with the rows before and after `at`.
fn two(xs: &Tensor, cot: &Tensor, affine: &[Tensor; 2], at: usize) -> Result<[Results; 2]> {
    let sums = sums_among(2);
    let rest = xs.dim(0)? - at;
    let run = |rank: usize, start, len| -> Result<Results> {
        let part = |t: &Tensor| t.narrow(0, start, len);
        replica(&part(xs)?, &part(cot)?, affine, Some(&sums[rank]))
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| run(0, 0, at));
        let second = run(1, at, rest)?;
        match first.join() {
            Ok(first) => Ok([first?, second]),
            Err(_) => bail!("the first replica panicked"),
        }
    })
}

#[test]
fn two_replicas_are_one_with_the_whole_batch() -> Result<()> {
    for (rows, at, scale, offset) in [(6, 3, 1., 0.), (9, 2, 1e-3, 50.), (2, 1, 10., -3.)] {
        let dims = [rows, 5, CHANNELS];
        let xs = ((normal(&dims, DType::F64, 1)? * scale)? + offset)?;
        let cot = normal(&dims, DType::F64, 2)?;
        let affine = [normal(&[CHANNELS], DType::F64, 3)?, normal(&[CHANNELS], DType::F64, 4)?];
        let (loss, whole) = replica(&xs, &cot, &affine, None)?;
        let [first, second] = two(&xs, &cot, &affine, at)?;
        assert!((first.0 + second.0 - loss).abs() < 1e-10 * loss.abs().max(1.));
        let rows = |k: usize| Tensor::cat(&[&first.1[k], &second.1[k]], 0);
        let sum = |k: usize| &first.1[k] + &second.1[k];
        // An offset of 5e4 deviations leaves that much less of an output's digits.
        let tolerance = Tolerance::relative(1e-11 * (1. + offset.abs() / scale));
        for (k, (what, got)) in [
            ("output", rows(0)?),
            ("gradient of input", rows(1)?),
            ("gradient of gain", sum(2)?),
            ("gradient of bias", sum(3)?),
            ("running mean", first.1[4].clone()),
            ("running variance", first.1[5].clone()),
        ]
        .into_iter()
        .enumerate()
        {
            assert_close(what, &got, &whole[k], tolerance)?;
        }
        for k in [4, 5] {
            assert_close("of both", &first.1[k], &second.1[k], Tolerance::EXACT)?;
        }
    }
    Ok(())
}

#[test]
fn gradients_equal_differences_of_both_replicas_loss() -> Result<()> {
    const STEP: f64 = 1e-5;
    let dims = [4, CHANNELS];
    let xs = normal(&dims, DType::F64, 1)?;
    let cot = normal(&dims, DType::F64, 2)?;
    let affine = [normal(&[CHANNELS], DType::F64, 3)?, normal(&[CHANNELS], DType::F64, 4)?];
    let [first, second] = two(&xs, &cot, &affine, 1)?;
    let analytic = Tensor::cat(&[&first.1[1], &second.1[1]], 0)?.flatten_all()?.to_vec1::<f64>()?;
    let values = xs.flatten_all()?.to_vec1::<f64>()?;
    let largest = analytic.iter().fold(0f64, |m, g| m.max(g.abs()));
    for (i, gradient) in analytic.iter().enumerate() {
        let at = |step: f64| -> Result<f64> {
            let mut moved = values.clone();
            moved[i] += step;
            let [first, second] =
                two(&Tensor::from_vec(moved, &dims, &Device::Cpu)?, &cot, &affine, 1)?;
            Ok(first.0 + second.0)
        };
        let difference = (at(STEP)? - at(-STEP)?) / (2. * STEP);
        // Central differences leave STEP² times third derivatives.
        assert!((difference - gradient).abs() < 1e-6 * largest, "{i}: {difference} {gradient}");
    }
    Ok(())
}

#[test]
fn bad_input_is_named() -> Result<()> {
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    let norm = batch_norm2d(CHANNELS, BatchNormConfig::default(), store.builder().pp("bn"))?;
    let (ctx, alone) = (Context::train(0, 0, []), sums_among(1).remove(0));
    for dims in [[2, 4], [1, 3]] {
        let xs = normal(&dims, DType::F32, 1)?;
        let message = norm.forward_synchronised(&xs, &ctx, &alone).unwrap_err().to_string();
        assert!(message.contains("batch_norm2d bn") && message.contains("expected"), "{message}");
    }
    let failing: SumOverReplicas = Arc::new(|_| candle_core::bail!("no connection"));
    let xs = normal(&[4, 3], DType::F32, 1)?;
    let message = norm.forward_synchronised(&xs, &ctx, &failing).unwrap_err().to_string();
    assert!(message.contains("no connection"), "{message}");
    let half = xs.to_dtype(DType::BF16)?;
    let store = VarStore::new(1, DType::BF16, &Device::Cpu);
    let norm = batch_norm2d(CHANNELS, BatchNormConfig::default(), store.builder())?;
    let (got, want) = (norm.forward_synchronised(&half, &ctx, &alone)?, norm.forward(&half, &ctx)?);
    assert_eq!(got.dtype(), DType::BF16);
    assert_close("bf16", &got, &want, Tolerance::for_op(DType::F32, DType::BF16, 4))
}
