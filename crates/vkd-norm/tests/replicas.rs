//! Replicas with a part of the rows each compute what one does with all of them: values and gradients.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_norm::{
    Context, Deficient, Normalizer, Replicas, Shrinkage, Variance, WhitenConfig, WhitenMethod,
    standardize_masked, standardize_synchronised,
};
use vkd_testkit::{Tolerance, assert_close, normal, sums_among};

/// Runs `work` on every replica of `parts` rows, each in its thread; results by rank.
fn on_each<T: Send>(
    parts: &[usize],
    work: impl Fn(&Replicas, usize, usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let sums = sums_among(parts.len());
    let one = |rank: usize| {
        let replicas = Replicas::new(rank, parts.len(), sums[rank].clone())?;
        work(&replicas, parts[..rank].iter().sum(), parts[rank])
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..parts.len()).map(|rank| scope.spawn(move || one(rank))).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Output and gradient of a loss that is a cubic of the output, so that no gradient vanishes.
fn pass(xs: &Tensor, cot: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<[Tensor; 2]> {
    let xs = Var::from_tensor(xs)?;
    let ys = f(&xs)?;
    let grads = (ys.powf(3.)? * cot)?.sum_all()?.backward()?;
    Ok([ys.detach(), grads.get(&xs).unwrap().clone()])
}

/// `f` with replicas on the parts against `alone` on all rows.
fn same(
    what: &str,
    parts: &[usize],
    channels: usize,
    tolerance: Tolerance,
    f: impl Fn(&Tensor, &Replicas) -> Result<Tensor> + Sync,
    alone: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<()> {
    let rows = parts.iter().sum();
    let mix = normal(&[channels, channels], DType::F64, 3)?;
    let xs = (normal(&[rows, channels], DType::F64, 1)?.matmul(&mix)? + 5.)?;
    let cot = normal(&[rows, channels], DType::F64, 2)?;
    let want = pass(&xs, &cot, alone)?;
    let got = on_each(parts, |replicas, start, len| {
        let part = |t: &Tensor| t.narrow(0, start, len)?.contiguous();
        pass(&part(&xs)?, &part(&cot)?, |xs| f(xs, replicas))
    })?;
    for (k, name) in ["output", "gradient"].into_iter().enumerate() {
        let parts: Vec<&Tensor> = got.iter().map(|g| &g[k]).collect();
        assert_close(&format!("{what}: {name}"), &Tensor::cat(&parts, 0)?, &want[k], tolerance)?;
    }
    Ok(())
}

const PARTS: [&[usize]; 4] = [&[24], &[12, 12], &[1, 20, 3], &[4, 9, 6, 5]];

#[test]
fn standardised_together() -> Result<()> {
    for parts in PARTS {
        for variance in [Variance::Unbiased, Variance::Biased] {
            let what = format!("{parts:?} {variance:?}");
            same(
                &what,
                parts,
                4,
                Tolerance::relative(1e-10),
                |xs, replicas| standardize_synchronised(xs, variance, 1e-6, replicas),
                |xs| standardize_masked(xs, None, variance, 1e-6),
            )?;
        }
    }
    Ok(())
}

#[test]
fn whitened_together_by_every_method_shrinkage_and_rank() -> Result<()> {
    let methods = [
        WhitenMethod::Cholesky,
        WhitenMethod::Zca,
        WhitenMethod::Pca,
        WhitenMethod::NewtonSchulz { iterations: 4 },
    ];
    let shrinkages =
        [Shrinkage::Fixed(1e-3), Shrinkage::Absolute(0.1), Shrinkage::LedoitWolf, Shrinkage::Oas];
    for parts in PARTS {
        for method in methods {
            for shrinkage in shrinkages {
                for (channels, deficient) in
                    [(4, Deficient::Full), (4, Deficient::Truncate), (30, Deficient::Full)]
                {
                    // Its components are no function of the input where directions have no variance.
                    if method == WhitenMethod::Pca && channels == 30 {
                        continue;
                    }
                    let config = WhitenConfig { method, shrinkage, deficient };
                    let normalizer = Normalizer::Whiten(config);
                    let ctx = Context::train(0, 0, []);
                    same(
                        &format!("{parts:?} {config:?} {channels}"),
                        parts,
                        channels,
                        Tolerance::relative(1e-7),
                        |xs, replicas| {
                            normalizer
                                .forward(xs, &ctx.clone().with_replicas(Some(replicas.clone())))
                        },
                        |xs| normalizer.forward(xs, &ctx),
                    )?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn rows_are_gathered_in_order_and_sums_pass_gradients_on() -> Result<()> {
    let xs = normal(&[7, 2], DType::F32, 1)?;
    let weights = normal(&[7, 2], DType::F32, 2)?;
    let got = on_each(&[2, 4, 1], |replicas, start, len| {
        let own = Var::from_tensor(&xs.narrow(0, start, len)?)?;
        let all = replicas.gather(&own)?;
        // Each replica's loss sees all rows: here the same one.
        let grads = (all.sqr()? * &weights)?.sum_all()?.backward()?;
        Ok([all.detach(), grads.get(&own).unwrap().clone()])
    })?;
    for [all, _] in &got {
        assert_close("rows", all, &xs, Tolerance::EXACT)?;
    }
    let grads: Vec<&Tensor> = got.iter().map(|g| &g[1]).collect();
    // Three losses.
    let want = ((&xs * &weights)? * 6.)?;
    assert_close("gradient", &Tensor::cat(&grads, 0)?, &want, Tolerance::relative(1e-6))?;
    Ok(())
}

#[test]
fn half_types_and_odd_input() -> Result<()> {
    let xs = normal(&[8, 3], DType::F32, 1)?.to_dtype(DType::BF16)?;
    let ctx = Context::train(0, 0, []);
    for name in ["standardize", "whiten"] {
        let normalizer: Normalizer = name.parse()?;
        let want = normalizer.forward(&xs, &ctx)?;
        let got = on_each(&[3, 5], |replicas, start, len| {
            let ctx = ctx.clone().with_replicas(Some(replicas.clone()));
            normalizer.forward(&xs.narrow(0, start, len)?, &ctx)
        })?;
        let got = Tensor::cat(&got, 0)?;
        assert_eq!(got.dtype(), DType::BF16);
        assert_close(name, &got, &want, Tolerance::for_op(DType::F32, DType::BF16, 4))?;
    }
    let e = Replicas::new(2, 2, sums_among(1).remove(0)).unwrap_err().to_string();
    assert!(e.contains("expected a rank below 2, got 2"), "{e}");
    let failing =
        Replicas::new(0, 2, std::sync::Arc::new(|_| candle_core::bail!("no connection")))?;
    let ctx = ctx.with_replicas(Some(failing));
    let xs = Tensor::zeros((2, 2), DType::F32, &Device::Cpu)?;
    for name in ["standardize", "whiten"] {
        let e = name.parse::<Normalizer>()?.forward(&xs, &ctx).unwrap_err().to_string();
        assert!(e.contains("no connection"), "{e}");
    }
    Ok(())
}
