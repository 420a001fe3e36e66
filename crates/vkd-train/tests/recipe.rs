//! Recipes: what is refused, and how the message helps.

use candle_core::{DType, Device, Result};
use std::collections::HashMap;
use std::path::Path;
use vkd_models::ModelConfig;
use vkd_nn::VarStore;
use vkd_train::{AnyRecipe, ComputeDevice, Dataset, Recipe, check_ranks, thread_ranks};

const TINY: &str = include_str!("tiny.toml");

fn error(text: &str, overrides: &[&str]) -> String {
    let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
    Recipe::parse(text, "tiny.toml", &overrides)
        .err()
        .map(|e| vkd_train::plain(&e))
        .unwrap_or_default()
}

#[test]
fn overrides_reach_every_kind_of_value() -> Result<()> {
    let set = [
        "seed=7",
        "training.learning_rate=1e-3",
        r#"arms=["vkd", "none"]"#,
        "distill.map=householder",
        "data.dir=some/folder",
        "arm.vkd.features=3",
        "arm.mine.features=2",
        "arm.mine.labels=all",
    ];
    let recipe = Recipe::parse(TINY, "tiny.toml", &set.map(String::from))?;
    assert_eq!(
        (recipe.seed, recipe.training.learning_rate, recipe.arm("vkd")?.features),
        (7, 1e-3, 3.)
    );
    assert_eq!(recipe.distill.map, "householder");
    assert_eq!(recipe.arms, ["vkd", "none"]);
    assert!(recipe.arm("mine").is_ok());
    assert_eq!(Recipe::parse(&recipe.to_toml()?, "again", &[])?, recipe);
    Ok(())
}

#[test]
fn by_default_only_vkd_runs() -> Result<()> {
    let without: String =
        TINY.lines().filter(|l| !l.starts_with("arms")).map(|l| format!("{l}\n")).collect();
    assert_eq!(Recipe::parse(&without, "tiny.toml", &[])?.arms, ["vkd"]);
    Ok(())
}

#[test]
fn unknown_keys_come_with_line_and_nearest_key() {
    let typo = TINY.replace("learning_rate = 2e-3", "learing_rate = 2e-3");
    let line = typo.lines().position(|l| l.starts_with("learing")).map_or(0, |i| i + 1);
    let message = error(&typo, &[]);
    assert!(message.contains(&format!("tiny.toml line {line}:")), "{message}");
    assert!(message.contains("did you mean `learning_rate`?"), "{message}");
    let message = error(TINY, &["training.stepz=3"]);
    assert!(
        message.contains("--set training.stepz=3") && message.contains("did you mean `steps`?"),
        "{message}"
    );
    let message = error(TINY, &["data.kind=digit"]);
    assert!(message.contains("did you mean `digits`?"), "{message}");
}

#[test]
fn bad_values_are_named() {
    for (set, part) in [
        (
            "training.device=gpu",
            "--set training.device=gpu: device: expected cpu, cuda or cuda:N, got \"gpu\"",
        ),
        ("training.steps=abc", "--set training.steps=abc"),
        ("training.steps=0", "training.steps: expected at least 1, got 0"),
        ("training.steps=-1", "--set training.steps=-1"),
        ("training.labelled=11", "training.labelled: expected at most the batch of 10, got 11"),
        ("training.learning_rate=nan", "training.learning_rate"),
        ("arm.vkd.features=-1", "arm.vkd.features"),
        ("arm.vkd.hidden=3", "arm.vkd.hidden: expected only with projector"),
        ("arm.vkd.projector=none", "arm.vkd.projector: expected one, got none"),
        ("arm.vkd.loss=spdk", "did you mean `spkd`?"),
        ("teacher.floor=1.5", "teacher.floor"),
        (r#"arms=["vkt"]"#, "got vkt; there are linear, logits, none, none-all-labels, vkd"),
        (r#"arms=["vkd", "vkd"]"#, "vkd twice"),
        ("arms=[]", "at least one"),
        ("name=../up", "../up"),
        ("arm./tmp/x.labels=few", "expected names of letters"),
        ("arm.teacher.labels=few", "the teacher's own"),
        ("training.labelled=0", "training.labelled: expected at least 1"),
        ("name", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("seed.x=3", "expected seed to be a table"),
    ] {
        let text =
            if set.starts_with("seed.x") { format!("seed = 0\n{TINY}") } else { TINY.to_owned() };
        let message = error(&text, &[set]);
        assert!(message.contains(part), "{set}: {message}");
    }
    assert!(error("name = ", &[]).contains("tiny.toml line 1"));
    assert!(error("", &[]).contains("missing field"));
}

#[test]
fn the_shipped_recipes_are_valid() -> Result<()> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../recipes");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        let name = match AnyRecipe::parse(&text, &path.display().to_string(), &[])? {
            AnyRecipe::Classification(recipe) => recipe.name,
            AnyRecipe::Detection(recipe) => recipe.name,
            AnyRecipe::Generation(recipe) => recipe.name,
        };
        // A recipe is called after its file.
        assert_eq!(path.file_stem().and_then(|stem| stem.to_str()), Some(name.as_str()));
        names.push(name);
    }
    names.sort();
    let shipped = [
        "cifar10-biggan-10pct",
        "cifar100",
        "cifar100-biggan-10pct",
        "coco-vidt-nano",
        "coco-vidt-tiny",
        "digits",
        "gan-digits",
        "gan-mnist",
        "imagenet-deit-s-official-code",
        "imagenet-deit-s-paper",
        "imagenet-deit-ti-official-code",
        "imagenet-deit-ti-paper",
        "mnist",
        "mnist-all-labels",
        "scenes",
    ];
    assert_eq!(names, shipped);
    Ok(())
}

#[test]
fn keys_that_a_recipe_does_not_use_are_not_written() -> Result<()> {
    let text = Recipe::parse(TINY, "tiny.toml", &[])?.to_toml()?;
    assert!(!text.contains("checkpoint_prefix") && !text.contains("classes"), "{text}");
    let set = ["teacher.checkpoint_prefix=teacher", "data.classes=12"].map(String::from);
    let recipe = Recipe::parse(TINY, "tiny.toml", &set)?;
    assert_eq!(Recipe::parse(&recipe.to_toml()?, "again", &[])?, recipe);
    let message = Dataset::open(&recipe.data).err().map(|e| vkd_train::plain(&e));
    let wanted = "data.classes: expected 10, which data.kind = \"digits\" has, got 12";
    assert_eq!(message.as_deref(), Some(wanted));
    assert!(error(TINY, &["data.classes=0"]).contains("data.classes: expected at least 1"));
    Ok(())
}

/// Checks a recipe whose teacher lies in `path`.
fn check(path: &Path, set: &[&str]) -> Result<()> {
    let mut all = vec![format!("teacher.checkpoint={}", path.display())];
    all.extend(set.iter().map(|s| (*s).to_owned()));
    let recipe = Recipe::parse(TINY, "tiny.toml", &all)?;
    vkd_train::check(&recipe, &Dataset::open(&recipe.data)?)
}

#[test]
fn a_teacher_lies_under_a_prefix_of_its_checkpoint() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("both.safetensors");
    let recipe = Recipe::parse(TINY, "tiny.toml", &[])?;
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    let architecture = recipe.teacher.model.clone();
    ModelConfig { image_size: 8, channels: 1, classes: 10, architecture }.build(store.builder())?;
    let both: HashMap<String, _> = store
        .tensors()
        .into_iter()
        .flat_map(|(n, t)| [(format!("teacher.{n}"), t.clone()), (format!("student.{n}"), t)])
        .collect();
    candle_core::safetensors::save(&both, &path)?;
    check(&path, &["teacher.checkpoint_prefix=teacher"])?;
    let says =
        |set: &[&str]| check(&path, set).err().map(|e| vkd_train::plain(&e)).unwrap_or_default();
    let message = says(&[]);
    assert!(message.contains("0 matched") && message.contains("(checkpoint_prefix"), "{message}");
    let message = says(&["teacher.checkpoint_prefix=model"]);
    assert!(message.contains("expected keys under model, got some under student, teacher"));
    Ok(())
}

/// With the feature this would ask the network.
#[test]
#[cfg(not(feature = "hub"))]
fn a_checkpoint_of_the_hub_needs_the_feature() {
    let message = check(Path::new("hf://timm/regnety_160/model.safetensors@main"), &[]);
    let message = message.err().map(|e| vkd_train::plain(&e)).unwrap_or_default();
    let wanted = "teacher.checkpoint: hf://timm/regnety_160/model.safetensors@main: expected a build with the feature `hub`";
    assert!(message.contains(wanted), "{message}");
}

#[test]
fn a_device_is_part_of_a_recipe_and_must_be_there() -> Result<()> {
    let plain = Recipe::parse(TINY, "tiny.toml", &[])?;
    assert_eq!(plain.training.device, ComputeDevice::Cpu);
    assert!(!plain.to_toml()?.contains("device"), "a default is not written");
    // A number that no machine has.
    let far = Recipe::parse(TINY, "tiny.toml", &["training.device=cuda:999".to_owned()])?;
    assert_eq!(far.training.device, ComputeDevice::Cuda(999));
    assert_eq!(Recipe::parse(&far.to_toml()?, "again", &[])?, far);
    let data = Dataset::open(&far.data)?;
    let message = vkd_train::check(&far, &data).map_err(|e| vkd_train::plain(&e)).unwrap_err();
    assert!(message.starts_with("device cuda:999: expected"), "{message}");
    assert!(vkd_train::check(&plain, &data).is_ok());
    std::thread::scope(|scope| {
        for ranks in thread_ranks(2) {
            let (far, data) = (&far, &data);
            scope.spawn(move || {
                let message =
                    check_ranks(far, data, &ranks, None).map_err(|e| vkd_train::plain(&e));
                let message = message.unwrap_err();
                // Of a build without NCCL, or as each rank has a GPU of its own.
                let part = "training.device: expected c";
                let end = "got cuda:999";
                assert!(message.contains(part) && message.ends_with(end), "{message}");
            });
        }
    });
    Ok(())
}
