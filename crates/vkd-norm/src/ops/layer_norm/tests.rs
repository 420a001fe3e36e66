//! Layer norm: against its twin, finite differences, in every layout, and at its edges.

use super::{layer_norm, layer_norm_affine, reference};
use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_testkit::OpCase;
use vkd_testkit::{Tolerance, assert_close, normal, normal_scaled, to_f64};

const EPS: f64 = 1e-5;

fn case<'a>(what: &'a str, inputs: &'a [Tensor]) -> OpCase<'a> {
    OpCase { what, inputs, active: inputs.len(), f64_tolerance: 1e-12, f32_tolerance: 2e-6 }
}

#[test]
fn plain_agrees_with_its_twin() -> Result<()> {
    for (dims, seed) in
        [(vec![1, 1], 1), (vec![7], 2), (vec![33, 7], 3), (vec![2, 7, 33], 4), (vec![5, 64], 5)]
    {
        let xs = (normal(&dims, DType::F64, seed)? + 0.5)?;
        let inputs = [xs];
        case("layer_norm", &inputs)
            .check(|x| layer_norm(&x[0], EPS), |x| reference::layer_norm(&x[0], EPS))?;
    }
    Ok(())
}

#[test]
fn affine_agrees_with_its_twin() -> Result<()> {
    for (dims, seed) in [(vec![1, 1], 1), (vec![33, 7], 3), (vec![2, 7, 33], 4), (vec![70, 64], 5)]
    {
        let channels = dims[dims.len() - 1];
        let inputs = [
            normal(&dims, DType::F64, seed)?,
            (normal(&[channels], DType::F64, seed + 10)? + 1.)?,
            normal(&[channels], DType::F64, seed + 20)?,
        ];
        case("layer_norm_affine", &inputs).check(
            |x| layer_norm_affine(&x[0], &x[1], &x[2], EPS),
            |x| reference::layer_norm_affine(&x[0], &x[1], &x[2], EPS),
        )?;
    }
    Ok(())
}

#[test]
fn harness_has_teeth() -> Result<()> {
    for dims in [[2, 3], [33, 7]] {
        let plain = [normal(&dims, DType::F64, 1)?];
        case("layer_norm", &plain)
            .has_teeth(|x| layer_norm(&x[0], EPS), |x| reference::layer_norm(&x[0], EPS))?;
        let channels = dims[1];
        let affine = [
            normal(&dims, DType::F64, 1)?,
            normal(&[channels], DType::F64, 2)?,
            normal(&[channels], DType::F64, 3)?,
        ];
        case("layer_norm_affine", &affine).has_teeth(
            |x| layer_norm_affine(&x[0], &x[1], &x[2], EPS),
            |x| reference::layer_norm_affine(&x[0], &x[1], &x[2], EPS),
        )?;
    }
    Ok(())
}

#[test]
fn large_tensors_take_the_parallel_path_with_the_same_bits() -> Result<()> {
    // Above the threshold; its first rows alone are below it.
    let (rows, channels) = (1400, 192);
    let weight = Var::from_tensor(&normal(&[channels], DType::F32, 2)?)?;
    let bias = Var::from_tensor(&normal(&[channels], DType::F32, 3)?)?;
    let xs = Var::from_tensor(&normal(&[rows, channels], DType::F32, 1)?)?;
    let all = layer_norm_affine(&xs, &weight, &bias, EPS)?;
    let grads = all.sqr()?.sum_all()?.backward()?;
    let few = Var::from_tensor(&xs.narrow(0, 0, 100)?.copy()?)?;
    let part = layer_norm_affine(&few, &weight, &bias, EPS)?;
    assert_close("rows", &all.narrow(0, 0, 100)?, &part, Tolerance::EXACT)?;
    let part_grads = part.sqr()?.sum_all()?.backward()?;
    let (got, want) = (grads.get(&xs), part_grads.get(&few));
    let (got, want) = (got.unwrap(), want.unwrap());
    assert_close("gradient of rows", &got.narrow(0, 0, 100)?, want, Tolerance::EXACT)?;
    // The sums over all rows, against f64.
    let wide = |v: &Var| Var::from_tensor(&v.to_dtype(DType::F64)?);
    let (xs64, weight64, bias64) = (wide(&xs)?, wide(&weight)?, wide(&bias)?);
    let exact = reference::layer_norm_affine(&xs64, &weight64, &bias64, EPS)?
        .sqr()?
        .sum_all()?
        .backward()?;
    for (name, v, v64) in [("weight", &weight, &weight64), ("bias", &bias, &bias64)] {
        let (got, want) = (grads.get(v).unwrap(), exact.get(v64).unwrap());
        assert_close(name, got, want, Tolerance::relative(1e-6))?;
    }
    Ok(())
}

#[test]
fn a_mean_far_above_the_deviation_costs_nothing() -> Result<()> {
    // 1e4 + noise: one pass over squares would lose everything, an uncorrected mean three digits.
    let noise = normal_scaled(&[7, 384], DType::F32, 1, 1.)?;
    let xs = (noise + 1e4)?;
    let exact = reference::layer_norm(&xs.to_dtype(DType::F64)?, EPS)?;
    assert_close("offset rows", &layer_norm(&xs, EPS)?, &exact, Tolerance::relative(1e-6))
}

#[test]
fn the_twin_keeps_its_digits_where_the_op_does() -> Result<()> {
    // Offsets far above the deviation, constants, zero, and rows whose squares leave f32.
    let offsets = Tensor::new(&[[0f32], [1e3], [-1e5], [0.1], [0.], [0.], [1e30]], &Device::Cpu)?;
    let scales = Tensor::new(&[[1f32], [1.], [1.], [0.], [0.], [1e30], [1e30]], &Device::Cpu)?;
    let noise = normal(&[7, 384], DType::F32, 1)?;
    let xs = noise.broadcast_mul(&scales)?.broadcast_add(&offsets)?;
    let g = normal(&[7, 384], DType::F32, 2)?;
    let run = |f: &dyn Fn(&Tensor) -> Result<Tensor>| -> Result<(Tensor, Tensor)> {
        let var = Var::from_tensor(&xs)?;
        let ys = f(&var)?;
        let grads = (&ys * &g)?.sum_all()?.backward()?;
        Ok((ys.detach(), grads.get(&var).unwrap().clone()))
    };
    let (want, want_dx) = run(&|x| layer_norm(x, EPS))?;
    let (got, dx) = run(&|x| reference::layer_norm(x, EPS))?;
    for i in 0..7 {
        let row = |t: &Tensor| t.narrow(0, i, 1);
        // Sums of 384 terms in another order, on entries of up to four deviations.
        let allowed = Tolerance::relative(2e-6);
        assert_close(&format!("row {i}"), &row(&got)?, &row(&want)?, allowed)?;
        assert_close(&format!("gradient of row {i}"), &row(&dx)?, &row(&want_dx)?, allowed)?;
    }
    assert_eq!(reference::layer_norm(&xs.narrow(0, 0, 0)?, EPS)?.dims(), &[0, 384]);
    Ok(())
}

#[test]
fn the_range_is_what_is_stated() -> Result<()> {
    // Magnitudes up to half the largest f32, and deviations up to 1e150 in f64; entries of the noise are below one.
    let noise = (normal(&[5, 40], DType::F64, 1)?.tanh()? * 0.999)?;
    let (want, g) =
        (layer_norm(&noise, f64::from(f32::MIN_POSITIVE))?, normal(&[5, 40], DType::F64, 2)?);
    for (dtype, size, accuracy) in
        [(DType::F32, f64::from(f32::MAX) / 2., 2e-6), (DType::F64, 1e150, 1e-13)]
    {
        let xs = Var::from_tensor(&(&noise * size)?.to_dtype(dtype)?)?;
        let ys = layer_norm(&xs, EPS)?;
        assert_close("values", &ys, &want, Tolerance::relative(accuracy))?;
        // The gradient of the scaled row is smaller by the scale: for f32 a subnormal number.
        let grads = (&ys * g.to_dtype(dtype)?)?.sum_all()?.backward()?;
        let unit = Var::from_tensor(&noise)?;
        let wanted = (layer_norm(&unit, 1e-30)? * &g)?.sum_all()?.backward()?;
        let dx = (grads.get(&xs).unwrap().to_dtype(DType::F64)? * size)?;
        let allowed = Tolerance::relative(accuracy.max(1e-45 * size));
        assert_close("gradient", &dx, wanted.get(&unit).unwrap(), allowed)?;
    }
    Ok(())
}

#[test]
fn constant_rows_and_huge_values_stay_finite() -> Result<()> {
    for value in [0f32, 0.1, -3., 1e4, 1e30] {
        for dtype in [DType::F32, DType::F64] {
            let xs = Tensor::full(value, (3, 33), &Device::Cpu)?.to_dtype(dtype)?;
            let worst =
                to_f64(&layer_norm(&xs, EPS)?)?.into_iter().fold(0f64, |m, y| m.max(y.abs()));
            assert!(worst == 0., "{value} {dtype:?}: {worst}");
        }
    }
    // Squares overflow f32; the row's own scale does not matter once it dwarfs eps.
    let xs = normal(&[3, 40], DType::F32, 5)?;
    let huge = layer_norm(&(&xs * 1e30)?, EPS)?;
    assert_close("huge", &huge, &layer_norm(&xs, EPS)?, Tolerance::relative(1e-4))?;
    // One entry 1e8 times the others.
    let mut row = vec![1f32; 33];
    row[4] = 1e8;
    let ys = to_f64(&layer_norm(&Tensor::new(row, &Device::Cpu)?, EPS)?)?;
    assert!(
        (ys[4] - 32f64.sqrt()).abs() < 1e-5 && (ys[0] + 1. / 32f64.sqrt()).abs() < 1e-6,
        "{ys:?}"
    );
    Ok(())
}

#[test]
fn a_start_far_from_the_mean_costs_little() -> Result<()> {
    // The pivot is taken from the start of the row: zeros before noise about 300, and an outlier at each end.
    let noise = (normal(&[9, 224], DType::F32, 1)? + 300.)?;
    let zeros = Tensor::zeros((9, 40), DType::F32, &Device::Cpu)?;
    let outlier = Tensor::full(-1e5f32, (9, 1), &Device::Cpu)?;
    for parts in [[&zeros, &noise], [&outlier, &noise], [&noise, &outlier]] {
        let xs = Var::from_tensor(&Tensor::cat(&parts, 1)?)?;
        let wide = Var::from_tensor(&xs.to_dtype(DType::F64)?)?;
        let g = normal(xs.dims(), DType::F32, 2)?;
        let (y, want) = (layer_norm(&xs, EPS)?, reference::layer_norm(&wide, EPS)?);
        // Entries up to 16 deviations, a few roundings each.
        assert_close("values", &y, &want, Tolerance::relative(1e-6))?;
        let grads = (y * &g)?.sum_all()?.backward()?;
        let wanted = (want * g.to_dtype(DType::F64)?)?.sum_all()?.backward()?;
        let (got, want) = (grads.get(&xs).unwrap(), wanted.get(&wide).unwrap());
        assert_close("gradient", got, want, Tolerance::relative(2e-6))?;
    }
    Ok(())
}

#[test]
fn half_types_go_through_f32() -> Result<()> {
    for dtype in [DType::BF16, DType::F16] {
        let half = |t: Tensor| Var::from_tensor(&t.to_dtype(dtype)?);
        let single = |v: &Var| Var::from_tensor(&v.to_dtype(DType::F32)?);
        let xs = half(normal(&[9, 40], DType::F32, 1)?)?;
        let (w, b) = (half(normal(&[40], DType::F32, 2)?)?, half(normal(&[40], DType::F32, 3)?)?);
        let (xs32, w32, b32) = (single(&xs)?, single(&w)?, single(&b)?);
        let plain = layer_norm(&xs, EPS)?;
        let want = layer_norm(&xs32, EPS)?.to_dtype(dtype)?;
        assert_eq!(plain.dtype(), dtype);
        assert_close("plain", &plain, &want, Tolerance::EXACT)?;
        let affine = layer_norm_affine(&xs, &w, &b, EPS)?;
        let want = layer_norm_affine(&xs32, &w32, &b32, EPS)?.to_dtype(dtype)?;
        assert_close("affine", &affine, &want, Tolerance::EXACT)?;
        let (got, want) = (affine.sum_all()?.backward()?, want.sum_all()?.backward()?);
        for (half, single) in [(&xs, &xs32), (&w, &w32), (&b, &b32)] {
            let (got, want) = (got.get(half).unwrap(), want.get(single).unwrap());
            assert_close("gradient", got, &want.to_dtype(dtype)?, Tolerance::EXACT)?;
        }
    }
    Ok(())
}

#[test]
fn bad_arguments_are_named() -> Result<()> {
    let xs = normal(&[3, 4], DType::F32, 1)?;
    for eps in [0., -1., f64::NAN, f64::INFINITY] {
        let e = layer_norm(&xs, eps).unwrap_err().to_string();
        assert!(e.contains("layer_norm: expected a finite eps"), "{e}");
    }
    assert!(layer_norm(&Tensor::new(1f32, &Device::Cpu)?, EPS).is_err());
    assert!(layer_norm(&xs.narrow(1, 0, 0)?, EPS).is_err());
    assert!(layer_norm(&xs.to_dtype(DType::U8)?, EPS).is_err());
    assert_eq!(layer_norm(&xs.narrow(0, 0, 0)?, EPS)?.dims(), &[0, 4]);
    let long = Tensor::zeros((0, 1 << 60), DType::F32, &Device::Cpu)?;
    assert_eq!(layer_norm(&long, EPS)?.dims(), &[0, 1 << 60]);
    let (w, b) = (normal(&[4], DType::F32, 1)?, normal(&[3], DType::F32, 1)?);
    let e = layer_norm_affine(&xs, &w, &b, EPS).unwrap_err().to_string();
    assert!(e.contains("expected bias of shape [4], got [3]"), "{e}");
    assert!(layer_norm_affine(&xs, &w.to_dtype(DType::F64)?, &w, EPS).is_err());
    Ok(())
}

#[test]
fn large_gradients_of_large_rows_are_finite() -> Result<()> {
    // The product of a deviation and a gradient leaves f32, and for the last so does the gradients' sum.
    let (xs, g) = (normal(&[5, 40], DType::F64, 1)?, normal(&[5, 40], DType::F64, 2)?);
    let weight = (normal(&[40], DType::F64, 3)?.abs()? + 0.5)?;
    let bias = Tensor::zeros(40, DType::F64, &Device::Cpu)?;
    for (size, of_grad, shift) in [(1e10, 1e30, 0.), (1e18, 1e25, 0.), (1e5, 1e37, 3.)] {
        let xs = (&xs * size)?.to_dtype(DType::F32)?;
        let g = ((&g + shift)? * of_grad)?.to_dtype(DType::F32)?;
        for affine in [false, true] {
            let run = |dtype| -> Result<Tensor> {
                let var = Var::from_tensor(&xs.to_dtype(dtype)?)?;
                let (w, b) = (weight.to_dtype(dtype)?, bias.to_dtype(dtype)?);
                let y = match affine {
                    true => layer_norm_affine(&var, &w, &b, EPS)?,
                    false => layer_norm(&var, EPS)?,
                };
                // The sum itself may overflow: only its gradient is asked for.
                let grads = (y * g.to_dtype(dtype)?)?.sum_all()?.backward()?;
                grads.get(&var).unwrap().to_dtype(DType::F64)? * (size / of_grad)
            };
            // As the twins' tolerance: roundings of f32 in a row's sums.
            let what = format!("{size:e} {of_grad:e} {affine}");
            assert_close(&what, &run(DType::F32)?, &run(DType::F64)?, Tolerance::relative(2e-6))?;
        }
    }
    Ok(())
}
