//! Right inverses, the nearest orthonormal matrix, and a parameter that is set, moved, averaged and saved.

mod common;

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{Optimizer, SGD, VarBuilder, VarMap};
use common::{DTYPES, SHAPES, limit};
use std::collections::HashMap;
use vkd_ortho::{
    Init, OrthogonalConfig, OrthogonalMap, Parametrization, Stiefel, orthogonal, orthogonal_linear,
    polar, sample_stiefel, stiefel_residual,
};
use vkd_testkit::{Tolerance, assert_close, max_abs_difference, normal, normal_scaled, to_f64};

const CPU: Device = Device::Cpu;

fn config(map: OrthogonalMap) -> OrthogonalConfig {
    OrthogonalConfig::new(map, 1)
}

fn build(
    (rows, columns): (usize, usize),
    map: OrthogonalMap,
    dtype: DType,
) -> Result<(VarMap, Stiefel)> {
    let store = VarMap::new();
    let vb = VarBuilder::from_varmap(&store, dtype, &CPU);
    let stiefel = Stiefel::new(rows, columns, config(map), vb.pp("w"))?;
    Ok((store, stiefel))
}

fn var(store: &VarMap, name: &str) -> Result<Var> {
    let vars = store.data().lock().map_err(|e| candle_core::Error::msg(e.to_string()))?;
    vars.get(name).cloned().ok_or_else(|| candle_core::Error::msg(format!("no {name}")))
}

/// The message of an error; empty where there is none, which no check of its content accepts.
fn message<T>(result: Result<T>) -> String {
    result.err().map(|e| e.to_string()).unwrap_or_default()
}

fn within(absolute: f64) -> Tolerance {
    Tolerance { relative: 0., absolute }
}

/// A tall frame or the transpose of one.
fn frame(rows: usize, columns: usize, seed: u64, dtype: DType) -> Result<Tensor> {
    let q = sample_stiefel(rows.max(columns), rows.min(columns), seed, dtype, &CPU)?;
    if rows >= columns { Ok(q) } else { q.t()?.contiguous() }
}

#[test]
fn right_inverses_are_right_inverses() -> Result<()> {
    for map in OrthogonalMap::ALL {
        for (n, k) in SHAPES {
            for (seed, reach) in [(1, 1e-6), (2, 0.1), (3, 1.)] {
                // Of norm about `reach` per column: for the exponential an angle of up to about 60 degrees.
                let scale = reach / (n as f64).sqrt();
                let raw = normal_scaled(&[n, k], DType::F64, seed, scale)?;
                let q = map.forward(&raw)?;
                let place = format!("{map} ({n}, {k}) {reach}");
                let back = map.right_inverse(&q).map_err(|e| e.context(place.clone()))?;
                assert_eq!(back.dims(), q.dims());
                assert_close(&place, &map.forward(&back)?, &q, within(1e-12))?;
                assert!(map.residual(&q)? <= 1e-13);
                // f32: the parameter is rounded too.
                let q = q.to_dtype(DType::F32)?;
                let back = map.right_inverse(&q).map_err(|e| e.context(place.clone()))?;
                assert_eq!(back.dtype(), DType::F32);
                assert_close(&place, &map.forward(&back)?, &q, within(2e-6))?;
            }
        }
    }
    Ok(())
}

#[test]
fn the_exponential_finds_the_small_parameter_again() -> Result<()> {
    // Below the injectivity radius the logarithm is unique, so even the parameter must come back.
    for (n, k) in [(2, 1), (6, 2), (7, 5), (30, 10), (6, 6)] {
        let raw = normal_scaled(&[n, k], DType::F64, 4, 0.5 / (n as f64).sqrt())?;
        let back =
            OrthogonalMap::MatrixExp.right_inverse(&OrthogonalMap::MatrixExp.apply(&raw)?)?;
        for i in 0..n {
            for j in 0..k.min(i) {
                let at = |xs: &Tensor| xs.get(i)?.get(j)?.to_scalar::<f64>();
                assert!((at(&back)? - at(&raw)?).abs() < 1e-12, "({n}, {k}) at {i}, {j}");
            }
        }
    }
    Ok(())
}

#[test]
fn haar_frames_have_parameters() -> Result<()> {
    for map in OrthogonalMap::ALL {
        for (n, k) in [(5, 1), (20, 3), (65, 64), (127, 33), (257, 64)] {
            let q = sample_stiefel(n, k, 9, DType::F64, &CPU)?;
            // The Cayley parameter of a distant frame is large, and digits go with it.
            assert_close("haar", &map.forward(&map.right_inverse(&q)?)?, &q, within(1e-11))?;
        }
    }
    // Batches are loops; empty ones are empty.
    let raw = normal_scaled(&[2, 3, 9, 4], DType::F64, 5, 0.3)?;
    for map in OrthogonalMap::ALL {
        let q = map.forward(&raw)?;
        let back = map.right_inverse(&q)?;
        let one = map.right_inverse(&q.get(1)?.get(2)?)?;
        assert_close("batch", &back.get(1)?.get(2)?, &one, Tolerance::EXACT)?;
        assert_eq!(map.right_inverse(&q.narrow(0, 0, 0)?)?.dims(), [0, 3, 9, 4]);
        // Strided input.
        let strided = q.transpose(2, 3)?.contiguous()?.transpose(2, 3)?;
        assert_close("strided", &map.right_inverse(&strided)?, &back, Tolerance::EXACT)?;
    }
    Ok(())
}

#[test]
fn what_can_not_be_reached_is_an_error_with_numbers() -> Result<()> {
    use OrthogonalMap::{Cayley, Householder, MatrixExp};
    let eye = |n, k| Tensor::eye(n, DType::F64, &CPU)?.narrow(1, 0, k)?.contiguous();
    // The identity stands still: no reflector does.
    let error = message(Householder.right_inverse(&eye(5, 2)?));
    assert!(error.contains("column 0") && error.contains("0.0e0"), "{error}");
    assert!(Householder.right_inverse(&eye(5, 2)?.neg()?).is_ok());
    // Minus the identity is the far end of Cayley and a half turn of the exponential.
    let error = message(Cayley.right_inverse(&eye(5, 2)?.neg()?));
    assert!(error.contains("singular value 0.0e0"), "{error}");
    let error = message(MatrixExp.right_inverse(&eye(5, 2)?.neg()?));
    assert!(error.contains("half turn"), "{error}");
    for map in [Cayley, MatrixExp] {
        assert_close(
            "identity",
            &map.right_inverse(&eye(5, 2)?)?,
            &eye(5, 2)?.zeros_like()?,
            within(1e-15),
        )?;
    }
    // The other component of the square group.
    let mut rotation = sample_stiefel(6, 6, 3, DType::F64, &CPU)?;
    if Householder.right_inverse(&rotation).is_err() {
        let flip = Tensor::new(&[-1f64, 1., 1., 1., 1., 1.], &CPU)?;
        rotation = rotation.broadcast_mul(&flip)?;
    }
    let q = Householder.forward(&Householder.right_inverse(&rotation)?)?;
    assert_close("even", &q, &rotation, within(1e-12))?;
    let flip = Tensor::new(&[-1f64, 1., 1., 1., 1., 1.], &CPU)?;
    let mirror = rotation.broadcast_mul(&flip)?;
    for map in [Householder, MatrixExp] {
        let error = message(map.right_inverse(&mirror));
        assert!(error.contains("determinant"), "{map}: {error}");
    }
    assert!(message(Cayley.right_inverse(&mirror)).contains("eigenvalue -1"));

    for map in OrthogonalMap::ALL {
        let q = sample_stiefel(7, 3, 1, DType::F64, &CPU)?;
        let error = message(map.right_inverse(&(&q * 1.1)?));
        assert!(error.contains("residual 2.1e-1"), "{error}");
        assert!(message(map.right_inverse(&(&q * f64::NAN)?)).contains("inf"));
        assert!(map.right_inverse(&q.t()?).is_err(), "wide");
        assert!(map.right_inverse(&q.to_dtype(DType::BF16)?).is_err());
        assert!(map.right_inverse(&q.flatten_all()?).is_err());
    }
    Ok(())
}

#[test]
fn polar_is_the_nearest() -> Result<()> {
    for (n, k) in [(1, 1), (8, 3), (3, 8), (6, 6), (40, 17)] {
        let weight = normal(&[n, k], DType::F64, 1)?;
        let q = polar(&weight)?;
        assert!(stiefel_residual(&q)? <= 1e-13);
        let distance = |q: &Tensor| (q - &weight)?.sqr()?.sum_all()?.to_scalar::<f64>();
        let best = distance(&q)?;
        for seed in 0..20 {
            // A step along the manifold, small and large: to the polar factor of a perturbed one.
            for size in [1e-3, 1.] {
                let other = polar(&(&q + normal_scaled(&[n, k], DType::F64, seed, size)?)?)?;
                assert!(distance(&other)? >= best - 1e-12, "({n}, {k})");
            }
        }
        assert!(n * k == 1 || distance(&frame(n, k, 5, DType::F64)?)? > best);
        assert_close("fixed", &polar(&q)?, &q, within(1e-14))?;
        // A positive factor changes nothing.
        assert_close("scaled", &polar(&(&weight * 7.)?)?, &q, within(1e-13))?;
        for dtype in DTYPES {
            let q = polar(&weight.to_dtype(dtype)?)?;
            assert_eq!(q.dtype(), dtype);
            assert!(stiefel_residual(&q)? <= limit(dtype));
        }
    }
    let batch = normal(&[2, 5, 3], DType::F64, 2)?;
    assert_close("batch", &polar(&batch)?.get(1)?, &polar(&batch.get(1)?)?, Tolerance::EXACT)?;
    let rank_one = normal(&[5, 1], DType::F64, 3)?.broadcast_as((5, 2))?;
    assert!(message(polar(&rank_one)).contains("expected full rank 2"));
    assert!(polar(&Tensor::zeros((4, 4), DType::F32, &CPU)?).is_err());
    assert!(message(polar(&(batch * f64::NAN)?)).contains("finite"));
    assert!(polar(&Tensor::ones((2, 2), DType::U32, &CPU)?).is_err());
    Ok(())
}

#[test]
fn a_kept_weight_comes_back_to_the_bit() -> Result<()> {
    for map in OrthogonalMap::ALL {
        for dtype in DTYPES {
            for (rows, columns) in [(1, 1), (9, 4), (4, 9), (6, 6), (200, 64)] {
                let (store, mut stiefel) = build((rows, columns), map, dtype)?;
                var(&store, "w.raw")?.set(&normal(var(&store, "w.raw")?.dims(), dtype, 3)?)?;
                for seed in 10..13 {
                    let q = frame(rows, columns, seed, dtype)?;
                    stiefel.keep(&q)?;
                    assert_close("kept", &stiefel.weight()?, &q, Tolerance::EXACT)?;
                }
                // Still a parameter: far away it is orthonormal, and near it has a gradient.
                let raw = var(&store, "w.raw")?;
                assert!(stiefel.weight()?.sum_all()?.backward()?.get(&raw).is_some());
                for scale in [1e-3, 1., 1e3] {
                    raw.set(&normal_scaled(raw.dims(), dtype, 4, scale)?)?;
                    assert!(stiefel.residual()? <= limit(dtype));
                }
            }
        }
    }
    // Entries far below the rounding of the others survive too.
    let (_, mut stiefel) = build((3, 2), OrthogonalMap::Cayley, DType::F64)?;
    let q = Tensor::new(&[[1e-200, 1.], [1., -1e-200], [1e-30, 1e-25]], &CPU)?;
    stiefel.keep(&q)?;
    assert_close("tiny", &stiefel.weight()?, &q, Tolerance::EXACT)?;

    let error = message(stiefel.keep(&(&q * 1.001)?));
    assert!(error.contains("got residual 2.0e-3"), "{error}");
    assert!(message(stiefel.keep(&q.t()?)).contains("expected (3, 2), got [2, 3]"));
    assert_close("unchanged", &stiefel.weight()?, &q, Tolerance::EXACT)?;
    Ok(())
}

#[test]
fn nearest_assign_and_rebase_set_the_weight() -> Result<()> {
    for map in OrthogonalMap::ALL {
        for dtype in DTYPES {
            let rounding = if dtype == DType::F32 { 2e-6 } else { 1e-12 };
            for (rows, columns) in [(9, 4), (4, 9), (6, 6)] {
                let (store, mut stiefel) = build((rows, columns), map, dtype)?;
                let weight = normal(&[rows, columns], dtype, 1)?;
                stiefel.nearest(&weight)?;
                assert_close(
                    "nearest",
                    &stiefel.weight()?,
                    &polar(&weight)?,
                    within(limit(dtype)),
                )?;

                // A weight that the map reaches from here, assigned after the parameter went elsewhere.
                let raw = var(&store, "w.raw")?;
                let base = var(&store, "w.base")?.as_tensor().copy()?;
                raw.set(&normal_scaled(raw.dims(), dtype, 2, 0.2)?)?;
                let target = stiefel.weight()?.detach();
                raw.set(&normal(raw.dims(), dtype, 3)?)?;
                stiefel.assign(&target)?;
                assert_close("assign", &stiefel.weight()?, &target, within(rounding))?;
                assert_close("base", var(&store, "w.base")?.as_tensor(), &base, Tolerance::EXACT)?;
                assert!(message(stiefel.assign(&(&target * 2.)?)).contains("residual 3.0e0"));

                stiefel.rebase()?;
                assert!(to_f64(raw.as_tensor())?.iter().all(|x| *x == 0.));
                assert_close("rebase", &stiefel.weight()?, &target, within(rounding))?;
            }
        }
    }
    // Thousands of rebases add up to nothing.
    let (store, mut stiefel) = build((12, 5), OrthogonalMap::Cayley, DType::F32)?;
    let raw = var(&store, "w.raw")?;
    for step in 0..2000 {
        raw.set(&normal_scaled(&[12, 5], DType::F32, step, 0.1)?)?;
        stiefel.rebase()?;
    }
    assert!(stiefel.residual()? <= 5e-7);
    Ok(())
}

#[test]
fn frozen_tensors_are_an_error() -> Result<()> {
    let q = sample_stiefel(5, 2, 1, DType::F32, &CPU)?;
    let tensors =
        HashMap::from([("raw".to_owned(), q.zeros_like()?), ("base".to_owned(), q.clone())]);
    let vb = VarBuilder::from_tensors(tensors, DType::F32, &CPU);
    let mut stiefel = Stiefel::new(5, 2, config(OrthogonalMap::Cayley), vb)?;
    assert_close("to the bit", &stiefel.weight()?, &q, Tolerance::EXACT)?;
    for result in [stiefel.keep(&q), stiefel.nearest(&q), stiefel.assign(&q), stiefel.rebase()] {
        let error = message(result);
        assert!(error.contains("`raw`") && error.contains("frozen"), "{error}");
    }
    Ok(())
}

#[test]
fn identity_is_a_start() -> Result<()> {
    for map in OrthogonalMap::ALL {
        for (rows, columns) in [(4, 4), (6, 2), (2, 6)] {
            let store = VarMap::new();
            let vb = VarBuilder::from_varmap(&store, DType::F32, &CPU);
            let config = OrthogonalConfig { map, seed: 0, init: Init::Identity };
            let weight = Stiefel::new(rows, columns, config, vb)?.weight()?;
            let eye =
                Tensor::eye(6, DType::F32, &CPU)?.narrow(0, 0, rows)?.narrow(1, 0, columns)?;
            assert_close("identity", &weight, &eye, Tolerance::EXACT)?;
        }
    }
    assert_eq!(Init::default(), Init::Haar);
    Ok(())
}

#[test]
fn half_types_train_an_f32_parameter() -> Result<()> {
    for (dtype, floor) in [(DType::BF16, 2f64.powi(-8)), (DType::F16, 2f64.powi(-11))] {
        for map in OrthogonalMap::ALL {
            for (in_dim, out_dim) in [(16, 48), (48, 16), (32, 32)] {
                let store = VarMap::new();
                let vb = VarBuilder::from_varmap(&store, dtype, &CPU);
                let layer = orthogonal_linear(in_dim, out_dim, config(map), vb.pp("p"))?;
                let raw = var(&store, "p.raw")?;
                assert_eq!((raw.dtype(), var(&store, "p.base")?.dtype()), (DType::F32, DType::F32));
                raw.set(&normal_scaled(raw.dims(), DType::F32, 2, 0.3)?)?;
                let weight = layer.weight()?;
                assert_eq!(weight.dtype(), dtype);
                // Rounded once: what f32 gives, cast.
                let tensors = HashMap::from(["raw", "base"].map(|name| {
                    let tensor = var(&store, &format!("p.{name}"));
                    (name.to_owned(), tensor.map(|v| v.as_tensor().clone()))
                }));
                let tensors: HashMap<String, Tensor> =
                    tensors.into_iter().map(|(k, v)| Ok((k, v?))).collect::<Result<_>>()?;
                let vb = VarBuilder::from_tensors(tensors, DType::F32, &CPU);
                let full = Stiefel::new(out_dim, in_dim, config(map), vb)?.weight()?;
                assert!(max_abs_difference(&weight, &full)? <= floor / 2.);
                // The bound is twice this; roundings of a column partly cancel.
                let residual = layer.residual()?;
                assert!(residual <= floor && residual > floor / 100., "{dtype:?}: {residual:e}");
                let xs = normal(&[2, 5, in_dim], DType::F32, 3)?.to_dtype(dtype)?;
                let ys = layer.forward(&xs)?;
                assert_eq!((ys.dtype(), ys.dims()), (dtype, &[2, 5, out_dim][..]));
                let grads = ys.sqr()?.sum_all()?.backward()?;
                let Some(grad) = grads.get(&raw) else { panic!("no gradient") };
                assert_eq!(grad.dtype(), DType::F32);
                assert!(in_dim < out_dim || to_f64(grad)?.iter().any(|g| *g != 0.));
            }
        }
    }
    Ok(())
}

#[test]
fn a_built_layer_sums_the_gradients_of_its_uses() -> Result<()> {
    for map in OrthogonalMap::ALL {
        let store = VarMap::new();
        let vb = VarBuilder::from_varmap(&store, DType::F64, &CPU);
        let layer = orthogonal(6, 6, config(map), vb.pp("p"))?;
        let raw = var(&store, "p.raw")?;
        raw.set(&normal_scaled(&[6, 6], DType::F64, 1, 0.3)?)?;
        let (xs, zs) = (normal(&[3, 6], DType::F64, 2)?, normal(&[3, 6], DType::F64, 3)?);
        let loss = |ys: Tensor| (ys * &zs)?.sum_all();
        let grad = |loss: Tensor| -> Result<Tensor> {
            match loss.backward()?.get(&raw) {
                Some(grad) => Ok(grad.clone()),
                None => candle_core::bail!("no gradient"),
            }
        };
        let built = layer.build()?;
        let twice = |first: &dyn Module, second: &dyn Module| {
            loss(second.forward(&first.forward(&xs)?.tanh()?)?)
        };
        let shared = grad(twice(&built, &built)?)?;
        let apart = grad(twice(&layer, &layer)?)?;
        assert_close("two uses", &shared, &apart, Tolerance::relative(1e-12))?;
        // The sum over each use alone, the other cut off the tape.
        let frozen = candle_nn::Linear::new(built.weight().detach(), None);
        let sum = (grad(twice(&built, &frozen)?)? + grad(twice(&frozen, &built)?)?)?;
        assert_close("sum", &shared, &sum, Tolerance::relative(1e-12))?;
        // It holds its weight, whatever becomes of the parameter.
        let before = built.forward(&xs)?;
        raw.set(&normal(&[6, 6], DType::F64, 4)?)?;
        assert_close("held", &built.forward(&xs)?, &before, Tolerance::EXACT)?;
    }
    Ok(())
}

#[test]
fn the_bias_is_added_and_trained() -> Result<()> {
    let store = VarMap::new();
    let vb = VarBuilder::from_varmap(&store, DType::F64, &CPU);
    let layer = orthogonal_linear(3, 5, config(OrthogonalMap::Cayley), vb.pp("p"))?;
    let bias = var(&store, "p.bias")?;
    let xs = normal(&[2, 4, 3], DType::F64, 1)?;
    let without = layer.forward(&xs)?;
    bias.set(&normal(&[5], DType::F64, 2)?)?;
    let want = without.broadcast_add(&bias)?;
    assert_close("bias", &layer.forward(&xs)?, &want, within(1e-14))?;
    let grads = layer.forward(&xs)?.sum_all()?.backward()?;
    let Some(grad) = grads.get(&bias) else { panic!("no gradient for the bias") };
    assert_close("count", grad, &(bias.ones_like()? * 8.)?, Tolerance::EXACT)?;
    Ok(())
}

#[test]
fn the_average_of_parameters_is_an_orthonormal_weight() -> Result<()> {
    for map in OrthogonalMap::ALL {
        for dtype in DTYPES {
            let (store, trained) = build((17, 6), map, dtype)?;
            let (raw, base) = (var(&store, "w.raw")?, var(&store, "w.base")?);
            let (average_store, average) = build((17, 6), map, dtype)?;
            let mean = var(&average_store, "w.raw")?;
            var(&average_store, "w.base")?.set(&base.as_tensor().copy()?)?;
            // Sums of weights are not orthonormal: the point of averaging `raw`.
            let mut sum = trained.weight()?.detach();
            let mut sgd = SGD::new(vec![raw.clone()], 2.)?;
            for step in 0..300 {
                let target = normal(&[17, 6], dtype, step % 5)?;
                sgd.backward_step(&(trained.weight()? - target)?.sqr()?.mean_all()?)?;
                let next = ((mean.as_tensor() * 0.95)? + (raw.as_tensor() * 0.05)?)?;
                mean.set(&next)?;
                sum = ((sum * 0.95)? + (trained.weight()?.detach() * 0.05)?)?;
                assert!(average.residual()? <= limit(dtype), "{map} step {step}");
            }
            assert!(to_f64(mean.as_tensor())?.iter().any(|x| x.abs() > 0.01), "nothing moved");
            assert!(stiefel_residual(&sum)? > 1e-5, "{map}");
        }
    }
    Ok(())
}

#[test]
fn saving_and_loading_a_kept_weight_changes_no_bit() -> Result<()> {
    for map in OrthogonalMap::ALL {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            let dir = tempfile::tempdir()?;
            let file = dir.path().join("weight.safetensors");
            let (store, mut stiefel) = build((12, 5), map, dtype)?;
            let stored = var(&store, "w.raw")?.dtype();
            stiefel.keep(&frame(12, 5, 8, stored)?)?;
            var(&store, "w.raw")?.set(&normal_scaled(&[12, 5], stored, 2, 0.1)?)?;
            store.save(&file)?;
            let (mut other, loaded) = build((12, 5), map, dtype)?;
            other.load(&file)?;
            assert_close("loaded", &loaded.weight()?, &stiefel.weight()?, Tolerance::EXACT)?;
            let bytes = std::fs::read(&file)?;
            let vb = VarBuilder::from_buffered_safetensors(bytes, dtype, &CPU)?;
            let built = Stiefel::new(12, 5, config(map), vb.pp("w"))?;
            assert_close("built", &built.weight()?, &stiefel.weight()?, Tolerance::EXACT)?;
        }
    }
    Ok(())
}
