//! The affine op with its activations: twin, differences, layouts, and what it computes for whom.

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use vkd_nn::ops::{Activation, linear, reference};
use vkd_nn::{VarStore, linear_no_bias};
use vkd_testkit::{OpCase, Tolerance, assert_close, normal};

const ALL: [Activation; 6] = [
    Activation::Identity,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::Relu6,
    Activation::Silu,
];

#[test]
fn every_activation_passes_the_op_harness() -> Result<()> {
    for activation in ALL {
        for (rows, input, output) in [(vec![1], 1, 1), (vec![5], 3, 7), (vec![2, 7], 33, 5)] {
            let dims = [rows.clone(), vec![input]].concat();
            let inputs = [
                normal(&dims, DType::F64, 1)?,
                normal(&[output, input], DType::F64, 2)?,
                normal(&[output], DType::F64, 3)?,
            ];
            // candle's derivative of the error function in the twin is good to 1e-6 only.
            let f64_tolerance = if activation == Activation::Gelu { 2e-6 } else { 1e-12 };
            let what = format!("linear {activation:?} {dims:?}");
            // In f32: sums of up to 33 terms, and an activation good to 4e-7 of values up to about 10.
            let case = OpCase {
                what: &what,
                inputs: &inputs,
                active: 3,
                f64_tolerance,
                f32_tolerance: 2e-5,
            };
            let op = |x: &[Tensor]| linear(&x[0], &x[1], Some(&x[2]), activation);
            let twin = |x: &[Tensor]| reference::linear(&x[0], &x[1], Some(&x[2]), activation);
            case.check(op, twin)?;
            let bare = OpCase { inputs: &inputs[..2], active: 2, ..case };
            bare.check(
                |x| linear(&x[0], &x[1], None, activation),
                |x| reference::linear(&x[0], &x[1], None, activation),
            )?;
        }
    }
    let inputs = [normal(&[4, 3], DType::F64, 1)?, normal(&[2, 3], DType::F64, 2)?];
    let case = OpCase {
        what: "linear",
        inputs: &inputs,
        active: 2,
        f64_tolerance: 1e-12,
        f32_tolerance: 1e-5,
    };
    let op = |x: &[Tensor]| linear(&x[0], &x[1], None, Activation::Silu);
    case.has_teeth(op, |x| reference::linear(&x[0], &x[1], None, Activation::Silu))
}

#[test]
fn large_enough_for_threads_agrees_with_its_twin() -> Result<()> {
    for activation in ALL {
        let run = |ours: bool| -> Result<Vec<Tensor>> {
            let vars = [
                Var::from_tensor(&normal(&[3, 150, 96], DType::F32, 1)?)?,
                Var::from_tensor(&normal(&[200, 96], DType::F32, 2)?)?,
                Var::from_tensor(&normal(&[200], DType::F32, 3)?)?,
            ];
            let [x, w, b] = vars.each_ref().map(Var::as_tensor);
            let ys = if ours {
                linear(x, w, Some(b), activation)?
            } else {
                reference::linear(x, w, Some(b), activation)?
            };
            let grads = (&ys * normal(ys.dims(), DType::F32, 4)?)?.sum_all()?.backward()?;
            let mut all = vec![ys];
            for var in &vars {
                all.push(grads.get(var).expect("a gradient for every input").clone());
            }
            Ok(all)
        };
        // Sums of 450 products and, in the twin, candle's erf derivative, good to 1e-6 for each of them.
        let mut tolerance = Tolerance::for_op(DType::F32, DType::F32, 450);
        tolerance.relative = tolerance.relative.max(1e-4);
        for (at, (got, want)) in run(true)?.iter().zip(&run(false)?).enumerate() {
            assert_close(&format!("linear {activation:?}, result {at}"), got, want, tolerance)?;
        }
    }
    Ok(())
}

#[test]
fn a_second_backward_pass_and_a_fixed_input_change_nothing() -> Result<()> {
    let x = normal(&[6, 4], DType::F64, 1)?;
    let w = Var::from_tensor(&normal(&[3, 4], DType::F64, 2)?)?;
    let ys = linear(&x, w.as_tensor(), None, Activation::Gelu)?;
    let grad = || -> Result<Option<Vec<Vec<f64>>>> {
        let grads = ys.sqr()?.sum_all()?.backward()?;
        assert!(grads.get(&x).is_none(), "nothing is computed for an input without a gradient");
        grads.get(&w).map(Tensor::to_vec2::<f64>).transpose()
    };
    let first = grad()?;
    assert!(first.is_some());
    assert_eq!(first, grad()?);
    Ok(())
}

#[test]
fn no_rows_give_gradients_of_zero() -> Result<()> {
    let vars = [
        Var::zeros((0, 3), DType::F64, &Device::Cpu)?,
        Var::ones((2, 3), DType::F64, &Device::Cpu)?,
        Var::ones(2, DType::F64, &Device::Cpu)?,
    ];
    let [x, w, b] = vars.each_ref().map(Var::as_tensor);
    let ys = linear(x, w, Some(b), Activation::Gelu)?;
    assert_eq!(ys.dims(), [0, 2]);
    let grads = ys.sum_all()?.backward()?;
    for var in &vars {
        let grad = grads.get(var).expect("a gradient for every input");
        assert_eq!(grad.dims(), var.dims());
        assert!(grad.flatten_all()?.to_vec1::<f64>()?.iter().all(|x| *x == 0.));
    }
    Ok(())
}

#[test]
fn a_layer_without_bias_has_one_variable() -> Result<()> {
    let store = VarStore::new(1, DType::F64, &Device::Cpu);
    let layer = linear_no_bias(4, 3, store.builder())?.with_activation(Activation::Relu);
    let xs = normal(&[2, 5, 4], DType::F64, 1)?;
    let weight = store.tensors()["weight"].clone();
    let want = reference::linear(&xs, &weight, None, Activation::Relu)?;
    assert_eq!(store.tensors().len(), 1);
    assert_close("layer", &layer.forward(&xs)?, &want, Tolerance::for_op(DType::F64, DType::F64, 4))
}

#[test]
fn bad_input_is_named() -> Result<()> {
    let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, &Device::Cpu);
    let weight = zeros(&[2, 3], DType::F32)?;
    let good = zeros(&[4, 3], DType::F32)?;
    for message in [
        linear(&zeros(&[4, 2], DType::F32)?, &weight, None, Activation::Gelu),
        linear(&zeros(&[], DType::F32)?, &weight, None, Activation::Gelu),
        linear(&good, &zeros(&[3], DType::F32)?, None, Activation::Gelu),
        linear(&good, &zeros(&[2, 0], DType::F32)?, None, Activation::Gelu),
        linear(&good, &weight, Some(&zeros(&[3], DType::F32)?), Activation::Gelu),
        linear(&good, &weight, Some(&zeros(&[2], DType::F64)?), Activation::Gelu),
        linear(&zeros(&[4, 3], DType::F64)?, &weight, None, Activation::Gelu),
    ] {
        let message = message.map(|_| String::new()).unwrap_or_else(|e| e.to_string());
        assert!(message.contains("linear: expected"), "{message}");
    }
    let whole = zeros(&[2, 3], DType::U32)?;
    assert!(linear(&whole, &whole, None, Activation::Identity).is_err());
    Ok(())
}
