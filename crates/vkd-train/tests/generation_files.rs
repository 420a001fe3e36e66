//! What a recipe of generation takes from files: Inception's weights, and features of texts.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use candle_core::{DType, Device, Result, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use vkd_models::{GeneratorStudent, InceptionConfig, InceptionV3, InceptionVariant, Model};
use vkd_nn::{Context, VarStore, softmax};
use vkd_train::metrics::{Features, InceptionScore, frechet_distance};
use vkd_train::{
    Dataset, EventKind, Generation, GenerationRecipe, RunFolderOf, Sampler, Workload, check,
    evaluate_generator, fingerprint, plan, train_arm, train_teacher,
};

type Run = RunFolderOf<Generation>;

const TEXT: &str = include_str!("gan.toml");

/// Fewer steps than a GAN needs, and images of the test.
const QUICK: [&str; 3] = ["training.steps=2", "training.evaluate_every=2", "data.train=1600"];

fn recipe(settings: &[&str]) -> Result<GenerationRecipe> {
    let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
    GenerationRecipe::parse(TEXT, "gan.toml", &settings)
}

/// Trains the teacher with its judge and all arms.
fn run(dir: &Path, settings: &[&str]) -> Result<(Run, Dataset)> {
    let recipe = recipe(settings)?;
    let data = Generation::open(&recipe.data)?;
    check(&recipe, &data)?;
    let run = Run::create(dir, recipe, false)?;
    train_teacher(&run, &data, &mut |_| Ok(()))?;
    for arm in &run.recipe().arms {
        train_arm(&run, &data, arm, &mut |_| Ok(()))?;
    }
    Ok((run, data))
}

/// The first thing that is wrong with a recipe, found without training.
fn says(settings: &[&str]) -> String {
    let found = recipe(settings).and_then(|recipe| {
        let data = Generation::open(&recipe.data)?;
        plan(&recipe, &data).map(|_| ())
    });
    found.err().map(|e| e.to_string()).unwrap_or_default()
}

fn save(path: &Path, tensors: &[(&str, Tensor)]) -> Result<()> {
    let tensors: HashMap<String, Tensor> =
        tensors.iter().map(|(name, t)| ((*name).to_owned(), t.clone())).collect();
    candle_core::safetensors::save(&tensors, path)
}

const NARROW: InceptionConfig =
    InceptionConfig { variant: InceptionVariant::Fid, image_size: 75, width: 2 };

/// Drawn weights of a narrow Inception.
fn inception(path: &Path, seed: u64) -> Result<()> {
    let store = VarStore::new(seed, DType::F32, &Device::Cpu);
    InceptionV3::new(&NARROW, store.builder())?;
    candle_core::safetensors::save(&store.tensors().into_iter().collect(), path)
}

fn table(path: &Path) -> String {
    let path = path.display();
    format!(
        r#"criterion.inception={{ weights = "{path}", variant = "fid", image_size = 75, width = 2 }}"#
    )
}

/// The scores again, by what is public: the network's features of the samples that the report is of, and of the test images.
fn again(student: &Path, weights: &Path, data: &Dataset, count: usize) -> Result<[f64; 2]> {
    let network = InceptionV3::load(&NARROW, weights, &Device::Cpu)?;
    let look = |images: &Tensor| network.forward(&NARROW.prepare(images)?, &Context::eval());
    let features = |images: &Tensor| -> Result<Features> {
        let mut found = Features::new("again", 128, count)?;
        found.add(look(images)?.tap("pooled")?)?;
        Ok(found)
    };
    let student = GeneratorStudent::load(student, &Device::Cpu)?;
    let labels: Vec<u32> = (0..count).map(|i| (i % 10) as u32).collect();
    let samples = Sampler::new(student.into_network(), 0).images("samples.test", &labels)?;
    let mut real = Vec::new();
    for &index in &data.test {
        let image = data.image(index)?;
        real.extend(image.pixels().iter().map(|&raw| data.preprocessing().value(0, raw)));
    }
    let real = Tensor::from_vec(real, (data.test.len(), 1, 8, 8), &Device::Cpu)?;
    let mut score = InceptionScore::new(1008);
    score.add(&softmax(&network.without_bias(&look(&samples)?.logits)?)?)?;
    let distance = frechet_distance(features(&real)?.moments(), features(&samples)?.moments())?;
    Ok([distance, score.finish()?])
}

#[test]
fn scores_are_of_inception_where_its_weights_are_given() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let weights = folder.path().join("inception.safetensors");
    inception(&weights, 3)?;
    let given = table(&weights);
    let set = [&QUICK[..], &[r#"arms=["none"]"#, &given]].concat();
    let (run, data) = run(&folder.path().join("run"), &set)?;
    let report = run.arm_report("none")?.unwrap();
    let extractor = report.extractor.clone().unwrap();
    let start = "Inception-v3 (fid of width 2) at 75x75 pixels, inception.safetensors, SHA-256 ";
    assert!(
        extractor.starts_with(start) && extractor.len() == start.len() + 16 + "…".len(),
        "{extractor}"
    );
    let student = run.arm_path("none", "student.safetensors");
    let want = again(&student, &weights, &data, 40)?;
    for (name, want) in [("frechet", want[0]), ("inception_score", want[1])] {
        let got = report.metrics[name];
        // Features in f32, of other parts of the batch.
        assert!((got - want).abs() < 1e-5 * want, "{name}: {got} {want}");
    }
    // The judge has ten classes, and says which samples are of theirs.
    assert!((0. ..=1.).contains(&report.metrics["recognised"]));
    let teacher = run.teacher_report()?.unwrap();
    assert!(teacher.metrics["judge_accuracy"] > 0.3);
    let load = || GeneratorStudent::load(&student, &Device::Cpu);
    let found = evaluate_generator(load()?, &run, &data, &data.test)?;
    assert!((found["frechet"] - report.metrics["frechet"]).abs() < 1e-12 * want[0]);

    // What a result is found by is the file's content, wherever it lies.
    let hash = |weights: &Path| -> Result<String> {
        let table = table(weights);
        let recipe = recipe(&[&set[..set.len() - 1], &[&table]].concat())?;
        Ok(fingerprint(&recipe, "none", &data)?.1)
    };
    let (copy, other) = (folder.path().join("copy.safetensors"), folder.path().join("other.pth"));
    std::fs::copy(&weights, &copy)?;
    inception(&folder.path().join("other.safetensors"), 4)?;
    assert_eq!(hash(&weights)?, hash(&copy)?);
    assert_ne!(hash(&weights)?, hash(&folder.path().join("other.safetensors"))?);
    assert!(hash(&other).is_err());

    // Other weights under the same name are no longer those that the arm was scored by.
    inception(&weights, 4)?;
    let e = evaluate_generator(load()?, &run, &data, &data.test).map(|_| ()).unwrap_err();
    assert!(e.to_string().contains("expected the extractor that arm none was scored by"), "{e}");
    Ok(())
}

#[test]
fn inception_files_that_do_not_fit_are_named_before_any_training() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("inception.safetensors");
    let key = "criterion.inception.weights: ";
    let absent = says(&[&table(&path)]);
    assert!(absent.contains(key) && absent.contains("inception.safetensors"), "{absent}");
    save(&path, &[("fc.weight", Tensor::zeros((1008, 128), DType::F32, &Device::Cpu)?)])?;
    let missing = says(&[&table(&path)]);
    assert!(missing.contains(key) && missing.contains("1 matched; 471 missing"), "{missing}");
    inception(&path, 3)?;
    assert_eq!(says(&[&table(&path)]), "");
    for (change, part) in [
        ("criterion.inception.variant=torchvision", "torchvision with 1000 classes"),
        ("criterion.inception.variant=google", "unknown variant `google`"),
        (
            "criterion.inception.image_size=64",
            "criterion.inception: image_size: expected at least 75",
        ),
        ("criterion.inception.width=5", "criterion.inception: width: expected an even number"),
        ("criterion.inception.width=32", "Conv2d_1a_3x3.conv.weight expected [32, 3, 3, 3]"),
        ("criterion.inception.classes=10", "unknown field `classes`"),
    ] {
        let message = says(&[&table(&path), change]);
        assert!(message.contains(part), "{change}: {message}");
    }
    let store = VarStore::new(3, DType::F32, &Device::Cpu);
    InceptionV3::new(&NARROW, store.builder())?;
    let mut tensors: HashMap<String, Tensor> = store.tensors().into_iter().collect();
    tensors.insert("fc.bias".into(), Tensor::full(f32::NAN, 1008, &Device::Cpu)?);
    candle_core::safetensors::save(&tensors, &path)?;
    let message = says(&[&table(&path)]);
    assert!(message.contains("fc.bias: expected finite weights, got NaN"), "{message}");
    Ok(())
}

/// A row for each class, like the teacher's in width.
fn texts(folder: &Path, name: &str, dims: (usize, usize)) -> Result<PathBuf> {
    let path = folder.join(format!("{name}.safetensors"));
    let rows = vkd_testkit::normal(&[dims.0, dims.1], DType::F32, 7)?;
    save(&path, &[("texts", rows)])?;
    Ok(path)
}

#[test]
fn kd_dlgan_has_its_terms_of_texts_from_a_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = texts(folder.path(), "texts", (10, 24))?;
    let given = format!("arm.with.texts={}", path.display());
    let arm = r#"arm.with={ labels = "few", features = 0.1, generated = 0.2, projector = "linear", loss = "kd_dlgan", teacher_normalizer = "identity" }"#;
    let set = [&QUICK[..], &[r#"arms=["kd-dlgan", "with"]"#, arm, &given]].concat();
    let (run, data) = run(&folder.path().join("run"), &set)?;
    let report = |arm: &str| run.arm_report(arm).map(Option::unwrap);
    let (without, with) = (report("kd-dlgan")?, report("with")?);
    let of_texts = ["discriminator.generated.texts", "discriminator.real.texts"];
    assert!(of_texts.iter().all(|name| !without.terms.contains_key(*name)));
    // The arm's weights, times the tap's.
    assert_eq!(of_texts.map(|name| with.terms[name]), [0.1, 0.05]);
    for event in run.part_events("with")? {
        let EventKind::Step { terms, .. } = event.kind else { continue };
        assert_eq!(
            terms.keys().collect::<Vec<_>>(),
            with.terms.keys().collect::<Vec<_>>(),
            "what is logged is what the report weighs"
        );
        assert!(of_texts.iter().all(|name| terms[*name] > 0.), "{terms:?}");
    }
    assert_ne!(without.metrics["frechet"], with.metrics["frechet"], "they train something else");
    let hash = |arm: &str, set: &[&str]| {
        Ok::<_, candle_core::Error>(fingerprint(&recipe(set)?, arm, &data)?.1)
    };
    // The same texts for all arms with the loss, from a copy of the file; other arms are not moved.
    let copy = folder.path().join("copy.safetensors");
    std::fs::copy(&path, &copy)?;
    let shared = format!("distill.texts={}", copy.display());
    let shared = [&set[..set.len() - 1], &[&shared]].concat();
    assert_eq!(hash("with", &set)?, hash("with", &shared)?);
    assert_eq!(hash("none", &set)?, hash("none", &shared)?);
    assert_ne!(hash("kd-dlgan", &set)?, hash("kd-dlgan", &shared)?);
    Ok(())
}

#[test]
fn texts_that_do_not_fit_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let of = |path: &Path| format!("arm.kd-dlgan.texts={}", path.display());
    let arms = r#"arms=["kd-dlgan"]"#;
    let good = texts(folder.path(), "good", (10, 24))?;
    assert_eq!(says(&[arms, &of(&good)]), "");
    let bad = |name: &str, tensor: (&str, Tensor), part: &str| -> Result<()> {
        let path = folder.path().join(format!("{name}.safetensors"));
        save(&path, &[tensor])?;
        let message = says(&[arms, &of(&path)]);
        assert!(message.contains("distill.texts: ") && message.contains(part), "{message}");
        Ok(())
    };
    let rows = |value: f32| Tensor::full(value, (10, 24), &Device::Cpu);
    let narrow = Tensor::ones((10, 23), DType::F32, &Device::Cpu)?;
    bad(
        "narrow",
        ("texts", narrow),
        "expected (10, 24), a row of the teacher's width for each class, got [10, 23]",
    )?;
    let few = Tensor::ones((9, 24), DType::F32, &Device::Cpu)?;
    bad("few", ("texts", few), "got [9, 24]")?;
    bad("named", ("text_embeds", rows(1.)?), "expected a tensor texts, got text_embeds")?;
    bad("nan", ("texts", rows(f32::NAN)?), "got others for class 0")?;
    bad("zero", ("texts", rows(0.)?), "got others for class 0")?;
    bad("whole", ("texts", rows(1.)?.to_dtype(DType::U32)?), "expected a float dtype")?;
    assert!(says(&[arms, "arm.kd-dlgan.texts=absent.safetensors"]).contains("absent.safetensors"));
    let good = good.display();
    for (set, part) in [
        (
            format!("arm.fitnet.texts={good}"),
            "arm.fitnet.texts: expected it beside the loss kd_dlgan",
        ),
        (
            format!(
                "arm.kd-dlgan={{ labels = \"few\", features = 0.1, projector = \"linear\", loss = \"kd_dlgan\", texts = \"{good}\" }}"
            ),
            "arm.kd-dlgan: expected teacher_normalizer = \"identity\" beside texts",
        ),
    ] {
        let message = says(&[arms, &set]);
        assert!(message.contains(part), "{set}: {message}");
    }
    let message =
        says(&[r#"arms=["none"]"#, "arm.kd-dlgan.loss=mse", &format!("distill.texts={good}")]);
    assert!(message.contains("distill.texts: expected an arm with the loss kd_dlgan"), "{message}");
    Ok(())
}
