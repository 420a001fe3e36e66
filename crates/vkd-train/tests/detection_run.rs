//! A detector is distilled from another by a recipe, stops and goes on at the same bits, and is scored as it was.

use candle_core::{DType, Device, Result, bail};
use std::path::Path;
use vkd_models::{DetectorConfig, DetectorStudent};
use vkd_nn::VarStore;
use vkd_train::{
    AnyRecipe, ArmResult, DetectionDataset, DetectionRecipe, EventKind, Recipe, RunFolderOf, check,
    evaluate_detector, plan, train_arm, train_teacher,
};

type Run = RunFolderOf<vkd_train::Detection>;

fn recipe(settings: &[&str]) -> Result<DetectionRecipe> {
    let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
    DetectionRecipe::parse(include_str!("scenes.toml"), "scenes.toml", &settings)
}

/// Trains the teacher and all arms; the observer of an arm fails at step `stop`.
fn run(dir: &Path, settings: &[&str], stop: Option<u64>) -> Result<(Run, DetectionDataset)> {
    let recipe = recipe(settings)?;
    let data = DetectionDataset::open(&recipe.data)?;
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

#[test]
fn arms_are_trained_and_a_saved_student_scores_as_reported() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let longer = ["training.steps=80", "training.evaluate_every=40", "teacher.steps=80"];
    let (run, data) = run(folder.path(), &longer, None)?;
    let terms = |arm: &str| -> Result<Vec<String>> {
        let events = run.part_events(arm)?;
        let first = events.into_iter().find_map(|event| match event.kind {
            EventKind::Step { terms, .. } => Some(terms.into_keys().collect()),
            _ => None,
        });
        Ok(first.unwrap_or_default())
    };
    assert_eq!(terms("none")?, ["centerness", "class", "giou"]);
    assert_eq!(terms("token-matching")?, ["centerness", "class", "feature", "giou"]);
    let taps = ["centerness", "class", "feature.neck1", "feature.neck2", "giou"];
    assert_eq!(terms("vkd")?, taps);
    for arm in &run.recipe().arms {
        let report = run.arm_report(arm)?.unwrap_or_else(|| panic!("{arm} is not finished"));
        let path = run.arm_path(arm, "student.safetensors");
        let student = DetectorStudent::load(&path, &Device::Cpu)?;
        let (scores, found) =
            evaluate_detector(&student, &data, &run.recipe().data, &data.test, 4)?;
        assert_eq!(report.metrics.get("ap").copied(), scores.ap, "{arm}");
        assert_eq!(report.metrics.get("ar100").copied(), scores.ar100, "{arm}");
        assert!(!found.is_empty() && report.labels == 12, "{arm}");
        assert_eq!(report.projector_residual_max.is_some(), arm == "vkd");
        let result = ArmResult::gather(&run, &data, arm)?;
        assert_eq!((result.task.as_str(), result.curve.len()), ("detection", 2));
        assert_eq!(
            result.curve.last().map(|c| c.1),
            result.arm.metrics.get("validation_ap").copied()
        );
    }
    let weights = run.arm_report("vkd")?.map(|report| report.terms).unwrap_or_default();
    assert_eq!(weights.into_values().collect::<Vec<_>>(), [4., 2., 1.]);
    let result = ArmResult::gather(&run, &data, "vkd")?;
    let features: Vec<&String> = result.geometry.keys().collect();
    assert!(features.iter().any(|k| *k == "cka.neck2"), "{features:?}");
    Ok(())
}

/// The same scenes as files, whose mean and deviation are taken to be ImageNet's and whose images would be resized.
#[test]
fn a_saved_detector_sees_another_data_set_as_its_own() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let longer = ["arms=[\"none\"]", "training.steps=80", "teacher.steps=8"];
    let (run, data) = run(&folder.path().join("run"), &longer, None)?;
    let vkd_train::DetectionSource::Scenes(scenes) = &run.recipe().data.source else {
        bail!("expected scenes")
    };
    let files = folder.path().join("files");
    vkd_train::write_scenes(&files, scenes)?;
    let set = [
        format!(
            "data.source={{ kind = \"coco\", dir = {:?}, train = \"train\", validation = \"val\", test = \"test\", channels = 1 }}",
            files.display().to_string()
        ),
        "data.test_side=48".to_owned(),
    ];
    let set: Vec<&str> = set.iter().map(String::as_str).collect();
    let other = recipe(&set)?;
    let read = DetectionDataset::open(&other.data)?;
    assert_ne!(read.preprocessing(), data.preprocessing());
    let path = run.arm_path("none", "student.safetensors");
    let student = DetectorStudent::load(&path, &Device::Cpu)?;
    let (want, _) = evaluate_detector(&student, &data, &run.recipe().data, &data.test, 4)?;
    let (got, _) = evaluate_detector(&student, &read, &other.data, &read.test, 4)?;
    assert!(want.ap.is_some_and(|ap| ap > 0.), "{want:?}");
    assert_eq!((got.ap, got.ar100), (want.ap, want.ar100));

    // A part without a box is refused before any training; other boxes of the same images are another data set.
    let check_files = || -> Result<String> {
        let data = DetectionDataset::open(&other.data)?;
        check(&other, &data)?;
        Ok(vkd_train::fingerprint(&other, "none", &data)?.1)
    };
    let before = check_files()?;
    let path = files.join("annotations/instances_train.json");
    let text = std::fs::read_to_string(&path)?;
    let mut json: serde_json::Value =
        serde_json::from_str(&text).map_err(candle_core::Error::wrap)?;
    for annotation in json["annotations"].as_array_mut().into_iter().flatten() {
        annotation["image_id"] = 1.into();
    }
    std::fs::write(&path, json.to_string())?;
    assert_ne!(check_files()?, before);
    json["annotations"] = serde_json::Value::Array(Vec::new());
    std::fs::write(&path, json.to_string())?;
    let e = check_files().map(|_| ()).unwrap_err().to_string();
    assert!(e.contains("data.source.train: expected a box with an area"), "{e}");
    Ok(())
}

#[test]
fn a_stopped_training_goes_on_at_the_same_bits() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let settings = [r#"arms=["vkd"]"#, "training.ema_decay=0.8", "training.accumulate=2"];
    let (alone, _) = run(&folder.path().join("alone"), &settings, None)?;
    let stopped = folder.path().join("stopped");
    for stop in [1, 4, 5] {
        assert!(run(&stopped, &settings, Some(stop)).is_err());
    }
    let workers = [&settings[..], &["data.workers=2"]].concat();
    let (stopped, _) = run(&stopped, &workers, None)?;
    for file in ["student.safetensors", "metrics.jsonl"] {
        assert_eq!(std::fs::read(alone.path(file))?, std::fs::read(stopped.path(file))?, "{file}");
    }
    Ok(())
}

#[test]
fn a_student_starts_from_given_weights_and_a_teacher_is_loaded() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let recipe = recipe(&[])?;
    let save = |architecture, seed: u64, name: &str| -> Result<std::path::PathBuf> {
        let store = VarStore::new(seed, DType::F32, &Device::Cpu);
        DetectorConfig { channels: 1, classes: 10, architecture }.build(store.builder())?;
        let path = folder.path().join(name);
        candle_core::safetensors::save(&store.tensors().into_iter().collect(), &path)?;
        Ok(path)
    };
    let student = save(recipe.student.clone(), 7, "student.safetensors")?;
    let teacher = save(recipe.teacher.model.clone(), 8, "teacher.safetensors")?;
    let settings = [
        r#"arms=["none"]"#.to_owned(),
        // So small a rate that what is saved are the given weights.
        "training.learning_rate=1e-12".to_owned(),
        "training.min_learning_rate=0.0".to_owned(),
        format!("init.checkpoint={}", student.display()),
        format!("teacher.checkpoint={}", teacher.display()),
        "init.part=stages".to_owned(),
        "init.prefix=stages".to_owned(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let (run, _) = run(&folder.path().join("run"), &settings, None)?;
    let given = candle_core::safetensors::load(&student, &Device::Cpu)?;
    let kept = candle_core::safetensors::load(run.path("student.safetensors"), &Device::Cpu)?;
    let gap = |name: &str| -> Result<f32> {
        (&given[name] - &kept[name])?.abs()?.max_all()?.to_scalar::<f32>()
    };
    assert!(gap("stages.0.down.conv.weight")? < 1e-6);
    assert!(gap("stem.conv.weight")? > 1e-3, "not named, so drawn");
    Ok(())
}

/// Scenes as COCO files in colour, and a ViDT's weights.
#[test]
fn cocos_recipes_fit_together_at_small_size() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let scenes = vkd_train::ScenesConfig {
        train: 3,
        validation: 2,
        test: 2,
        channels: 3,
        ..Default::default()
    };
    vkd_train::write_scenes(folder.path(), &scenes)?;
    let small = |table: &str| {
        [
            format!("{table}.width=12"),
            format!("{table}.depths=[1, 1, 1, 1]"),
            format!("{table}.heads=[1, 1, 2, 2]"),
            format!("{table}.reduced=32"),
            format!("{table}.queries=7"),
            format!("{table}.decoder_layers=2"),
            format!("{table}.decoder_hidden=32"),
        ]
    };
    let mut set = vec![
        format!("data.source.dir={}", folder.path().display()),
        "data.source.train=train".to_owned(),
        "data.source.validation=val".to_owned(),
        "data.source.test=test".to_owned(),
        "data.sides=[64, 80]".to_owned(),
        "data.test_side=64".to_owned(),
        "data.augment.crop={ probability = 0.5, sides = [72], least = 48, most = 64 }".to_owned(),
        "data.workers=0".to_owned(),
        r#"arms=["none", "token-matching", "linear", "vkd"]"#.to_owned(),
        "init.allow=[\"det_token\", \"det_pos_embed\", \"layers\"]".to_owned(),
    ];
    set.extend(small("teacher.model"));
    set.extend(small("student"));
    for name in ["coco-vidt-nano.toml", "coco-vidt-tiny.toml"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes").join(name);
        let text = std::fs::read_to_string(path)?;
        let full = DetectionRecipe::parse(&text, name, &[])?;
        let nano = vkd_models::VidtConfig::nano();
        let wanted = if name.contains("nano") { nano } else { vkd_models::VidtConfig::tiny() };
        assert_eq!(full.student, vkd_models::DetectorArchitecture::Vidt(wanted));
        let base = vkd_models::DetectorArchitecture::Vidt(vkd_models::VidtConfig::base());
        assert_eq!(full.teacher.model, base);
        // The names that a Swin classifier lacks are the detector's own.
        let (init, model) = (full.init.clone().unwrap_or_else(|| panic!("init")), &full.student);
        let config = DetectorConfig { channels: 3, classes: 91, architecture: model.clone() };
        let variables = config.variables()?;
        for name in &init.allow {
            let under = format!("backbone.{name}");
            assert!(variables.keys().any(|key| key.starts_with(&under)), "{name}");
        }
        let mut own: Vec<&String> = variables
            .keys()
            .filter(|key| key.starts_with("backbone.") && key.contains("det_"))
            .collect();
        own.retain(|key| !init.allow.iter().any(|n| key.starts_with(&format!("backbone.{n}"))));
        assert!(own.is_empty(), "{own:?}");

        let recipe = DetectionRecipe::parse(&text, name, &set)?;
        let data = DetectionDataset::open(&recipe.data)?;
        assert_eq!(data.class_names.len(), 11, "ids are classes");
        let store = |architecture: &vkd_models::DetectorArchitecture| -> Result<VarStore> {
            let store = VarStore::new(3, DType::F32, &Device::Cpu);
            let architecture = architecture.clone();
            DetectorConfig { channels: 3, classes: 11, architecture }.build(store.builder())?;
            Ok(store)
        };
        let teacher = folder.path().join("teacher.safetensors");
        let all = store(&recipe.teacher.model)?.tensors().into_iter().collect();
        candle_core::safetensors::save(&all, &teacher)?;
        let body = folder.path().join("body.safetensors");
        let names = |(name, t): (String, candle_core::Tensor)| {
            Some((name.strip_prefix("backbone.")?.to_owned(), t))
        };
        let part = store(&recipe.student)?.tensors().into_iter().filter_map(names).collect();
        candle_core::safetensors::save(&part, &body)?;
        let files = [
            format!("teacher.checkpoint={}", teacher.display()),
            format!("init.checkpoint={}", body.display()),
        ];
        let recipe = DetectionRecipe::parse(&text, name, &[&set[..], &files].concat())?;
        // One step of every arm, gradients audited.
        let plan = plan(&recipe, &data)?;
        assert!(plan.arms.iter().all(|arm| arm.loss.is_finite()), "{plan:?}");
        let terms = &plan.arms[3].terms;
        assert_eq!(terms.len(), 7, "{terms:?}");
    }
    Ok(())
}

#[test]
fn what_a_detector_does_not_know_is_refused_by_name() -> Result<()> {
    for (setting, part) in [
        ("arm.vkd.labels=few", "arm.vkd.labels: expected \"all\" with task = \"detection\""),
        ("arm.vkd.logits=1.0", "arm.vkd.logits: expected none"),
        ("training.labelled=2", "training.labelled: expected none"),
        ("training.compute=bf16", "training.compute"),
        ("teacher.cache={}", "teacher.cache"),
        ("teacher.smoothing=0.1", "teacher.smoothing"),
        ("criterion.reach=0.0", "criterion.reach: expected a finite value above 0, got 0"),
        (
            "criterion.queries.auxiliary=0.0",
            "criterion.queries.auxiliary: expected a finite value above 0, got 0",
        ),
        ("criterion.queries.l1=-1.0", "criterion.queries.l1: expected a finite value of at least"),
        ("criterion.queries={ l1 = 0.0, giou = 0.0 }", "expected l1 or giou above 0"),
        ("criterion.queries.alpha=1.5", "criterion.queries.alpha: expected a share in [0, 1]"),
        ("criterion.queries.eos=0.1", "eos"),
        ("criterion.queries.class=1.0", "criterion.queries: expected none without a detector of q"),
        ("student.kind=vit", "unknown variant `vit`"),
        ("data.source.sise=3", "sise"),
        (
            "distill.tap=[{ student = \"neck1\", teacher = \"neck1\", weight = -1.0 }]",
            "distill.tap: weight of neck1",
        ),
        ("init.checkpoint=a.pth", "a.pth"),
    ] {
        let found = recipe(&[setting]).and_then(|recipe| {
            let data = DetectionDataset::open(&recipe.data)?;
            check(&recipe, &data)
        });
        let message = found.err().map(|e| vkd_train::plain(&e)).unwrap_or_default();
        assert!(message.contains(part), "{setting}: {message}");
    }
    // What only shows with the networks.
    for (setting, part) in [
        (
            "distill.tap=[{ student = \"neck3\", teacher = \"neck1\" }]",
            "expected one of neck1, neck2",
        ),
        ("student.neck=6", "neck1: projector: expected one between features of width 6 and 8"),
        ("distill.tap=[{ student = \"neck1\", teacher = \"neck2\" }]", "without channels"),
    ] {
        let found = recipe(&[setting]).and_then(|recipe| {
            let data = DetectionDataset::open(&recipe.data)?;
            plan(&recipe, &data)
        });
        let message = found.err().map(|e| vkd_train::plain(&e)).unwrap_or_default();
        assert!(message.contains(part), "{setting}: {message}");
    }
    // The task decides what a recipe may say.
    let text = include_str!("scenes.toml");
    assert!(matches!(AnyRecipe::parse(text, "scenes.toml", &[])?, AnyRecipe::Detection(_)));
    assert!(Recipe::parse(text, "scenes.toml", &[]).is_err());
    let other = AnyRecipe::parse(text, "scenes.toml", &["task=dedection".to_owned()]);
    let message = other.err().map(|e| vkd_train::plain(&e)).unwrap_or_default();
    assert!(
        message.contains("dedection") && message.contains("did you mean `detection`?"),
        "{message}"
    );
    Ok(())
}

#[test]
fn a_folder_of_another_task_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tiny = Recipe::parse(include_str!("tiny.toml"), "tiny.toml", &[])?;
    std::fs::write(folder.path().join("recipe.toml"), tiny.to_toml()?)?;
    let message = Run::create(folder.path(), recipe(&[])?, false).err().map(|e| e.to_string());
    let message = message.unwrap_or_default();
    assert!(message.contains("expected a run of this recipe, got one of another"), "{message}");
    Ok(())
}
