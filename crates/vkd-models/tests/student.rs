//! The student's files: what is written reads back, and what is broken is named.

use candle_core::{DType, Device, Result};
use std::path::Path;
use vkd_models::{
    Architecture, EfficientnetLiteConfig, ModelConfig, Preprocessing, Student, StudentCard,
    VitConfig, card_path,
};
use vkd_nn::{Context, VarStore};
use vkd_testkit::{Tolerance, assert_close, normal};

fn vit(width: usize) -> ModelConfig {
    let vit = VitConfig { patch: 4, width, depth: 2, heads: 2, mlp_ratio: 2, drop_path: 0.3 };
    ModelConfig { image_size: 8, channels: 1, classes: 3, architecture: Architecture::Vit(vit) }
}

fn names() -> Vec<String> {
    ["a", "b", "c"].map(String::from).to_vec()
}

fn card() -> StudentCard {
    StudentCard::new(vit(6), Preprocessing::grey(16., 0.3, 0.4), names())
}

fn fails(result: Result<impl Sized>) -> String {
    result.err().map(|e| e.to_string()).unwrap_or_default()
}

fn saved(path: &Path, card: &StudentCard) -> Result<VarStore> {
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    card.model.build(store.builder())?;
    Student::save(path, card, &store.tensors())?;
    Ok(store)
}

#[test]
fn a_saved_student_gives_the_same_logits() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("student.safetensors");
    let store = saved(&path, &card())?;
    let student = Student::load(&path, &Device::Cpu)?;
    let pixels: Vec<u8> = (0..64).map(|i| i % 17).collect();
    let xs = student.preprocess(&[&pixels, &pixels])?;
    let out = card().model.build(store.builder())?.forward(&xs, &Context::eval())?;
    let want = ((&out.logits + out.distillation_logits.as_ref().unwrap())? * 0.5)?;
    assert_close("logits", &student.logits(&xs)?, &want, Tolerance::EXACT)?;
    let sums = student.probabilities(&xs)?.sum(1)?.to_vec1::<f32>()?;
    assert!(sums.iter().all(|s| (s - 1.).abs() < 1e-6));
    assert!(student.preprocess(&[&pixels[1..]]).is_err());
    Ok(())
}

/// A model with running statistics and one head, on images of three channels.
#[test]
fn any_model_is_a_student_of_coloured_images() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("student.safetensors");
    let lite = EfficientnetLiteConfig { stem: 8, width_multiple: 0.1, head: 8, drop_path: 0.1 };
    let architecture = Architecture::EfficientnetLite(lite);
    let model = ModelConfig { image_size: 16, channels: 3, classes: 3, architecture };
    let card = StudentCard::new(model, Preprocessing::imagenet(), names());
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    let network = card.model.build(store.builder())?;
    let images = normal(&[4, 3, 16, 16], DType::F32, 3)?;
    network.forward(&images, &Context::train(1, 0, [0, 1, 2, 3]))?;
    Student::save(&path, &card, &store.tensors())?;
    let student = Student::load(&path, &Device::Cpu)?;
    assert_eq!(student.card, card);
    let want = network.forward(&images, &Context::eval())?.logits;
    assert_close("logits", &student.logits(&images)?, &want, Tolerance::EXACT)?;
    // Channel after channel, each with its own mean and deviation.
    let xs = student.preprocess(&[&[128u8; 3 * 256]])?;
    for (c, (mean, std)) in [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)].into_iter().enumerate()
    {
        let got = xs.narrow(1, c, 1)?.flatten_all()?.to_vec1::<f32>()?;
        let want = ((128. / 255. - mean) / std) as f32;
        assert!(got.iter().all(|v| *v == want), "channel {c}: {} for {want}", got[0]);
    }
    let two = Preprocessing { mean: vec![0.1, 0.2], ..Preprocessing::imagenet() };
    let message =
        fails(Student::save(&path, &StudentCard { preprocessing: two, ..card }, &store.tensors()));
    assert!(message.contains("mean: expected 1 or 3 values, got 2"), "{message}");
    Ok(())
}

#[test]
fn a_card_of_the_first_version_is_read() -> Result<()> {
    let first = r#"{
        "schema": 1,
        "model": {"image_size": 8, "channels": 1, "classes": 3, "patch": 4, "width": 6, "depth": 2, "heads": 2,
                  "mlp_ratio": 2, "drop_path": 0.3},
        "preprocessing": {"divisor": 16.0, "mean": 0.3, "std": 0.4},
        "class_names": ["a", "b", "c"]
    }"#;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("student.safetensors");
    let store = saved(&path, &card())?;
    std::fs::write(card_path(&path), first)?;
    let student = Student::load(&path, &Device::Cpu)?;
    assert_eq!(student.card, card());
    // And what is written now comes back whole.
    Student::save(&path, &student.card, &store.tensors())?;
    assert_eq!(Student::load(&path, &Device::Cpu)?.card, card());
    Ok(())
}

#[test]
fn broken_student_files_are_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("student.safetensors");
    let load = || fails(Student::load(&path, &Device::Cpu));
    assert!(load().contains("student.json"));
    let store = saved(&path, &card())?;
    let whole = std::fs::read(&path)?;
    for broken in [&whole[..whole.len() - 5], &whole[..4], b"not a safetensors file at all"] {
        std::fs::write(&path, broken)?;
        assert!(
            load().contains("student.safetensors: expected a whole safetensors file"),
            "{}",
            load()
        );
    }
    std::fs::write(&path, &whole)?;
    let other = StudentCard { model: vit(12), ..card() };
    let json = serde_json::to_string(&other).unwrap();
    std::fs::write(card_path(&path), &json)?;
    assert!(load().contains("expected") && load().contains("cls_token"), "{}", load());
    for (from, to, says) in [
        (r#""schema":2"#, r#""schema":3"#, "expected schema 1 or 2"),
        (r#""kind":"vit""#, r#""kind":"vgg""#, "unknown variant `vgg`"),
        (r#""patch":4"#, r#""patsch":4"#, "unknown field `patsch`"),
        (r#""classes":3"#, r#""classes":3,"colour":1"#, "unknown field `colour`"),
        (r#""std":[0.4]"#, r#""std":[0.0]"#, "std above 0"),
    ] {
        assert!(json.contains(from), "{json}");
        std::fs::write(card_path(&path), json.replace(from, to))?;
        assert!(load().contains("student.json") || from.contains("std"), "{}", load());
        assert!(load().contains(says), "{}", load());
    }
    std::fs::write(card_path(&path), b"{\"schema\": 1}")?;
    assert!(load().contains("student.json"));
    // A card that doesn't fit is refused before anything is written.
    assert!(Student::save(&path, &other, &store.tensors()).is_err());
    Ok(())
}
