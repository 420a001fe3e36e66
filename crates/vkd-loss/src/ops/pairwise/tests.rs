//! Distances of all pairs: against their twin, finite differences, in every layout, and where rows coincide.

use super::{pairwise_distance, reference};
use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_testkit::{OpCase, Tolerance, assert_close, normal};

fn case<'a>(inputs: &'a [Tensor]) -> OpCase<'a> {
    OpCase { what: "pairwise", inputs, active: 1, f64_tolerance: 1e-13, f32_tolerance: 2e-6 }
}

#[test]
fn agrees_with_its_twin() -> Result<()> {
    for dims in [[2, 1], [5, 3], [13, 33], [33, 2]] {
        let inputs = [normal(&dims, DType::F64, 1)?];
        case(&inputs)
            .check(|x| pairwise_distance(&x[0]), |x| reference::pairwise_distance(&x[0]))?;
    }
    Ok(())
}

#[test]
fn harness_has_teeth() -> Result<()> {
    for dims in [[2, 3], [33, 7]] {
        let inputs = [normal(&dims, DType::F64, 1)?];
        case(&inputs)
            .has_teeth(|x| pairwise_distance(&x[0]), |x| reference::pairwise_distance(&x[0]))?;
    }
    Ok(())
}

#[test]
fn rows_that_coincide_have_no_gradient() -> Result<()> {
    let xs = Var::new(&[[1f64, 2.], [1., 2.], [4., 6.]], &Device::Cpu)?;
    let distances = pairwise_distance(&xs)?;
    assert_eq!(distances.to_vec2::<f64>()?, [[0., 0., 5.], [0., 0., 5.], [5., 5., 0.]]);
    let grads = distances.sum_all()?.backward()?;
    let want = Tensor::new(&[[-1.2f64, -1.6], [-1.2, -1.6], [2.4, 3.2]], &Device::Cpu)?;
    assert_close("gradient", grads.get(&xs).unwrap(), &want, Tolerance::relative(1e-15))
}
