//! Training in bf16: how far it is from f32, and what stays f32.

use candle_core::{DType, Device, Result};
use std::path::Path;
use vkd_train::{
    Dataset, Recipe, RunFolder, check, checkpoint, fingerprint, train_arm, train_teacher,
};

const TINY: &str = include_str!("tiny.toml");
const HALF: [&str; 2] = ["training.compute=bf16", "teacher.compute=bf16"];

fn parse(set: &[&str]) -> Result<Recipe> {
    Recipe::parse(TINY, "tiny.toml", &set.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
}

/// Trains the teacher and the arm `vkd`.
fn run(dir: &Path, set: &[&str]) -> Result<RunFolder> {
    let recipe = parse(&[&[r#"arms=["vkd"]"#], set].concat())?;
    let data = Dataset::open(&recipe.data)?;
    check(&recipe, &data)?;
    let run = RunFolder::create(dir, recipe, false)?;
    train_teacher(&run, &data, &mut |_| Ok(()))?;
    train_arm(&run, &data, "vkd", &mut |_| Ok(()))?;
    Ok(run)
}

/// Of the arm's and the teacher's test images.
fn accuracies(run: &RunFolder) -> Result<[f64; 2]> {
    let (Some(arm), Some(teacher)) = (run.arm_report("vkd")?, run.teacher_report()?) else {
        candle_core::bail!("expected the reports of arm and teacher, got none")
    };
    Ok([arm.metrics["accuracy"], teacher.metrics["accuracy"]])
}

#[test]
fn a_student_of_the_digits_learns_as_well_as_in_f32() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let set = [
        "data.train=600",
        "data.shift=0",
        "teacher.model.widths=[16, 32]",
        "teacher.steps=300",
        "teacher.learning_rate=1e-2",
        "arm.vkd.labels=all",
        "student.width=24",
        "student.drop_path=0.0",
        "training.steps=300",
        "training.batch=20",
        "training.learning_rate=1e-2",
        "training.warmup=20",
        "training.evaluate_every=300",
        "training.checkpoint_every=300",
    ];
    let single = accuracies(&run(&folder.path().join("f32"), &set)?)?;
    let half = accuracies(&run(&folder.path().join("bf16"), &[&set[..], &HALF].concat())?)?;
    println!("f32 {single:?}, bf16 {half:?}");
    for (single, half) in single.into_iter().zip(half) {
        // Chance is 0.1. Of the 1,147 test images two of a hundred may fall otherwise; fewer than one did.
        assert!(single > 0.85 && (single - half).abs() <= 0.02, "f32 {single}, bf16 {half}");
    }
    Ok(())
}

#[test]
fn what_is_kept_is_f32_and_finer_than_bf16() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let run = run(folder.path(), &HALF)?;
    let Some(saved) = run.checkpoints("vkd").newest()?.0 else { panic!("no checkpoint") };
    let exported =
        candle_core::safetensors::load(run.path("arms/vkd/student.safetensors"), &Device::Cpu)?;
    let (teacher, _) = checkpoint::load(&run.path("teacher.safetensors"))?;
    for (what, tensors) in
        [("state", &saved.tensors), ("student", &exported), ("teacher", &teacher)]
    {
        let mut finer = 0;
        for (name, tensor) in tensors {
            let numbers = ["largest_residual", "best_validation"].contains(&name.as_str());
            assert_eq!(tensor.dtype() == DType::F32, !numbers, "{what}: {name}");
            let rounded = tensor.to_dtype(DType::BF16)?.to_dtype(tensor.dtype())?;
            let apart = tensor.ne(&rounded)?.to_dtype(DType::U32)?.sum_all()?;
            finer += usize::from(apart.to_scalar::<u32>()? > 0);
        }
        // All but a few are finer than bf16's eight bits.
        assert!(2 * finer > tensors.len(), "{what}: {finer} of {}", tensors.len());
    }
    Ok(())
}

#[test]
fn the_dtype_is_part_of_the_fingerprint_of_those_whom_it_concerns() -> Result<()> {
    let hash = |arm: &str, set: &[&str]| -> Result<String> {
        let recipe = parse(set)?;
        Ok(fingerprint(&recipe, arm, &Dataset::open(&recipe.data)?)?.1)
    };
    let single = ["training.compute=f32", "teacher.compute=f32"];
    for arm in ["none", "vkd"] {
        assert_eq!(hash(arm, &single)?, hash(arm, &[])?);
        assert_ne!(hash(arm, &HALF[..1])?, hash(arm, &[])?);
    }
    assert_eq!(hash("none", &HALF[1..])?, hash("none", &[])?);
    assert_ne!(hash("vkd", &HALF[1..])?, hash("vkd", &[])?);
    Ok(())
}
