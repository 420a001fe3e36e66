//! The updates of other devices, on the CPU, against its own.

use super::*;
use crate::{AdamWConfig, LambConfig, SgdConfig};
use vkd_testkit::{Tolerance, assert_close, normal, to_f64};

/// Three steps on the CPU and by the path of other devices, from the same start.
fn check<R: Rule + Copy>(rule: R, dtype: DType) -> Result<()> {
    let start = normal(&[3, 5], dtype, 1)?;
    let vars = [Var::from_tensor(&start)?, Var::from_tensor(&start.force_contiguous()?)?];
    let make = |var: &Var| Optimizer::new(vec![("w".to_owned(), var.clone())], rule, |_, _| true);
    let [mut cpu, mut other] = [make(&vars[0])?, make(&vars[1])?];
    let slots = device::slots(&vars[1], rule.slots().len())?;
    other.parameters[0].slots = Mutex::new(Slots::Device(slots));
    for step in 0..3 {
        for (var, optimizer) in vars.iter().zip([&mut cpu, &mut other]) {
            let g = normal(&[3, 5], dtype, 2 + step)?;
            optimizer.step(&(var.as_tensor() * g)?.sum_all()?.backward()?, 0.1)?;
        }
    }
    let tolerance = Tolerance::for_op(native_dtype(dtype), dtype, 4);
    assert_close(R::NAME, &vars[1], &vars[0], tolerance)?;
    let (want, got) = (cpu.state()?.1, other.state()?.1);
    assert!(want.keys().eq(got.keys()));
    for (name, want) in &want {
        assert_close(name, &got[name], want, Tolerance::relative(1e-5))?;
    }
    Ok(())
}

#[test]
fn the_device_path_is_the_cpu_s_update() -> Result<()> {
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        check(AdamWConfig::default(), dtype)?;
        check(LambConfig::default(), dtype)?;
        check(SgdConfig { weight_decay: 0.1, ..SgdConfig::default() }, dtype)?;
        check(SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 0. }, dtype)?;
    }
    Ok(())
}

/// Clipped steps on the CPU and by the path of other devices, of gradients below the limit and above it.
fn check_clipped<R: Rule + Copy>(rule: R, dtype: DType) -> Result<()> {
    let start = [normal(&[3, 5], dtype, 1)?, normal(&[7], dtype, 2)?];
    let make = |vars: &[Var]| {
        let named = vars.iter().enumerate().map(|(i, var)| (format!("w{i}"), var.clone()));
        Optimizer::new(named.collect(), rule, |_, _| true)
    };
    let copies = || {
        let copy = |t: &Tensor| Var::from_tensor(&t.force_contiguous()?);
        start.iter().map(copy).collect::<Result<Vec<_>>>()
    };
    let (here, there) = (copies()?, copies()?);
    let [mut cpu, mut other] = [make(&here)?, make(&there)?];
    for p in &mut other.parameters {
        p.slots = Mutex::new(Slots::Device(device::slots(&p.var, rule.slots().len())?));
    }
    let bits = |vars: &[Var]| vars.iter().map(|var| to_f64(var)).collect::<Result<Vec<_>>>();
    for (step, size) in [0.01, 20., f64::INFINITY, 1.].into_iter().enumerate() {
        let grads = |vars: &[Var]| -> Result<GradStore> {
            let mut grads = GradStore::default();
            for (i, var) in vars.iter().enumerate() {
                let g = normal(var.dims(), dtype, (10 * step + i) as u64)?;
                grads.insert(var, (g * if i == 1 { size } else { 1. })?);
            }
            Ok(grads)
        };
        let (own, others) = (grads(&here)?, grads(&there)?);
        let before = (bits(&there)?, other.state()?.1);
        let all: Vec<Tensor> = there.iter().filter_map(|var| others.get(var).cloned()).collect();
        let [norm, factor] = device::clip(&all, 2.)?;
        other.scaled_step(&others, 0.1, 1., Some(&factor))?;
        let want = cpu.clipped_step(&own, 0.1, 2.);
        if size.is_finite() {
            assert_close("norm", &norm, &want?, Tolerance::relative(1e-14))?;
            continue;
        }
        // The CPU refuses; elsewhere nothing moves, but the step is counted.
        assert!(want.is_err() && !norm.to_scalar::<f64>()?.is_finite());
        assert_eq!(bits(&there)?, before.0);
        for (name, after) in other.state()?.1 {
            assert_close(&name, &after, &before.1[&name], Tolerance::EXACT)?;
        }
        assert_eq!((cpu.step, other.step), (2, 3));
        cpu.step = other.step;
    }
    for (here, there) in here.iter().zip(&there) {
        let tolerance = Tolerance::for_op(native_dtype(dtype), dtype, 4);
        assert_close(R::NAME, there, here, tolerance)?;
    }
    let (want, got) = (cpu.state()?.1, other.state()?.1);
    for (name, want) in &want {
        assert_close(name, &got[name], want, Tolerance::relative(1e-5))?;
    }
    Ok(())
}

#[test]
fn a_device_clips_as_the_cpu_does() -> Result<()> {
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        check_clipped(AdamWConfig::default(), dtype)?;
        check_clipped(LambConfig::default(), dtype)?;
        check_clipped(SgdConfig::default(), dtype)?;
        check_clipped(SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 0.1 }, dtype)?;
    }
    Ok(())
}

#[test]
fn a_factor_clips_to_the_limit_and_is_nan_where_the_norm_is_not_finite() -> Result<()> {
    let grads = [normal(&[3, 4], DType::F32, 1)?, normal(&[7], DType::F64, 2)?];
    let squares = device::squares(&grads)?;
    let want = squares.iter().sum::<f64>().sqrt();
    let factor = |grads: &[Tensor], most: f64| -> Result<[f64; 2]> {
        let [norm, factor] = device::clip(grads, most)?;
        Ok([norm.to_scalar()?, factor.to_scalar()?])
    };
    let [norm, half] = factor(&grads, want / 2.)?;
    assert!((norm / want - 1.).abs() < 1e-14);
    assert_eq!(half, want / 2. / (norm + 1e-6));
    assert_eq!(factor(&grads, 2. * want)?[1], 1.);
    assert_eq!(factor(&grads, f64::INFINITY)?[1], 1.);
    assert_eq!(factor(&[grads[0].zeros_like()?], 1.)?, [0., 1.]);
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for most in [1., f64::INFINITY] {
            let grads = [grads[0].clone(), (&grads[1] * bad)?];
            let [norm, factor] = factor(&grads, most)?;
            assert!(!norm.is_finite() && factor.is_nan(), "{bad} {most}: {norm} {factor}");
        }
    }
    Ok(())
}

#[test]
fn squares_of_devices_are_sums_of_squares() -> Result<()> {
    let grads = [normal(&[3, 4], DType::F32, 1)?, normal(&[7], DType::F64, 2)?];
    for (grad, sum) in grads.iter().zip(device::squares(&grads)?) {
        let want = grad.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        assert!((sum - want).abs() < 1e-12 * want);
    }
    Ok(())
}
