//! Scores of any number of ranks are those of one, to the bit, and each rank looks at its own part of the images.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use candle_core::{DType, Device, Result};
use vkd_nn::VarStore;
use vkd_train::{
    Classification, Dataset, Detection, Generation, Ranks, Recipe, RecipeOf, Workload, thread_ranks,
};

/// What every one of `size` ranks gets, by rank.
fn on_each<T: Send>(size: usize, score: impl Fn(&Ranks) -> Result<T> + Sync) -> Vec<Result<T>> {
    let score = &score;
    std::thread::scope(|scope| {
        let start = |ranks: Ranks| scope.spawn(move || score(&ranks));
        let threads: Vec<_> = thread_ranks(size).into_iter().map(start).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// A student and a teacher as they are at their start, scored by so many ranks.
fn same_scores<W: Workload>(recipe: &str, settings: &[&str], arm: &str, sizes: &[usize]) {
    let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
    let recipe = RecipeOf::<W>::parse(recipe, "tiny.toml", &settings).unwrap();
    let data = W::open(&recipe.data).unwrap();
    let scored = |ranks: &Ranks| {
        let taught = VarStore::new(5, DType::F32, &Device::Cpu);
        W::declare_teacher(&recipe, &data, taught.builder())?;
        let store = VarStore::new(recipe.seed, DType::F32, &Device::Cpu);
        let teacher = || W::teacher(&recipe, &data, &taught);
        let arm = recipe.arm(arm)?;
        let distiller = W::distiller(&recipe, arm, &data, &store, Some(&teacher()?))?;
        let task = W::student_task(&recipe, &data, &store, Some(teacher()?), Some(distiller))?;
        let validation = W::validate(&task, &recipe, &data, ranks)?;
        // What was kept of the first time is used.
        assert_eq!(W::validate(&task, &recipe, &data, ranks)?.to_bits(), validation.to_bits());
        let student = W::scores(&task, &recipe, &data, ranks)?;
        Ok((validation, student, W::teacher_scores(&teacher()?, &recipe, &data, ranks)?))
    };
    let want = scored(&Ranks::alone()).unwrap();
    assert!(!want.1.is_empty() && !want.2.is_empty());
    for &size in sizes {
        let found: Vec<_> = on_each(size, scored).into_iter().map(Result::unwrap).collect();
        // Equal bits where the value counts, and equal to what text keeps elsewhere.
        assert_eq!(found[0].0.to_bits(), want.0.to_bits(), "{size} ranks");
        assert!(found[0] == want, "{size} ranks: {:?} is not {want:?}", found[0]);
        for (rank, (_, student, teacher)) in found.iter().enumerate() {
            assert_eq!(student.keys().collect::<Vec<_>>(), want.1.keys().collect::<Vec<_>>());
            let of_student = student.iter().map(|(name, value)| (name, value, want.1[name]));
            let of_teacher = teacher.iter().map(|(name, value)| (name, value, want.2[name]));
            for (name, value, want) in of_student.chain(of_teacher) {
                assert!((want - value).abs() <= 1e-12 * want.abs(), "{rank} of {size}: {name}");
            }
        }
    }
}

#[test]
fn of_a_classifier() {
    same_scores::<Classification>(include_str!("tiny.toml"), &[], "vkd", &[1, 2, 3, 9]);
}

#[test]
fn of_a_detector() {
    same_scores::<Detection>(include_str!("scenes.toml"), &[], "vkd", &[2, 3]);
}

#[test]
fn of_a_generator() {
    let settings = ["criterion.samples=600"];
    same_scores::<Generation>(include_str!("gan.toml"), &settings, "running", &[2, 4]);
}

/// Each image is read by one rank alone; where one can't be read, its rank says its name and the others whose error it is.
#[test]
fn images_are_read_by_the_rank_that_needs_them() {
    let folder = tempfile::tempdir().unwrap();
    vkd_train::write_image_folder(folder.path(), 24, 8, 60, 0).unwrap();
    let open = |on_corrupt: &str| {
        let dir = format!("data.dir={}", folder.path().display());
        let set = [
            &dir,
            on_corrupt,
            "data.kind=folder",
            "data.size=16",
            "data.train=60",
            "data.validation=10",
        ];
        let set = set.map(String::from).to_vec();
        let recipe = Recipe::parse(include_str!("tiny.toml"), "tiny.toml", &set).unwrap();
        let data = Dataset::open(&recipe.data).unwrap();
        (recipe, data)
    };
    let scores = |ranks: &Ranks, (recipe, data): &(Recipe, Dataset)| {
        let store = VarStore::new(5, DType::F32, &Device::Cpu);
        Classification::declare_teacher(recipe, data, store.builder())?;
        let teacher = Classification::teacher(recipe, data, &store)?;
        Classification::teacher_scores(&teacher, recipe, data, ranks)
    };
    // The second pass of three over the test images is the second rank's.
    let (_, data) = open("data.on_corrupt=skip");
    let broken = data.image_name(data.test[250]);
    std::fs::write(folder.path().join(&broken), b"\xff\xd8\xff no more").unwrap();

    let opened = open("data.on_corrupt=skip");
    let want = scores(&Ranks::alone(), &opened).unwrap();
    assert_eq!(opened.1.skipped(), [&broken[..]]);
    let found = on_each(2, |ranks| {
        let opened = open("data.on_corrupt=skip");
        Ok((scores(ranks, &opened)?, opened.1.skipped()))
    });
    let found: Vec<_> = found.into_iter().map(Result::unwrap).collect();
    assert!(found[0] == (want, Vec::new()) && found[1].1 == [&broken[..]], "{found:?}");

    let stopped = on_each(2, |ranks| scores(ranks, &open("data.on_corrupt=stop")));
    let said: Vec<String> =
        stopped.into_iter().map(|r| vkd_train::plain(&r.unwrap_err())).collect();
    assert!(said[1].contains(&broken) && !said[1].starts_with("rank"), "{said:?}");
    assert_eq!(said[0], format!("rank 1: {}", said[1]));
}
