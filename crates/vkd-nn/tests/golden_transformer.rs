//! A transformer's parts against torch's results and gradients.

use candle_core::{DType, Result, Tensor, Var, bail};
use vkd_nn::ops::{Activation, Body, linear, sublayer};
use vkd_nn::{
    cross_attention, gather_rows, gelu, gelu_tanh, log_softmax, multi_head_attention, relu, silu,
    softmax,
};
use vkd_testkit::{Golden, Tolerance, assert_close};

const EPS: f64 = 1e-6;

fn activation(kind: &str) -> Result<Activation> {
    Ok(match kind {
        "identity" => Activation::Identity,
        "gelu" => Activation::Gelu,
        "gelu_tanh" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        "silu" => Activation::Silu,
        _ => bail!("no activation {kind}"),
    })
}

/// The op of a case with its recorded numbers, in the order of `make_nn_transformer.py`.
fn run(name: &str, config: &[usize], x: &[Tensor]) -> Result<Tensor> {
    let parts: Vec<&str> = name.split('.').collect();
    match (&parts[..], config, x) {
        (["activation", "gelu"], _, [x]) => gelu(x),
        (["activation", "gelu_tanh"], _, [x]) => gelu_tanh(x),
        (["activation", "relu"], _, [x]) => relu(x),
        (["activation", "silu"], _, [x]) => silu(x),
        (["linear", kind, _], _, [x, w, others @ ..]) => {
            linear(x, w, others.first(), activation(kind)?)
        }
        (["attention", _], &[heads], [qkv, others @ ..]) => {
            multi_head_attention(qkv, others.first(), heads)
        }
        (["cross", _], &[heads], [q, kv, others @ ..]) => {
            cross_attention(q, kv, others.first(), heads)
        }
        (["layer_norm", _], _, [x, w, b]) => vkd_norm::layer_norm_affine(x, w, b, EPS),
        (["rms_norm", _], _, [x, w]) => vkd_norm::rms_norm(x, w, EPS),
        (["softmax", _], _, [x]) => softmax(x),
        (["log_softmax", _], _, [x]) => log_softmax(x),
        (["embedding", _], _, [table, ids]) => gather_rows(table, ids),
        (["sublayer", kind, _], &[heads, ref scale @ ..], [x, a, b, c, d, e, f]) => {
            let body = match *kind {
                "attention" => Body::Attention { heads },
                kind => Body::Mlp(activation(kind)?),
            };
            let scale: Vec<f64> = scale.iter().map(|&s| s as f64 / 4.).collect();
            sublayer(x, [a, b, c, d, e, f], body, EPS, Some(&scale))
        }
        _ => bail!("no op for case {name} with {config:?} and {} inputs", x.len()),
    }
}

#[test]
fn results_and_gradients_are_torchs() -> Result<()> {
    let golden = Golden::open("nn_transformer")?;
    let keys = golden.keys();
    let names: Vec<&str> = keys.iter().filter_map(|key| key.strip_suffix(".config")).collect();
    assert_eq!(names.len(), 4 + 2 * 5 + 10 + 3 + 2 * 4 + 1 + 4);
    let mut gradients = 0;
    for name in names {
        let get = |key: &str| golden.get(&format!("{name}.{key}"));
        let config: Vec<usize> =
            get("config")?.to_vec1::<i64>()?.into_iter().map(|n| n as usize).collect();
        let count = (0..7).take_while(|at| get(&format!("in.{at}")).is_ok()).count();
        for dtype in [DType::F32, DType::F64] {
            let (mut vars, mut inputs) = (vec![], vec![]);
            for at in 0..count {
                let value = get(&format!("in.{at}"))?;
                match get(&format!("grad.{at}")) {
                    Ok(grad) => {
                        let var = Var::from_tensor(&value.to_dtype(dtype)?)?;
                        inputs.push(var.as_tensor().clone());
                        vars.push((at, var, grad));
                    }
                    Err(_) if value.dtype().is_float() => inputs.push(value.to_dtype(dtype)?),
                    Err(_) => inputs.push(value),
                }
            }
            let y = run(name, &config, &inputs)?;
            // The longest sums have 131 terms; those of a sub-layer are five in a row.
            let tolerance = Tolerance::for_op(dtype, dtype, 5 * 131);
            assert_close(&format!("{name} {dtype:?}"), &y, &get("y")?, tolerance)?;
            let grads = (y * get("cot")?.to_dtype(dtype)?)?.sum_all()?.backward()?;
            for (at, var, want) in &vars {
                let what = format!("{name} {dtype:?}: gradient of input {at}");
                let Some(grad) = grads.get(var) else { bail!("{what}: none") };
                assert_close(&what, grad, want, tolerance)?;
                gradients += 1;
            }
        }
    }
    // Of both dtypes; an input that wants none is a mask or ids.
    let recorded = keys.iter().filter(|key| key.contains(".grad.")).count();
    assert_eq!(gradients, 2 * recorded);
    Ok(())
}
