//! Norm layers, embedding and initial values: torch, gradients of every variable, running statistics, errors.

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use std::collections::HashMap;
use vkd_nn::ops::reference;
use vkd_nn::{
    BatchNorm2d, BatchNormConfig, ChannelStats, Context, Ema, VarStore, batch_norm2d, embedding,
    gather_rows, group_norm, init, rms_norm,
};
use vkd_testkit::{Golden, OpCase, Tolerance, assert_close, gradcheck_variables, normal, uniform};

fn store() -> VarStore {
    VarStore::new(11, DType::F64, &Device::Cpu)
}

fn train() -> Context {
    Context::train(0, 0, [])
}

/// Sums of 24 terms of order one in f64.
const SAME: Tolerance = Tolerance { relative: 1e-13, absolute: 0. };

/// A layer with the golden file's parameters.
fn recorded(store: &VarStore, golden: &Golden) -> Result<BatchNorm2d> {
    let config = BatchNormConfig { eps: 1e-5, momentum: 0.2 };
    let norm = batch_norm2d(5, config, store.builder())?;
    let mut tensors: HashMap<_, _> = store.tensors().into_iter().collect();
    for key in ["weight", "bias"] {
        tensors.insert(key.to_owned(), golden.get(&format!("batch_norm.{key}"))?);
    }
    store.load(&tensors)?;
    Ok(norm)
}

#[test]
fn batch_norm_follows_torch_through_training_and_evaluation() -> Result<()> {
    let golden = Golden::open("nn_optim")?;
    let store = store();
    let norm = recorded(&store, &golden)?;
    for step in 0..4 {
        let get = |key: &str| golden.get(&format!("batch_norm.{step}.{key}"));
        let ctx = if step < 3 { train() } else { Context::eval() };
        let xs = Var::from_tensor(&get("x")?)?;
        let ys = norm.forward(&xs, &ctx)?;
        let grads = (&ys * get("cot")?)?.sum_all()?.backward()?;
        assert_close(&format!("{step} y"), &ys, &get("y")?, SAME)?;
        assert_close(&format!("{step} x"), grads.get(&xs).unwrap(), &get("grad_x")?, SAME)?;
        for (name, var) in store.parameters() {
            let want = get(&format!("grad_{name}"))?;
            assert_close(&format!("{step} {name}"), grads.get(&var).unwrap(), &want, SAME)?;
        }
        for key in ["running_mean", "running_var"] {
            assert_close(&format!("{step} {key}"), &store.tensors()[key], &get(key)?, SAME)?;
        }
    }
    Ok(())
}

#[test]
fn frozen_statistics_stay_and_gain_still_trains() -> Result<()> {
    let golden = Golden::open("nn_optim")?;
    let store = store();
    let norm = recorded(&store, &golden)?;
    let xs = golden.get("batch_norm.0.x")?;
    norm.forward(&xs, &train())?;
    let eval = norm.forward(&xs, &Context::eval())?;
    let before = store.tensors()["running_mean"].to_vec1::<f64>()?;
    let frozen = norm.frozen();
    let ys = frozen.forward(&xs, &train())?;
    assert_close("frozen", &ys, &eval, Tolerance::EXACT)?;
    assert_eq!(store.tensors()["running_mean"].to_vec1::<f64>()?, before);
    let grads = ys.sqr()?.sum_all()?.backward()?;
    assert!(store.parameters().iter().all(|(_, var)| grads.get(var).is_some()));
    gradcheck_variables(&store.parameters(), || frozen.forward(&xs, &train())?.sqr()?.mean_all())
}

#[test]
fn replicas_that_join_their_statistics_agree_with_one_batch() -> Result<()> {
    let xs = normal(&[6, 3, 2, 4], DType::F64, 1)?;
    let make = || -> Result<_> {
        let store = store();
        let norm = batch_norm2d(4, BatchNormConfig::default(), store.builder())?;
        Ok((store, norm))
    };
    let (whole, norm) = make()?;
    norm.forward(&xs, &train())?;
    let (split, replica) = make()?;
    let part = |start, len| -> Result<ChannelStats> {
        let (_, stats) = replica.forward_with_stats(&xs.narrow(0, start, len)?, &train())?;
        Ok(stats.unwrap())
    };
    let parts = [part(0, 2)?, part(2, 4)?];
    assert_eq!(split.tensors()["running_var"].to_vec1::<f64>()?, [1.; 4], "not moved yet");
    replica.update(&ChannelStats::joined(&parts)?)?;
    for key in ["running_mean", "running_var"] {
        assert_close(key, &split.tensors()[key], &whole.tensors()[key], SAME)?;
    }
    assert!(replica.forward_with_stats(&xs, &Context::eval())?.1.is_none());
    Ok(())
}

#[test]
fn buffers_travel_with_the_store_and_the_average() -> Result<()> {
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    let norm = batch_norm2d(3, BatchNormConfig::default(), store.builder().pp("bn"))?;
    let mut ema = Ema::new(&store, 0.9, false)?;
    norm.forward(&normal(&[8, 3], DType::F32, 1)?, &train())?;
    ema.update()?;
    let names: Vec<_> = store.parameters().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["bn.bias", "bn.weight"]);
    let (averages, tensors) = (ema.tensors(), store.tensors());
    for key in ["bn.running_mean", "bn.running_var"] {
        assert_close(key, &averages[key], &tensors[key], Tolerance::EXACT)?;
    }
    assert!(tensors["bn.running_mean"].to_vec1::<f32>()?.iter().all(|m| *m != 0.));
    Ok(())
}

#[test]
fn gradients_of_every_variable() -> Result<()> {
    let xs = normal(&[2, 3, 2, 6], DType::F64, 1)?;
    let cotangent = normal(&[2, 3, 2, 6], DType::F64, 2)?;
    let s = store();
    let vb = s.builder();
    let (batch, group, rms) = (
        batch_norm2d(6, BatchNormConfig::default(), vb.pp("b"))?,
        group_norm(3, 6, 1e-5, vb.pp("g"))?,
        rms_norm(6, 1e-6, vb.pp("r"))?,
    );
    gradcheck_variables(&s.parameters(), || {
        let ys = batch.forward(&xs, &train())?;
        (rms.forward(&group.forward(&ys)?)? * &cotangent)?.sum_all()
    })
}

#[test]
fn bad_input_names_the_layer_and_changes_nothing() -> Result<()> {
    let store = store();
    let vb = store.builder().pp("stage.0");
    let config = BatchNormConfig::default();
    let with = |eps, momentum| batch_norm2d(4, BatchNormConfig { eps, momentum }, vb.clone()).err();
    for error in [
        batch_norm2d(0, config, vb.clone()).err(),
        with(0., 0.1),
        with(1e-5, 0.),
        with(1e-5, 1.1),
        with(1e-5, f64::NAN),
        group_norm(3, 4, 1e-5, vb.clone()).err(),
        group_norm(0, 4, 1e-5, vb.clone()).err(),
        group_norm(2, 4, f64::NAN, vb.clone()).err(),
        rms_norm(4, -1., vb.clone()).err(),
        rms_norm(0, 1., vb.clone()).err(),
        embedding(0, 4, init::constant(0.), vb.clone()).err(),
    ] {
        let message = error.map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("stage.0") && message.contains("expected"), "{message}");
    }
    let norm = batch_norm2d(4, config, vb)?;
    let one = normal(&[1, 4], DType::F64, 1)?;
    let message = norm.forward(&one, &train()).unwrap_err().to_string();
    assert!(message.contains("stage.0") && message.contains("at least 2 values"), "{message}");
    norm.forward(&one, &Context::eval())?;
    let mut bad = vec![0f64; 8];
    bad[5] = f64::NAN;
    let bad = Tensor::from_vec(bad, (2, 4), &Device::Cpu)?;
    let message = norm.forward(&bad, &train()).unwrap_err().to_string();
    assert!(message.contains("expected a finite mean, got NaN in channel 1"), "{message}");
    assert!(norm.forward(&normal(&[2, 3], DType::F64, 1)?, &train()).is_err());
    assert_eq!(store.tensors()["stage.0.running_mean"].to_vec1::<f64>()?, [0.; 4]);
    Ok(())
}

#[test]
fn rows_are_gathered_and_their_gradients_add_up() -> Result<()> {
    for (rows, width, places) in [(1, 1, vec![3]), (7, 5, vec![4, 3]), (40, 3, vec![2, 9, 2])] {
        let inputs = [normal(&[rows, width], DType::F64, 1)?];
        let ids = uniform(&places, DType::F64, 2, 0., rows as f64)?;
        for dtype in [DType::U8, DType::U32, DType::I64] {
            let ids = ids.to_dtype(dtype)?;
            let case = OpCase {
                what: "gather_rows",
                inputs: &inputs,
                active: 1,
                f64_tolerance: 1e-14,
                f32_tolerance: 2e-6,
            };
            case.has_teeth(|x| gather_rows(&x[0], &ids), |x| reference::gather_rows(&x[0], &ids))?;
        }
    }
    // Enough values for threads: the sums are those of the twin.
    let table = Var::from_tensor(&normal(&[600, 128], DType::F64, 1)?)?;
    let ids = uniform(&[900], DType::F64, 2, 0., 600.)?.to_dtype(DType::U32)?;
    let gradient = |ys: Tensor| -> Result<Tensor> {
        let cotangent = normal(ys.dims(), DType::F64, 3)?;
        let grads = (ys * cotangent)?.sum_all()?.backward()?;
        Ok(grads.get(&table).unwrap().clone())
    };
    let (got, want) =
        (gradient(gather_rows(&table, &ids)?)?, gradient(reference::gather_rows(&table, &ids)?)?);
    assert_close("large", &got, &want, Tolerance::relative(1e-14))
}

#[test]
fn an_id_out_of_range_is_named_by_its_place() -> Result<()> {
    let layer = embedding(4, 3, init::truncated_normal(0.02), store().builder())?;
    for (ids, text) in [
        (Tensor::new(&[[0i64, 1], [-1, 0]], &Device::Cpu)?, "ids below 4, got -1 at 2 of [2, 2]"),
        (Tensor::new(&[0u32, 4], &Device::Cpu)?, "ids below 4, got 4 at 1 of [2]"),
        (Tensor::new(&[0f32], &Device::Cpu)?, "expected ids of u8, u32 or i64, got F32"),
    ] {
        let message = layer.forward(&ids).unwrap_err().to_string();
        assert!(message.contains(text), "{message}");
    }
    let none = Tensor::zeros((0, 2), DType::U32, &Device::Cpu)?;
    assert_eq!(layer.forward(&none)?.dims(), &[0, 2, 3]);
    Ok(())
}

#[test]
fn initial_values_do_not_depend_on_the_order_of_construction() -> Result<()> {
    let hints = [
        init::truncated_normal(0.02),
        init::xavier_normal(&[5, 3]),
        init::xavier_uniform(&[5, 3]),
        init::kaiming_normal(init::FanInOut::FanIn),
        init::kaiming_uniform(init::FanInOut::FanOut),
        init::constant(2.),
    ];
    let build = |order: &mut dyn Iterator<Item = usize>| -> Result<_> {
        let store = store();
        for i in order {
            store.builder().pp(i).get_with_hints((5, 3), "w", hints[i])?;
        }
        Ok(store.tensors())
    };
    let (forth, back) = (build(&mut (0..6))?, build(&mut (0..6).rev())?);
    for (name, tensor) in &forth {
        assert_close(name, tensor, &back[name], Tolerance::EXACT)?;
    }
    let bound = forth["0.w"].abs()?.max_all()?.to_scalar::<f64>()?;
    assert!(bound <= 0.04 && bound > 0., "{bound}");
    assert_eq!(forth["5.w"].to_vec2::<f64>()?[4], [2.; 3]);
    Ok(())
}
