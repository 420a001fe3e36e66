//! The page is well formed and complete, for usual and for odd runs.

use super::html::{Pen, escape, scientific};
use super::*;
use std::collections::BTreeMap;
use vkd_train::{ArmReport, Dataset, EventKind, Recipe, TeacherReport, Validation};

const RECIPE: &str = include_str!("../../recipes/digits.toml");

fn scores(accuracy: f64) -> BTreeMap<String, f64> {
    [("accuracy", accuracy), ("validation_accuracy", accuracy)]
        .map(|(name, v)| (name.to_owned(), v))
        .into()
}

fn arm(name: &str, accuracy: f64, residual: Option<f64>) -> ArmReport {
    ArmReport {
        name: name.to_owned(),
        terms: [("label".to_owned(), 1.), ("feature.tokens".to_owned(), 50.)].into(),
        labels: 50,
        metrics: scores(accuracy),
        extractor: None,
        projector_residual_max: residual,
        parameters: 31188,
        seconds: 55.4,
    }
}

fn report(arms: Vec<ArmReport>) -> Report {
    Report {
        schema: 1,
        task: "classification".to_owned(),
        recipe: "digits".to_owned(),
        dataset: "UCI handwritten digits".to_owned(),
        seed: 7,
        seconds: 204.8,
        version: "0.1.0".to_owned(),
        teacher: TeacherReport { metrics: scores(0.98), parameters: 94410, seconds: 15.9 },
        arms,
    }
}

fn events(arm: &str, steps: u64, residual: Option<f64>) -> Vec<Event> {
    let event = |step, kind| Event { arm: arm.to_owned(), step, kind };
    (0..steps)
        .flat_map(|i| {
            let terms =
                [("label".to_owned(), 2. / (i + 1) as f64), ("feature.tokens".to_owned(), 0.3)];
            let kind =
                EventKind::Step { loss: 2., terms: terms.into(), learning_rate: 1e-3, residual };
            let validation =
                EventKind::Validation(Validation { metric: "accuracy".to_owned(), value: 0.5 });
            let geometry =
                [("rank.tokens".to_owned(), 3.5), ("teacher_rank.tokens".to_owned(), 9.)];
            let geometry = EventKind::Geometry { geometry: geometry.into() };
            [event(i, kind), event(i + 1, validation), event(i + 1, geometry)]
        })
        .collect()
}

fn page(report: &Report, events: &[Event]) -> String {
    let recipe = Recipe::parse(RECIPE, "digits.toml", &[]).unwrap();
    let page = Page::new(&recipe, report, events, [1000, 200, 597]).unwrap().html();
    check(&page);
    page
}

/// Every tag is closed in order, and no axis met a value that is not finite.
pub(super) fn check(page: &str) {
    let (_, body) = page.split_once("</style>").unwrap();
    closed(body, vec!["html", "head"]);
    assert!(!page.contains("<script") && !page.contains("<link") && !page.contains("@import"));
}

/// Every tag of `body` is closed in order and all that were `open` before, and no number is not finite.
pub(super) fn closed<'a>(body: &'a str, mut open: Vec<&'a str>) {
    assert!(!body.contains("NaN") && !body.contains("inf"), "not finite");
    for piece in body.split('<').skip(1) {
        let (tag, _) = piece.split_once('>').expect("every < starts a tag");
        let name = tag.split(|c: char| c.is_whitespace() || c == '/').next().unwrap();
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed));
        } else if !tag.ends_with('/') && !matches!(name, "br" | "wbr" | "img") {
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn escaping() {
    assert_eq!(
        escape("<a href=\"x\">'&'</a>\u{1}"),
        "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;&lt;/a&gt;\u{fffd}"
    );
    let mut report = report(vec![arm("<b>bold", 0.9, None)]);
    report.dataset = "<script>alert(1)</script>".to_owned();
    report.recipe = "a\"b".to_owned();
    report.arms[0].terms.insert("<i>".to_owned(), 2.);
    let page = page(&report, &events("<b>bold", 3, None));
    assert!(page.contains("&lt;b&gt;bold") && page.contains("&lt;script&gt;"));
}

#[test]
fn numbers() {
    let accuracy = Metric::main(&BTreeMap::from([("accuracy".to_owned(), 0.5)]));
    assert_eq!(accuracy.gap(0.2027), "+20.27");
    assert_eq!(accuracy.gap(-0.0787), "−7.87");
    assert_eq!(accuracy.gap(-1e-9), "0.00");
    assert_eq!(accuracy.gap(f64::NAN), "–");
    assert_eq!((accuracy.whole(0.5), accuracy.plain(f64::NAN)), ("50.00 %".into(), "–".into()));
    let scores = ["validation_frechet", "frechet", "coverage"].map(|n| (n.to_owned(), 0.5));
    let distance = Metric::main(&BTreeMap::from(scores));
    assert_eq!((distance.key, distance.whole(12.345)), ("frechet", "12.35".into()));
    assert_eq!((distance.gap(-1.), distance.better(1., 2.)), ("−1.00".into(), 1.));
    // A score of validation images is never the main one.
    let only = Metric::main(&BTreeMap::from([("validation_ap".to_owned(), 0.5)]));
    assert_eq!(only.key, "accuracy");
    assert_eq!(scientific(3.377e-8, 1), "3.4×10⁻⁸");
    assert_eq!(scientific(1e-6, 0), "10⁻⁶");
    assert_eq!(scientific(0., 1), "0");
    assert_eq!(count(1234567), "1,234,567");
    assert_eq!(count(999), "999");
}

#[test]
fn every_arm_appears_with_its_accuracy_and_colour() {
    let names: Vec<String> =
        (0..11).map(|i| format!("unknown-{i}")).chain(["none".to_owned()]).collect();
    let arms = names.iter().enumerate().map(|(i, n)| arm(n, 0.7 + 0.01 * i as f64, None)).collect();
    let rows: Vec<Event> = names.iter().flat_map(|n| events(n, 40, Some(2e-8))).collect();
    let page = page(&report(arms), &rows);
    for (i, name) in names.iter().enumerate() {
        assert!(page.contains(name) && page.contains(&format!("{:.2} <small>± ", 70. + i as f64)));
        // The table's key and bar, and each plot's line and legend.
        assert!(page.matches(&Pen::arm(i).attributes()).count() >= 5, "{name}");
        assert!(page.contains(&format!("fill=\"{}\"", Pen::arm(i).color)));
    }
    assert!(page.contains("n = 597"));
    assert!(
        page.contains("Effective rank of the student's features".replace('\'', "&#39;").as_str())
    );
}

#[test]
fn the_best_arms_with_few_labels_are_marked() {
    let arms = vec![arm("none", 0.7, None), arm("linear", 0.9, None), arm("vkd", 0.9, Some(3e-8))];
    let all = ArmReport { labels: 1000, ..arm("none-all-labels", 0.95, None) };
    let page = page(&report([arms, vec![all]].concat()), &[]);
    assert_eq!(page.matches("<tr class=\"best\">").count(), 2);
    assert!(page.contains("highest test accuracy among those with few labels"));
    assert!(page.contains(
        "<strong>linear</strong> and <strong>vkd</strong>, tied: +20.00 pp against none"
    ));
}

#[test]
fn residuals() {
    let arms = || vec![arm("vkd", 0.9, Some(0.))];
    let without = page(&report(vec![arm("none", 0.7, None)]), &events("none", 3, None));
    assert!(
        without.contains("No arm of this run has an orthogonal projector")
            && !without.contains("law for f32")
    );
    let zero = page(&report(arms()), &events("vkd", 3, Some(0.)));
    assert!(zero.contains("law for f32") && zero.contains("An exact 0 lies on the lower edge"));
    let odd = page(&report(arms()), &events("vkd", 3, Some(f64::NAN)));
    assert!(odd.contains("No step recorded it"));
    let over = page(&report(vec![arm("vkd", 0.9, Some(2e-3))]), &events("vkd", 3, Some(2e-3)));
    assert!(over.contains("over the law"));
}

#[test]
fn odd_runs() {
    // One event, no events, no scores, no arms.
    let one = page(&report(vec![arm("vkd", 0.9, None)]), &events("vkd", 1, Some(1e-8))[..1]);
    assert!(one.contains("One way") && !one.contains("best with few labels"));
    let empty = page(&report(vec![arm("vkd", f64::NAN, None)]), &[]);
    assert!(empty.contains("Nothing was recorded"));
    page(&report(vec![]), &[]);
    let mut bare = report(vec![arm("vkd", 1., None)]);
    bare.teacher.metrics.clear();
    page(&bare, &events("teacher", 5, None));
}

#[test]
fn the_file_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = Recipe::parse(RECIPE, "digits.toml", &[]).unwrap();
    let data = Dataset::open(&recipe.data).unwrap();
    let run = RunFolderOf::create(dir.path(), recipe, false).unwrap();
    let report = report(vec![arm("vkd", 0.9, Some(3e-8))]);
    assert!(write(&run, &report, &data).is_err(), "no metrics.jsonl");
    std::fs::write(run.path("metrics.jsonl"), "").unwrap();
    write(&run, &report, &data).unwrap();
    let page = std::fs::read_to_string(run.path("report.html")).unwrap();
    check(&page);
    assert!(page.contains("--seed 7") && page.contains("[training]"));
}
