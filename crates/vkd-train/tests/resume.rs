//! A training that stops at any step and goes on ends at the same bits, whatever optimiser and schedule it has.

use candle_core::{Result, bail};
use std::path::Path;
use vkd_train::{Dataset, Recipe, RunFolder, train_arm, train_teacher};

/// Trains teacher and arm `vkd`; the arm's observer fails at step `stop`.
fn run(dir: &Path, settings: &[&str], stop: Option<u64>) -> Result<RunFolder> {
    let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
    let recipe = Recipe::parse(include_str!("tiny.toml"), "tiny.toml", &settings)?;
    let data = Dataset::open(&recipe.data)?;
    let run = RunFolder::create(dir, recipe, false)?;
    train_teacher(&run, &data, &mut |_| Ok(()))?;
    train_arm(&run, &data, "vkd", &mut |event| match stop {
        Some(stop) if event.step >= stop => bail!("stopped"),
        _ => Ok(()),
    })?;
    run.finish(&data.name, 0.)?;
    Ok(run)
}

#[test]
fn every_optimiser_and_schedule_goes_on_where_it_stopped() -> Result<()> {
    let common = [r#"arms=["vkd"]"#, "teacher.steps=4", "teacher.floor=0.01"];
    for settings in [
        &["training.checkpoint_every=2", "training.min_learning_rate=1e-4"][..],
        &[
            "training.optimizer=sgd",
            "training.schedule=step",
            "training.milestones=[3, 5]",
            "training.checkpoint_every=1",
            "training.keep=1",
        ],
        &[
            "training.optimizer=lamb",
            "training.schedule=linear",
            "training.ema_decay=0.8",
            "training.accumulate=3",
            "training.clip_norm=1.0",
        ],
        &["training.compute=bf16", "teacher.compute=bf16", "training.accumulate=2"],
        // One of the two distillation terms alone.
        &["arm.vkd.logits=0"],
        &["arm.vkd.features=0"],
        &["arm.vkd.features=0", "arm.vkd.logits=0"],
    ] {
        let folder = tempfile::tempdir()?;
        let settings = [&common[..], settings].concat();
        let alone = run(&folder.path().join("alone"), &settings, None)?;
        let stopped = folder.path().join("stopped");
        for stop in [1, 4, 5] {
            assert!(run(&stopped, &settings, Some(stop)).is_err(), "{settings:?}");
        }
        let stopped = run(&stopped, &settings, None)?;
        for file in ["student.safetensors", "metrics.jsonl"] {
            let read = |run: &RunFolder| std::fs::read(run.path(file));
            assert_eq!(read(&alone)?, read(&stopped)?, "{settings:?}: {file}");
        }
        let residual = |run: &RunFolder| -> Result<Option<f64>> {
            Ok(run.arm_report("vkd")?.and_then(|report| report.projector_residual_max))
        };
        assert_eq!(residual(&alone)?, residual(&stopped)?);
        // Averages of the free parameter give an orthonormal weight as well.
        assert!(residual(&alone)?.is_none_or(|r| r <= 1e-6), "{settings:?}");
    }
    Ok(())
}

#[test]
fn what_changes_no_result_may_change_on_the_way() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let settings = [r#"arms=["vkd"]"#, "teacher.steps=4", "teacher.floor=0.01"];
    let alone = run(&folder.path().join("alone"), &settings, None)?;
    let stopped = folder.path().join("stopped");
    assert!(run(&stopped, &settings, Some(4)).is_err());
    let neutral = [
        "data.workers=2",
        "training.log_every=4",
        "training.checkpoint_every=1",
        "training.keep=1",
        "training.term_gradients=true",
    ];
    let stopped = run(&stopped, &[&settings[..], &neutral].concat(), None)?;
    let student = |run: &RunFolder| std::fs::read(run.path("student.safetensors"));
    assert_eq!(student(&alone)?, student(&stopped)?);
    assert_eq!(stopped.facts("vkd")?.map(|facts| facts.loader_threads), Some(2));
    let message =
        run(stopped.dir(), &["training.steps=7"], None).err().map(|e| vkd_train::plain(&e));
    assert!(message.is_some_and(|m| m.contains("expected a run of this recipe")));
    Ok(())
}

#[test]
fn a_checkpoint_that_can_not_be_written_is_named_and_the_older_one_stays() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let settings = [r#"arms=["vkd"]"#, "teacher.steps=4", "teacher.floor=0.01"];
    let dir = folder.path().join("run");
    // A folder in the way of the rename stands for a disk that refuses.
    let blocked = dir.join("arms/vkd/checkpoint-000006.safetensors");
    std::fs::create_dir_all(blocked.join("inside"))?;
    std::fs::write(dir.join("recipe.toml"), {
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        Recipe::parse(include_str!("tiny.toml"), "tiny.toml", &settings)?.to_toml()?
    })?;
    let message = run(&dir, &settings, None).err().map(|e| vkd_train::plain(&e));
    let message = message.unwrap_or_default();
    assert!(message.contains("checkpoint-000006.safetensors: "), "{message}");
    assert!(message.contains("checkpoint-000003.safetensors holds the state after step 3"));
    std::fs::remove_dir_all(&blocked)?;
    let after = run(&dir, &settings, None)?;
    let alone = run(&folder.path().join("alone"), &settings, None)?;
    let student = |run: &RunFolder| std::fs::read(run.path("student.safetensors"));
    assert_eq!(student(&after)?, student(&alone)?);
    Ok(())
}

#[test]
fn a_checkpoint_of_another_seed_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let settings = [r#"arms=["vkd"]"#, "teacher.steps=4", "teacher.floor=0.01"];
    let other = [&settings[..], &["seed=1"]].concat();
    let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
    assert!(run(&ours, &settings, Some(1)).is_err());
    assert!(run(&theirs, &other, Some(5)).is_err());
    let file = "arms/vkd/checkpoint-000003.safetensors";
    std::fs::copy(theirs.join(file), ours.join(file))?;
    let message = run(&ours, &settings, None).err().map(|e| vkd_train::plain(&e));
    let message = message.unwrap_or_default();
    assert!(message.contains("expected the state of vkd, seed 0, got that of vkd, seed 1"));
    Ok(())
}

#[test]
fn settings_out_of_range_are_refused() {
    for (setting, part) in [
        ("training.accumulate=0", "training.accumulate: expected at least 1"),
        ("training.keep=0", "training.keep: expected at least 1"),
        ("training.clip_norm=0.0", "training.clip_norm: expected a value above 0"),
        ("training.ema_decay=1.0", "training.ema_decay: expected a value in [0, 1)"),
        ("training.momentum=1.0", "training.momentum"),
        ("training.min_learning_rate=1.0", "training.min_learning_rate: expected at most"),
        ("training.milestones=[1]", "training.milestones: expected some for the schedule step"),
        ("training.schedule=step", "training.milestones"),
        ("training.optimizer=adam", "adamw"),
    ] {
        let recipe = Recipe::parse(include_str!("tiny.toml"), "tiny.toml", &[setting.to_owned()]);
        let message = recipe.err().map(|e| vkd_train::plain(&e)).unwrap_or_default();
        assert!(message.contains(part), "{setting}: {message}");
    }
}
