//! Runs whose teacher remembers its answers: the same bits as without, and what is refused.

use candle_core::{Result, bail};
use std::path::{Path, PathBuf};
use vkd_train::{Dataset, Recipe, RunFolder, check, fingerprint, plan, train_arm, train_teacher};

const TINY: &str = include_str!("tiny.toml");
const CACHE: &str = "teacher.cache.limit_mib=64";
/// Fifteen steps of ten images, two hundred images: every one comes in both looks, some often.
const SET: [&str; 9] = [
    r#"arms=["logits", "vkd"]"#,
    "teacher.steps=4",
    "teacher.floor=0.01",
    "data.train=40",
    "data.shift=1",
    "data.augment.flip=0.5",
    "data.augment.views=2",
    "training.steps=30",
    "training.evaluate_every=10",
];

fn parse(set: &[&str]) -> Result<Recipe> {
    Recipe::parse(TINY, "tiny.toml", &set.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
}

/// Trains teacher and arms; the observer of the arm `vkd` fails at step `stop`.
fn run(dir: &Path, set: &[&str], stop: Option<u64>) -> Result<RunFolder> {
    let recipe = parse(&[&SET[..], set].concat())?;
    let data = Dataset::open(&recipe.data)?;
    check(&recipe, &data)?;
    let run = RunFolder::create(dir, recipe, false)?;
    train_teacher(&run, &data, &mut |_| Ok(()))?;
    for arm in run.recipe().arms.clone() {
        train_arm(&run, &data, &arm, &mut |event| match stop {
            Some(stop) if arm == "vkd" && event.step >= stop => bail!("stopped"),
            _ => Ok(()),
        })?;
    }
    Ok(run)
}

/// The cache's files, without the folder's name, and what they hold.
fn files(dir: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut all = Vec::new();
    for folder in std::fs::read_dir(dir)? {
        for file in std::fs::read_dir(folder?.path())? {
            let path = file?.path();
            all.push((path.strip_prefix(dir).unwrap_or(&path).to_owned(), std::fs::read(&path)?));
        }
    }
    all.sort();
    Ok(all)
}

#[test]
fn students_have_the_same_bits_with_and_without() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (i, set) in [
        &[][..],
        // Nothing random in the images; a map; half precision.
        &["data.shift=0", "data.augment.flip=0"],
        &[r#"distill.tap=[{student="tokens", teacher="grid"}, {student="class_token", teacher="stage1"}]"#],
        &["teacher.compute=bf16", "training.compute=bf16", "training.accumulate=2"],
        &["arm.vkd.labels=none", "data.augment.repeats=2"],
    ]
    .into_iter()
    .enumerate()
    {
        let at = |name: &str| folder.path().join(format!("{i}-{name}"));
        let (without, with) = (at("without"), at("with"));
        run(&without, set, None)?;
        let cached = [set, &[CACHE]].concat();
        let cached = run(&with, &cached, None)?;
        let same = |other: &Path| -> Result<()> {
            for arm in ["logits", "vkd"] {
                for file in ["student.safetensors", "events.jsonl"] {
                    let read = |dir: &Path| std::fs::read(dir.join("arms").join(arm).join(file));
                    assert!(read(&without)? == read(other)?, "{set:?}: {arm}/{file}");
                }
            }
            Ok(())
        };
        same(&with)?;
        // Once more from the first step on, all out of the cache, which stays as it is.
        let before = files(&with.join("teacher-cache"))?;
        assert!(!before.is_empty(), "{set:?}");
        for arm in ["logits", "vkd"] {
            std::fs::remove_dir_all(with.join("arms").join(arm))?;
        }
        let data = Dataset::open(&cached.recipe().data)?;
        for arm in ["logits", "vkd"] {
            train_arm(&cached, &data, arm, &mut |_| Ok(()))?;
        }
        same(&with)?;
        assert!(before == files(&with.join("teacher-cache"))?, "{set:?}");
    }
    Ok(())
}

#[test]
fn a_stopped_run_goes_on_with_what_is_left_of_its_cache() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let alone = run(&folder.path().join("alone"), &[], None)?;
    let dir = folder.path().join("stopped");
    for (stop, harm) in [(4, "none"), (11, "remove"), (17, "damage")] {
        assert!(run(&dir, &[CACHE], Some(stop)).is_err());
        for (path, mut bytes) in files(&dir.join("teacher-cache"))? {
            let path = dir.join("teacher-cache").join(path);
            match harm {
                "remove" => std::fs::remove_file(&path)?,
                "damage" => {
                    bytes.truncate(bytes.len() / 2);
                    std::fs::write(&path, bytes)?;
                }
                _ => {}
            }
        }
    }
    let stopped = run(&dir, &[CACHE], None)?;
    let student = |run: &RunFolder| std::fs::read(run.arm_path("vkd", "student.safetensors"));
    assert!(student(&alone)? == student(&stopped)?);
    // Nobody else may start it anew while it is in use.
    drop(stopped);
    // A run that starts anew leaves nothing of it, but what somebody else has put there.
    std::fs::write(dir.join("teacher-cache/notes.txt"), "keep me")?;
    RunFolder::create(&dir, parse(&["seed=5"])?, true)?;
    let left: Vec<_> =
        std::fs::read_dir(dir.join("teacher-cache"))?.filter_map(|e| e.ok()).collect();
    assert!(left.len() == 1 && left[0].file_name() == "notes.txt");
    Ok(())
}

#[test]
fn runs_share_a_folder_where_all_that_decides_an_answer_is_the_same() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let shared = folder.path().join("shared");
    let dir = format!("teacher.cache.dir={}", shared.display());
    let folders = |name: &str, set: &[&str]| -> Result<usize> {
        run(&folder.path().join(name), &[&[dir.as_str()], set].concat(), None)?;
        Ok(std::fs::read_dir(&shared)?.count())
    };
    assert_eq!(folders("a", &[])?, 1);
    // Another student, another weight of the features.
    assert_eq!(folders("b", &["student.width=8", "arm.vkd.features=2"])?, 1);
    // Another teacher; other looks; another seed, by which both change.
    assert_eq!(folders("c", &["teacher.steps=5"])?, 2);
    assert_eq!(folders("d", &["data.augment.flip=0.4"])?, 3);
    assert_eq!(folders("e", &["seed=1"])?, 4);
    Ok(())
}

#[test]
fn what_can_not_be_remembered_is_refused_by_name() -> Result<()> {
    let says = |set: &[&str]| -> Result<()> {
        let recipe = parse(set)?;
        check(&recipe, &Dataset::open(&recipe.data)?)
    };
    for (set, part) in [
        (
            &[CACHE][..],
            "teacher.cache: expected data.augment.views or nothing random in the images, got data.shift",
        ),
        (&[CACHE, "data.shift=0", "data.augment.crop.scale=[0.5, 1.0]"], "got data.augment.crop"),
        (
            &[CACHE, "data.augment.views=2", "data.augment.mixup=0.8"],
            "teacher.cache: expected data.augment without mixup and cutmix",
        ),
        (&["data.augment.views=0"], "data.augment.views: expected at least 1"),
        (&["teacher.cache.limit_mib=0"], "teacher.cache.limit_mib: expected at least 1"),
        (&["teacher.cache.limit=3"], "did you mean `limit_mib`?"),
        (
            &["data.augment.views=99999", "teacher.cache.limit_mib=1"],
            "teacher.cache.limit_mib: expected room for 200 images in 99999 looks, 84 bytes each, 1603 MiB, got 1",
        ),
    ] {
        let message = says(set).err().map(|e| vkd_train::plain(&e)).unwrap_or_default();
        assert!(message.contains(part), "{set:?}: {message}");
    }
    Ok(())
}

#[test]
fn the_plan_tells_the_size_and_the_fingerprint_knows_no_cache() -> Result<()> {
    let recipe = parse(&[&SET[..], &[CACHE]].concat())?;
    let data = Dataset::open(&recipe.data)?;
    let Some(cache) = plan(&recipe, &data)?.cache else { panic!("no cache") };
    // Ten logits and eight pooled features in f32, an id and a checksum.
    assert_eq!((cache.images, cache.looks, cache.row_bytes, cache.bytes()), (40, 2, 84, 6720));
    let hash = |set: &[&str]| -> Result<String> {
        Ok(fingerprint(&parse(&[&SET[..], set].concat())?, "vkd", &data)?.1)
    };
    assert_eq!(hash(&[CACHE])?, hash(&[])?);
    assert_eq!(hash(&["teacher.cache.dir=somewhere"])?, hash(&[])?);
    assert_ne!(hash(&["data.augment.views=3"])?, hash(&[])?);
    assert!(plan(&parse(&SET)?, &data)?.cache.is_none());
    Ok(())
}

/// Two ranks remember beside each other, in one folder; what two have computed serves one, and the other way round.
#[test]
fn ranks_share_what_they_remember() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // Divided by two: images, and those with labels.
    let set = ["teacher.batch=20", "training.batch=10", "training.labelled=4", r#"arms=["vkd"]"#];
    let two = |dir: &Path, set: &[&str]| -> Result<()> {
        let recipe = parse(&[&SET[..], set].concat())?;
        let _created = RunFolder::create(dir, recipe, false)?;
        let train = |ranks: vkd_train::Ranks| -> Result<()> {
            let run = RunFolder::open(dir)?.with_ranks(ranks);
            let data = Dataset::open(&run.recipe().data)?;
            train_teacher(&run, &data, &mut |_| Ok(()))?;
            train_arm(&run, &data, "vkd", &mut |_| Ok(())).map(|_| ())
        };
        std::thread::scope(|scope| {
            let ranks = vkd_train::thread_ranks(2);
            let threads: Vec<_> =
                ranks.into_iter().map(|r| scope.spawn(move || train(r))).collect();
            threads.into_iter().try_for_each(|t| match t.join() {
                Ok(result) => result,
                Err(_) => bail!("a rank panicked"),
            })
        })
    };
    let student =
        |name: &str| std::fs::read(folder.path().join(name).join("arms/vkd/student.safetensors"));
    let at = |name: &str| folder.path().join(name);
    two(&at("without"), &set)?;
    run(&at("alone"), &set, None)?;
    let shared = format!("teacher.cache.dir={}", at("shared").display());
    let cached = [&set[..], &[&shared]].concat();
    two(&at("first"), &cached)?;
    let answers = files(&at("shared"))?;
    assert!(!answers.is_empty());
    two(&at("again"), &cached)?;
    assert!(answers == files(&at("shared"))?, "all of it was remembered");
    assert!(student("without")? == student("first")? && student("first")? == student("again")?);
    // The teacher of one process differs from that of two by rounding, and has answers of its own.
    run(&at("one"), &cached, None)?;
    assert!(student("alone")? == student("one")?);
    assert_eq!(std::fs::read_dir(at("shared"))?.count(), 2);
    // The same teacher, asked by one and by two.
    let given = format!("teacher.checkpoint={}", at("alone").join("teacher.safetensors").display());
    let of_given = [&set[..], &[&shared, &given]].concat();
    run(&at("given to one"), &of_given, None)?;
    let answers = files(&at("shared"))?;
    two(&at("given to two"), &of_given)?;
    assert!(answers == files(&at("shared"))?, "one has asked for all that two ask for");
    two(&at("given without"), &[&set[..], &[&given]].concat())?;
    assert!(student("given to two")? == student("given without")?);
    assert_eq!(std::fs::read_dir(at("shared"))?.count(), 2);
    Ok(())
}
