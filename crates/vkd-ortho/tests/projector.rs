//! The layer: start, isometry, training under any optimiser, saving and loading, bad files.

mod common;

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use common::{DTYPES, limit};
use std::collections::HashMap;
use vkd_ortho::{OrthogonalConfig, OrthogonalMap, OrthogonalProjector, orthogonal};
use vkd_testkit::{
    Tolerance, assert_close, gradcheck, gram_residual, normal, normal_scaled, to_f64,
};

const WIDTHS: [(usize, usize); 6] = [(1, 1), (1, 5), (6, 6), (5, 40), (40, 5), (70, 64)];

fn build(
    (in_dim, out_dim): (usize, usize),
    map: OrthogonalMap,
    seed: u64,
    dtype: DType,
) -> Result<(VarMap, OrthogonalProjector)> {
    let store = VarMap::new();
    let vb = VarBuilder::from_varmap(&store, dtype, &Device::Cpu);
    let layer = orthogonal(in_dim, out_dim, OrthogonalConfig::new(map, seed), vb.pp("p"))?;
    Ok((store, layer))
}

fn var(store: &VarMap, name: &str) -> Result<Var> {
    let vars = store.data().lock().map_err(|e| candle_core::Error::msg(e.to_string()))?;
    vars.get(name).cloned().ok_or_else(|| candle_core::Error::msg(format!("no {name}")))
}

fn each(mut f: impl FnMut(OrthogonalMap, DType) -> Result<()>) -> Result<()> {
    for map in OrthogonalMap::ALL {
        for dtype in DTYPES {
            f(map, dtype).map_err(|e| e.context(format!("{map} {dtype:?}")))?;
        }
    }
    Ok(())
}

#[test]
fn starts_at_a_stored_haar_frame() -> Result<()> {
    each(|map, dtype| {
        for widths in WIDTHS {
            let (store, layer) = build(widths, map, 1, dtype)?;
            let weight = layer.weight()?;
            assert_eq!(weight.dims(), [widths.1, widths.0]);
            assert!(gram_residual(&weight)? <= limit(dtype));
            assert!(layer.residual()? <= limit(dtype));
            assert!(to_f64(var(&store, "p.raw")?.as_tensor())?.iter().all(|x| *x == 0.));
            let base = var(&store, "p.base")?.as_tensor().clone();
            let start = if widths.1 >= widths.0 { weight } else { weight.t()? };
            assert_close("weight at zero", &start, &base, Tolerance::EXACT)?;
            assert_eq!(store.all_vars().len(), 2);
        }
        Ok(())
    })
}

#[test]
fn frames_along_the_axes_are_bases_too() -> Result<()> {
    // Reflectors without a tail, of either sign.
    for map in OrthogonalMap::ALL {
        for (n, k) in [(1, 1), (4, 4), (6, 3)] {
            for sign in [1., -1.] {
                let eye = Tensor::eye(n, DType::F64, &Device::Cpu)?.narrow(1, 0, k)?;
                let base = (eye * sign)?;
                let tensors = HashMap::from([
                    ("raw".to_owned(), base.zeros_like()?),
                    ("base".to_owned(), base.clone()),
                ]);
                let vb = VarBuilder::from_tensors(tensors, DType::F64, &Device::Cpu);
                let layer = orthogonal(k, n, OrthogonalConfig::new(map, 0), vb)?;
                assert_close("axes", &layer.weight()?, &base, Tolerance::EXACT)?;
            }
        }
    }
    Ok(())
}

#[test]
fn seed_and_name_choose_the_start() -> Result<()> {
    let store = VarMap::new();
    let vb = VarBuilder::from_varmap(&store, DType::F64, &Device::Cpu);
    let start = |name: &str, seed| {
        let config = OrthogonalConfig::new(OrthogonalMap::Cayley, seed);
        orthogonal(3, 7, config, vb.pp(name))?.weight()
    };
    let first = start("a", 1)?;
    assert_close("same", &start("a", 1)?, &first, Tolerance::EXACT)?;
    for other in [
        start("b", 1)?,
        start("c", 2)?,
        build((3, 7), OrthogonalMap::Cayley, 1, DType::F64)?.1.weight()?,
    ] {
        assert!(assert_close("other", &other, &first, Tolerance::relative(0.1)).is_err());
    }
    // A base that is there already is kept, whatever the seed.
    assert_close("kept", &start("a", 99)?, &first, Tolerance::EXACT)
}

#[test]
fn forward_is_xs_times_the_transposed_weight_and_an_isometry() -> Result<()> {
    each(|map, dtype| {
        for (in_dim, out_dim) in WIDTHS {
            let (store, layer) = build((in_dim, out_dim), map, 2, dtype)?;
            let raw = var(&store, "p.raw")?;
            raw.set(&normal(raw.dims(), dtype, 3)?)?;
            let xs = normal(&[4, 3, in_dim], dtype, 4)?;
            let ys = layer.forward(&xs)?;
            assert_eq!(ys.dims(), [4, 3, out_dim]);
            let rounding = Tolerance { relative: 4. * limit(dtype), absolute: 0. };
            let weight = layer.weight()?.t()?;
            let rows = xs.reshape((12, in_dim))?;
            assert_close("product", &ys.reshape((12, out_dim))?, &rows.matmul(&weight)?, rounding)?;
            let vector = layer.forward(&xs.get(1)?.get(2)?)?;
            assert_close("one vector", &vector, &ys.get(1)?.get(2)?, rounding)?;
            assert_eq!(layer.forward(&xs.narrow(0, 0, 0)?)?.dims(), [0, 3, out_dim]);
            if out_dim >= in_dim {
                let ys = ys.reshape((12, out_dim))?;
                let (a, b) = (ys.matmul(&ys.t()?)?, rows.matmul(&rows.t()?)?);
                assert_close("similarities", &a, &b, rounding)?;
            }
            let strided = normal(&[in_dim, 4], dtype, 4)?.t()?;
            assert_close(
                "strided",
                &layer.forward(&strided)?,
                &layer.forward(&strided.contiguous()?)?,
                rounding,
            )?;
            let Err(e) = layer.forward(&Tensor::zeros((2, in_dim + 1), dtype, &Device::Cpu)?)
            else {
                panic!("expected an error")
            };
            assert!(e.to_string().contains(&format!("(.., {in_dim})")), "{e}");
        }
        Ok(())
    })
}

#[test]
fn the_weight_is_the_base_times_the_map() -> Result<()> {
    // The base is orthogonal as a whole, not only in its first columns: it keeps inner products of any two frames.
    for map in OrthogonalMap::ALL {
        let (store, layer) = build((4, 9), map, 5, DType::F64)?;
        let raw = var(&store, "p.raw")?;
        let value = normal(&[9, 4], DType::F64, 6)?;
        raw.set(&value)?;
        let a = layer.weight()?;
        raw.set(&(value.as_ref() * 0.3)?)?;
        let b = layer.weight()?;
        let (fa, fb) = (map.apply(&value)?, map.apply(&(&value * 0.3)?)?);
        let tolerance = Tolerance { relative: 0., absolute: 1e-13 };
        assert_close("inner products", &a.t()?.matmul(&b)?, &fa.t()?.matmul(&fb)?, tolerance)?;
    }
    Ok(())
}

#[test]
fn gradients_reach_raw_and_input_but_not_base() -> Result<()> {
    each(|map, dtype| {
        for widths in [(3, 8), (8, 3), (5, 5)] {
            let (store, layer) = build(widths, map, 1, dtype)?;
            let xs = Var::from_tensor(&normal(&[6, widths.0], dtype, 1)?)?;
            let weights = normal(&[6, widths.1], dtype, 2)?;
            let grads = (layer.forward(&xs)? * weights)?.sum_all()?.backward()?;
            let (raw, base) = (var(&store, "p.raw")?, var(&store, "p.base")?);
            let Some(grad) = grads.get(&raw) else { panic!("no gradient for raw") };
            assert_eq!(grad.dtype(), dtype);
            assert!(to_f64(grad)?.iter().any(|g| *g != 0.), "the start must not be a saddle");
            assert!(grads.get(&xs).is_some());
            assert!(grads.get(&base).is_none(), "base is not trained");
        }
        Ok(())
    })
}

#[test]
fn gradient_of_the_layer_agrees_with_differences() -> Result<()> {
    for map in OrthogonalMap::ALL {
        for widths in [(3, 6), (6, 3), (4, 4)] {
            let (store, _) = build(widths, map, 7, DType::F64)?;
            let base = var(&store, "p.base")?.as_tensor().clone();
            let layer = |raw: &Tensor| {
                let tensors = HashMap::from([
                    ("raw".to_owned(), raw.clone()),
                    ("base".to_owned(), base.clone()),
                ]);
                let vb = VarBuilder::from_tensors(tensors, DType::F64, &Device::Cpu);
                orthogonal(widths.0, widths.1, OrthogonalConfig::new(map, 0), vb)
            };
            let raw = normal_scaled(base.dims(), DType::F64, 1, 0.7)?;
            let xs = normal(&[5, widths.0], DType::F64, 2)?;
            gradcheck(|x| layer(&x[0])?.forward(&x[1]), &[raw, xs])?;
        }
    }
    Ok(())
}

/// A loss that no orthonormal weight makes zero: gradients never vanish.
fn loss(
    layer: &OrthogonalProjector,
    step: u64,
    dtype: DType,
    widths: (usize, usize),
) -> Result<Tensor> {
    let xs = normal(&[8, widths.0], dtype, 1000 + step)?;
    let target = normal(&[8, widths.1], dtype, 5000 + step % 7)?;
    (layer.forward(&xs)? - target)?.sqr()?.mean_all()
}

#[test]
fn the_weight_stays_orthonormal_under_adamw() -> Result<()> {
    for (lr, weight_decay, steps) in
        [(1e-2, 0.05, 300), (1., 0.05, 300), (1e2, 0., 300), (1e-2, 0., 200)]
    {
        each(|map, dtype| {
            for widths in [(6, 17), (9, 9), (12, 5)] {
                let (store, layer) = build(widths, map, 1, dtype)?;
                let start = layer.weight()?;
                let base = var(&store, "p.base")?.as_tensor().copy()?;
                let params = ParamsAdamW { lr, weight_decay, ..ParamsAdamW::default() };
                // Every variable of the store, base included: it must survive that.
                let mut optimizer = AdamW::new(store.all_vars(), params)?;
                for step in 0..steps {
                    optimizer.backward_step(&loss(&layer, step, dtype, widths)?)?;
                    if step % 20 == 0 || step + 1 == steps {
                        let residual = layer.residual()?;
                        assert!(
                            residual <= limit(dtype),
                            "{map} lr {lr} step {step}: {residual:e}"
                        );
                    }
                }
                assert_close("base", var(&store, "p.base")?.as_tensor(), &base, Tolerance::EXACT)?;
                let moved =
                    assert_close("moved", &layer.weight()?, &start, Tolerance::relative(1e-2));
                assert!(moved.is_err(), "{map} lr {lr}: nothing was learnt");
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn the_weight_stays_orthonormal_under_sgd() -> Result<()> {
    for (lr, decay) in [(0.1, 0.), (0.1, 0.05), (1e2, 0.), (1e2, 1e-3)] {
        each(|map, dtype| {
            let widths = (6, 17);
            let (store, layer) = build(widths, map, 3, dtype)?;
            let raw = var(&store, "p.raw")?;
            for step in 0..200 {
                let grads = loss(&layer, step, dtype, widths)?.backward()?;
                let Some(grad) = grads.get(&raw) else { panic!("no gradient") };
                let decayed = (raw.as_tensor() * (1. - lr * decay))?;
                raw.set(&(decayed - (grad * lr)?)?)?;
                let residual = layer.residual()?;
                assert!(residual <= limit(dtype), "{map} lr {lr} step {step}: {residual:e}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_run_that_explodes_ends_in_an_error_and_never_in_a_bad_weight() -> Result<()> {
    // lr * decay = 5: the parameter grows fourfold each step until f32 overflows.
    for map in OrthogonalMap::ALL {
        let widths = (4, 7);
        let (store, layer) = build(widths, map, 1, DType::F32)?;
        let params = ParamsAdamW { lr: 1e2, weight_decay: 0.05, ..ParamsAdamW::default() };
        let mut optimizer = AdamW::new(store.all_vars(), params)?;
        let mut steps = 0;
        let error = loop {
            match layer.residual() {
                Ok(residual) => assert!(residual <= 1e-6, "{map} step {steps}: {residual:e}"),
                Err(e) => break e.to_string(),
            }
            optimizer.backward_step(&loss(&layer, steps, DType::F32, widths)?)?;
            steps += 1;
            assert!(steps < 200, "{map}: expected an overflow");
        };
        assert!(steps > 20 && error.contains("raw") && error.contains("finite"), "{map}: {error}");
    }
    Ok(())
}

#[test]
fn weight_decay_leads_back_to_the_start() -> Result<()> {
    for map in OrthogonalMap::ALL {
        let (store, layer) = build((3, 8), map, 1, DType::F64)?;
        let start = layer.weight()?;
        let raw = var(&store, "p.raw")?;
        raw.set(&normal(&[8, 3], DType::F64, 1)?)?;
        for _ in 0..400 {
            raw.set(&(raw.as_tensor() * 0.9)?)?;
        }
        assert_close("start", &layer.weight()?, &start, Tolerance::relative(1e-13))?;
    }
    Ok(())
}

#[test]
fn saving_and_loading_changes_no_bit() -> Result<()> {
    each(|map, dtype| {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("projector.safetensors");
        let (store, layer) = build((5, 12), map, 1, dtype)?;
        let raw = var(&store, "p.raw")?;
        raw.set(&normal(&[12, 5], dtype, 2)?)?;
        let weight = layer.weight()?;
        store.save(&file)?;

        // Into a layer that exists already, with another start.
        let (mut other, loaded) = build((5, 12), map, 2, dtype)?;
        let clone = loaded.clone();
        assert!(
            assert_close("other", &loaded.weight()?, &weight, Tolerance::relative(0.1)).is_err()
        );
        other.load(&file)?;
        assert_close("loaded", &loaded.weight()?, &weight, Tolerance::EXACT)?;
        assert_close("clone", &clone.weight()?, &weight, Tolerance::EXACT)?;

        // Into one that is built from the file.
        let vb = VarBuilder::from_buffered_safetensors(std::fs::read(&file)?, dtype, &Device::Cpu)?;
        let config = OrthogonalConfig::new(map, 3);
        let built = orthogonal(5, 12, config, vb.pp("p"))?;
        assert_close("built", &built.weight()?, &weight, Tolerance::EXACT)?;

        // A file of one dtype in a model of the other still is orthonormal.
        for dtype in DTYPES {
            let bytes = std::fs::read(&file)?;
            let vb = VarBuilder::from_buffered_safetensors(bytes, dtype, &Device::Cpu)?;
            assert!(orthogonal(5, 12, config, vb.pp("p"))?.residual()? <= limit(dtype));
        }
        Ok(())
    })
}

#[test]
fn other_stores_work() -> Result<()> {
    let config = OrthogonalConfig::new(OrthogonalMap::MatrixExp, 1);
    // A backend that hands out its own memory receives the draw.
    let base = Tensor::zeros((8, 3), DType::F32, &Device::Cpu)?;
    let tensors = HashMap::from([
        ("raw".to_owned(), Tensor::zeros((8, 3), DType::F32, &Device::Cpu)?),
        ("base".to_owned(), base.clone()),
    ]);
    let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let layer = orthogonal(3, 8, config, vb)?;
    assert_close("stored", &base, &layer.weight()?, Tolerance { relative: 0., absolute: 1e-6 })?;
    // One that makes new zeros each time can't keep it, but the layer works.
    let layer = orthogonal(8, 3, config, VarBuilder::zeros(DType::F64, &Device::Cpu))?;
    assert!(layer.residual()? <= 1e-13);
    Ok(())
}

#[test]
fn bad_bases_and_arguments_are_errors() -> Result<()> {
    let cpu = &Device::Cpu;
    let config = OrthogonalConfig::new(OrthogonalMap::Cayley, 1);
    let with_base = |base: Tensor| {
        let tensors = HashMap::from([
            ("raw".to_owned(), base.zeros_like()?),
            ("base".to_owned(), base.clone()),
        ]);
        orthogonal(3, 8, config, VarBuilder::from_tensors(tensors, base.dtype(), cpu))
    };
    let good = vkd_ortho::sample_stiefel(8, 3, 1, DType::F32, cpu)?;
    assert!(with_base(good.clone()).is_ok());
    assert!(with_base(good.to_dtype(DType::BF16)?.to_dtype(DType::F32)?).is_err());
    let Err(e) = with_base((&good * 2.)?) else { panic!("expected an error") };
    assert!(e.to_string().contains("got residual 3.0e0"), "{e}");
    assert!(with_base((&good * f64::NAN)?).is_err());

    // Overwritten later: noticed by the next use.
    let (store, layer) = build((3, 8), OrthogonalMap::Cayley, 1, DType::F32)?;
    let base = var(&store, "p.base")?;
    base.set(&(base.as_tensor() * 1.01)?)?;
    assert!(layer.weight().is_err() && layer.residual().is_err());

    let (store, layer) = build((3, 8), OrthogonalMap::Cayley, 1, DType::F32)?;
    let raw = var(&store, "p.raw")?;
    raw.set(&(raw.as_tensor() + f64::NAN)?)?;
    let Err(e) = layer.weight() else { panic!("expected an error") };
    assert!(e.to_string().contains("raw") && e.to_string().contains("row 1, column 0"), "{e}");

    for (a, b) in [(0, 3), (3, 0), (0, 0)] {
        assert!(orthogonal(a, b, config, VarBuilder::zeros(DType::F32, cpu)).is_err());
    }
    for dtype in [DType::U8, DType::U32, DType::I64] {
        assert!(orthogonal(3, 4, config, VarBuilder::zeros(dtype, cpu)).is_err());
    }
    let (_, layer) = build((3, 8), OrthogonalMap::Cayley, 1, DType::F32)?;
    assert!(layer.forward(&Tensor::zeros((2, 3), DType::F64, cpu)?).is_err());
    Ok(())
}

#[test]
fn no_matrix_of_the_larger_width_squared_is_built() -> Result<()> {
    // 200,000 squared in f64 would be 320 GB.
    for map in OrthogonalMap::ALL {
        let (store, layer) = build((2, 200_000), map, 1, DType::F64)?;
        let raw = var(&store, "p.raw")?;
        raw.set(&normal_scaled(raw.dims(), DType::F64, 1, 1e-2)?)?;
        let grads = layer.weight()?.narrow(0, 0, 5)?.sum_all()?.backward()?;
        assert!(grads.get(&raw).is_some());
        assert!(layer.residual()? <= 1e-13);
    }
    Ok(())
}

#[test]
fn a_projector_of_real_width() -> Result<()> {
    for map in OrthogonalMap::ALL {
        let (store, layer) = build((192, 3024), map, 1, DType::F32)?;
        var(&store, "p.raw")?.set(&normal_scaled(&[3024, 192], DType::F32, 1, 0.1)?)?;
        let residual = layer.residual()?;
        assert!(residual <= 1e-6, "{map}: {residual:e}");
        let grads = layer.weight()?.sqr()?.sum_all()?.backward()?;
        assert!(grads.get(var(&store, "p.raw")?.as_tensor()).is_some());
    }
    Ok(())
}
