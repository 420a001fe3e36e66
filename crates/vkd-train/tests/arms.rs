//! Arms without labels, decoupled distillation and an arm's own temperature: what they train on, and what is refused.

use candle_core::Result;
use std::path::Path;
use vkd_train::{
    Dataset, EventKind, Recipe, RunFolder, check, fingerprint, train_arm, train_teacher,
};

const TINY: &str = include_str!("tiny.toml");

fn parse(set: &[&str]) -> Result<Recipe> {
    Recipe::parse(TINY, "tiny.toml", &set.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
}

/// Trains the teacher and the arm `vkd`.
fn run(dir: &Path, set: &[&str]) -> Result<RunFolder> {
    let recipe =
        parse(&[&[r#"arms=["vkd"]"#, "teacher.steps=4", "teacher.floor=0.01"], set].concat())?;
    let data = Dataset::open(&recipe.data)?;
    check(&recipe, &data)?;
    let run = RunFolder::create(dir, recipe, false)?;
    train_teacher(&run, &data, &mut |_| Ok(()))?;
    train_arm(&run, &data, "vkd", &mut |_| Ok(()))?;
    Ok(run)
}

#[test]
fn without_labels_only_the_teacher_speaks() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (name, mixup) in [("plain", 0.), ("mixed", 0.8)] {
        let set = ["arm.vkd.labels=none", &format!("data.augment.mixup={mixup:?}")];
        let run = run(&folder.path().join(name), &set)?;
        let Some(report) = run.arm_report("vkd")? else { panic!("{name}: no report") };
        let terms: Vec<&str> = report.terms.keys().map(String::as_str).collect();
        assert_eq!((report.labels, &terms[..]), (0, &["feature.tokens", "logits"][..]), "{name}");
        for event in run.part_events("vkd")? {
            if let EventKind::Step { terms, .. } = event.kind {
                assert!(terms.len() == 2 && !terms.contains_key("label"), "{name}: {terms:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn decoupled_distillation_trains_with_few_and_all_labels() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut losses = Vec::new();
    for (i, more) in [&["arm.vkd.labels=few"][..], &["arm.vkd.labels=all"], &["arm.vkd.dkd_beta=2"]]
        .into_iter()
        .enumerate()
    {
        let set = [&["arm.vkd.logit_loss=dkd", "arm.vkd.temperature=4"], more].concat();
        let run = run(&folder.path().join(i.to_string()), &set)?;
        let first = run.part_events("vkd")?.into_iter().find_map(|e| match e.kind {
            EventKind::Step { terms, .. } => terms.get("logits").copied(),
            _ => None,
        });
        losses.push(first.unwrap_or(f64::NAN));
    }
    // The first step of the same networks: other rows, other weights.
    assert!(losses.iter().all(|l| *l > 0.), "{losses:?}");
    assert!(losses[0] != losses[1] && losses[0] != losses[2], "{losses:?}");
    Ok(())
}

#[test]
fn what_an_arm_can_not_be_is_refused_by_name() {
    for (set, part) in [
        (&["arm.none.labels=none"][..], "arm.none.labels: expected labels or a teacher's term"),
        (
            &["arm.vkd.labels=none", "arm.vkd.logits=0"],
            "arm.vkd.logits: expected a weight above 0 with labels = \"none\"",
        ),
        (
            &["arm.vkd.labels=none", "arm.vkd.logit_loss=dkd"],
            "arm.vkd.labels: expected some with logit_loss = \"dkd\"",
        ),
        (
            &["arm.vkd.logit_loss=dkd", "data.augment.cutmix=1.0"],
            "arm.vkd.logit_loss: expected data.augment without mixup and cutmix",
        ),
        (&["arm.vkd.dkd_alpha=1"], "expected dkd_alpha and dkd_beta only with logit_loss"),
        (&["arm.vkd.logit_loss=dkd", "arm.vkd.dkd_beta=-1"], "arm.vkd.dkd_beta: expected a finite"),
        (&["arm.vkd.temperature=0"], "arm.vkd.temperature: expected a finite value above 0, got 0"),
        (&["arm.vkd.temperature=nan"], "arm.vkd.temperature"),
        (&["arm.vkd.labels=nobody"], "did you mean `none`?"),
    ] {
        let message = parse(set).err().map(|e| vkd_train::plain(&e)).unwrap_or_default();
        assert!(message.contains(part), "{set:?}: {message}");
    }
}

#[test]
fn the_new_keys_change_the_fingerprint_of_those_who_use_them_alone() -> Result<()> {
    let hash = |arm: &str, set: &[&str]| -> Result<String> {
        let recipe = parse(set)?;
        Ok(fingerprint(&recipe, arm, &Dataset::open(&recipe.data)?)?.1)
    };
    // Recorded before the keys came: results of then are still found.
    let now = [hash("vkd", &[])?, hash("none", &[])?, hash("logits", &[])?];
    assert_eq!(now, RECORDED);
    let dkd = ["arm.logits.logit_loss=dkd"];
    let with = |more: &str| hash("logits", &[dkd[0], more]);
    assert_ne!(hash("logits", &dkd)?, RECORDED[2]);
    assert_ne!(with("arm.logits.dkd_beta=2")?, hash("logits", &dkd)?);
    // The default, written out; the shared temperature, as the arm's own; another arm's.
    assert_eq!(with("arm.logits.dkd_beta=8")?, hash("logits", &dkd)?);
    assert_eq!(hash("logits", &["arm.logits.temperature=1"])?, RECORDED[2]);
    assert_eq!(hash("logits", &["arm.vkd.temperature=3"])?, RECORDED[2]);
    assert_ne!(hash("logits", &["arm.logits.temperature=3"])?, RECORDED[2]);
    Ok(())
}

const RECORDED: [&str; 3] = ["fd5d77255920cbad", "0fe679f24dff13d6", "cdd934db8ff4f4d8"];
