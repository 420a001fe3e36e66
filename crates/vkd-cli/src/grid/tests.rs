//! What may be compared, and in which pairs.

use super::*;
use vkd_train::{ArmReport, RunFacts, TeacherReport};

/// A result with an accuracy and a curve that ends in it.
pub(crate) fn result(arm: &str, seed: u64, accuracy: f64) -> ArmResult {
    let scores = |accuracy: f64| {
        ["accuracy", "validation_accuracy"].map(|name| (name.to_owned(), accuracy)).into()
    };
    ArmResult {
        schema: 2,
        task: "classification".to_owned(),
        recipe: "digits".to_owned(),
        dataset: "UCI handwritten digits".to_owned(),
        seed,
        fingerprint: format!("{arm}0"),
        arm: ArmReport {
            name: arm.to_owned(),
            terms: [("label".to_owned(), 1.), ("feature.tokens".to_owned(), 2.5)].into(),
            labels: 50,
            metrics: scores(accuracy),
            extractor: None,
            projector_residual_max: (arm == "vkd").then_some(3e-8),
            parameters: 31188,
            seconds: 12.,
        },
        teacher: TeacherReport { metrics: scores(0.95), parameters: 9, seconds: 5. },
        curve: vec![(10, accuracy - 0.1), (20, accuracy)],
        losses: BTreeMap::new(),
        geometry: BTreeMap::from([("rank.tokens".to_owned(), 8.)]),
        run: Some(RunFacts {
            device: "cpu".to_owned(),
            batch: 100,
            steps: 20,
            images: 2000,
            threads: 1,
            ranks: 1,
            loader_threads: 0,
            version: "0.1.0".to_owned(),
            commit: Some("abc".to_owned()),
            machine: "A 1 GHz, 2 cores".to_owned(),
        }),
        settings: BTreeMap::new(),
    }
}

#[test]
fn differences_are_paired_by_seed() {
    let all = vec![
        result("vkd", 0, 0.90),
        result("none", 0, 0.88),
        result("none", 1, 0.88),
        result("vkd", 1, 0.89),
        // No partner: left out of the pair, kept in the mean.
        result("vkd", 2, 0.50),
    ];
    let grid = Grid::new(all, None, None).unwrap();
    assert_eq!((grid.arms.join(" "), grid.reference.as_str()), ("none vkd".to_owned(), "none"));
    let pairs = grid.pairs("accuracy");
    assert_eq!(pairs.len(), 1);
    assert!((pairs[0].difference.mean - 0.015).abs() < 1e-15);
    assert_eq!((pairs[0].difference.n, pairs[0].counts), (2, [2, 0, 0]));
    assert_eq!(
        Summary::of(&grid.values("vkd", "accuracy").into_values().collect::<Vec<_>>()).unwrap().n,
        3
    );
    assert_eq!((grid.label("none"), grid.label("vkd")), ("none (n = 2)".into(), "vkd".into()));
    assert_eq!(grid.curve("none").len(), 2);
    assert_eq!(grid.residual("vkd"), Some(3e-8));
}

#[test]
fn pairs_come_once_and_in_order() {
    let arms = ["none", "logits", "linear", "vkd", "vkd-no-norm"];
    let all = arms.iter().map(|arm| result(arm, 0, 0.5)).collect();
    let grid = Grid::new(all, None, Some("logits")).unwrap();
    assert_eq!(grid.arms, arms);
    let pairs: Vec<String> =
        grid.pairs("accuracy").iter().map(|p| format!("{}-{}", p.left, p.right)).collect();
    assert_eq!(
        pairs.join(" "),
        "none-logits linear-logits vkd-logits vkd-no-norm-logits vkd-none vkd-linear vkd-vkd-no-norm"
    );
}

#[test]
fn what_can_not_be_compared_is_refused() {
    let fail = |all: Vec<ArmResult>, reference| {
        vkd_train::plain(&Grid::new(all, None, reference).err().unwrap())
    };
    assert!(fail(vec![], None).contains("got none"));
    let twice = vec![result("vkd", 0, 0.5), result("vkd", 0, 0.5)];
    assert!(fail(twice, None).contains("arm vkd and seed 0, got two"));
    let mut other = result("vkd", 1, 0.5);
    other.fingerprint = "x".to_owned();
    other.settings.insert("training.steps".to_owned(), 9.into());
    let message = fail(vec![result("vkd", 0, 0.5), other], None);
    assert!(message.contains("training.steps is nothing and 9"), "{message}");
    let mut other = result("none", 1, 0.5);
    other.dataset = "MNIST".to_owned();
    assert!(fail(vec![result("vkd", 0, 0.5), other], None).contains("MNIST"));
    assert!(fail(vec![result("vkd", 0, 0.5)], Some("nine")).contains("among vkd, got nine"));
}

#[test]
fn arms_that_differ_in_more_than_the_method_are_refused() {
    let with = |arm: &str, settings: &[(&str, u64)]| {
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).into()));
        ArmResult { settings: settings.collect(), ..result(arm, 0, 0.5) }
    };
    let vkd = with("vkd", &[("training.steps", 9), ("arm.features", 2), ("teacher.steps", 7)]);
    let message = |other: ArmResult| {
        Grid::new(vec![vkd.clone(), other], None, None).err().map(|e| vkd_train::plain(&e))
    };
    assert_eq!(message(with("none", &[("training.steps", 9)])), None, "needs no teacher");
    let longer = message(with("none", &[("training.steps", 10)])).unwrap();
    assert!(longer.contains("got vkd and none: training.steps is 9 and 10"), "{longer}");
    let taught = [("training.steps", 9), ("arm.logits", 1), ("teacher.steps", 8)];
    let taught = message(with("logits", &taught)).unwrap();
    assert!(taught.contains(": teacher.steps is 7 and 8"), "{taught}");
    // The level of the teacher is that of who learnt from it.
    let mut alone = with("zero", &[("training.steps", 9)]);
    alone.teacher.metrics.insert("accuracy".to_owned(), 0.1);
    let grid = Grid::new(vec![vkd.clone(), alone], None, None).unwrap();
    assert_eq!(grid.teacher("accuracy"), BTreeMap::from([(0, 0.95)]));
    // Of a report.json nobody knows.
    assert_eq!(message(result("linear", 0, 0.5)), None);
}
