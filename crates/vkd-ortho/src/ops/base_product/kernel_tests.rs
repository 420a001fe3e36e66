//! The kernels of the base on the host, against what the CPU makes of the same base.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use crate::base::{Base, Resident, unit_columns};
use crate::{sample_stiefel, stiefel_residual};
use candle_core::{DType, Device, Result, Tensor};
use std::path::Path;
use vkd_testkit::{KernelHost, Sanitizer, Tolerance, assert_close};

fn host(sanitizer: Sanitizer) -> Result<Option<KernelHost>> {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let shared = ops.join("../../../vkd-norm/src/ops");
    KernelHost::compile(&ops.join("base_product/base_product.cu"), &[&shared], sanitizer)
}

/// What the kernels make of `base` where it comes to hold `now`: as it was stored, reflectors, core, signs and state.
fn renewed(host: &KernelHost, base: &Base, now: &Tensor) -> Result<Vec<Tensor>> {
    let Resident { stored, state, .. } = base.resident().unwrap();
    let [v, t, signs] = base.factors();
    let inputs = [now, stored, v, t, signs, state];
    host.run_in_place(&base.renewal()?.script(), &inputs, &[1, 2, 3, 4, 5])
}

/// From another base to `now`, which the CPU's own must come near.
fn check(host: &KernelHost, now: &Tensor) -> Result<()> {
    let ((n, k), dtype) = (now.dims2()?, now.dtype());
    let from = Base::kept(&sample_stiefel(n, k, 5, dtype, &Device::Cpu)?, true)?;
    let got = renewed(host, &from, now)?;
    let want = Base::kept(now, true)?;
    let Resident { stored, state, .. } = want.resident().unwrap();
    assert_close("stored", &got[0], stored, Tolerance::EXACT)?;
    assert_close("state", &got[4], state, Tolerance::EXACT)?;
    let names = ["reflectors", "core", "signs"];
    for ((name, got), want) in names.iter().zip(&got[1..4]).zip(want.factors()) {
        assert_close(&format!("{name} of {n} x {k}"), got, want, Tolerance::relative(1e-12))?;
    }
    Ok(())
}

/// A permutation's first columns: heads of zero, and reflectors without a tail.
fn permuted(n: usize, k: usize, dtype: DType) -> Result<Tensor> {
    let at = |i: usize, j: usize| f64::from(u8::from((i + n - 1) % n == j));
    let values = (0..n * k).map(|x| at(x / k, x % k)).collect();
    Tensor::from_vec(values, (n, k), &Device::Cpu)?.to_dtype(dtype)
}

#[test]
fn a_base_that_is_overwritten_is_made_anew() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    for dtype in [DType::F32, DType::F64] {
        for (n, k) in [(1, 1), (5, 5), (7, 3), (40, 12), (70, 33)] {
            check(&host, &sample_stiefel(n, k, 8, dtype, &Device::Cpu)?)?;
        }
        let unit = unit_columns(6, 3, dtype, &Device::Cpu)?;
        check(&host, &unit)?;
        check(&host, &unit.neg()?)?;
        check(&host, &permuted(6, 4, dtype)?)?;
        // Off by more than rounding.
        let off = (sample_stiefel(9, 4, 8, dtype, &Device::Cpu)? * (1. + 2e-6))?;
        assert!(!Base::new(&off)?.exact);
        check(&host, &off)?;
    }
    Ok(())
}

#[test]
fn a_base_that_is_not_is_left_alone() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    let now = sample_stiefel(70, 33, 8, DType::F64, &Device::Cpu)?;
    let mut base = Base::kept(&now, true)?;
    // What nobody could make of it stays, so nothing was written.
    base.disturb(3.)?;
    let [v, t, signs] = base.factors();
    let got = renewed(&host, &base, &now)?;
    for (got, want) in got[1..4].iter().zip([v, t, signs]) {
        assert_close("left alone", got, want, Tolerance::EXACT)?;
    }
    // One entry is enough.
    let mut values = now.flatten_all()?.to_vec1::<f64>()?;
    values[70 * 33 - 1] *= 1. + 1e-15;
    check(&host, &Tensor::from_vec(values, (70, 33), &Device::Cpu)?)
}

#[test]
fn a_base_that_is_not_orthonormal_makes_the_weight_nan() -> Result<()> {
    let Some(host) = host(Sanitizer::Memory)? else { return Ok(()) };
    let good = sample_stiefel(9, 4, 8, DType::F32, &Device::Cpu)?;
    let frame = sample_stiefel(9, 4, 9, DType::F32, &Device::Cpu)?;
    let mut values = good.flatten_all()?.to_vec1::<f32>()?;
    values[7] = f32::NAN;
    let broken = Tensor::from_vec(values, (9, 4), &Device::Cpu)?;
    for bad in [(&good * 1.1)?, good.zeros_like()?, broken] {
        assert!(Base::new(&bad).is_err());
        let mut base = Base::kept(&good, true)?;
        let [stored, v, t, signs, state] = renewed(&host, &base, &bad)?.try_into().unwrap();
        base.replace([v, t, signs], stored, state);
        for q in [base.apply_exactly(&frame)?, base.apply(&frame.to_dtype(DType::F64)?)?] {
            assert_eq!(stiefel_residual(&q)?, f64::INFINITY);
        }
        // What is good again is good.
        let [stored, v, t, signs, state] = renewed(&host, &base, &good)?.try_into().unwrap();
        base.replace([v, t, signs], stored, state);
        let want = Base::new(&good)?.apply_exactly(&frame)?;
        let got = base.apply_exactly(&frame)?;
        assert_close("good again", &got, &want, Tolerance::relative(1e-7))?;
    }
    Ok(())
}

#[test]
fn what_a_device_keeps_gives_the_same_weight() -> Result<()> {
    for dtype in [DType::F32, DType::F64] {
        for scale in [1., 1. + 2e-6] {
            let base = (sample_stiefel(20, 6, 8, dtype, &Device::Cpu)? * scale)?;
            let frame = sample_stiefel(20, 6, 9, dtype, &Device::Cpu)?;
            let (plain, kept) = (Base::new(&base)?, Base::kept(&base, true)?);
            let (want, got) = (plain.apply_exactly(&frame)?, kept.apply_exactly(&frame)?);
            assert_close("weight", &got, &want, Tolerance::EXACT)?;
        }
        let base = sample_stiefel(20, 6, 8, dtype, &Device::Cpu)?;
        let unit = unit_columns(20, 6, dtype, &Device::Cpu)?;
        let weight = Base::kept(&base, true)?.apply_exactly(&unit)?;
        assert_close("the base itself", &weight, &base, Tolerance::EXACT)?;
    }
    Ok(())
}

#[test]
fn no_two_threads_meet() -> Result<()> {
    let Some(host) = host(Sanitizer::Races)? else { return Ok(()) };
    check(&host, &sample_stiefel(70, 9, 8, DType::F32, &Device::Cpu)?)
}
