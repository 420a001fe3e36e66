//! The weights that PyTorch publishes, from the state that it stores.

use candle_core::{DType, Device, Result, Tensor};
use vkd_ortho::{OrthogonalMap, TorchFault, stiefel_residual, torch_default_map, torch_weight};
use vkd_testkit::{Golden, Tolerance, assert_close};

/// f32: PyTorch's own rounding, step by step. f64: the recorded run's rounding.
fn tolerance(dtype: DType) -> Tolerance {
    Tolerance { relative: 0., absolute: if dtype == DType::F32 { 1e-6 } else { 1e-13 } }
}

fn golden_case(golden: &Golden, map: OrthogonalMap, name: &str) -> Result<Option<TorchFault>> {
    let original = golden.get(&format!("{name}.original"))?;
    let base = golden.get(&format!("{name}.base")).ok();
    let expected = golden.get(&format!("{name}.weight"))?;
    let got = torch_weight(map, &original, base.as_ref())?;
    assert_eq!((got.weight.dtype(), got.weight.dims()), (expected.dtype(), expected.dims()));
    assert_close(name, &got.weight, &expected, tolerance(original.dtype()))?;
    if got.fault.is_none() {
        let bound = if original.dtype() == DType::F32 { 1e-6 } else { 1e-13 };
        assert!(stiefel_residual(&got.weight)? <= bound, "{name}");
    }
    Ok(got.fault)
}

#[test]
fn every_map_and_shape_agrees_with_pytorch() -> Result<()> {
    let (tall, wide) = (Golden::open("torch_orthogonal")?, Golden::open("torch_state")?);
    for map in OrthogonalMap::ALL {
        for dtype in ["f32", "f64"] {
            for size in ["5x3", "8x8", "33x7"] {
                assert_eq!(golden_case(&tall, map, &format!("{map}.{size}.{dtype}"))?, None);
            }
            for size in ["3x5", "7x33", "6x1", "1x6"] {
                assert_eq!(golden_case(&wide, map, &format!("{map}.{size}.{dtype}"))?, None);
            }
        }
        assert_eq!(golden_case(&wide, map, &format!("{map}.batch.f32"))?, None);
    }
    for size in ["5x3", "3x5"] {
        let name = format!("householder.no_base.{size}");
        assert_eq!(golden_case(&wide, OrthogonalMap::Householder, &name)?, None);
    }
    Ok(())
}

#[test]
fn a_decayed_diagonal_is_reported_and_reproduced() -> Result<()> {
    let golden = Golden::open("torch_state")?;
    let dead = TorchFault { zero: 4, scaled: 0, columns: 4 };
    assert_eq!(golden_case(&golden, OrthogonalMap::Householder, "fault.decay")?, Some(dead));
    let weight = golden.get("fault.decay.weight")?;
    assert_eq!(weight.abs()?.sum_all()?.to_scalar::<f32>()?, 0., "PyTorch's own weight is zero");
    assert!(dead.to_string().contains("4 of 4 columns are zero"), "{dead}");
    // Diagonal -1, 0.5, 2.7, 1.2: kept, zero, doubled, kept.
    let mixed = TorchFault { zero: 1, scaled: 1, columns: 4 };
    for size in ["6x4", "4x6"] {
        let name = format!("fault.mixed.{size}");
        assert_eq!(golden_case(&golden, OrthogonalMap::Householder, &name)?, Some(mixed));
    }
    // The other maps never read the diagonal.
    let original = golden.get("fault.decay.original")?;
    let base = golden.get("fault.decay.base")?;
    for map in [OrthogonalMap::Cayley, OrthogonalMap::MatrixExp] {
        let got = torch_weight(map, &original, Some(&base))?;
        assert_eq!(got.fault, None);
        assert!(stiefel_residual(&got.weight)? <= 1e-6);
    }
    Ok(())
}

#[test]
fn the_default_map_is_pytorchs() {
    assert_eq!(torch_default_map(5, 5), OrthogonalMap::MatrixExp);
    assert_eq!(torch_default_map(3, 5), OrthogonalMap::Householder);
    assert_eq!(torch_default_map(5, 3), OrthogonalMap::Householder);
}

#[test]
fn bad_states_are_errors_with_numbers() -> Result<()> {
    let cpu = &Device::Cpu;
    let tall = Tensor::zeros((5, 3), DType::F32, cpu)?;
    let message = |original: &Tensor, base: Option<&Tensor>| match torch_weight(
        OrthogonalMap::Householder,
        original,
        base,
    ) {
        Ok(_) => panic!("expected an error"),
        Err(e) => e.to_string(),
    };
    let text = message(&tall, Some(&Tensor::zeros((5, 3), DType::F32, cpu)?));
    assert!(text.contains("expected `base` [5, 5] for `original` [5, 3], got [5, 3]"), "{text}");
    let text = message(&tall, Some(&Tensor::zeros((5, 5), DType::F64, cpu)?));
    assert!(text.contains("F32") && text.contains("F64"), "{text}");
    let text = message(&tall.to_dtype(DType::I64)?, None);
    assert!(text.contains("float dtype") && text.contains("I64"), "{text}");
    assert!(message(&Tensor::zeros(3, DType::F32, cpu)?, None).contains("[3]"));
    assert!(message(&Tensor::zeros((0, 3), DType::F32, cpu)?, None).contains("[0, 3]"));
    let nan = Tensor::full(f32::NAN, (5, 5), cpu)?;
    assert!(message(&tall, Some(&nan)).contains("finite `base`"));
    assert!(message(&nan, None).contains("finite"));
    let huge = Tensor::eye(3, DType::F32, cpu)?.affine(3e9, 0.)?;
    assert!(message(&huge, None).contains("32 bits"));
    Ok(())
}
