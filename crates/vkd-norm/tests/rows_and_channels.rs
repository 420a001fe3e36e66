//! Identities of layer norm and of the per-channel standardisation that hold for every input.

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use proptest::prelude::*;
use vkd_norm::{
    RunningStats, Variance, layer_norm, layer_norm_affine, standardize, standardize_masked,
    standardize_with,
};
use vkd_testkit::{Tolerance, assert_close, dimension, holds, normal, permutation, scale, to_f64};

fn absolute(absolute: f64) -> Tolerance {
    Tolerance { relative: 0., absolute }
}

/// A mask that keeps about half of the rows, and their indices.
fn half(rows: usize, seed: u64) -> Result<(Tensor, Tensor)> {
    let keep: Vec<bool> =
        to_f64(&normal(&[rows], DType::F64, seed)?)?.into_iter().map(|v| v > 0.).collect();
    let kept: Vec<u32> = (0..rows as u32).filter(|&i| keep[i as usize]).collect();
    let mask: Vec<u8> = keep.into_iter().map(u8::from).collect();
    Ok((Tensor::new(mask, &Device::Cpu)?, Tensor::new(kept, &Device::Cpu)?))
}

/// Output and gradient of `sum(f(xs) * cotangent)`.
fn both(
    f: impl Fn(&Tensor) -> Result<Tensor>,
    xs: &Tensor,
    cotangent: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let var = Var::from_tensor(xs)?;
    let ys = f(&var)?;
    let grads = (&ys * cotangent)?.sum_all()?.backward()?;
    let Some(grad) = grads.get(&var) else { bail!("no gradient") };
    Ok((ys.detach(), grad.clone()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn layer_norm_rows_have_mean_zero_and_variance_one(
        rows in dimension(40), channels in 2usize..200, seed: u64, size in scale(1e-2, 1e6), wide: bool,
    ) {
        let (dtype, accuracy) = if wide { (DType::F64, 1e-12) } else { (DType::F32, 2e-6) };
        holds((|| {
            let xs = (normal(&[rows, channels], dtype, seed)? * size)?;
            let eps = 1e-5;
            let ys = layer_norm(&xs, eps)?.to_dtype(DType::F64)?;
            let zero = Tensor::zeros(rows, DType::F64, &Device::Cpu)?;
            assert_close("mean", &ys.mean(1)?, &zero, absolute(accuracy))?;
            // variance v / (v + eps), which is one up to eps.
            let xs = xs.to_dtype(DType::F64)?;
            let v = xs.broadcast_sub(&xs.mean_keepdim(1)?)?.sqr()?.mean(1)?;
            let want = (&v / (&v + eps)?)?;
            assert_close("variance", &ys.sqr()?.mean(1)?, &want, absolute(accuracy))
        })())?;
    }

    #[test]
    fn layer_norm_ignores_shift_and_scale(
        rows in dimension(20), channels in 3usize..100, seed: u64, size in scale(1e-3, 1e3), shift in -100f64..100.,
    ) {
        holds((|| {
            let xs = normal(&[rows, channels], DType::F64, seed)?;
            // eps scales with the variance; a tiny one leaves only rounding.
            let moved = layer_norm(&xs.affine(size, shift)?, 1e-5 * size * size)?;
            let what = Tolerance::relative(1e-10 * (1. + shift.abs() / size));
            assert_close("moved", &moved, &layer_norm(&xs, 1e-5)?, what)
        })())?;
    }

    #[test]
    fn layer_norm_affine_is_gain_and_bias_on_top(rows in dimension(20), channels in dimension(100), seed: u64) {
        holds((|| {
            let xs = normal(&[rows, channels], DType::F64, seed)?;
            let (w, b) = (normal(&[channels], DType::F64, seed ^ 1)?, normal(&[channels], DType::F64, seed ^ 2)?);
            let want = layer_norm(&xs, 1e-5)?.broadcast_mul(&w)?.broadcast_add(&b)?;
            assert_close("affine", &layer_norm_affine(&xs, &w, &b, 1e-5)?, &want, Tolerance::relative(1e-14))
        })())?;
    }

    #[test]
    fn layer_norm_keeps_the_order_of_rows(rows in dimension(40), channels in dimension(100), seed: u64, wide: bool) {
        let dtype = if wide { DType::F64 } else { DType::F32 };
        holds((|| {
            let xs = normal(&[rows, channels], dtype, seed)?;
            let g = normal(&[rows, channels], dtype, seed ^ 1)?;
            let order = permutation(rows, seed ^ 2)?;
            let pick = |t: &Tensor| t.index_select(&order, 0);
            let (y, dx) = both(|x| layer_norm(x, 1e-5), &xs, &g)?;
            let (picked, picked_dx) = both(|x| layer_norm(x, 1e-5), &pick(&xs)?, &pick(&g)?)?;
            // A row knows nothing of the others: every bit is the same.
            assert_close("values", &picked, &pick(&y)?, Tolerance::EXACT)?;
            assert_close("gradient", &picked_dx, &pick(&dx)?, Tolerance::EXACT)
        })())?;
    }

    #[test]
    fn layer_norm_gradient_is_orthogonal_to_ones_and_to_the_output(
        rows in dimension(20), channels in 2usize..100, seed: u64, shift in -100f64..100.,
    ) {
        holds((|| {
            let eps = 1e-5;
            let xs = (normal(&[rows, channels], DType::F64, seed)? + shift)?;
            let g = normal(&[rows, channels], DType::F64, seed ^ 1)?;
            let (y, dx) = both(|x| layer_norm(x, eps), &xs, &g)?;
            let v = xs.broadcast_sub(&xs.mean_keepdim(1)?)?.sqr()?.mean(1)?;
            let deviation = (&v + eps)?.sqrt()?;
            // In units of g / deviation; the mean of 100 costs two digits.
            let along_ones = (dx.sum(1)? * &deviation)?;
            assert_close("ones", &along_ones, &along_ones.zeros_like()?, absolute(1e-10))?;
            // eps takes a little of the output's length: that share of sum(g y) is left.
            let along = ((&dx * &y)?.sum(1)? * &deviation)?;
            let left = ((&g * &y)?.sum(1)? * (&deviation.sqr()?.recip()? * eps)?)?;
            assert_close("output", &along, &left, absolute(1e-10))
        })())?;
    }

    #[test]
    fn standardized_channels_have_mean_zero_and_deviation_one(
        rows in 3usize..60, channels in dimension(40), seed: u64, size in scale(1e-12, 1e12), wide: bool, biased: bool,
    ) {
        let (dtype, accuracy) = if wide { (DType::F64, 1e-10) } else { (DType::F32, 2e-6) };
        let (variance, weight) = if biased { (Variance::Biased, rows) } else { (Variance::Unbiased, rows - 1) };
        holds((|| {
            let xs = (normal(&[rows, channels], dtype, seed)? * size)?;
            let ys = standardize_masked(&xs, None, variance, 1e-6)?.to_dtype(DType::F64)?;
            let zero = Tensor::zeros(channels, DType::F64, &Device::Cpu)?;
            assert_close("mean", &ys.mean(0)?, &zero, absolute(accuracy))?;
            let squares = (ys.sqr()?.sum(0)? / weight as f64)?;
            // v / D²: one, less the guard's share, which shows where the mean is many deviations.
            let xs = xs.to_dtype(DType::F64)?;
            let mean = xs.mean_keepdim(0)?;
            let v = (xs.broadcast_sub(&mean)?.sqr()?.sum(0)? / weight as f64)?;
            let want = (&v / ((&v * (1. + 1e-12))? + (mean.squeeze(0)?.sqr()? * 1e-12)?)?)?;
            assert_close("variance", &squares, &want, absolute(accuracy))
        })())?;
    }

    #[test]
    fn standardize_ignores_the_unit_and_the_offset(
        // Eight rows have no deviation so small that an offset of 100 brings up the guard.
        rows in 8usize..40, channels in dimension(20), seed: u64, size in scale(1e-6, 1e6), shift in -100f64..100.,
    ) {
        holds((|| {
            let xs = normal(&[rows, channels], DType::F64, seed)?;
            // The guard of 1e-9 sees the offset: 1e-18 times its square, below rounding.
            let moved = standardize(&xs.affine(size, shift * size)?, 1e-9)?;
            assert_close("moved", &moved, &standardize(&xs, 1e-9)?, Tolerance::relative(1e-10))?;
            // A power of two changes no bit, whatever the guard.
            let doubled = standardize(&(&xs * 1024.)?, 0.1)?;
            assert_close("doubled", &doubled, &standardize(&xs, 0.1)?, Tolerance::EXACT)
        })())?;
    }

    #[test]
    fn standardize_does_not_see_the_order_of_rows(rows in 1usize..300, channels in dimension(20), seed: u64) {
        holds((|| {
            let xs = normal(&[rows, channels], DType::F64, seed)?;
            let g = normal(&[rows, channels], DType::F64, seed ^ 1)?;
            let order = permutation(rows, seed ^ 2)?;
            let pick = |t: &Tensor| t.index_select(&order, 0);
            let (y, dx) = both(|x| standardize(x, 1e-6), &xs, &g)?;
            let (picked, picked_dx) = both(|x| standardize(x, 1e-6), &pick(&xs)?, &pick(&g)?)?;
            assert_close("values", &picked, &pick(&y)?, Tolerance::relative(1e-11))?;
            let (dx, size) = (pick(&dx)?, to_f64(&g)?.iter().fold(0f64, |m, g| m.max(g.abs())));
            // Two rows have a gradient of zero up to the rounding of g / D.
            let spread = if rows == 2 { 1e-9 * size } else { 0. };
            assert_close("gradient", &picked_dx, &dx, Tolerance { relative: 1e-10, absolute: spread })
        })())?;
    }

    #[test]
    fn a_mask_is_the_same_as_deleting_rows(
        rows in 1usize..300, channels in dimension(20), seed: u64, wide: bool, biased: bool,
    ) {
        let dtype = if wide { DType::F64 } else { DType::F32 };
        let variance = if biased { Variance::Biased } else { Variance::Unbiased };
        holds((|| {
            let xs = normal(&[rows, channels], dtype, seed)?;
            let g = normal(&[rows, channels], dtype, seed ^ 1)?;
            let (mask, kept) = half(rows, seed ^ 2)?;
            let (y, dx) = both(|x| standardize_masked(x, Some(&mask), variance, 1e-6), &xs, &g)?;
            let mut lost = to_f64(&mask.eq(0u8)?.to_dtype(dtype)?.unsqueeze(1)?.broadcast_mul(&(y.abs()? + dx.abs()?)?)?)?;
            lost.retain(|v| *v != 0.);
            if !lost.is_empty() { bail!("masked rows hold {lost:?}") }
            if kept.dim(0)? == 0 { return Ok(()) }
            let pick = |t: &Tensor| t.index_select(&kept, 0);
            let (few, few_dx) = both(|x| standardize_masked(x, None, variance, 1e-6), &pick(&xs)?, &pick(&g)?)?;
            assert_close("values", &pick(&y)?, &few, Tolerance::EXACT)?;
            assert_close("gradient", &pick(&dx)?, &few_dx, Tolerance::EXACT)
        })())?;
    }

    #[test]
    fn standardize_gradient_is_orthogonal_to_ones_and_to_the_output(
        rows in 3usize..60, channels in dimension(20), seed: u64, shift in -10f64..10., biased: bool,
    ) {
        let variance = if biased { Variance::Biased } else { Variance::Unbiased };
        holds((|| {
            let xs = (normal(&[rows, channels], DType::F64, seed)? + shift)?;
            let g = normal(&[rows, channels], DType::F64, seed ^ 1)?;
            // The guard is 1e-20 of the offset's square: below rounding.
            let (y, dx) = both(|x| standardize_masked(x, None, variance, 1e-10), &xs, &g)?;
            let v = xs.broadcast_sub(&xs.mean_keepdim(0)?)?.sqr()?.mean(0)?.sqrt()?;
            let ones = (dx.sum(0)? * &v)?;
            assert_close("ones", &ones, &ones.zeros_like()?, absolute(1e-10))?;
            let along = ((&dx * &y)?.sum(0)? * &v)?;
            assert_close("output", &along, &along.zeros_like()?, absolute(1e-10))
        })())?;
    }

    #[test]
    fn evaluation_with_the_batch_s_own_statistics_is_training(
        rows in 2usize..100, channels in dimension(20), seed: u64, eps in scale(1e-9, 0.5), wide: bool, biased: bool,
    ) {
        let (dtype, accuracy) = if wide { (DType::F64, 1e-12) } else { (DType::F32, 1e-6) };
        let variance = if biased { Variance::Biased } else { Variance::Unbiased };
        holds((|| {
            let xs = (normal(&[rows, channels], dtype, seed)? + 2.)?;
            let want = standardize_masked(&xs, None, variance, eps)?;
            for momentum in [None, Some(0.1)] {
                let mut stats = RunningStats::new(channels, variance, momentum)?;
                stats.update(&xs, None)?;
                assert_close("values", &stats.standardize(&xs, eps)?, &want, Tolerance::relative(accuracy))?;
                // The gradient is that of constants: g / D.
                let (mean, v) = (stats.mean(&Device::Cpu)?, stats.variance(&Device::Cpu)?);
                let (_, dx) = both(|x| standardize_with(x, &mean, &v, eps), &xs, &xs.ones_like()?)?;
                let squared = ((&v * (1. + eps * eps))? + (mean.sqr()? * (eps * eps))?)?;
                let inverse = squared.sqrt()?.recip()?.broadcast_as(dx.shape())?;
                assert_close("gradient", &dx, &inverse, Tolerance::relative(accuracy))?;
            }
            Ok(())
        })())?;
    }

    #[test]
    fn running_statistics_of_parts_are_those_of_the_whole(
        rows in 2usize..200, cut in 0f64..1., channels in dimension(20), seed: u64, shift in scale(1e-3, 1e6), wide: bool,
    ) {
        // f32 rounds the squares of about a hundred rows, and nothing of the offset.
        let (dtype, accuracy) = if wide { (DType::F64, 1e-9) } else { (DType::F32, 2e-6) };
        holds((|| {
            let xs = (normal(&[rows, channels], dtype, seed)? + shift)?;
            let first = ((rows as f64 * cut) as usize).clamp(1, rows - 1);
            let mut whole = RunningStats::new(channels, Variance::Unbiased, None)?;
            whole.update(&xs, None)?;
            let mut parts = whole.clone();
            parts = RunningStats::from_tensors(&parts.tensors()?, Variance::Unbiased, None)?;
            if parts != whole { bail!("tensors lose something") }
            let mut parts = RunningStats::new(channels, Variance::Unbiased, None)?;
            parts.update(&xs.narrow(0, 0, first)?, None)?;
            parts.update(&xs.narrow(0, first, rows - first)?, None)?;
            assert_eq!(parts.count(), rows as f64);
            let cpu = Device::Cpu;
            assert_close("mean", &parts.mean(&cpu)?, &whole.mean(&cpu)?, Tolerance { relative: 1e-14, absolute: accuracy })?;
            assert_close("variance", &parts.variance(&cpu)?, &whole.variance(&cpu)?, Tolerance::relative(accuracy))
        })())?;
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() -> Result<()> {
    type Op = (&'static str, fn(&Tensor) -> Result<Tensor>);
    // Large enough that the blocks are shared among threads; the last block is short.
    let values = (normal(&[1501, 200], DType::F32, 5)? + 3.)?;
    let mask: Vec<u8> = (0..1501).map(|i| u8::from(i % 7 != 3)).collect();
    let mask = Tensor::new(mask, &Device::Cpu)?;
    let ops: [Op; 2] =
        [("layer_norm", |x| layer_norm(x, 1e-5)), ("standardize", |x| standardize(x, 1e-6))];
    let weight = normal(&[200], DType::F32, 6)?;
    let run = |threads: usize| -> Result<Vec<Tensor>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.map_err(candle_core::Error::wrap)?.install(|| {
            let mut results = vec![];
            for (_, op) in ops {
                let (y, dx) = both(op, &values, &values)?;
                results.extend([y, dx]);
            }
            let masked = |x: &Tensor| standardize_masked(x, Some(&mask), Variance::Biased, 1e-6);
            let (y, dx) = both(masked, &values, &values)?;
            results.extend([y, dx]);
            let (w, b) = (Var::from_tensor(&weight)?, Var::from_tensor(&weight)?);
            let y = layer_norm_affine(&values, &w, &b, 1e-5)?;
            let grads = (&y * &values)?.sum_all()?.backward()?;
            let of = |v: &Var| grads.get(v).cloned();
            results.extend([of(&w), of(&b)].into_iter().flatten());
            let mut stats = RunningStats::new(200, Variance::Biased, None)?;
            stats.update(&values, Some(&mask))?;
            results.extend([stats.mean(&Device::Cpu)?, stats.variance(&Device::Cpu)?]);
            Ok(results)
        })
    };
    let want = run(1)?;
    assert_eq!(want.len(), 10);
    for threads in [2, 3, 5] {
        for (i, (got, want)) in run(threads)?.iter().zip(&want).enumerate() {
            assert_close(&format!("{threads} threads, result {i}"), got, want, Tolerance::EXACT)?;
        }
    }
    Ok(())
}

#[test]
fn running_statistics_move_and_refuse() -> Result<()> {
    let cpu = Device::Cpu;
    let batch = |values: &[f32]| Tensor::new(values, &cpu)?.unsqueeze(1);
    let value = |t: Tensor| -> Result<f64> { t.get(0)?.to_scalar::<f64>() };
    let mut stats = RunningStats::new(1, Variance::Unbiased, Some(0.25))?;
    assert!(stats.standardize(&batch(&[1.])?, 1e-6).unwrap_err().to_string().contains("update"));
    // The first batch sets, the second moves a quarter of the way; padding is left out.
    stats.update(&batch(&[1., 3.])?, None)?;
    assert_eq!((value(stats.mean(&cpu)?)?, value(stats.variance(&cpu)?)?), (2., 2.));
    let mask = Tensor::new(&[1u8, 0, 1], &cpu)?;
    stats.update(&batch(&[4., f32::NAN, 8.])?, Some(&mask))?;
    assert_eq!((value(stats.mean(&cpu)?)?, value(stats.variance(&cpu)?)?), (3., 3.5));
    assert_eq!(stats.count(), 4.);
    let before = stats.clone();
    let mut message = |xs: &Tensor| stats.update(xs, None).unwrap_err().to_string();
    assert!(message(&batch(&[5.])?).contains("at least 2 rows with momentum, got 1"));
    assert!(message(&batch(&[5., f32::INFINITY])?).contains("in channel 0"));
    assert!(
        message(&Tensor::zeros((2, 3), DType::F32, &cpu)?).contains("expected 1 channels, got 3")
    );
    assert_eq!(stats, before);
    for (channels, momentum) in [(0, None), (1, Some(0.)), (1, Some(f64::NAN)), (1, Some(1.5))] {
        assert!(RunningStats::new(channels, Variance::Biased, momentum).is_err());
    }
    let mut tensors = stats.tensors()?;
    tensors.insert("variance".to_owned(), Tensor::new(&[-1f64], &cpu)?);
    let read = |tensors: &std::collections::HashMap<String, Tensor>| {
        RunningStats::from_tensors(tensors, Variance::Biased, None)
    };
    assert!(read(&tensors).unwrap_err().to_string().contains("sensible variance, got -1 at 0"));
    tensors.remove("variance");
    assert!(read(&tensors).unwrap_err().to_string().contains("got no variance"));
    Ok(())
}

#[test]
fn running_statistics_of_huge_rows_are_set_or_refused() -> Result<()> {
    let cpu = Device::Cpu;
    let batch = |value: f64| Tensor::new(&[[value, 1.], [value, 3.]], &cpu);
    let mut stats = RunningStats::new(2, Variance::Biased, None)?;
    stats.update(&batch(1e200)?, None)?;
    assert_eq!(stats.mean(&cpu)?.to_vec1::<f64>()?, [1e200, 2.]);
    assert_eq!(stats.variance(&cpu)?.to_vec1::<f64>()?, [0., 1.]);
    // The variance of both together is no number; what was there stays.
    let before = stats.clone();
    let e = stats.update(&batch(0.)?, None).unwrap_err().to_string();
    assert!(
        e.contains("running_stats: expected finite statistics") && e.contains("channel 0"),
        "{e}"
    );
    assert_eq!(stats, before);
    Ok(())
}
