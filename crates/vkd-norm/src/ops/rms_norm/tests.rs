//! RMS norm: against its twin, finite differences, torch, in every layout, and at its edges.

use super::{reference, rms_norm};
use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_testkit::{Golden, OpCase, Tolerance, assert_close, normal};

const EPS: f64 = 1e-5;

fn case<'a>(inputs: &'a [Tensor]) -> OpCase<'a> {
    OpCase { what: "rms_norm", inputs, active: 2, f64_tolerance: 1e-12, f32_tolerance: 2e-6 }
}

fn inputs(dims: &[usize], seed: u64) -> Result<[Tensor; 2]> {
    let channels = dims[dims.len() - 1];
    let weight = (normal(&[channels], DType::F64, seed + 10)? + 1.)?;
    Ok([(normal(dims, DType::F64, seed)? + 0.5)?, weight])
}

#[test]
fn agrees_with_its_twin() -> Result<()> {
    for (dims, seed) in
        [(vec![1, 1], 1), (vec![7], 2), (vec![33, 7], 3), (vec![2, 7, 33], 4), (vec![70, 64], 5)]
    {
        case(&inputs(&dims, seed)?)
            .check(|x| rms_norm(&x[0], &x[1], EPS), |x| reference::rms_norm(&x[0], &x[1], EPS))?;
    }
    Ok(())
}

#[test]
fn harness_has_teeth() -> Result<()> {
    for dims in [[2, 3], [33, 7]] {
        case(&inputs(&dims, 1)?).has_teeth(
            |x| rms_norm(&x[0], &x[1], EPS),
            |x| reference::rms_norm(&x[0], &x[1], EPS),
        )?;
    }
    Ok(())
}

#[test]
fn equals_torchs() -> Result<()> {
    let golden = Golden::open("nn_optim")?;
    let get = |key: &str| golden.get(&format!("rms_norm.{key}"));
    let (xs, weight) = (Var::from_tensor(&get("x")?)?, Var::from_tensor(&get("weight")?)?);
    let ys = rms_norm(&xs, &weight, 1e-6)?;
    let grads = (&ys * get("cot")?)?.sum_all()?.backward()?;
    let same = Tolerance::relative(1e-14);
    assert_close("y", &ys, &get("y")?, same)?;
    assert_close("x", grads.get(&xs).unwrap(), &get("grad_x")?, same)?;
    assert_close("weight", grads.get(&weight).unwrap(), &get("grad_weight")?, same)
}

#[test]
fn edges_and_bad_arguments() -> Result<()> {
    let xs = normal(&[3, 40], DType::F32, 5)?;
    let weight = Tensor::ones(40, DType::F32, &Device::Cpu)?;
    // Squares overflow f32; the row's own scale does not matter once it dwarfs eps.
    let huge = rms_norm(&(&xs * 1e30)?, &weight, EPS)?;
    assert_close("huge", &huge, &rms_norm(&xs, &weight, EPS)?, Tolerance::relative(1e-4))?;
    let zeros = xs.zeros_like()?;
    assert_close("zeros", &rms_norm(&zeros, &weight, EPS)?, &zeros, Tolerance::EXACT)?;
    let half = |t: &Tensor| t.to_dtype(DType::BF16);
    let low = rms_norm(&half(&xs)?, &half(&weight)?, EPS)?;
    assert_eq!(low.dtype(), DType::BF16);
    let wide = rms_norm(&half(&xs)?.to_dtype(DType::F32)?, &weight, EPS)?;
    assert_close("bf16", &low, &wide, Tolerance::for_op(DType::F32, DType::BF16, 40))?;
    for eps in [0., -1., f64::NAN, f64::INFINITY] {
        assert!(rms_norm(&xs, &weight, eps).is_err());
    }
    assert!(rms_norm(&Tensor::new(1f32, &Device::Cpu)?, &weight, EPS).is_err());
    let short = weight.narrow(0, 0, 39)?;
    let message = rms_norm(&xs, &short, EPS).unwrap_err().to_string();
    assert!(message.contains("rms_norm: expected weight of shape [40]"), "{message}");
    assert_eq!(rms_norm(&xs.narrow(0, 0, 0)?, &weight, EPS)?.dims(), &[0, 40]);
    Ok(())
}

#[test]
fn the_range_is_what_is_stated() -> Result<()> {
    let noise = (normal(&[5, 40], DType::F64, 1)?.tanh()? * 0.999)?;
    let weight = normal(&[40], DType::F64, 2)?;
    let want = rms_norm(&noise, &weight, f64::from(f32::MIN_POSITIVE))?;
    for (dtype, size, accuracy) in
        [(DType::F32, f64::from(f32::MAX), 2e-6), (DType::F64, 1e150, 1e-13)]
    {
        let (xs, weight) = ((&noise * size)?.to_dtype(dtype)?, weight.to_dtype(dtype)?);
        let allowed = Tolerance::relative(accuracy);
        assert_close("op", &rms_norm(&xs, &weight, 1e-5)?, &want, allowed)?;
        assert_close("twin", &reference::rms_norm(&xs, &weight, 1e-5)?, &want, allowed)?;
    }
    Ok(())
}
