//! The compact detector: shapes, gradients of every variable, its start, names and costs.

use candle_core::{DType, Device, Result, Tensor};
use std::collections::HashMap;
use vkd_models::{DenseOutput, Fcos, FcosConfig, LoadOptions, load_weights};
use vkd_nn::{VarStore, is_buffer};
use vkd_testkit::{gradcheck_variables, normal, to_f64};

fn tiny() -> FcosConfig {
    FcosConfig { stem: 3, widths: vec![3, 4], depth: 1, neck: 3, head_depth: 1 }
}

fn built(config: &FcosConfig, channels: usize, dtype: DType) -> Result<(VarStore, Fcos)> {
    let store = VarStore::new(1, dtype, &Device::Cpu);
    let detector = Fcos::new(config, channels, 5, store.builder())?;
    Ok((store, detector))
}

/// Away from the start, where the predictions hardly depend on what is below them.
fn shake(store: &VarStore) -> Result<()> {
    for (i, (_, var)) in store.parameters().iter().enumerate() {
        let noise = normal(var.dims(), DType::F64, 50 + i as u64)?.to_dtype(var.dtype())?;
        var.set(&(var.as_tensor() + (noise * 0.1)?)?.detach())?;
    }
    Ok(())
}

/// The predictions alone, all of them: what reaches a variable comes the whole way down.
fn loss(output: &DenseOutput) -> Result<Tensor> {
    let mut sum = Tensor::zeros((), output.levels[0].logits.dtype(), &Device::Cpu)?;
    for level in &output.levels {
        let distances = (&level.distances / level.stride as f64)?;
        for part in [&level.logits, &distances, &level.centerness] {
            sum = (sum + part.sqr()?.mean_all()?)?;
        }
    }
    Ok(sum)
}

#[test]
fn every_variable_has_a_finite_gradient_that_is_not_zero() -> Result<()> {
    for config in [tiny(), FcosConfig::student(), FcosConfig::teacher()] {
        let (store, detector) = built(&config, 3, DType::F32)?;
        shake(&store)?;
        assert!(store.parameters().iter().all(|(name, _)| !is_buffer(name)));
        let grads =
            loss(&detector.forward(&normal(&[2, 3, 32, 32], DType::F32, 2)?)?)?.backward()?;
        for (name, var) in store.parameters() {
            let Some(grad) = grads.get(&var) else { panic!("no gradient reaches {name}") };
            let largest = to_f64(grad)?.iter().fold(0f64, |m, g| {
                assert!(g.is_finite(), "{name}: {g}");
                m.max(g.abs())
            });
            assert!(largest > 0., "{name}: a gradient of zero");
        }
    }
    Ok(())
}

#[test]
fn gradients_equal_differences() -> Result<()> {
    let (store, detector) = built(&tiny(), 1, DType::F64)?;
    shake(&store)?;
    let images = normal(&[1, 1, 8, 8], DType::F64, 3)?;
    gradcheck_variables(&store.parameters(), || loss(&detector.forward(&images)?))
}

#[test]
fn levels_and_taps_have_the_documented_shapes() -> Result<()> {
    let config = FcosConfig::student();
    let (_, detector) = built(&config, 3, DType::F32)?;
    // Sizes that no stride divides.
    let output = detector.forward(&normal(&[2, 3, 50, 37], DType::F32, 2)?)?;
    assert_eq!(output.levels.iter().map(|l| l.stride).collect::<Vec<_>>(), [4, 8, 16]);
    for (level, [h, w]) in output.levels.iter().zip([[13, 10], [7, 5], [4, 3]]) {
        assert_eq!(level.logits.dims(), [2, 5, h, w]);
        assert_eq!(level.distances.dims(), [2, 4, h, w]);
        assert_eq!(level.centerness.dims(), [2, 1, h, w]);
    }
    assert_eq!(output.taps.keys().collect::<Vec<_>>(), config.taps().keys().collect::<Vec<_>>());
    for (name, shape) in config.taps() {
        let tap = output.tap(&name)?;
        assert_eq!((tap.dim(1)?, tap.dim(2)?), (shape.width, 50usize.div_ceil(shape.stride)));
    }
    let message = output.tap("neck4").err().map(|e| e.to_string()).unwrap_or_default();
    assert!(message.contains("neck4, got neck1, neck2, neck3, stage1"), "{message}");
    assert!(detector.forward(&normal(&[2, 1, 32, 32], DType::F32, 2)?).is_err());
    Ok(())
}

#[test]
fn it_starts_rarely_sure_and_with_boxes_of_a_stride() -> Result<()> {
    let (_, detector) = built(&FcosConfig::teacher(), 1, DType::F32)?;
    let output = detector.forward(&normal(&[2, 1, 64, 64], DType::F32, 2)?)?;
    for level in &output.levels {
        // A sum of 432 products of deviation 0.01: a few tenths.
        for logit in to_f64(&level.logits)? {
            assert!((logit + 99f64.ln()).abs() < 2., "{logit}");
        }
        for distance in to_f64(&level.distances)? {
            let strides = distance / level.stride as f64;
            assert!(strides > 0.1 && strides < 10., "{strides}");
        }
    }
    Ok(())
}

#[test]
fn wild_weights_give_finite_distances() -> Result<()> {
    let (store, detector) = built(&tiny(), 1, DType::F32)?;
    let parameters = store.parameters();
    let (_, bias) = parameters.iter().find(|(name, _)| name == "head.distances.bias").unwrap();
    bias.set(&Tensor::new(&[1e9f32, -1e9, 100., 0.], &Device::Cpu)?)?;
    let output = detector.forward(&normal(&[1, 1, 16, 16], DType::F32, 2)?)?;
    for level in &output.levels {
        assert!(to_f64(&level.distances)?.iter().all(|d| d.is_finite() && *d >= 0.));
    }
    Ok(())
}

#[test]
fn configuration_counts_what_is_built_and_names_it() -> Result<()> {
    for config in [tiny(), FcosConfig::student(), FcosConfig::teacher()] {
        let (store, _) = built(&config, 3, DType::F32)?;
        let held = store.tensors().into_iter().map(|(n, t)| (n, t.shape().clone()));
        assert_eq!(config.variables(3, 5)?, held.collect());
        assert_eq!(config.cost(3, 5, [64, 64])?.parameters, store.parameter_count());
    }
    // By hand, on 10 by 6 pixels: 5·3 places after the stem, 3·2 and 2·1 on the levels.
    let stem = 3 * 3 * 9 * 15;
    let body = (3 * 3 + 2 * 3 * 3) * 9 * 6 + (3 * 4 + 2 * 4 * 4) * 9 * 2;
    let neck = (3 * 3 + 9 * 9) * 6 + (4 * 3 + 9 * 9) * 2;
    let heads = (2 * 9 + 3 * (5 + 4 + 1)) * 9 * 8;
    assert_eq!(tiny().cost(3, 5, [10, 6])?.multiply_adds, stem + body + neck + heads);
    let names: Vec<String> = tiny().variables(3, 5)?.into_keys().collect();
    for name in [
        "stem.conv.weight",
        "stages.1.down.norm.bias",
        "stages.0.blocks.0.1.conv.weight",
        "neck.lateral.1.bias",
        "neck.smooth.0.conv.weight",
        "head.class_tower.0.conv.weight",
        "head.box_tower.0.norm.weight",
        "head.logits.bias",
        "head.distances.weight",
        "head.centerness.weight",
        "head.scales.1",
    ] {
        assert!(names.iter().any(|n| n == name), "{name} in {names:?}");
    }
    Ok(())
}

#[test]
fn a_checkpoint_gives_the_same_predictions_back() -> Result<()> {
    let (store, detector) = built(&tiny(), 1, DType::F32)?;
    shake(&store)?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("fcos.safetensors");
    candle_core::safetensors::save(&store.tensors().into_iter().collect::<HashMap<_, _>>(), &path)?;
    let images = normal(&[1, 1, 24, 16], DType::F32, 2)?;
    let other = VarStore::new(2, DType::F32, &Device::Cpu);
    Fcos::new(&tiny(), 1, 5, other.builder())?;
    load_weights(&other, &path, &LoadOptions::default())?;
    let again = Fcos::new(&tiny(), 1, 5, other.frozen())?;
    let (a, b) = (detector.forward(&images)?, again.forward(&images)?);
    for (a, b) in a.levels.iter().zip(&b.levels) {
        assert_eq!(to_f64(&a.logits)?, to_f64(&b.logits)?);
        assert_eq!(to_f64(&a.distances)?, to_f64(&b.distances)?);
        // A teacher keeps nothing for a backward pass.
        assert!(a.logits.track_op() && !b.logits.track_op());
    }
    Ok(())
}

#[test]
fn sizes_that_are_none_are_refused_by_name() {
    let says = |config: FcosConfig| {
        let store = VarStore::new(1, DType::F32, &Device::Cpu);
        Fcos::new(&config, 1, 5, store.builder()).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(says(FcosConfig { widths: vec![], ..tiny() }).contains("widths"));
    assert!(says(FcosConfig { widths: vec![3, 0], ..tiny() }).contains("widths"));
    assert!(says(FcosConfig { widths: vec![3; 9], ..tiny() }).contains("at most 8 stages, got 9"));
    assert!(says(FcosConfig { neck: 0, ..tiny() }).contains("neck"));
    assert_eq!(says(FcosConfig { depth: 0, head_depth: 0, ..tiny() }), "");
}
