//! Whole runs on a recipe of seconds: determinism, reuse, refusals, and what survives a fault.

use candle_core::{DType, Device, Result};
use std::path::Path;
use std::sync::Arc;
use vkd_models::{Architecture, CnnConfig, ModelConfig, Student, VitConfig};
use vkd_nn::{Context, VarStore};
use vkd_ortho::{OrthogonalConfig, OrthogonalMap};
use vkd_tasks::{
    Batch, ClassificationTask, DistillTask, Distiller, FeatureLoss, LogitLoss, ProjectorConfig,
    TapConfig, Teacher,
};
use vkd_testkit::{gradcheck_variables, normal};
use vkd_train::{
    Dataset, EventKind, Recipe, Report, RunFolder, check, checkpoint, decays, evaluate_student,
    network, train_arm, train_teacher,
};

const TINY: &str = include_str!("tiny.toml");

fn recipe(overrides: &[&str]) -> Result<Recipe> {
    Recipe::parse(TINY, "tiny.toml", &overrides.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
}

fn run(dir: &Path, overrides: &[&str]) -> Result<Report> {
    let recipe = recipe(overrides)?;
    let data = Dataset::open(&recipe.data)?;
    check(&recipe, &data)?;
    let run = RunFolder::create(dir, recipe, false)?;
    train_teacher(&run, &data, &mut |_| Ok(()))?;
    for arm in run.recipe().arms.clone() {
        train_arm(&run, &data, &arm, &mut |_| Ok(()))?;
    }
    run.finish(&data.name, 0.)
}

fn says(result: Result<impl Sized>) -> String {
    result.err().map(|e| vkd_train::plain(&e)).unwrap_or_default()
}

/// The real student, projector and losses in f64: every trainable variable against central differences.
#[test]
fn the_whole_loss_of_the_real_networks_has_right_gradients() -> Result<()> {
    let store = VarStore::new(3, DType::F64, &Device::Cpu);
    let sized =
        |architecture| ModelConfig { image_size: 8, channels: 1, classes: 10, architecture };
    let vit = VitConfig { patch: 4, width: 6, depth: 2, heads: 2, mlp_ratio: 2, drop_path: 0.2 };
    let vit = sized(Architecture::Vit(vit)).build(store.builder().pp("student"))?;
    let teacher_store = VarStore::new(4, DType::F64, &Device::Cpu);
    let cnn = Architecture::Cnn(CnnConfig { widths: vec![4, 9] });
    let cnn = sized(cnn).build(teacher_store.builder())?;
    let tap = TapConfig {
        student: vkd_train::STUDENT_TAP.to_owned(),
        student_width: 6,
        teacher: vkd_train::TEACHER_TAP.to_owned(),
        teacher_width: 9,
        projector: ProjectorConfig::Orthogonal(OrthogonalConfig::new(OrthogonalMap::Cayley, 1)),
        student_normalizer: "identity".parse()?,
        teacher_normalizer: "layer_norm".parse()?,
        loss: FeatureLoss::SmoothL1 { beta: 1. },
        weight: 50.,
    };
    let logits = Some(LogitLoss { temperature: 1., weight: 1. });
    let distiller = Distiller::new(vec![tap], logits, store.builder().pp("projector"))?;
    let teacher = Teacher::new(network(cnn));
    let task = ClassificationTask::new(network(vit), Some((teacher, distiller)), 0.1)?;
    let batch = Batch {
        images: normal(&[5, 1, 8, 8], DType::F64, 7)?,
        labels: candle_core::Tensor::new(&[3u32, 1], &Device::Cpu)?,
        sample_ids: Arc::from([1, 2, 3, 4, 5]),
    };
    let ctx = Context::train(1, 2, batch.sample_ids.clone());
    let loss = || Ok(task.step(&batch, &task.phases()[0], &ctx)?.loss);
    assert!(store.parameters().iter().any(|(n, _)| n == "projector.tokens.raw"));
    gradcheck_variables(&store.parameters(), loss)?;
    let grads = loss()?.backward()?;
    assert!(teacher_store.parameters().iter().all(|(_, v)| grads.get(v).is_none()));
    Ok(())
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_does_not() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [a, b, c] = ["a", "b", "c"].map(|n| folder.path().join(n));
    let arms = r#"arms=["vkd"]"#;
    let report = run(&a, &[arms])?;
    run(&b, &[arms])?;
    run(&c, &[arms, "seed=1"])?;
    let bytes = |dir: &Path| std::fs::read(dir.join("student.safetensors"));
    // Looking at the terms' gradients changes no bit, and each term has one.
    let d = folder.path().join("d");
    run(&d, &[arms, "training.term_gradients=true"])?;
    assert_eq!(bytes(&a)?, bytes(&d)?);
    let last = RunFolder::open(&d)?.part_events("vkd")?.pop();
    let Some(EventKind::Geometry { geometry }) = last.map(|e| e.kind) else {
        panic!("no geometry")
    };
    for term in ["label", "logits", "feature.tokens"] {
        assert!(geometry[&format!("gradient.{term}")] > 0., "{geometry:?}");
    }
    assert_eq!(bytes(&a)?, bytes(&b)?);
    assert_ne!(bytes(&a)?, bytes(&c)?);
    assert!(report.arms[0].projector_residual_max.is_some_and(|r| r <= 1e-6));
    Ok(())
}

#[test]
fn a_run_leaves_what_its_page_promises() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let report = run(folder.path(), &[])?;
    let names: Vec<&str> = report.arms.iter().map(|a| a.name.as_str()).collect();
    assert_eq!(names, ["none", "logits", "linear", "vkd", "none-all-labels"]);
    for arm in &report.arms {
        let orthogonal = arm.name == "vkd";
        assert_eq!(arm.projector_residual_max.is_some(), orthogonal, "{}", arm.name);
        assert_eq!(arm.labels, if arm.name == "none-all-labels" { 200 } else { 20 });
    }
    assert_eq!(report.arms[3].terms["feature.tokens"], 5.);
    // The exported student holds no projector and scores what the report says.
    let path = folder.path().join("student.safetensors");
    let data = Dataset::open(&recipe(&[])?.data)?;
    let student = Student::load(&path, &Device::Cpu)?;
    let found = evaluate_student(&student, &data, &data.test)?;
    let metrics = &report.arms[3].metrics;
    assert_eq!(
        (found.accuracy, found.top5_accuracy),
        (metrics["accuracy"], metrics["top5_accuracy"])
    );
    // The saved student computes its softmax inputs as the trained one did.
    assert_eq!(found.calibration_error, metrics["calibration_error"]);
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu)?;
    assert!(tensors.keys().all(|k| !k.contains("projector") && !k.contains("student.")));
    // Every row of the metrics reads back; the vkd arm has a residual and three terms.
    let run = RunFolder::open(folder.path())?;
    let events = run.events()?;
    let steps = events
        .iter()
        .filter(|e| e.arm == "vkd" && matches!(e.kind, EventKind::Step { .. }))
        .count();
    assert_eq!(steps, 6);
    // Each of its two validations comes with the features' geometry, before any projector.
    let ranks: Vec<f64> = events
        .iter()
        .filter(|e| e.arm == "vkd")
        .filter_map(|e| match &e.kind {
            EventKind::Geometry { geometry } => Some(geometry["rank.tokens"]),
            _ => None,
        })
        .collect();
    assert!(ranks.len() == 2 && ranks.iter().all(|r| (1. ..=4.).contains(r)), "{ranks:?}");
    assert!(events.iter().any(|e| e.arm == "teacher"));
    // The checkpoint holds projector and optimiser beside the student.
    let (state, note) = checkpoint::load(&run.checkpoints("vkd").path(6))?;
    assert_eq!(note["step"], 6);
    for key in [
        "model.projector.tokens.raw",
        "model.projector.tokens.base",
        "optimizer.student.student.head.weight.m",
    ] {
        assert!(state.contains_key(key), "{key}");
    }
    // The recipe on disk is complete: read back, it is the same.
    assert_eq!(run.recipe(), &recipe(&[])?);
    Ok(())
}

/// Every kind of projector and loss that an arm can have trains, with its own settings in place of the shared ones.
#[test]
fn arms_differ_in_what_they_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let common = "labels = \"few\"\nfeatures = 2.0";
    let kinds = [
        ("mlp", "projector = \"mlp\"\nhidden = 5"),
        ("bare", "teacher_normalizer = \"identity\"\nmap = \"householder\"\nloss = \"mse\""),
        ("published", "projector = \"as_published\""),
        ("spkd", "projector = \"none\"\nloss = \"spkd\""),
        ("pkt", "projector = \"none\"\nloss = \"pkt\""),
        ("rkd", "projector = \"none\"\nloss = \"rkd_distance\""),
        ("dist", "logits = 1.0\nlogit_loss = \"dist\""),
        ("standard", "logits = 1.0\nlogit_loss = \"logit_standardization\""),
        ("angle", "projector = \"none\"\nloss = \"rkd_angle\""),
    ];
    let tables = kinds.map(|(name, table)| format!("\n[arm.{name}]\n{common}\n{table}\n"));
    let names = kinds.map(|(name, _)| format!("{name:?}")).join(", ");
    let set = [format!("arms=[{names}]")];
    let recipe = Recipe::parse(&format!("{TINY}{}", tables.concat()), "arms.toml", &set)?;
    let data = Dataset::open(&recipe.data)?;
    check(&recipe, &data)?;
    let run = RunFolder::create(folder.path(), recipe, false)?;
    train_teacher(&run, &data, &mut |_| Ok(()))?;
    for (name, _) in kinds {
        let mut last = None;
        let report = train_arm(&run, &data, name, &mut |e| {
            if let EventKind::Step { terms, residual, .. } = &e.kind {
                last = Some((terms["feature.tokens"], *residual));
            }
            Ok(())
        })?;
        let (_, state) = (report.terms["feature.tokens"], last);
        let residual = state.and_then(|(_, residual)| residual);
        match name {
            "bare" | "dist" | "standard" => {
                assert!(residual.is_some_and(|r| r <= 1e-6), "{name}: {residual:?}")
            }
            // Zero after the first update, and it stays zero.
            "published" => assert_eq!(residual, Some(1.)),
            _ => assert_eq!(residual, None, "{name}"),
        }
        let path = run.arm_path(name, "student.safetensors");
        assert!(evaluate_student(&Student::load(&path, &Device::Cpu)?, &data, &data.test).is_ok());
    }
    let (state, _) = checkpoint::load(&run.checkpoints("mlp").path(6))?;
    assert_eq!(state["model.projector.tokens.hidden.weight"].dims(), [5, 4]);
    Ok(())
}

#[test]
fn finished_parts_are_reused_and_other_recipes_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    run(folder.path(), &[r#"arms=["none"]"#])?;
    let before = std::fs::metadata(folder.path().join("teacher.safetensors"))?.modified()?;
    // Another arm in the same run: the teacher stays.
    run(folder.path(), &[r#"arms=["none", "logits"]"#])?;
    assert_eq!(std::fs::metadata(folder.path().join("teacher.safetensors"))?.modified()?, before);
    let message = says(RunFolder::create(folder.path(), recipe(&["training.steps=7"])?, false));
    assert!(message.contains("training.steps is 7 here and 6 there"), "{message}");
    let elsewhere = RunFolder::fits(folder.path(), &recipe(&["training.device=cuda"])?);
    let message = says(elsewhere);
    assert!(message.contains("training.device is \"cuda\" here and nothing there"), "{message}");
    assert!(RunFolder::fits(folder.path(), &recipe(&["arms=[\"vkd\"]"])?)?);
    assert!(!RunFolder::fits(&folder.path().join("new"), &recipe(&[])?)?);
    RunFolder::create(folder.path(), recipe(&["training.steps=7"])?, true)?;
    assert!(!folder.path().join("teacher.safetensors").exists(), "overwriting starts anew");
    // A folder with something else in it is left alone, and what is not ours survives even --overwrite.
    let other = tempfile::tempdir()?;
    std::fs::write(other.path().join("thesis.tex"), "years of work")?;
    assert!(
        says(RunFolder::create(other.path(), recipe(&[])?, false)).contains("without recipe.toml")
    );
    RunFolder::create(other.path(), recipe(&[])?, true)?;
    assert!(other.path().join("thesis.tex").exists());
    Ok(())
}

#[test]
fn a_tap_is_chosen_by_name() -> Result<()> {
    let (usual, named, grid) = (tempfile::tempdir()?, tempfile::tempdir()?, tempfile::tempdir()?);
    let arms = r#"arms=["vkd"]"#;
    let student = |dir: &tempfile::TempDir| std::fs::read(dir.path().join("student.safetensors"));
    run(usual.path(), &[arms])?;
    run(named.path(), &[arms, r#"distill.tap=[{student="tokens", teacher="pooled"}]"#])?;
    let report = run(grid.path(), &[arms, r#"distill.tap=[{student="tokens", teacher="grid"}]"#])?;
    assert_eq!(student(&usual)?, student(&named)?);
    assert_eq!(report.arms[0].terms["feature.tokens"], 5.);
    // Written and read back.
    let again = RunFolder::open(grid.path())?;
    assert_eq!(again.recipe().distill.tap[0].teacher, "grid");
    Ok(())
}

#[test]
fn tokens_and_positions_of_both_networks_have_no_weight_decay() {
    for name in ["cls_token", "dist_token", "pos_embed"] {
        for name in [name.to_owned(), format!("student.{name}")] {
            assert!(!decays(&name, 3), "{name}");
        }
    }
    for (name, rank) in [("projector.0.weight", 2), ("student.norm.weight", 1), ("head.bias", 1)] {
        assert!(!decays(name, rank), "{name}");
    }
    for (name, rank) in [("student.blocks.0.attn.qkv.weight", 2), ("stage1.conv.weight", 4)] {
        assert!(decays(name, rank), "{name}");
    }
}

#[test]
fn a_teacher_below_its_floor_stops_the_run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let message = says(run(folder.path(), &["teacher.floor=0.999"]));
    assert!(message.contains("at least 0.999 (teacher.floor), got 0."), "{message}");
    Ok(())
}

#[test]
fn a_given_teacher_is_used_and_must_fit() -> Result<()> {
    let (first, second) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let one = run(first.path(), &[r#"arms=["vkd"]"#])?;
    let checkpoint =
        format!("teacher.checkpoint={}", first.path().join("teacher.safetensors").display());
    let two = run(second.path(), &[r#"arms=["vkd"]"#, &checkpoint])?;
    assert_eq!(one.teacher.metrics, two.teacher.metrics);
    assert_eq!(one.arms[0].metrics, two.arms[0].metrics);
    let third = tempfile::tempdir()?;
    let message = says(run(third.path(), &[&checkpoint, "teacher.model.widths=[4, 16]"]));
    assert!(
        message.contains("teacher.safetensors") && message.contains("expected [16, 4, 3, 3]"),
        "{message}"
    );
    let message = says(run(third.path(), &["teacher.checkpoint=nowhere.safetensors"]));
    assert!(message.contains("teacher.checkpoint: nowhere.safetensors: "), "{message}");
    assert!(std::fs::read_dir(third.path())?.next().is_none(), "nothing is written");
    Ok(())
}

#[test]
fn a_loss_that_breaks_names_its_term_and_keeps_the_last_good_state() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // Finite for a while, then beyond f32.
    let arms = r#"arms=["logits"]"#;
    let rates = ["training.learning_rate=1e30", "training.warmup=5", "training.checkpoint_every=1"];
    let message = says(run(folder.path(), &[&[arms], &rates[..]].concat()));
    assert!(message.starts_with("logits: step "), "{message}");
    let run = RunFolder::open(folder.path())?;
    assert!(run.arm_report("logits")?.is_none());
    let (newest, passed_over) = run.checkpoints("logits").newest()?;
    assert!(passed_over.is_empty());
    match newest {
        Some(saved) => {
            for (name, tensor) in &saved.tensors {
                let sum = tensor.to_dtype(DType::F64)?.abs()?.sum_all()?.to_scalar::<f64>()?;
                assert!(sum.is_finite(), "{name}");
            }
            let step = saved.note.step;
            assert!(message.contains(&format!("the state after step {step}")), "{message}");
        }
        None => assert!(message.contains("no checkpoint had been written yet"), "{message}"),
    }
    // The teacher, finished before, is whole.
    assert!(run.teacher_report()?.is_some());
    Ok(())
}

#[test]
fn a_weight_that_takes_a_term_out_of_range_names_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let message = says(run(folder.path(), &[r#"arms=["vkd"]"#, "arm.vkd.features=1e39"]));
    assert!(
        message.contains("vkd: step 0") && message.contains("the term feature.tokens"),
        "{message}"
    );
    Ok(())
}

#[test]
fn overwriting_touches_nothing_but_the_runs_own_files() -> Result<()> {
    let folder = tempfile::tempdir()?;
    run(folder.path(), &[r#"arms=["none"]"#])?;
    let mine = folder.path().join("arms/none/notes.txt");
    std::fs::write(&mine, "keep me")?;
    RunFolder::create(folder.path(), recipe(&["seed=5"])?, true)?;
    assert!(mine.exists() && !folder.path().join("arms/none/student.safetensors").exists());
    Ok(())
}

#[test]
fn sizes_that_do_not_fit_are_refused_before_training() -> Result<()> {
    for (change, part) in [
        ("student.heads=3", "heads: expected a divisor of the width 4, got 3"),
        ("student.patch=3", "patch: expected a divisor of the image size 8, got 3"),
        ("distill.map=cailey", "cailey"),
        (
            r#"distill.tap=[{student="tokens", teacher="deep"}]"#,
            "expected one of grid, pooled, stage1, stage2, got deep",
        ),
        (
            r#"distill.tap=[{student="head", teacher="grid"}]"#,
            "expected one of class_token, distillation_token, stem_tokens, tokens, got head",
        ),
        (
            r#"distill.tap=[{student="tokens", teacher="grid"}, {student="tokens", teacher="pooled"}]"#,
            "expected one tap on tokens, got two",
        ),
        ("distill.teacher_normalizer=batch", "batch"),
        ("distill.beta=0", "beta"),
        ("data.labels=500", "at most the 200 training images, got 500"),
        ("data.train=1750", "expected train + validation of at most 1797 images, got 1750 + 50"),
        ("data.shift=4", "data.shift"),
        ("data.kind=idx", "data.dir"),
        ("teacher.model.widths=[]", "at least one width"),
    ] {
        let checked = || -> Result<()> {
            let recipe = recipe(&[change, r#"arms=["vkd"]"#])?;
            check(&recipe, &Dataset::open(&recipe.data)?)
        };
        let message = says(checked());
        assert!(message.contains(part), "{change}: {message}");
    }
    Ok(())
}
