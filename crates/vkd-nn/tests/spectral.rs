//! Spectral norm and conditional batch norm: laws, gradients, state.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use candle_core::{DType, Device, Result, Tensor};
use vkd_nn::{
    BatchNormConfig, BatchStatistics, Context, VarStore, batch_norm2d, conditional_batch_norm2d,
    spectral_norm,
};
use vkd_testkit::{Tolerance, assert_close, gradcheck, normal, to_f64};

fn store(dtype: DType) -> VarStore {
    VarStore::new(3, dtype, &Device::Cpu)
}

#[test]
fn the_largest_singular_value_becomes_one() -> Result<()> {
    for dims in [vec![4, 7], vec![6, 2, 3, 3], vec![1, 5], vec![9, 3]] {
        let store = store(DType::F64);
        let norm = spectral_norm(dims[0], store.builder())?;
        let weight = normal(&dims, DType::F64, 1)?;
        for _ in 0..400 {
            norm.forward(&weight, true)?;
        }
        let divided = norm.forward(&weight, false)?;
        assert_eq!(divided.dims(), dims);
        // A power of the Gram matrix: its trace is dominated by the largest eigenvalue, which must be one.
        let matrix = divided.reshape((dims[0], ()))?;
        let mut gram = matrix.matmul(&matrix.t()?)?;
        for _ in 0..12 {
            gram = gram.matmul(&gram)?;
        }
        let largest = to_f64(&gram)?.iter().step_by(dims[0] + 1).sum::<f64>().powf(1. / 4096.);
        assert!((largest - 1.).abs() < 1e-3, "{dims:?}: {largest}");
        let sigma = to_f64(&store.tensors()["sv0"])?[0];
        let back = (&divided * sigma)?;
        assert_close("sigma", &back, &weight, Tolerance::relative(1e-12))?;
    }
    Ok(())
}

#[test]
fn the_gradient_flows_through_sigma_with_constant_vectors() -> Result<()> {
    let store = store(DType::F64);
    let norm = spectral_norm(3, store.builder())?;
    let weight = normal(&[3, 2, 2, 2], DType::F64, 1)?;
    // σ = v Wᵀ u'ᵀ moves with W through u and v too, but near the fixed point those parts vanish: there the tape's gradient is whole.
    for _ in 0..300 {
        norm.forward(&weight, true)?;
    }
    gradcheck(|x| norm.forward(&x[0], false), std::slice::from_ref(&weight))?;
    // Away from it: exactly that of W / (v Wᵀ u'ᵀ).
    let u = normal(&[1, 3], DType::F64, 5)?;
    store.load(
        &[
            ("u0".to_owned(), u.clone()),
            ("sv0".to_owned(), Tensor::ones(1, DType::F64, &Device::Cpu)?),
        ]
        .into(),
    )?;
    let matrix = weight.reshape((3, 8))?;
    let unit = |t: Tensor| -> Result<Tensor> { t.broadcast_div(&t.sqr()?.sum_all()?.sqrt()?) };
    let v = unit(u.matmul(&matrix)?)?;
    let next = unit(v.matmul(&matrix.t()?)?)?;
    let var = candle_core::Var::from_tensor(&weight)?;
    let cot = normal(&[3, 2, 2, 2], DType::F64, 6)?;
    let grad = |ys: Tensor| -> Result<Tensor> {
        Ok((ys * &cot)?.sum_all()?.backward()?.get(&var).unwrap().clone())
    };
    let got = grad(norm.forward(&var, false)?)?;
    let sigma = (v.matmul(&var.reshape((3, 8))?.t()?)? * &next)?.sum_all()?;
    let want = grad(var.broadcast_div(&sigma)?)?;
    assert_close("gradient", &got, &want, Tolerance::relative(1e-12))
}

#[test]
fn state_moves_in_training_alone_and_resumes() -> Result<()> {
    let (a, b) = (store(DType::F32), store(DType::F32));
    let (x, y) = (spectral_norm(4, a.builder().pp("w"))?, spectral_norm(4, b.builder().pp("w"))?);
    let weight = normal(&[4, 5], DType::F32, 1)?;
    let before = to_f64(&a.tensors()["w.u0"])?;
    x.forward(&weight, false)?;
    assert_eq!(to_f64(&a.tensors()["w.u0"])?, before);
    x.forward(&weight, true)?;
    assert_ne!(to_f64(&a.tensors()["w.u0"])?, before);
    assert!(a.parameters().is_empty());
    b.load(&a.tensors().into_iter().collect())?;
    for _ in 0..3 {
        let (p, q) = (x.forward(&weight, true)?, y.forward(&weight, true)?);
        assert_eq!(to_f64(&p)?, to_f64(&q)?);
    }
    assert_eq!(to_f64(&a.tensors()["w.u0"])?, to_f64(&b.tensors()["w.u0"])?);
    let odd = x.forward(&(&weight * f64::NAN)?, true).unwrap_err().to_string();
    assert!(odd.contains("spectral_norm w: expected a finite weight"), "{odd}");
    assert_eq!(to_f64(&a.tensors()["w.u0"])?, to_f64(&b.tensors()["w.u0"])?);
    assert!(x.forward(&normal(&[5, 4], DType::F32, 1)?, true).is_err());
    assert!(x.forward(&weight.zeros_like()?, true).is_err());
    assert!(spectral_norm(0, a.builder()).is_err());
    Ok(())
}

#[test]
fn conditional_batch_norm_is_batch_norm_with_a_gain_of_each_sample() -> Result<()> {
    let (plain, own) = (store(DType::F64), store(DType::F64));
    let config = BatchNormConfig::default();
    let reference = batch_norm2d(3, config, plain.builder())?;
    let norm = conditional_batch_norm2d(3, config, own.builder())?;
    assert!(own.parameters().is_empty());
    let xs = normal(&[4, 2, 5, 3], DType::F64, 1)?;
    let (gain, bias) = (normal(&[4, 3], DType::F64, 2)?, normal(&[4, 3], DType::F64, 3)?);
    let places = |t: &Tensor| t.reshape((4, 1, 1, 3));
    let want = |ys: Tensor| ys.broadcast_mul(&places(&gain)?)?.broadcast_add(&places(&bias)?);
    let tolerance = Tolerance::relative(1e-14);
    let train = want(reference.forward(&xs, &Context::train(0, 0, []))?)?;
    let got = norm.forward(&xs, &gain, &bias, &BatchStatistics::Batch)?;
    assert_close("batch", &got, &train, tolerance)?;
    assert_eq!(to_f64(&own.tensors()["stored_mean"])?, [0.; 3]);
    let got = norm.forward(&xs, &gain, &bias, &BatchStatistics::Moving)?;
    assert_close("moving", &got, &train, tolerance)?;
    for (a, b) in [("stored_mean", "running_mean"), ("stored_var", "running_var")] {
        assert_close(a, &own.tensors()[a], &plain.tensors()[b], Tolerance::EXACT)?;
    }
    let stored = norm.forward(&xs, &gain, &bias, &BatchStatistics::Stored)?;
    assert_close("stored", &stored, &want(reference.forward(&xs, &Context::eval())?)?, tolerance)?;
    for statistics in [&BatchStatistics::Batch, &BatchStatistics::Stored] {
        let inputs = [xs.clone(), gain.clone(), bias.clone()];
        gradcheck(|x| norm.forward(&x[0], &x[1], &x[2], statistics), &inputs)?;
        let inputs = [xs.clone(), gain.get(0)?, bias.get(0)?];
        gradcheck(|x| norm.affine(&x[0], &x[1], &x[2], statistics), &inputs)?;
    }
    assert!(norm.forward(&xs, &gain.t()?, &bias, &BatchStatistics::Batch).is_err());
    Ok(())
}
