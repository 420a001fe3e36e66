//! CLIP's image encoder against another implementation, and its input.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use candle_core::{DType, Device, Result, Tensor};
use std::path::PathBuf;
use vkd_models::{ClipInput, ClipVision, ClipVisionConfig, LoadOptions, Model, load_weights};
use vkd_nn::{Context, VarStore};
use vkd_testkit::{
    Golden, Tolerance, assert_close, gradcheck, gradcheck_variables, normal, to_f64,
};

fn narrow() -> ClipVisionConfig {
    ClipVisionConfig {
        image_size: 12,
        patch: 4,
        width: 16,
        depth: 3,
        heads: 4,
        hidden: 40,
        projection: 12,
    }
}

#[test]
fn a_narrow_encoder_gives_the_recorded_features() -> Result<()> {
    let golden = Golden::open("clip")?;
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../vkd-testkit/golden/clip.safetensors");
    for dtype in [DType::F64, DType::F32] {
        let store = VarStore::new(0, dtype, &Device::Cpu);
        ClipVision::new(&narrow(), store.builder())?;
        let options = LoadOptions { under: Some("model".into()), ..LoadOptions::default() };
        let report = load_weights(&store, &path, &options)?;
        assert_eq!(report.matched.len(), store.tensors().len());
        assert_eq!(report.unexpected, Vec::<String>::new());
        let teacher = ClipVision::new(&narrow(), store.frozen())?;
        let output = teacher.forward(&golden.get("input")?.to_dtype(dtype)?, &Context::eval())?;
        // The recording is of f32: three blocks of sums over 40 terms at most.
        let tolerance = Tolerance::relative(5e-6);
        assert_close("pooled", output.tap("class_token")?, &golden.get("pooled")?, tolerance)?;
        assert_close("embedding", output.tap("embedding")?, &golden.get("embedding")?, tolerance)?;
        assert_close("logits", &output.logits, &golden.get("embedding")?, tolerance)?;
        let patches = golden.get("last_hidden")?.narrow(1, 1, 9)?;
        assert_close("tokens", output.tap("tokens")?, &patches, tolerance)?;
        assert!(!output.logits.track_op());
        for (name, width) in narrow().taps() {
            let tap = output.tap(&name)?;
            assert_eq!(tap.dim(tap.rank() - 1)?, width, "{name}");
        }
    }
    Ok(())
}

#[test]
fn every_variable_learns_and_gradients_equal_differences() -> Result<()> {
    let config = ClipVisionConfig {
        image_size: 4,
        patch: 2,
        width: 4,
        depth: 1,
        heads: 2,
        hidden: 6,
        projection: 3,
    };
    let store = VarStore::new(1, DType::F64, &Device::Cpu);
    let encoder = ClipVision::new(&config, store.builder())?;
    for (i, (_, var)) in store.parameters().iter().enumerate() {
        let noise = normal(var.dims(), DType::F64, 50 + i as u64)?;
        var.set(&(var.as_tensor() + (noise * 0.3)?)?.detach())?;
    }
    let images = normal(&[2, 3, 4, 4], DType::F64, 2)?;
    let loss = || {
        let output = encoder.forward(&images, &Context::eval())?;
        output.logits.sqr()?.sum_all()? + output.tap("tokens")?.sum_all()?
    };
    // A bias of the keys shifts all scores of a query alike: no softmax sees it.
    let seen = store.parameters().into_iter().filter(|(name, _)| !name.ends_with("k_proj.bias"));
    gradcheck_variables(&seen.collect::<Vec<_>>(), loss)
}

#[test]
fn the_published_sizes_and_names() -> Result<()> {
    let variables = ClipVisionConfig::vit_b32().variables()?;
    // 87,849,216 of the published ViT-B/32's are the image encoder's and its projection's.
    assert_eq!(variables.values().map(|s| s.elem_count()).sum::<usize>(), 87_849_216);
    for (name, dims) in [
        ("vision_model.embeddings.class_embedding", vec![768]),
        ("vision_model.embeddings.patch_embedding.weight", vec![768, 3, 32, 32]),
        ("vision_model.embeddings.position_embedding.weight", vec![50, 768]),
        ("vision_model.pre_layrnorm.weight", vec![768]),
        ("vision_model.encoder.layers.11.self_attn.out_proj.bias", vec![768]),
        ("vision_model.encoder.layers.0.mlp.fc1.weight", vec![3072, 768]),
        ("vision_model.post_layernorm.bias", vec![768]),
        ("visual_projection.weight", vec![512, 768]),
    ] {
        assert_eq!(variables[name].dims(), dims, "{name}");
    }
    let says = |config: ClipVisionConfig| {
        let store = VarStore::new(1, DType::F32, &Device::Cpu);
        ClipVision::new(&config, store.builder()).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(
        says(ClipVisionConfig { patch: 5, ..narrow() })
            .contains("divisor of the image size 12, got 5")
    );
    assert!(
        says(ClipVisionConfig { heads: 3, ..narrow() }).contains("divisor of the width 16, got 3")
    );
    assert!(says(ClipVisionConfig { depth: 0, ..narrow() }).contains("depth"));
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    let encoder = ClipVision::new(&narrow(), store.builder())?;
    let wrong = encoder.forward(&normal(&[1, 3, 8, 8], DType::F32, 1)?, &Context::eval());
    assert!(wrong.unwrap_err().to_string().contains("(B, 3, 12, 12), got [1, 3, 8, 8]"));
    Ok(())
}

#[test]
fn input_is_what_each_choice_says() -> Result<()> {
    let images = Tensor::new(&[[[[-1f64, 1.], [0., 0.5]]]], &Device::Cpu)?;
    let raw = ClipInput::kd_dlgan().apply(&images, 4)?;
    assert_eq!(raw.dims(), [1, 3, 4, 4]);
    let row = [-1., -1., 1., 1., -1., -1., 1., 1., 0., 0., 0.5, 0.5, 0., 0., 0.5, 0.5];
    assert_eq!(to_f64(&raw)?, [row; 3].concat());
    let normalized = ClipInput { smooth: false, normalize: true }.apply(&images, 4)?;
    let (mean, std) = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);
    for (at, value) in to_f64(&normalized)?.into_iter().enumerate() {
        let want = ((row[at % 16] + 1.) / 2. - mean[at / 16]) / std[at / 16];
        assert!((value - want).abs() < 1e-12, "{at}: {value} {want}");
    }
    let smooth = to_f64(&ClipInput { smooth: true, normalize: false }.apply(&images, 4)?)?;
    // Between the pixels' middles, a quarter of the way.
    assert_eq!((smooth[0], smooth[1], smooth[2], smooth[3]), (-1., -0.5, 0.5, 1.));
    gradcheck(|x| ClipInput::clip().apply(&x[0], 5), std::slice::from_ref(&images))?;
    gradcheck(|x| ClipInput::kd_dlgan().apply(&x[0], 5), &[images.repeat((2, 3, 1, 1))?])?;
    assert!(ClipInput::clip().apply(&images.repeat((1, 2, 1, 1))?, 4).is_err());
    Ok(())
}
