//! The models against timm, torchvision and the published V_kD student.

use candle_core::{DType, Device, Result, Tensor};
use std::collections::BTreeMap;
use std::path::PathBuf;
use vkd_models::{
    Architecture, DeitConfig, EfficientnetLiteConfig, LoadOptions, ModelConfig, ModelOutput,
    RegnetConfig, ResnetBlock, ResnetConfig, load_weights,
};
use vkd_nn::{Context, VarStore, is_buffer};
use vkd_testkit::{Golden, Tolerance, assert_close};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../vkd-testkit/golden").join(name)
}

fn deit() -> DeitConfig {
    DeitConfig { patch: 8, depth: 2, heads: 2, ..DeitConfig::plain(12) }
}

/// Name in the golden files, image size and architecture.
fn narrow() -> Vec<(&'static str, usize, Architecture)> {
    let basic =
        ResnetConfig { block: ResnetBlock::Basic, depths: [1, 2, 1, 1], width: 4, drop_path: 0. };
    let bottleneck = ResnetConfig { block: ResnetBlock::Bottleneck, width: 3, ..basic.clone() };
    let regnet = RegnetConfig {
        stem: 6,
        widths: [8, 16, 24, 32],
        depths: [1, 1, 1, 2],
        group_width: 4,
        squeeze: 0.25,
        drop_path: 0.,
    };
    let lite = EfficientnetLiteConfig { stem: 8, width_multiple: 0.1, head: 24, drop_path: 0. };
    vec![
        ("resnet_basic", 64, Architecture::Resnet(basic)),
        ("resnet_bottleneck", 64, Architecture::Resnet(bottleneck)),
        ("regnet", 64, Architecture::Regnet(regnet)),
        ("efficientnet_lite", 64, Architecture::EfficientnetLite(lite)),
        ("deit", 32, Architecture::Deit(deit())),
    ]
}

/// Every stored tap and both logits.
fn compare_output(
    golden: &Golden,
    prefix: &str,
    output: &ModelOutput,
    tolerance: Tolerance,
) -> Result<usize> {
    let mut compared = 0;
    for key in golden.keys() {
        let Some(tap) = key.strip_prefix(prefix) else { continue };
        let got = match tap {
            "logits" => Some(&output.logits),
            "distillation_logits" => output.distillation_logits.as_ref(),
            _ => Some(output.tap(tap)?),
        };
        let got = got.ok_or_else(|| candle_core::Error::Msg(format!("{key}: no such logits")))?;
        assert_close(key, got, &golden.get(key)?, tolerance)?;
        compared += 1;
    }
    Ok(compared)
}

/// Gradients under `grad` and, after a training pass, running statistics under `after`.
fn compare_training(
    golden: &Golden,
    store: &VarStore,
    loss: &Tensor,
    [grad, after]: [&str; 2],
    tolerance: Tolerance,
) -> Result<usize> {
    let grads = loss.backward()?;
    let (parameters, tensors): (BTreeMap<_, _>, _) =
        (store.parameters().into_iter().collect(), store.tensors());
    let mut compared = 0;
    for key in golden.keys() {
        let want = || golden.get(key);
        if let Some(name) = key.strip_prefix(grad) {
            let got = grads.get(&parameters[name]);
            let got = got.ok_or_else(|| candle_core::Error::Msg(format!("{key}: no gradient")))?;
            assert_close(key, got, &want()?, tolerance)?;
            compared += 1;
        } else if let Some(name) = key.strip_prefix(after) {
            assert_close(key, &tensors[name], &want()?, tolerance)?;
            compared += 1;
        }
    }
    Ok(compared)
}

/// What f64 loses by being stored in f32.
fn stored() -> Tolerance {
    Tolerance::for_op(DType::F64, DType::F32, 1)
}

#[test]
fn narrow_models_give_the_numbers_of_timm_and_torchvision() -> Result<()> {
    let golden = Golden::open("models")?;
    for (name, image_size, architecture) in narrow() {
        let config = ModelConfig { image_size, channels: 3, classes: 5, architecture };
        let weights = file(&format!("model_{name}.pth"));
        let input = golden.get(&format!("{name}.input"))?;
        // In f32: rounding grows through up to 18 normalised layers; the bound.
        for (dtype, tolerance) in [(DType::F64, stored()), (DType::F32, Tolerance::relative(1e-4))]
        {
            let store = VarStore::new(0, dtype, &Device::Cpu);
            let model = config.build(store.builder())?;
            let report = load_weights(&store, &weights, &LoadOptions::default())?;
            assert_eq!(report.matched.len(), store.tensors().len(), "{name}");
            assert_eq!(report.unexpected, Vec::<String>::new(), "{name}");
            let xs = input.to_dtype(dtype)?;
            let output = model.forward(&xs, &Context::eval())?;
            let prefix = format!("{name}.eval.");
            assert!(compare_output(&golden, &prefix, &output, tolerance)? > 4, "{name}");
            if dtype != DType::F64 {
                continue;
            }
            let output = model.forward(&xs, &Context::train(0, 0, [0, 1]))?;
            let logits = match output.distillation_logits {
                Some(other) => (output.logits + other)?,
                None => output.logits,
            };
            let key = format!("{name}.train.logits");
            assert_close(&key, &logits, &golden.get(&key)?, tolerance)?;
            let cot = golden.get(&format!("{name}.cot"))?.to_dtype(dtype)?;
            let keys = [format!("{name}.train.grad."), format!("{name}.train.after.")];
            let loss = (logits * cot)?.sum_all()?;
            let keys = [keys[0].as_str(), &keys[1]];
            assert!(compare_training(&golden, &store, &loss, keys, tolerance)? > 1, "{name}");
        }
    }
    Ok(())
}

#[test]
fn the_published_student_forward_gradients_and_statistics() -> Result<()> {
    let golden = Golden::open("deit_stem")?;
    let architecture =
        Architecture::Deit(DeitConfig { depth: 2, heads: 2, ..DeitConfig::student(24) });
    let config = ModelConfig { image_size: 224, channels: 3, classes: 10, architecture };
    let params = golden.keys().into_iter().filter_map(|k| k.strip_prefix("param."));
    let params: BTreeMap<&str, Tensor> =
        params.map(|k| Ok((k, golden.get(&format!("param.{k}"))?))).collect::<Result<_>>()?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("student.safetensors");
    candle_core::safetensors::save(&params.into_iter().collect(), &path)?;
    let image = golden.get("input.image")?;
    let renamed = [
        ("stem_tokens", "stem_tokens"),
        ("cls_token", "class_token"),
        ("dist_token", "distillation_token"),
        ("patch_tokens", "tokens"),
    ];
    for (dtype, tolerance) in [(DType::F64, stored()), (DType::F32, Tolerance::relative(1e-4))] {
        let store = VarStore::new(0, dtype, &Device::Cpu);
        let model = config.build(store.builder())?;
        let report = load_weights(&store, &path, &LoadOptions::default())?;
        assert_eq!((report.missing.len(), report.unexpected.len()), (0, 0), "{report}");
        let xs = image.to_dtype(dtype)?;
        let mut trained = None;
        for (mode, ctx) in [("eval", Context::eval()), ("train", Context::train(0, 0, [0, 1]))] {
            let out = model.forward(&xs, &ctx)?;
            let close = |key: &str, got: &Tensor| {
                let key = format!("{mode}.{key}");
                assert_close(&key, got, &golden.get(&key)?, tolerance)
            };
            for (theirs, ours) in renamed {
                if mode == "eval" || theirs != "stem_tokens" {
                    close(theirs, out.tap(ours)?)?;
                }
            }
            close("cls_logits", &out.logits)?;
            let other = out.distillation_logits.as_ref();
            close("dist_logits", other.ok_or_else(|| candle_core::Error::msg("one head"))?)?;
            if mode == "eval" {
                close("output", &out.prediction()?)?;
            }
            trained = Some(out);
        }
        let Some(out) = trained else { continue };
        let term = |key: &str, value: &Tensor| {
            (golden.get(&format!("input.weight_{key}"))?.to_dtype(dtype)? * value)?.sum_all()
        };
        let mut loss =
            (term("cls_logits", &out.logits)? + term("patch_tokens", out.tap("tokens")?)?)?;
        if let Some(logits) = &out.distillation_logits {
            loss = (loss + term("dist_logits", logits)?)?;
        }
        assert_close("train.loss", &loss, &golden.get("train.loss")?, tolerance)?;
        let keys = ["train.grad.", "train.after."];
        let compared = compare_training(&golden, &store, &loss, keys, tolerance)?;
        let statistics = store.tensors().keys().filter(|name| is_buffer(name)).count();
        assert_eq!(compared, store.parameters().len() + statistics);
    }
    Ok(())
}

fn full_size(name: &str) -> Option<Architecture> {
    Some(match name {
        "regnety_160" => Architecture::Regnet(RegnetConfig::regnety_160()),
        "regnety_008" => Architecture::Regnet(RegnetConfig::regnety_008()),
        "resnet18" => Architecture::Resnet(ResnetConfig::resnet18()),
        "resnet34" => Architecture::Resnet(ResnetConfig::resnet34()),
        "resnet50" => Architecture::Resnet(ResnetConfig::resnet50()),
        "efficientnet_lite0" => Architecture::EfficientnetLite(EfficientnetLiteConfig::lite0()),
        "deit_tiny_distilled_patch16_224" => Architecture::Deit(DeitConfig::plain(192)),
        _ => return None,
    })
}

fn imagenet(architecture: Architecture) -> ModelConfig {
    ModelConfig { image_size: 224, channels: 3, classes: 1000, architecture }
}

#[test]
fn full_size_models_have_the_keys_shapes_and_multiply_adds_of_timm() -> Result<()> {
    let text = std::fs::read_to_string(file("model_keys.txt"))?;
    let mut want: BTreeMap<&str, BTreeMap<String, Vec<usize>>> = BTreeMap::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for line in text.lines() {
        let parts: Vec<&str> = line.split(' ').collect();
        let numbers = parts[2].split('x').map(|n| n.parse().unwrap()).collect::<Vec<usize>>();
        if parts[1] == "multiply_adds" {
            counts.insert(parts[0], numbers[0]);
        } else {
            want.entry(parts[0]).or_default().insert(parts[1].to_owned(), numbers);
        }
    }
    assert_eq!((want.len(), counts.len()), (7, 7));
    for (name, want) in want {
        let config = imagenet(full_size(name).unwrap());
        let got = config.variables()?.into_iter().map(|(n, s)| (n, s.into_dims()));
        assert_eq!(got.collect::<BTreeMap<_, _>>(), want, "{name}");
        let attention = if name.starts_with("deit") { 2 * 12 * 198 * 198 * 192 } else { 0 };
        assert_eq!(config.cost()?.multiply_adds, counts[name] + attention, "{name}");
    }
    Ok(())
}

#[test]
fn parameters_and_multiply_adds_are_the_known_ones() -> Result<()> {
    // timm 1.0.31: sum of `numel` of the parameters.
    for (name, parameters, giga) in [
        ("regnety_160", 83_590_140, 15.9),
        ("resnet50", 25_557_032, 4.1),
        ("resnet18", 11_689_512, 1.82),
        ("deit_tiny_distilled_patch16_224", 5_910_800, 1.27),
        ("efficientnet_lite0", 4_652_008, 0.39),
    ] {
        let cost = imagenet(full_size(name).unwrap()).cost()?;
        assert_eq!(cost.parameters, parameters, "{name}");
        let got = cost.multiply_adds as f64 / 1e9;
        assert!((got / giga - 1.).abs() < 0.02, "{name}: {got}");
    }
    // The students of V_kD: the stem adds what the patch embedding lacks.
    for (config, millions) in
        [(DeitConfig::tiny(), 6.6), (DeitConfig::small(), 24.), (DeitConfig::base(), 89.)]
    {
        let got = imagenet(Architecture::Deit(config)).cost()?.parameters as f64 / 1e6;
        assert!((got / millions - 1.).abs() < 0.05, "{got} of {millions}");
    }
    Ok(())
}
