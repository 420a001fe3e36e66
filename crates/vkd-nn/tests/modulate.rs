//! Gain and bias by sample: against the twin, differences, layouts, and its own edge cases.

use candle_core::{DType, Device, Result, Tensor};
use vkd_nn::ops::{modulate, modulate_relu, reference};
use vkd_testkit::{OpCase, normal};

#[test]
fn it_passes_the_op_harness() -> Result<()> {
    let shapes: [&[usize]; 6] =
        [&[1, 1], &[1, 1, 1], &[3, 5], &[2, 7, 3, 5], &[4, 9, 15, 17], &[3, 130, 2]];
    for dims in shapes {
        let affine = [dims[0], dims[dims.len() - 1]];
        let inputs = [
            normal(dims, DType::F64, 1)?,
            normal(&affine, DType::F64, 2)?,
            normal(&affine, DType::F64, 3)?,
        ];
        // Sums over the pixels of a sample; the twin's are by candle.
        let rows = dims.iter().product::<usize>() / (affine[0] * affine[1]);
        let slack = 8. * (rows as f64).sqrt();
        for ends_in_relu in [false, true] {
            let case = OpCase {
                what: &format!("modulate {dims:?}, relu: {ends_in_relu}"),
                inputs: &inputs,
                active: 3,
                f64_tolerance: slack * f64::EPSILON,
                f32_tolerance: slack * f64::from(f32::EPSILON),
            };
            case.check(
                |x| match ends_in_relu {
                    true => modulate_relu(&x[0], &x[1], &x[2]),
                    false => modulate(&x[0], &x[1], &x[2]),
                },
                |x| {
                    let ys = reference::modulate(&x[0], &x[1], &x[2])?;
                    if ends_in_relu { reference::relu(&ys) } else { Ok(ys) }
                },
            )?;
        }
    }
    Ok(())
}

#[test]
fn edges_of_the_relu_and_what_does_not_fit() -> Result<()> {
    let cpu = Device::Cpu;
    let xs = candle_core::Var::new(&[[[f32::NAN], [0.], [-1.], [2.]]], &cpu)?;
    let (one, zero) =
        (Tensor::ones((1, 1), DType::F32, &cpu)?, Tensor::zeros((1, 1), DType::F32, &cpu)?);
    let ys = modulate_relu(&xs, &one, &zero)?;
    let values = ys.flatten_all()?.to_vec1::<f32>()?;
    assert!(values[0].is_nan() && values[1..] == [0., 0., 2.]);
    let grads = ys.sum_all()?.backward()?;
    let slopes = grads.get(&xs).map(|g| g.flatten_all()?.to_vec1::<f32>()).transpose()?;
    assert_eq!(slopes.unwrap_or_default(), [0., 0., 0., 1.]);

    let refused = |xs: &Tensor, gain: &Tensor, bias: &Tensor| -> String {
        modulate(xs, gain, bias).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let wide = Tensor::zeros((1, 2), DType::F32, &cpu)?;
    assert!(
        refused(&xs, &wide, &zero).contains("expected a gain (1, 1) of F32, got [1, 2] of F32")
    );
    let other = zero.to_dtype(DType::F64)?;
    assert!(
        refused(&xs, &one, &other).contains("expected a bias (1, 1) of F32, got [1, 1] of F64")
    );
    let none = Tensor::zeros((0, 3, 1), DType::F32, &cpu)?;
    assert!(refused(&none, &one, &zero).contains("expected (B, .., C) with B and C of at least 1"));
    let empty = Tensor::zeros((1, 0, 1), DType::F32, &cpu)?;
    assert_eq!(modulate(&empty, &one, &zero)?.dims(), [1, 0, 1]);
    Ok(())
}
