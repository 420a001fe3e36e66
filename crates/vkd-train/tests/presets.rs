//! The shipped recipes: each can be built at small size, and a pair differs where paper and published code do.

use candle_core::{DType, Device, Result};
use std::path::{Path, PathBuf};
use vkd_models::{Architecture, ModelConfig, RegnetConfig};
use vkd_nn::VarStore;
use vkd_train::{Dataset, Recipe, check};

fn read(name: &str, set: &[String]) -> Result<Recipe> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes").join(name);
    Recipe::parse(&std::fs::read_to_string(&path)?, name, set)
}

/// The tables of a recipe, with those below them, as `key = value`.
fn values(prefix: &str, table: &toml::Table, out: &mut Vec<String>) {
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => values(&format!("{prefix}{key}."), inner, out),
            other => out.push(format!("{prefix}{key} = {other}")),
        }
    }
}

/// The keys in which two recipes differ.
fn differences(left: &str, right: &str) -> Result<Vec<String>> {
    let flat = |name: &str| -> Result<Vec<String>> {
        let mut all = Vec::new();
        let table = toml::Table::try_from(read(name, &[])?).map_err(candle_core::Error::wrap)?;
        values("", &table, &mut all);
        Ok(all)
    };
    let (left, right) = (flat(left)?, flat(right)?);
    let one = left.iter().filter(|line| !right.contains(line));
    let other = right.iter().filter(|line| !left.contains(line));
    let key = |line: &String| line.split(" = ").next().unwrap_or_default().to_owned();
    let mut keys: Vec<String> = one.chain(other).map(key).collect();
    keys.sort();
    keys.dedup();
    Ok(keys)
}

#[test]
fn a_pair_differs_where_paper_and_published_code_do() -> Result<()> {
    let names = ["paper", "official-code"];
    let [ti, s] =
        ["ti", "s"].map(|size| names.map(|name| format!("imagenet-deit-{size}-{name}.toml")));
    let method =
        ["distill.loss", "distill.map", "name", "teacher.checkpoint", "teacher.checkpoint_key"];
    for [paper, code] in [&ti, &s] {
        assert_eq!(differences(paper, code)?, method);
    }
    for (ti, s) in ti.iter().zip(&s) {
        assert_eq!(differences(ti, s)?, ["name", "student.heads", "student.width"]);
    }
    Ok(())
}

/// A RegNetY of a few channels, as timm's file would hold it.
fn teacher(folder: &Path, classes: usize) -> Result<PathBuf> {
    let architecture = Architecture::Regnet(RegnetConfig {
        stem: 8,
        widths: [8, 8, 16, 32],
        depths: [1, 1, 1, 1],
        group_width: 8,
        squeeze: 0.25,
        drop_path: 0.,
    });
    let store = VarStore::new(1, DType::F32, &Device::Cpu);
    ModelConfig { image_size: 32, channels: 3, classes, architecture }.build(store.builder())?;
    let path = folder.join("regnet.safetensors");
    candle_core::safetensors::save(&store.tensors().into_iter().collect(), &path)?;
    Ok(path)
}

#[test]
fn imagenets_recipes_fit_together_at_small_size() -> Result<()> {
    let folder = tempfile::tempdir()?;
    vkd_train::write_image_folder(folder.path(), 40, 2, 1, 0)?;
    let set = [
        format!("data.dir={}", folder.path().display()),
        format!("teacher.checkpoint={}", teacher(folder.path(), 10)?.display()),
        r#"arms=["none", "logits", "linear", "vkd", "vkd-no-norm", "vkd-as-published"]"#.to_owned(),
        "data.size=32".to_owned(),
        "data.validation=4".to_owned(),
        "teacher.model.stem=8".to_owned(),
        "teacher.model.widths=[8, 8, 16, 32]".to_owned(),
        "teacher.model.depths=[1, 1, 1, 1]".to_owned(),
        "teacher.model.group_width=8".to_owned(),
        "student.width=24".to_owned(),
        "student.heads=3".to_owned(),
        "student.depth=1".to_owned(),
        "training.batch=8".to_owned(),
    ];
    for size in ["ti", "s"] {
        for kind in ["paper", "official-code"] {
            let recipe = read(&format!("imagenet-deit-{size}-{kind}.toml"), &set)?;
            check(&recipe, &Dataset::open(&recipe.data)?)?;
        }
    }
    Ok(())
}

#[test]
fn cifar100s_recipe_fits_together_on_few_images() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut record = vec![7u8, 42];
    record.extend((0..3 * 32 * 32).map(|i| (i * 37 % 256) as u8));
    std::fs::write(folder.path().join("train.bin"), record.repeat(9))?;
    std::fs::write(folder.path().join("test.bin"), &record)?;
    let set = [
        format!("data.dir={}", folder.path().display()),
        "data.train=8".to_owned(),
        "data.validation=1".to_owned(),
        "training.batch=8".to_owned(),
        "teacher.batch=8".to_owned(),
    ];
    let recipe = read("cifar100.toml", &set)?;
    check(&recipe, &Dataset::open(&recipe.data)?)
}
