//! Every model: taps, gradients of every variable, running statistics, and what construction refuses.

use candle_core::{DType, Device, Result, Tensor};
use std::collections::BTreeMap;
use vkd_models::{
    Architecture, CnnConfig, DeitConfig, EfficientnetLiteConfig, LoadOptions, Model, ModelConfig,
    ModelOutput, RegnetConfig, ResnetBlock, ResnetConfig, VitConfig, load_weights,
};
use vkd_nn::{Context, VarStore, is_buffer};
use vkd_testkit::{Tolerance, assert_close, gradcheck_variables, normal, to_f64};

fn vit_config() -> VitConfig {
    VitConfig { patch: 4, width: 6, depth: 2, heads: 2, mlp_ratio: 2, drop_path: 0.3 }
}

fn deit_config() -> DeitConfig {
    DeitConfig { patch: 8, depth: 2, heads: 2, mlp_ratio: 2, drop_path: 0.3, ..DeitConfig::tiny() }
}

fn resnet_config() -> ResnetConfig {
    ResnetConfig { depths: [1, 2, 1, 1], width: 2, drop_path: 0.1, ..ResnetConfig::resnet18() }
}

/// A small model of every kind on images of 16 pixels and three channels; with stochastic depth where there is one.
fn zoo() -> Vec<(&'static str, ModelConfig)> {
    let regnet = RegnetConfig {
        stem: 4,
        widths: [4, 8, 8, 12],
        depths: [1, 1, 2, 1],
        group_width: 4,
        // Enough squeezed channels that ReLU leaves some alive.
        squeeze: 1.,
        drop_path: 0.1,
    };
    let lite = EfficientnetLiteConfig { stem: 8, width_multiple: 0.1, head: 8, drop_path: 0.1 };
    [
        ("vit", Architecture::Vit(vit_config())),
        ("deit", Architecture::Deit(DeitConfig { width: 6, ..deit_config() })),
        (
            "deit",
            Architecture::Deit(DeitConfig { patch: 4, depth: 2, heads: 2, ..DeitConfig::plain(6) }),
        ),
        ("cnn", Architecture::Cnn(CnnConfig { widths: vec![3, 4] })),
        ("resnet", Architecture::Resnet(resnet_config())),
        (
            "resnet",
            Architecture::Resnet(ResnetConfig {
                block: ResnetBlock::Bottleneck,
                ..resnet_config()
            }),
        ),
        ("regnet", Architecture::Regnet(regnet)),
        ("efficientnet_lite", Architecture::EfficientnetLite(lite)),
    ]
    .into_iter()
    .map(|(kind, architecture)| {
        (kind, ModelConfig { image_size: 16, channels: 3, classes: 3, architecture })
    })
    .collect()
}

fn built(config: &ModelConfig, dtype: DType) -> Result<(VarStore, Box<dyn Model>)> {
    let store = VarStore::new(1, dtype, &Device::Cpu);
    let model = config.build(store.builder())?;
    Ok((store, model))
}

/// Away from the symmetric start, where some derivatives are exactly zero.
fn shake(store: &VarStore, scale: f64) -> Result<()> {
    for (i, (_, var)) in store.parameters().iter().enumerate() {
        let noise = normal(var.dims(), DType::F64, 50 + i as u64)?.to_dtype(var.dtype())?;
        var.set(&(var.as_tensor() + (noise * scale)?)?.detach())?;
    }
    Ok(())
}

/// Both heads and every tap count.
fn loss(output: &ModelOutput) -> Result<Tensor> {
    let mut sum = output.logits.sqr()?.sum_all()?;
    for part in output.distillation_logits.iter().chain(output.taps.values()) {
        sum = (sum + part.sqr()?.mean_all()?)?;
    }
    Ok(sum)
}

#[test]
fn every_variable_of_every_model_has_a_finite_gradient_that_is_not_zero() -> Result<()> {
    let ids = [10, 11, 12, 13];
    for (kind, config) in zoo() {
        let (store, model) = built(&config, DType::F32)?;
        shake(&store, 0.1)?;
        let images = normal(&[4, 3, 16, 16], DType::F32, 2)?;
        let output = model.forward(&images, &Context::train(5, 9, ids))?;
        // The heads alone: what reaches a variable comes the whole way down.
        let mut sum = output.logits.sqr()?.sum_all()?;
        if let Some(other) = &output.distillation_logits {
            sum = (sum + other.sqr()?.sum_all()?)?;
        }
        let grads = sum.backward()?;
        for (name, var) in store.parameters() {
            let Some(grad) = grads.get(&var) else { panic!("{kind}: no gradient reaches {name}") };
            let largest = to_f64(grad)?.iter().fold(0f64, |m, g| {
                assert!(g.is_finite(), "{kind}: {name}: {g}");
                m.max(g.abs())
            });
            assert!(largest > 0., "{kind}: {name}: a gradient of zero");
        }
    }
    Ok(())
}

/// The models whose functions are smooth, and below a small CNN. A step in a network of thousands of ReLUs crosses some of
/// their kinks, where no difference is a derivative: those families' gradients are compared with PyTorch's in golden.rs.
#[test]
fn gradients_equal_differences() -> Result<()> {
    for (i, (kind, config)) in zoo().into_iter().enumerate() {
        let smooth = kind == "vit" || i == 2;
        if !smooth {
            continue;
        }
        let config = ModelConfig { image_size: 8, ..config };
        let (store, model) = built(&config, DType::F64)?;
        // Tokens of a size: the curvature of a layer norm goes with its inverse square.
        shake(&store, 0.3)?;
        let images = normal(&[3, 3, 8, 8], DType::F64, 2)?;
        for ctx in [Context::eval(), Context::train(5, 9, [4, 5, 6])] {
            gradcheck_variables(&store.parameters(), || loss(&model.forward(&images, &ctx)?))
                .map_err(|e| e.context(format!("{kind}, training {}", ctx.train)))?;
        }
    }
    Ok(())
}

#[test]
fn cnn_gradients_equal_differences() -> Result<()> {
    let architecture = Architecture::Cnn(CnnConfig { widths: vec![3, 4] });
    let config = ModelConfig { image_size: 8, channels: 1, classes: 3, architecture };
    let (store, model) = built(&config, DType::F64)?;
    shake(&store, 0.1)?;
    let images = normal(&[2, 1, 8, 8], DType::F64, 2)?;
    gradcheck_variables(&store.parameters(), || {
        let out = model.forward(&images, &Context::eval())?;
        let features = (out.tap("grid")?.sqr()?.sum_all()? + out.tap("pooled")?.sum_all()?)?;
        out.logits.sqr()?.sum_all()? + features
    })
}

#[test]
fn taps_have_the_names_and_widths_that_the_configuration_says() -> Result<()> {
    for (kind, config) in zoo() {
        let (_, model) = built(&config, DType::F32)?;
        let output = model.forward(&normal(&[2, 3, 16, 16], DType::F32, 2)?, &Context::eval())?;
        assert_eq!(output.logits.dims(), [2, 3], "{kind}");
        let widths = output.taps.iter().map(|(name, tap)| {
            let width = match tap.dims() {
                [2, c] | [2, c, _, _] | [2, _, c] => *c,
                dims => panic!("{kind}: {name}: {dims:?}"),
            };
            (name.clone(), width)
        });
        assert_eq!(widths.collect::<BTreeMap<_, _>>(), config.taps(), "{kind}");
        assert!(output.tap("nothing").is_err());
        // Where there is a grid, the pooled features are of its size or of the head's after it.
        if let (Ok(grid), Ok(pooled)) = (output.tap("grid"), output.tap("pooled"))
            && kind != "efficientnet_lite"
        {
            let mean = grid.flatten_from(2)?.mean(2)?;
            let sum = Tolerance::for_op(DType::F32, DType::F32, 64);
            assert_close(kind, pooled, &mean, sum)?;
        }
    }
    Ok(())
}

#[test]
fn the_configuration_counts_what_a_built_model_holds() -> Result<()> {
    for (kind, config) in zoo() {
        let (store, _) = built(&config, DType::F32)?;
        let held = store.tensors().into_iter().map(|(n, t)| (n, t.shape().clone()));
        assert_eq!(config.variables()?, held.collect(), "{kind}");
        assert_eq!(config.cost()?.parameters, store.parameter_count(), "{kind}");
        assert!(config.cost()?.multiply_adds > 0);
    }
    // By hand: 3·3·9 and 4·3·9 over 16² and 8² pixels, and the head.
    let cnn = &zoo()[3].1;
    assert_eq!(cnn.cost()?.multiply_adds, 3 * 3 * 9 * 256 + 3 * 4 * 9 * 64 + 4 * 3);
    // 16 patches of 4 pixels and two tokens, width 6, two blocks with an MLP of 12.
    let block = 18 * (6 * 18 + 6 * 6 + 2 * 6 * 12) + 2 * 18 * 18 * 6;
    let stem = 256 * 3 * 9 * 6 + 16 * 6 * 6 * 16;
    assert_eq!(zoo()[0].1.cost()?.multiply_adds, stem + 2 * block + 2 * 6 * 3);
    Ok(())
}

#[test]
fn running_statistics_move_in_training_only() -> Result<()> {
    let xs = normal(&[4, 3, 16, 16], DType::F32, 2)?;
    for (kind, config) in zoo() {
        let (store, model) = built(&config, DType::F32)?;
        let buffers = || -> Result<Vec<Vec<f64>>> {
            store.tensors().iter().filter(|(n, _)| is_buffer(n)).map(|(_, t)| to_f64(t)).collect()
        };
        let start = buffers()?;
        let before = model.forward(&xs, &Context::eval())?.logits;
        assert_eq!(buffers()?, start, "{kind}");
        model.forward(&xs, &Context::train(1, 2, [1, 2, 3, 4]))?;
        assert_eq!(buffers()? != start, !start.is_empty(), "{kind}");
        let after = model.forward(&xs, &Context::eval())?.logits;
        assert_eq!(to_f64(&after)? != to_f64(&before)?, !start.is_empty(), "{kind}");
    }
    Ok(())
}

#[test]
fn a_sample_does_not_depend_on_its_batch() -> Result<()> {
    let (_, vit) = built(&zoo()[0].1, DType::F32)?;
    let xs = normal(&[5, 3, 16, 16], DType::F32, 2)?;
    let all = vit.forward(&xs, &Context::train(1, 2, [10, 11, 12, 13, 14]))?.logits;
    let one = vit.forward(&xs.narrow(0, 3, 1)?, &Context::train(1, 2, [13]))?.logits;
    let tolerance = Tolerance::for_op(DType::F32, DType::F32, 64);
    assert_close("sample 13", &one, &all.narrow(0, 3, 1)?, tolerance)
}

#[test]
fn configurations_read_back_from_json() {
    for (kind, config) in zoo() {
        let json = serde_json::to_value(&config).unwrap();
        assert_eq!(json["kind"], kind);
        assert_eq!(serde_json::from_value::<ModelConfig>(json).unwrap(), config);
    }
}

#[test]
fn construction_errors_name_field_and_values() {
    let says = |architecture: Architecture| {
        let config = ModelConfig { image_size: 8, channels: 1, classes: 3, architecture };
        config.variables().err().map(|e| e.to_string()).unwrap_or_default()
    };
    let vit = |c: VitConfig| says(Architecture::Vit(c));
    let c = vit_config;
    assert!(
        vit(VitConfig { patch: 3, ..c() })
            .contains("patch: expected a divisor of the image size 8, got 3")
    );
    assert!(
        vit(VitConfig { heads: 4, ..c() })
            .contains("heads: expected a divisor of the width 6, got 4")
    );
    assert!(vit(VitConfig { depth: 0, ..c() }).contains("depth: expected at least 1"));
    assert!(vit(VitConfig { drop_path: 1., ..c() }).contains("drop_path"));
    let odd = DeitConfig { patch: 1, ..deit_config() };
    assert!(says(Architecture::Deit(odd)).contains("patch: expected an even number"));
    assert!(!says(Architecture::Cnn(CnnConfig { widths: vec![] })).is_empty());
    let resnet = |c| says(Architecture::Resnet(c));
    assert!(resnet(ResnetConfig { depths: [1, 0, 1, 1], ..resnet_config() }).contains("depths"));
    assert!(resnet(ResnetConfig { width: 0, ..resnet_config() }).contains("width"));
    let regnet = |c| says(Architecture::Regnet(c));
    let narrow = RegnetConfig { group_width: 7, ..RegnetConfig::regnety_002() };
    assert!(regnet(narrow).contains("widths: expected multiples of 7, got 24"));
    let squeezed = RegnetConfig { squeeze: 0., ..RegnetConfig::regnety_002() };
    assert!(regnet(squeezed).contains("squeeze"));
    let lite =
        EfficientnetLiteConfig { width_multiple: f64::NAN, ..EfficientnetLiteConfig::lite0() };
    assert!(says(Architecture::EfficientnetLite(lite)).contains("width_multiple"));
    let none = ModelConfig { classes: 0, ..zoo()[0].1.clone() };
    assert!(
        none.variables().is_err_and(|e| e.to_string().contains("classes: expected at least 1"))
    );
}

#[test]
fn images_of_another_shape_are_refused() -> Result<()> {
    for (kind, config) in zoo() {
        let (_, model) = built(&config, DType::F32)?;
        for dims in [&[2, 1, 16, 16][..], &[2, 3, 16]] {
            let images = Tensor::zeros(dims, DType::F32, &Device::Cpu)?;
            assert!(model.forward(&images, &Context::eval()).is_err(), "{kind} {dims:?}");
        }
    }
    Ok(())
}

#[test]
fn a_load_reports_what_fits_and_refuses_what_is_missing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("weights.safetensors");
    let config = ModelConfig { classes: 7, ..zoo()[4].1.clone() };
    let (other, _) = built(&config, DType::F32)?;
    shake(&other, 0.1)?;
    let mut tensors = other.tensors();
    tensors.remove("layer1.0.bn1.bias");
    tensors.insert("extra".to_owned(), Tensor::zeros(2, DType::F32, &Device::Cpu)?);
    let counter = Tensor::zeros((), DType::I64, &Device::Cpu)?;
    tensors.insert("bn1.num_batches_tracked".to_owned(), counter);
    candle_core::safetensors::save(&tensors.clone().into_iter().collect(), &path)?;

    let store = VarStore::new(2, DType::F32, &Device::Cpu);
    zoo()[4].1.build(store.builder().pp("student"))?;
    let start = to_f64(&store.tensors()["student.conv1.weight"])?;
    let load = |allow: &[&str]| {
        let allow = allow.iter().map(|s| (*s).to_owned()).collect();
        let prefix = Some("student".to_owned());
        load_weights(&store, &path, &LoadOptions { prefix, allow, ..LoadOptions::default() })
    };
    for allow in [&[][..], &["fc"], &["f", "layer1.0.bn1.bias"]] {
        let message = load(allow).unwrap_err().to_string();
        assert!(message.contains("weights.safetensors: expected every weight"), "{message}");
        assert!(message.contains("1 missing (layer1.0.bn1.bias)"), "{message}");
        assert!(message.contains("fc.bias expected [3], got [7]"), "{message}");
        assert!(message.contains("1 unexpected (extra)"), "{message}");
        assert_eq!(to_f64(&store.tensors()["student.conv1.weight"])?, start, "nothing is changed");
    }
    let report = load(&["fc", "layer1.0.bn1"])?;
    assert_eq!(report.matched.len(), tensors.len() - 4);
    assert_eq!(report.missing, ["layer1.0.bn1.bias"]);
    assert_eq!(report.unexpected, ["extra"]);
    assert_eq!(report.wrong_shape[1], ("fc.weight".to_owned(), vec![3, 16], vec![7, 16]));
    let now = &store.tensors()["student.conv1.weight"];
    assert_close("conv1", now, &tensors["conv1.weight"], Tolerance::EXACT)?;
    // Integers where floats belong.
    tensors
        .insert("conv1.weight".to_owned(), Tensor::zeros((2, 3, 7, 7), DType::I64, &Device::Cpu)?);
    candle_core::safetensors::save(&tensors.into_iter().collect(), &path)?;
    let message = load(&["fc", "layer1.0.bn1"]).unwrap_err().to_string();
    assert!(message.contains("conv1.weight: expected a float dtype"), "{message}");
    Ok(())
}

#[test]
fn every_model_trains_in_bf16_on_f32_variables() -> Result<()> {
    for (kind, config) in zoo() {
        let store = VarStore::new(5, DType::F32, &Device::Cpu);
        let images = normal(&[24, 3, 16, 16], DType::F32, 2)?;
        let weights = normal(&[24, 3], DType::F32, 3)?;
        let pass = |dtype: DType, ctx: &Context| -> Result<Vec<f64>> {
            let model = config.build(store.builder().set_dtype(dtype))?;
            let out = model.forward(&images.to_dtype(dtype)?, ctx)?;
            assert!(out.taps.values().chain([&out.logits]).all(|t| t.dtype() == dtype), "{kind}");
            let mut loss = Tensor::new(0f32, &Device::Cpu)?;
            for logits in [Some(out.logits), out.distillation_logits].into_iter().flatten() {
                loss = (loss + (logits.to_dtype(DType::F32)? * &weights)?.mean_all()?)?;
            }
            let grads = loss.backward()?;
            let mut all = Vec::new();
            for (name, var) in store.parameters() {
                let Some(grad) = grads.get(&var) else { panic!("{kind}: {name}") };
                assert_eq!((var.dtype(), grad.dtype()), (DType::F32, DType::F32), "{kind}: {name}");
                all.extend(to_f64(grad)?);
            }
            assert!(all.iter().all(|g| g.is_finite()), "{kind}");
            Ok(all)
        };
        // With statistics that stand: those of 24 tiny images through dozens of layers turn any rounding into another gradient.
        let (single, half) =
            (pass(DType::F32, &Context::eval())?, pass(DType::BF16, &Context::eval())?);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let cosine = dot(&single, &half) / (dot(&single, &single) * dot(&half, &half)).sqrt();
        let turned = (2. * (1. - cosine)).max(0.).sqrt();
        // Eight bits turn the whole gradient by 0.007 to 0.18 here, where one ReLU that falls otherwise is a good part of a layer of
        // width two to twelve. No turn at all would mean that nothing was rounded; a part that is cut off turns it by more.
        assert!(turned > 1e-4 && turned < 0.25, "{kind}: {turned}");
        pass(DType::BF16, &Context::train(1, 1, (0..24).collect::<Vec<u64>>()))?;
        for (name, tensor) in store.tensors().iter().filter(|(name, _)| is_buffer(name)) {
            let values = to_f64(tensor)?;
            assert!(values.iter().any(|v| *v != 0. && *v != 1.), "{kind}: {name} has not moved");
        }
    }
    Ok(())
}
