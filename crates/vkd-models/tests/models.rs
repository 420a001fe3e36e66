//! Shapes, seeds, gradients of every variable, and the student's files.

use candle_core::{DType, Device, Result, Tensor};
use vkd_models::{Cnn, CnnConfig, Preprocessing, Student, StudentCard, Vit, VitConfig, card_path};
use vkd_nn::{Context, VarStore};
use vkd_testkit::{Tolerance, assert_close, gradcheck_variables, normal};

fn vit_config() -> VitConfig {
    VitConfig {
        image_size: 8,
        channels: 1,
        classes: 3,
        patch: 4,
        width: 6,
        depth: 2,
        heads: 2,
        mlp_ratio: 2,
        drop_path: 0.3,
    }
}

fn cnn_config() -> CnnConfig {
    CnnConfig { channels: 1, classes: 3, widths: vec![3, 4] }
}

/// Every variable: a gradient exists, and its directional derivative equals central differences in f64.
fn check(store: &VarStore, loss: impl Fn() -> Result<Tensor>) -> Result<()> {
    // Away from the symmetric start, where some derivatives are exactly zero.
    for (i, (_, var)) in store.parameters().iter().enumerate() {
        let noise = normal(var.dims(), DType::F64, 50 + i as u64)?;
        var.set(&(var.as_tensor() + (noise * 0.1)?)?.detach())?;
    }
    gradcheck_variables(&store.parameters(), loss)
}

#[test]
fn vit_gradients_with_and_without_stochastic_depth() -> Result<()> {
    let store = VarStore::new(1, DType::F64, &Device::Cpu);
    let vit = Vit::new(&vit_config(), store.builder())?;
    let xs = normal(&[3, 1, 8, 8], DType::F64, 2)?;
    for ctx in [Context::eval(), Context::train(5, 9, [4, 5, 6])] {
        check(&store, || {
            let out = vit.forward(&xs, &ctx)?;
            let sum = (out.logits.sqr()?.sum_all()? + out.distillation_logits.sqr()?.sum_all()?)?;
            sum + out.tokens.sqr()?.sum_all()?
        })?;
    }
    Ok(())
}

#[test]
fn cnn_gradients() -> Result<()> {
    let store = VarStore::new(1, DType::F64, &Device::Cpu);
    let cnn = Cnn::new(&cnn_config(), store.builder())?;
    let xs = normal(&[2, 1, 8, 8], DType::F64, 2)?;
    check(&store, || {
        let out = cnn.forward(&xs)?;
        (out.logits.sqr()?.sum_all()? + out.grid.sqr()?.sum_all()?)? + out.pooled.sum_all()?
    })
}

#[test]
fn shapes_and_pooling() -> Result<()> {
    let xs = normal(&[2, 1, 8, 8], DType::F32, 2)?;
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    let out = Cnn::new(&cnn_config(), store.builder())?.forward(&xs)?;
    assert_eq!(
        (out.logits.dims(), out.grid.dims(), out.pooled.dims()),
        (&[2, 3][..], &[2, 4, 4, 4][..], &[2, 4][..])
    );
    let mean = out.grid.flatten_from(2)?.mean(2)?;
    assert_close("pooled", &out.pooled, &mean, Tolerance::for_op(DType::F32, DType::F32, 16))?;
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    let out = Vit::new(&vit_config(), store.builder())?.forward(&xs, &Context::eval())?;
    assert_eq!((out.logits.dims(), out.tokens.dims()), (&[2, 3][..], &[2, 4, 6][..]));
    Ok(())
}

#[test]
fn a_sample_does_not_depend_on_its_batch() -> Result<()> {
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    let vit = Vit::new(&vit_config(), store.builder())?;
    let xs = normal(&[5, 1, 8, 8], DType::F32, 2)?;
    let all = vit.forward(&xs, &Context::train(1, 2, [10, 11, 12, 13, 14]))?.logits;
    let one = vit.forward(&xs.narrow(0, 3, 1)?, &Context::train(1, 2, [13]))?.logits;
    assert_close(
        "sample 13",
        &one,
        &all.narrow(0, 3, 1)?,
        Tolerance::for_op(DType::F32, DType::F32, 64),
    )
}

#[test]
fn construction_errors_name_field_and_values() {
    let build = |c: VitConfig| {
        let store = VarStore::new(1, DType::F32, &Device::Cpu);
        Vit::new(&c, store.builder()).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let c = vit_config;
    assert!(
        build(VitConfig { patch: 3, ..c() })
            .contains("patch: expected a divisor of the image size 8, got 3")
    );
    assert!(
        build(VitConfig { heads: 4, ..c() })
            .contains("heads: expected a divisor of the width 6, got 4")
    );
    assert!(build(VitConfig { depth: 0, ..c() }).contains("depth: expected at least 1"));
    assert!(build(VitConfig { drop_path: 1., ..c() }).contains("drop_path"));
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    assert!(Cnn::new(&CnnConfig { widths: vec![], ..cnn_config() }, store.builder()).is_err());
}

fn card() -> StudentCard {
    StudentCard {
        schema: 1,
        model: vit_config(),
        preprocessing: Preprocessing { divisor: 16., mean: 0.3, std: 0.4 },
        class_names: ["a", "b", "c"].map(String::from).to_vec(),
    }
}

#[test]
fn a_saved_student_gives_the_same_logits() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("student.safetensors");
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    let vit = Vit::new(&vit_config(), store.builder())?;
    Student::save(&path, &card(), &store.tensors())?;
    let student = Student::load(&path, &Device::Cpu)?;
    let pixels: Vec<u8> = (0..64).map(|i| i % 17).collect();
    let xs = student.preprocess(&[&pixels, &pixels])?;
    let out = vit.forward(&xs, &Context::eval())?;
    let want = ((out.logits + out.distillation_logits)? * 0.5)?;
    assert_close("logits", &student.logits(&xs)?, &want, Tolerance::EXACT)?;
    let sums = student.probabilities(&xs)?.sum(1)?.to_vec1::<f32>()?;
    assert!(sums.iter().all(|s| (s - 1.).abs() < 1e-6));
    assert!(student.preprocess(&[&pixels[1..]]).is_err());
    Ok(())
}

#[test]
fn broken_student_files_are_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("student.safetensors");
    let load =
        || Student::load(&path, &Device::Cpu).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(load().contains("student.json"));
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    Vit::new(&vit_config(), store.builder())?;
    Student::save(&path, &card(), &store.tensors())?;
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
    let other = StudentCard { model: VitConfig { width: 12, ..vit_config() }, ..card() };
    std::fs::write(card_path(&path), serde_json::to_vec(&other).unwrap())?;
    assert!(load().contains("expected") && load().contains("cls_token"), "{}", load());
    std::fs::write(card_path(&path), b"{\"schema\": 1}")?;
    assert!(load().contains("student.json"));
    // A card that doesn't fit is refused before anything is written.
    assert!(Student::save(&path, &other, &store.tensors()).is_err());
    Ok(())
}
