//! A GAN is distilled by a recipe, stops and goes on at the same bits, and its generator is scored as it was.

use candle_core::{DType, Device, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use vkd_models::{ClipVision, ClipVisionConfig, GeneratorStudent};
use vkd_nn::VarStore;
use vkd_train::{
    AnyRecipe, ArmResult, Dataset, EventKind, Generation, GenerationRecipe, RunFolderOf, Workload,
    check, evaluate_generator, plan, train_arm, train_teacher,
};

type Run = RunFolderOf<Generation>;

const TEXT: &str = include_str!("gan.toml");

fn recipe(settings: &[&str]) -> Result<GenerationRecipe> {
    let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
    GenerationRecipe::parse(TEXT, "gan.toml", &settings)
}

/// Trains the teacher with its judge and all arms; the observer of an arm fails at step `stop`.
fn run(dir: &Path, settings: &[&str], stop: Option<u64>) -> Result<(Run, Dataset)> {
    let recipe = recipe(settings)?;
    let data = Generation::open(&recipe.data)?;
    check(&recipe, &data)?;
    let run = Run::create(dir, recipe, false)?;
    train_teacher(&run, &data, &mut |_| Ok(()))?;
    for arm in &run.recipe().arms {
        train_arm(&run, &data, arm, &mut |event| match stop {
            Some(stop) if event.step >= stop => bail!("stopped"),
            _ => Ok(()),
        })?;
    }
    run.finish(&data.name, 0.)?;
    Ok((run, data))
}

/// The tensors of a file by name, as bytes are compared.
fn tensors(path: &Path) -> Result<BTreeMap<String, Vec<u64>>> {
    let bits = |(name, t): (String, candle_core::Tensor)| {
        let values = t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        Ok((name, values.into_iter().map(f64::to_bits).collect()))
    };
    candle_core::safetensors::load(path, &Device::Cpu)?.into_iter().map(bits).collect()
}

#[test]
fn arms_are_trained_and_a_saved_generator_scores_as_reported() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (run, data) = run(folder.path(), &["training.steps=12"], None)?;
    let hinges = ["discriminator.hinge.generated", "discriminator.hinge.real", "generator.hinge"];
    let features = ["discriminator.generated.pooled", "discriminator.real.pooled"];
    for arm in &run.recipe().arms {
        let report = run.arm_report(arm)?.unwrap_or_else(|| panic!("{arm} is not finished"));
        let events = run.part_events(arm)?;
        let steps: Vec<_> = events
            .iter()
            .filter_map(|event| match &event.kind {
                EventKind::Step { terms, .. } => Some(terms),
                _ => None,
            })
            .collect();
        // One row a step for both networks.
        assert_eq!(steps.len(), 12, "{arm}");
        let mut want: Vec<&str> = hinges.to_vec();
        if arm != "none" {
            want.extend(features);
        }
        want.sort_unstable();
        assert_eq!(steps[0].keys().map(String::as_str).collect::<Vec<_>>(), want, "{arm}");
        assert_eq!(report.terms.keys().map(String::as_str).collect::<Vec<_>>(), want, "{arm}");
        assert_eq!(report.labels, if arm == "vkd-whiten" { 120 } else { 60 }, "{arm}");
        assert_eq!(report.projector_residual_max.is_some(), arm == "vkd-whiten");
        let scores = [
            "coverage",
            "density",
            "frechet",
            "inception_score",
            "kernel",
            "precision",
            "recall",
            "recognised",
            "validation_frechet",
        ];
        assert_eq!(report.metrics.keys().map(String::as_str).collect::<Vec<_>>(), scores);
        assert!(report.metrics.values().all(|v| v.is_finite()), "{arm}: {:?}", report.metrics);
        let path = run.arm_path(arm, "student.safetensors");
        let student = GeneratorStudent::load(&path, &Device::Cpu)?;
        let found = evaluate_generator(student, &run, &data, &data.test)?;
        for (name, value) in &found {
            // The report went through text.
            let told = report.metrics[name];
            assert!((told - value).abs() <= 1e-15 * value.abs(), "{arm}: {name}: {told} {value}");
        }
        assert_eq!(found.len() + 1, report.metrics.len());
        let result = ArmResult::gather(&run, &data, arm)?;
        assert_eq!((result.task.as_str(), result.curve.len()), ("generation", 4));
        let last = result.curve.last().map(|c| c.1);
        assert_eq!(last, report.metrics.get("validation_frechet").copied());
        assert_eq!(result.geometry.contains_key("cka.pooled"), arm != "none");
        // Two batches of eight a step.
        assert_eq!(result.run.map(|facts| facts.images), Some(12 * 2 * 8));
        for step in [3, 6, 9, 12] {
            let picture = std::fs::read(run.arm_path(arm, &format!("samples-{step:06}.png")))?;
            let picture = vkd_train::Image::decode(&picture, 1)?;
            assert_eq!((picture.width(), picture.height()), (89, 89));
        }
    }
    let weights = run.arm_report("fitnet")?.map(|report| report.terms).unwrap_or_default();
    assert_eq!((weights[features[0]], weights[features[1]]), (0.5, 1.));
    let teacher = run.teacher_report()?.map(|report| report.metrics).unwrap_or_default();
    for name in ["accuracy", "judge_accuracy", "validation_accuracy", "judge_validation_accuracy"] {
        assert!(teacher[name] >= 0.3, "{teacher:?}");
    }
    Ok(())
}

#[test]
fn a_stopped_training_goes_on_at_the_same_bits() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let settings = [
        r#"arms=["running"]"#,
        "training.ema_decay=0.8",
        "training.accumulate=2",
        "training.evaluate_every=2",
        "training.checkpoint_every=2",
        "criterion.lecam={ weight = 0.3, decay = 0.9, start = 3 }",
        "data.augment.flip=0.5",
    ];
    let (alone, _) = run(&folder.path().join("alone"), &settings, None)?;
    let stopped = folder.path().join("stopped");
    for stop in [1, 3, 5] {
        assert!(run(&stopped, &settings, Some(stop)).is_err());
    }
    let workers = [&settings[..], &["data.workers=2"]].concat();
    let (stopped, _) = run(&stopped, &workers, None)?;
    for file in ["student.safetensors", "metrics.jsonl", "arms/running/samples-000006.png"] {
        assert_eq!(std::fs::read(alone.path(file))?, std::fs::read(stopped.path(file))?, "{file}");
    }
    // Both networks, their optimisers, averages, power iterations and the gathered covariance.
    let state = |run: &Run| tensors(&run.arm_path("running", "checkpoint-000006.safetensors"));
    let (a, b) = (state(&alone)?, state(&stopped)?);
    for name in [
        "model.discriminator.linear.weight",
        "model.generator.linear.u0",
        "model.discriminator.lecam.running_mean",
        "model.discriminator.projector.pooled.teacher.moments",
        "optimizer.discriminator.discriminator.projector.pooled.raw.m",
        "optimizer.generator.generator.linear.weight.v",
        "ema.generator.linear.weight",
    ] {
        assert!(a.contains_key(name), "{name}: {:?}", a.keys());
    }
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, values) in &a {
        assert_eq!(values, &b[name], "{name}");
    }
    Ok(())
}

#[test]
fn every_run_has_the_same_judge() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let teacher = |seed: u64| -> Result<BTreeMap<String, Vec<u64>>> {
        let seed = format!("seed={seed}");
        let recipe = recipe(&[&seed, "teacher.steps=3", "teacher.floor=0.0"])?;
        let data = Generation::open(&recipe.data)?;
        let run = Run::create(&folder.path().join(&seed), recipe, false)?;
        train_teacher(&run, &data, &mut |_| Ok(()))?;
        tensors(&run.path("teacher.safetensors"))
    };
    let (a, b) = (teacher(1)?, teacher(2)?);
    assert!(a.keys().any(|name| name.starts_with("judge.")));
    for (name, values) in &a {
        let same = values == &b[name];
        assert!(same || !name.starts_with("judge."), "{name} differs");
        assert!(!same || !name.ends_with("conv.weight") || name.starts_with("judge."), "{name}");
    }
    Ok(())
}

#[test]
fn every_arm_is_planned() -> Result<()> {
    let arms = r#"arms=["none", "fitnet", "vkd-whiten", "running", "batch", "kd-dlgan"]"#;
    let recipe = recipe(&[arms, "criterion.lecam={ weight = 0.3, decay = 0.9 }"])?;
    let data = Generation::open(&recipe.data)?;
    let found = plan(&recipe, &data)?;
    for arm in &found.arms {
        assert!(arm.loss.is_finite() && arm.terms.contains_key("discriminator.lecam"));
        let projects = !matches!(arm.name.as_str(), "none");
        assert_eq!(arm.projector_parameters > 0, projects, "{}", arm.name);
    }
    // The teacher alone, without the judge.
    assert!(found.teacher_parameters > 0 && found.teacher_multiply_adds > 0);
    let less = plan(&self::recipe(&[arms, "criterion.judge.widths=[4, 4]"])?, &data)?;
    assert_eq!(found.teacher_parameters, less.teacher_parameters);
    Ok(())
}

#[test]
fn clip_is_a_teacher_beside_a_judge() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let sizes = ClipVisionConfig {
        image_size: 8,
        patch: 4,
        width: 8,
        depth: 1,
        heads: 2,
        hidden: 8,
        projection: 12,
    };
    let store = VarStore::new(5, DType::F32, &Device::Cpu);
    ClipVision::new(&sizes, store.builder())?;
    let path = folder.path().join("clip.safetensors");
    candle_core::safetensors::save(&store.tensors().into_iter().collect(), &path)?;
    let given = format!("teacher.checkpoint={}", path.display());
    let set = [
        given.as_str(),
        r#"arms=["vkd-whiten"]"#,
        r#"teacher.model={ kind = "clip", input = { smooth = true, normalize = true }, sizes = { image_size = 8, patch = 4, width = 8, depth = 1, heads = 2, hidden = 8, projection = 12 } }"#,
        r#"distill.tap=[{ student = "pooled", teacher = "embedding" }]"#,
        "training.steps=2",
    ];
    let (run, _) = run(&folder.path().join("run"), &set, None)?;
    let kept = tensors(&run.path("teacher.safetensors"))?;
    for (name, values) in tensors(&path)? {
        assert_eq!(kept[&format!("teacher.{name}")], values, "{name}");
    }
    let teacher = run.teacher_report()?.map(|report| report.metrics).unwrap_or_default();
    assert!(!teacher.contains_key("accuracy") && teacher["judge_accuracy"] > 0.3);
    assert!(!teacher.contains_key("validation_accuracy"), "the judge's is not the teacher's");
    let says = |set: &[&str]| recipe(set).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(says(&set[1..]).contains("teacher.checkpoint: expected CLIP's weights"));
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() -> Result<()> {
    let says = |set: &[&str]| -> String {
        let found = recipe(set).and_then(|recipe| {
            let data = Generation::open(&recipe.data)?;
            plan(&recipe, &data).map(|_| ())
        });
        found.err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert_eq!(says(&[]), "");
    for (set, part) in [
        ("data.mean=[0.1]", "data.mean: expected none with task = \"generation\""),
        ("data.augment.mixup=0.5", "data.augment.mixup and cutmix: expected none"),
        ("arm.none.logits=1.0", "arm.none.logits: expected none"),
        (r#"arm.none.labels="none""#, "arm.none.labels = \"none\": expected none"),
        ("arm.none.generated=1.0", "arm.none.generated: expected it beside features above 0"),
        ("training.compute=bf16", "training.compute = \"bf16\": expected none"),
        ("student.generator.stages=2", "the data's 8 pixels, got 16"),
        ("student.discriminator.halvings=3", "halvings: expected at most 2 blocks, got 3"),
        ("criterion.discriminator_steps=0", "criterion.discriminator_steps: expected at least 1"),
        ("criterion.samples=3", "criterion.samples: expected more than the 3 neighbours, got 3"),
        ("criterion.neighbours=30", "data: expected at least 31 validation images"),
        ("criterion.diff_augment.cutout=1.5", "cutout: expected a share in [0, 1]"),
        ("criterion.lecam={ weight = -1.0, decay = 0.9 }", "criterion.lecam.weight: expected"),
        ("criterion.judge.kind=mlp", "unknown variant `mlp`"),
        ("teacher.model.widths=[4, 0]", "expected"),
        ("teacher.model.with=[4]", "unknown field `with`"),
        ("distill.shrinkage=2.0", "distill.shrinkage: expected a share in [0, 1], got 2"),
        (
            "arm.fitnet.shrinkage=0.1",
            "arm.fitnet.shrinkage: expected it beside a teacher_normalizer",
        ),
        (r#"arm.fitnet.covariance="data""#, "arm.fitnet.covariance: expected it beside"),
        ("criterion.samples=9", "criterion.samples: expected at least one for each of 10 classes"),
        ("distill.covariance=all", "unknown variant `all`"),
        (r#"arm.fitnet.projector="none""#, "projector: expected one"),
        (r#"distill.tap=[{ student = "pool", teacher = "pooled" }]"#, "expected one of block1"),
        ("distill.tap=[]", "distill.tap: expected one for a GAN, got 0"),
        ("criterion.reach=3.0", "unknown field `reach`"),
        (r#"distill.loss="token_matching""#, "token_matching: expected none"),
    ] {
        let message = says(&[set]);
        assert!(message.contains(part), "{set}: {message}");
    }
    // Other tasks know none of it.
    let digits = include_str!("tiny.toml");
    for set in [
        "distill.covariance=data",
        "distill.texts=a.safetensors",
        "arm.vkd.texts=a.safetensors",
        "arm.vkd.generated=1.0",
        "distill.loss=kd_dlgan",
    ] {
        let e = AnyRecipe::parse(digits, "tiny.toml", &[set.to_owned()]).map(|_| ()).unwrap_err();
        assert!(e.to_string().contains("expected none with task"), "{set}: {e}");
    }
    assert!(matches!(AnyRecipe::parse(TEXT, "gan.toml", &[])?, AnyRecipe::Generation(_)));
    Ok(())
}

#[test]
fn a_diverged_gan_stops_and_keeps_its_last_state() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let set = [
        r#"arms=["none"]"#,
        "training.learning_rate=1e30",
        "training.checkpoint_every=1",
        "training.warmup=4",
    ];
    let e = run(folder.path(), &set, None).map(|_| ()).unwrap_err().to_string();
    assert!(e.contains("none: step") && e.contains("finite"), "{e}");
    assert!(e.contains("holds the state after step") || e.contains("no checkpoint"), "{e}");
    Ok(())
}

/// CIFAR's files of one image each way.
#[test]
fn cifars_recipes_fit_together_at_small_size() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("clip.safetensors");
    let sizes = ClipVisionConfig {
        image_size: 32,
        patch: 16,
        width: 8,
        depth: 1,
        heads: 2,
        hidden: 8,
        projection: 12,
    };
    let store = VarStore::new(5, DType::F32, &Device::Cpu);
    ClipVision::new(&sizes, store.builder())?;
    candle_core::safetensors::save(&store.tensors().into_iter().collect(), &path)?;
    for name in ["cifar10-biggan-10pct", "cifar100-biggan-10pct"] {
        let file = format!("{}/../../recipes/{name}.toml", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&file)?;
        let full = GenerationRecipe::parse(&text, &file, &[])?;
        // Of the published runs: 5,000 images, four updates of the discriminator with 50 images each.
        let steps = full.criterion.discriminator_steps;
        assert_eq!((full.data.labels, full.training.batch, steps), (5000, 50, 4));
        let (pixels, classes) = match name.starts_with("cifar100") {
            true => (2, 100u8),
            false => (1, 10),
        };
        let record = |class: u8| {
            let labels = vec![class; pixels];
            let values = (0..3 * 32 * 32).map(move |i| (i * 37 % 251) as u8);
            labels.into_iter().chain(values)
        };
        let dir = folder.path().join(name);
        std::fs::create_dir_all(&dir)?;
        let some: Vec<u8> = (0..20).flat_map(|i| record(i % classes)).collect();
        match classes {
            100 => std::fs::write(dir.join("train.bin"), &some)?,
            _ => {
                for part in 1..=5 {
                    std::fs::write(dir.join(format!("data_batch_{part}.bin")), &some)?;
                }
            }
        }
        let test = if classes == 100 { "test.bin" } else { "test_batch.bin" };
        std::fs::write(dir.join(test), &some)?;
        let set = [
            format!("data.dir={}", dir.display()),
            format!("teacher.checkpoint={}", path.display()),
            "data.train=10".to_owned(),
            "data.validation=8".to_owned(),
            "data.labels=10".to_owned(),
            "training.batch=4".to_owned(),
            "student.generator.width=4".to_owned(),
            "student.discriminator.width=4".to_owned(),
            "criterion.judge.width=4".to_owned(),
            "teacher.model.sizes={ image_size = 32, patch = 16, width = 8, depth = 1, heads = 2, hidden = 8, projection = 12 }".to_owned(),
        ];
        let recipe = GenerationRecipe::parse(&text, &file, &set)?;
        let found = plan(&recipe, &Generation::open(&recipe.data)?)?;
        assert!(found.arms.iter().all(|arm| arm.loss.is_finite()), "{name}");
    }
    Ok(())
}
