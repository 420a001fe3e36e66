//! The fused pre-norm sub-layer: twin, differences, layouts, frozen parts, and the layers that use it.

use candle_core::{DType, Device, Module, Result, Tensor, Var, bail};
use vkd_nn::ops::{Activation, Body, reference, sublayer};
use vkd_nn::{
    VarStore, layer_norm, linear, linear_no_bias, residual_attention, residual_mlp, self_attention,
};
use vkd_testkit::{OpCase, Tolerance, assert_close, normal};

fn inputs(dims: &[usize], inner: usize, outer: usize, dtype: DType) -> Result<Vec<Tensor>> {
    let width = dims[dims.len() - 1];
    let shapes = [
        dims.to_vec(),
        vec![width],
        vec![width],
        vec![inner, width],
        vec![inner],
        vec![width, outer],
        vec![width],
    ];
    shapes.iter().zip(1..).map(|(dims, seed)| normal(dims, dtype, seed)).collect()
}

fn run(x: &[Tensor], body: Body, scale: Option<&[f64]>) -> Result<Tensor> {
    sublayer(&x[0], [&x[1], &x[2], &x[3], &x[4], &x[5], &x[6]], body, 1e-5, scale)
}

fn twin(x: &[Tensor], body: Body, scale: Option<&[f64]>) -> Result<Tensor> {
    reference::sublayer(&x[0], [&x[1], &x[2], &x[3], &x[4], &x[5], &x[6]], body, 1e-5, scale)
}

#[test]
fn passes_the_op_harness() -> Result<()> {
    let attention = Body::Attention { heads: 2 };
    let scale = [0., 1.25];
    for (dims, inner, outer, body, scale) in [
        (vec![1, 4], 1, 1, Body::Mlp(Activation::Silu), None),
        (vec![2, 3, 5], 7, 7, Body::Mlp(Activation::Silu), None),
        (vec![2, 3, 5], 7, 7, Body::Mlp(Activation::GeluTanh), Some(&scale[..])),
        (vec![2, 2, 3, 4], 6, 6, Body::Mlp(Activation::Identity), None),
        (vec![2, 5, 4], 12, 4, attention, None),
        (vec![2, 3, 4], 12, 4, attention, Some(&scale[..])),
        (vec![1, 1, 2], 6, 2, attention, None),
    ] {
        let inputs = inputs(&dims, inner, outer, DType::F64)?;
        let what = format!("sublayer {body:?} {dims:?}");
        // A norm of few channels enlarges the rounding of what goes in; sums of up to 15 terms.
        let case = OpCase {
            what: &what,
            inputs: &inputs,
            active: 7,
            f64_tolerance: 1e-10,
            f32_tolerance: 2e-4,
        };
        case.check(|x| run(x, body, scale), |x| twin(x, body, scale))?;
        if dims == [2, 5, 4] {
            case.has_teeth(|x| run(x, body, scale), |x| twin(x, body, scale))?;
        }
    }
    Ok(())
}

/// Output and all gradients.
fn results(x: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<Vec<Tensor>> {
    let vars = x.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let ys = f(&vars.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>())?;
    let grads = (&ys * normal(ys.dims(), ys.dtype(), 9)?)?.sum_all()?.backward()?;
    let mut all = vec![ys];
    for (at, var) in vars.iter().enumerate() {
        match grads.get(var) {
            Some(grad) => all.push(grad.clone()),
            None => bail!("no gradient for input {at}"),
        }
    }
    Ok(all)
}

#[test]
fn large_enough_for_threads_agrees_with_its_twin_and_with_itself() -> Result<()> {
    for body in [Body::Mlp(Activation::Gelu), Body::Attention { heads: 3 }] {
        let outer = if matches!(body, Body::Mlp(_)) { 144 } else { 48 };
        let xs = inputs(&[8, 70, 48], 144, outer, DType::F64)?;
        let got = results(&xs, |x| run(x, body, None))?;
        for (at, (got, want)) in got.iter().zip(results(&xs, |x| twin(x, body, None))?).enumerate()
        {
            // candle's derivative of the error function in the twin is good to 1e-6 only.
            let relative = if at > 0 && outer == 144 { 5e-6 } else { 1e-10 };
            assert_close(&format!("{body:?} {at}"), got, &want, Tolerance::relative(relative))?;
        }
        let again = results(&xs, |x| run(x, body, None))?;
        for (a, b) in got.iter().zip(again) {
            assert_eq!(a.flatten_all()?.to_vec1::<f64>()?, b.flatten_all()?.to_vec1::<f64>()?);
        }
    }
    Ok(())
}

#[test]
fn frozen_parts_and_a_second_pass() -> Result<()> {
    let body = Body::Attention { heads: 2 };
    let mut xs = inputs(&[2, 3, 4], 12, 4, DType::F64)?;
    let all = results(&xs, |x| run(x, body, None))?;
    let trained = Var::from_tensor(&xs[3])?;
    xs[3] = trained.as_tensor().clone();
    let ys = run(&xs, body, None)?;
    let loss = (&ys * normal(ys.dims(), DType::F64, 9)?)?.sum_all()?;
    for _ in 0..2 {
        let grads = loss.backward()?;
        let grad = grads.get(&trained).expect("a gradient for the trained part");
        assert_eq!(grad.to_vec2::<f64>()?, all[4].to_vec2::<f64>()?);
        assert!([0, 1, 2, 4, 5, 6].iter().all(|i| grads.get(&xs[*i]).is_none()));
    }
    // Only the input: what a frozen network below a trained one needs.
    let xs = inputs(&[2, 3, 4], 12, 4, DType::F64)?;
    let input = Var::from_tensor(&xs[0])?;
    let mut with = xs.clone();
    with[0] = input.as_tensor().clone();
    let ys = run(&with, body, None)?;
    let grads = (&ys * normal(ys.dims(), DType::F64, 9)?)?.sum_all()?.backward()?;
    let grad = grads.get(&input).expect("a gradient for the input");
    assert_eq!(grad.to_vec3::<f64>()?, all[1].to_vec3::<f64>()?);
    Ok(())
}

#[test]
fn the_layers_equal_their_parts() -> Result<()> {
    let store = VarStore::new(5, DType::F64, &Device::Cpu);
    let vb = store.builder();
    let norm = layer_norm(8, 1e-6, vb.pp("n"))?;
    let attention = self_attention(8, 2, vb.pp("a"))?;
    let (fc1, fc2) =
        (linear(8, 16, vb.pp("1"))?.with_activation(Activation::Relu), linear(16, 8, vb.pp("2"))?);
    let bare = linear_no_bias(16, 8, vb.pp("2"))?;
    let xs = normal(&[2, 5, 8], DType::F64, 1)?;
    let close = |got: &Tensor, want: &Tensor| {
        assert_close("layer", got, want, Tolerance::for_op(DType::F64, DType::F64, 100))
    };
    let parts = (&xs + attention.forward(&norm.forward(&xs)?)?)?;
    close(&residual_attention(&xs, &norm, &attention, None)?, &parts)?;
    let branch = fc2.forward(&fc1.forward(&norm.forward(&xs)?)?)?;
    close(&residual_mlp(&xs, &norm, &fc1, &fc2, None)?, &(&xs + &branch)?)?;
    // Its bias starts at zero, so a layer without one gives the same, by another way.
    close(&residual_mlp(&xs, &norm, &fc1, &bare, Some(&[1., 1.]))?, &(&xs + &branch)?)?;
    let dropped = residual_mlp(&xs, &norm, &fc1, &fc2, Some(&[0., 2.]))?;
    assert_eq!(dropped.get(0)?.to_vec2::<f64>()?, xs.get(0)?.to_vec2::<f64>()?);
    close(&dropped.get(1)?, &(xs.get(1)? + (branch.get(1)? * 2.)?)?)
}

#[test]
fn bad_input_is_named() -> Result<()> {
    let body = Body::Attention { heads: 2 };
    let good = inputs(&[2, 3, 4], 12, 4, DType::F64)?;
    let with = |at: usize, dims: &[usize]| -> Result<Vec<Tensor>> {
        let mut xs = good.clone();
        xs[at] = Tensor::zeros(dims, DType::F64, &Device::Cpu)?;
        Ok(xs)
    };
    let mlp = Body::Mlp(Activation::Gelu);
    for result in [
        run(&with(0, &[3, 4])?, body, None),
        run(&with(0, &[4])?, mlp, None),
        run(&with(1, &[3])?, body, None),
        run(&with(3, &[13, 4])?, body, None),
        run(&with(3, &[0, 4])?, mlp, None),
        run(&with(6, &[5])?, body, None),
        run(&good, mlp, None),
        run(&good, Body::Attention { heads: 3 }, None),
        run(&good, Body::Attention { heads: 0 }, None),
        run(&good, body, Some(&[1.])),
        run(&good, body, Some(&[1., f64::NAN])),
    ] {
        let message = result.map(|_| String::new()).unwrap_or_else(|e| e.to_string());
        assert!(message.contains("sublayer: expected"), "{message}");
    }
    let x = &good;
    assert!(sublayer(&x[0], [&x[1], &x[2], &x[3], &x[4], &x[5], &x[6]], body, 0., None).is_err());
    let empty = inputs(&[0, 3, 4], 12, 4, DType::F64)?;
    assert_eq!(run(&empty, body, None)?.dims(), [0, 3, 4]);
    let none = inputs(&[2, 0, 4], 12, 4, DType::F64)?;
    assert_eq!(results(&none, |x| run(x, body, None))?[0].dims(), [2, 0, 4]);
    Ok(())
}
