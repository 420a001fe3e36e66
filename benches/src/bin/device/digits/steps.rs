//! The first steps of a classifier, a GAN and a detector and of their teachers, on a device and on the CPU: every loss term, before
//! rounding has grown into another training.

use crate::driver::{self, Counts};
use candle_core::{Error, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use vkd_train::{
    Classification, ComputeDevice, Detection, Event, EventKind, Generation, RecipeOf, RunFolderOf,
    Workload, check, train_arm, train_teacher,
};

/// A recipe, what of it is changed so that its first steps come at once, and the arm that is compared.
struct Task {
    name: &'static str,
    recipe: &'static str,
    set: &'static [&'static str],
    arm: &'static str,
    /// Updates of a step of the teacher, and of the arm.
    updates: [u64; 2],
}

const TASKS: [Task; 3] = [
    Task {
        name: "digits.toml",
        recipe: super::RECIPE,
        set: &["data.validation=20", "training.warmup=0"],
        arm: "vkd",
        updates: [1, 1],
    },
    Task {
        name: "gan-digits.toml",
        recipe: include_str!("../../../../../recipes/gan-digits.toml"),
        set: &["data.validation=20", "criterion.samples=20"],
        arm: "vkd-whiten",
        // The judge trains with the teacher; two updates of the discriminator, one of the generator.
        updates: [2, 3],
    },
    Task {
        name: "scenes.toml",
        recipe: include_str!("../../../../../recipes/scenes.toml"),
        set: &[r#"data.source={ kind = "scenes", train = 100, validation = 2, test = 2 }"#],
        arm: "vkd",
        updates: [1, 1],
    },
];

/// Steps whose terms are compared.
const STEPS: u64 = 5;

/// Steps of a teacher, of which the first are compared too. The students of both trainings learn from the CPU's.
const TEACHER_STEPS: u64 = 20;

/// What terms of the first step may be apart, as a share: thirty ops in f32 with a margin of four, as the whole step of `laws`.
const START: f64 = 4. * 30. * f32::EPSILON as f64;

/// How much further apart each update may take them. On the CPU a learning rate that is off by 1e-6, some ten times what rounding makes
/// of a gradient, stays inside, and a test keeps it there; one that is off by a hundredth does not.
const GROWTH: f64 = 4.;

/// A teacher in a run's folder.
const TEACHER: &str = "teacher.safetensors";

/// The weighted sum, beside its terms.
const LOSS: &str = "loss";

/// Values by part, step and name of the term.
type Terms = BTreeMap<(String, u64, String), f64>;

/// What had been counted when a part reported a step.
type Waits = Vec<(String, u64, Counts)>;

/// The first step after which nothing is looked at but what every step reports: the audit of gradients looks at three at most.
const QUIET: u64 = 3;

/// Bytes of an update's numbers, at most: some dozen of eight.
const NUMBERS: u64 = 256;

/// Compares the first steps of all tasks on `device` with those on the CPU, bit for bit where it is the CPU itself.
///
/// # Errors
/// The first term that is too far apart, a projector that is not orthonormal, and whatever training refuses.
pub(super) fn run(device: ComputeDevice) -> Result<()> {
    driver::check(&device.open()?)?;
    let [classifier, gan, detector] = &TASKS;
    beside_the_cpu::<Classification>(classifier, device)?;
    beside_the_cpu::<Generation>(gan, device)?;
    beside_the_cpu::<Detection>(detector, device)
}

fn beside_the_cpu<W: Workload>(task: &Task, device: ComputeDevice) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let on = |place: ComputeDevice, name: &str, teacher: Option<&Path>| {
        let set = [format!("training.device={place}")];
        terms::<W>(task, &set, &folder.path().join(name), teacher)
    };
    let (want, _) = on(ComputeDevice::Cpu, "cpu", None)?;
    let (got, waits) = on(device, "device", Some(&folder.path().join("cpu").join(TEACHER)))?;
    let exact = device == ComputeDevice::Cpu;
    let named = |e: Error| Error::Msg(format!("{}: {}", task.name, vkd_train::plain(&e)));
    let share = compare(&want, &got, exact).map_err(named)?;
    let told = if exact { "the same bits".to_owned() } else { format!("{share:.3} of allowed") };
    println!("{}: {} terms of the first {STEPS} steps: {told}", task.name, want.len());
    if !exact {
        let steps = one_copy_an_update(&waits, task).map_err(named)?;
        println!("{}: one copy to the host an update in {steps} steps, and no wait", task.name);
    }
    Ok(())
}

/// Sees to it that between the reports of two steps the host waited for the device once an update, for its numbers. Returns how many
/// steps were looked at.
///
/// # Errors
/// A step with other copies than that, larger ones, or a wait; none to look at.
fn one_copy_an_update(waits: &Waits, task: &Task) -> Result<usize> {
    let mut looked = [0; 2];
    for pair in waits.windows(2) {
        let [(before, first, earlier), (part, step, later)] = pair else { continue };
        if part != before || *step != first + 1 || *step < QUIET {
            continue;
        }
        let of = usize::from(part == task.arm);
        let (updates, found) = (task.updates[of], later.since(*earlier));
        if found.copies != updates || found.bytes > updates * NUMBERS || found.waits > 0 {
            bail!(
                "{part}, step {step}: expected {updates} copies to the host of up to {NUMBERS} bytes each and no wait, got {found:?}"
            )
        }
        looked[of] += 1;
    }
    match looked.contains(&0) {
        true => bail!("expected steps of teacher and arm after the first {QUIET}, got {looked:?}"),
        false => Ok(looked.iter().sum()),
    }
}

/// Trains a few steps of a task's teacher and then of its arm, which learns from the file `teacher` where there is one.
fn terms<W: Workload>(
    task: &Task,
    set: &[String],
    folder: &Path,
    teacher: Option<&Path>,
) -> Result<(Terms, Waits)> {
    let given = task.set.iter().map(|change| (*change).to_owned());
    let own = [
        // Nothing is learnt in so few steps.
        "teacher.floor=0.0".to_owned(),
        format!("teacher.steps={TEACHER_STEPS}"),
        format!("training.steps={STEPS}"),
        "training.log_every=1".to_owned(),
        format!("arms=[{:?}]", task.arm),
    ];
    let set: Vec<String> = given.chain(own).chain(set.iter().cloned()).collect();
    let recipe = RecipeOf::<W>::parse(task.recipe, task.name, &set)?;
    let data = W::open(&recipe.data)?;
    check(&recipe, &data)?;
    let run = RunFolderOf::create(folder, recipe, false)?;
    let (mut found, mut waits) = (Terms::new(), Waits::new());
    let mut observe = |event: &Event| {
        let EventKind::Step { loss, terms, residual, .. } = &event.kind else { return Ok(()) };
        waits.push((event.arm.clone(), event.step, driver::counts()));
        match residual {
            Some(residual) => super::frame(&event.arm, *residual)?,
            None if event.arm == task.arm => {
                bail!("{}: expected the projector's residual, got none", event.arm)
            }
            None => {}
        }
        let terms = terms.iter().map(|(name, value)| (name.as_str(), *value));
        for (name, value) in terms.chain([(LOSS, *loss)]) {
            if event.step < STEPS {
                found.insert((event.arm.clone(), event.step, name.to_owned()), value);
            }
        }
        Ok(())
    };
    train_teacher(&run, &data, &mut observe)?;
    if let Some(teacher) = teacher {
        std::fs::copy(teacher, run.path(TEACHER))?;
    }
    train_arm(&run, &data, task.arm, &mut observe)?;
    Ok((found, waits))
}

/// The largest share of what is allowed by which two trainings are apart; nothing is allowed where they must be the same.
///
/// # Errors
/// A term that is too far apart, or that only one of them has.
fn compare(want: &Terms, got: &Terms, exact: bool) -> Result<f64> {
    let one_sided = |a: &Terms, b: &Terms| a.keys().find(|key| !b.contains_key(*key)).cloned();
    if let Some((part, step, name)) = one_sided(want, got).or_else(|| one_sided(got, want)) {
        bail!("expected the same terms, got {name} of {part} in step {step} on one side alone")
    }
    let mut largest: BTreeMap<(&str, u64), f64> = BTreeMap::new();
    for ((part, step, name), value) in want {
        let place = largest.entry((part, *step)).or_default();
        *place = if name == LOSS { *place } else { place.max(value.abs()) };
    }
    let mut worst = 0f64;
    for ((key, want), got) in want.iter().zip(got.values()) {
        let (part, step, name) = key;
        // A mean of scores of either sign may be near zero, where a tenth of the largest term stands for it.
        let size = want.abs().max(0.1 * largest.get(&(part.as_str(), *step)).unwrap_or(&0.));
        let allowed = if exact { 0. } else { START * GROWTH.powi(*step as i32) * size };
        let apart = (got - want).abs();
        if !(apart <= allowed) {
            bail!(
                "{part}, step {step}: expected {name} within {allowed:.1e} of the CPU's {want}, got {got}"
            )
        }
        if allowed > 0. {
            worst = worst.max(apart / allowed);
        }
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Terms of a part.
    fn of(terms: &Terms, part: &str) -> Terms {
        terms.iter().filter(|((p, ..), _)| p == part).map(|(k, v)| (k.clone(), *v)).collect()
    }

    /// Rounding passes in teacher and arm, and a learning rate that is off by a hundredth is found in each.
    fn tells_rounding_from_a_fault<W: Workload>(task: &Task) -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (want, _) = terms::<W>(task, &[], &folder.path().join("own"), None)?;
        let teacher = folder.path().join("own").join(TEACHER);
        let recipe = RecipeOf::<W>::parse(task.recipe, task.name, &[])?;
        let rates = [recipe.teacher.learning_rate, recipe.training.learning_rate];
        let with_rates = |name: &str, factor: f64| {
            let set = ["teacher", "training"].into_iter().zip(rates);
            let set: Vec<String> =
                set.map(|(of, rate)| format!("{of}.learning_rate={:e}", rate * factor)).collect();
            let folder = folder.path().join(name);
            Ok::<_, Error>(terms::<W>(task, &set, &folder, Some(&teacher))?.0)
        };
        let (rounded, wrong) = (with_rates("rounded", 1. + 1e-6)?, with_rates("wrong", 1.01)?);
        for part in ["teacher", task.arm] {
            let [want, rounded, wrong] = [&want, &rounded, &wrong].map(|terms| of(terms, part));
            // Some terms, and the loss, of each step.
            assert!(want.len() >= 2 * STEPS as usize, "{want:?}");
            let share = compare(&want, &rounded, false)?;
            println!("{} {part}: {share:.3} of allowed", task.name);
            assert!(share < 0.5, "{}: {part}: {share}", task.name);
            for (other, exact) in [(&rounded, true), (&wrong, false)] {
                match compare(&want, other, exact) {
                    Err(e) => assert!(e.to_string().starts_with(part), "{e}"),
                    Ok(share) => panic!("{}: accepted {part} with {share}", task.name),
                }
            }
        }
        Ok(())
    }

    #[test]
    fn a_classifier_with_another_rate_is_found() -> Result<()> {
        tells_rounding_from_a_fault::<Classification>(&TASKS[0])
    }

    #[test]
    fn a_gan_with_another_rate_is_found() -> Result<()> {
        tells_rounding_from_a_fault::<Generation>(&TASKS[1])
    }

    #[test]
    fn a_detector_with_another_rate_is_found() -> Result<()> {
        tells_rounding_from_a_fault::<Detection>(&TASKS[2])
    }

    #[test]
    fn a_copy_too_many_and_a_wait_are_found() -> Result<()> {
        let gan = &TASKS[1];
        // A teacher's five steps, of which the last two are looked at, and as many of the arm.
        let waits = |teacher: Counts, arm: Counts| -> Waits {
            let of = |part: &str, each: Counts| {
                let times = |n: u64, step: u64| n * (step + 1);
                let all = move |step| Counts {
                    copies: times(each.copies, step),
                    bytes: times(each.bytes, step),
                    waits: times(each.waits, step),
                };
                (0..5).map(|step| (part.to_owned(), step, all(step))).collect::<Vec<_>>()
            };
            [of("teacher", teacher), of(gan.arm, arm)].concat()
        };
        let two = Counts { copies: 2, bytes: 128, waits: 0 };
        let three = Counts { copies: 3, bytes: 192, waits: 0 };
        assert_eq!(one_copy_an_update(&waits(two, three), gan)?, 4);
        for (teacher, arm, part) in [
            (three, three, "teacher"),
            (two, two, gan.arm),
            (Counts::default(), three, "teacher"),
            (Counts { waits: 1, ..two }, three, "teacher"),
            (two, Counts { bytes: 10_000, ..three }, gan.arm),
        ] {
            let message = one_copy_an_update(&waits(teacher, arm), gan).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{part}, step 3: expected")), "{message}");
        }
        assert!(one_copy_an_update(&Waits::new(), gan).is_err());
        Ok(())
    }

    #[test]
    fn terms_are_compared_by_name_and_never_pass_as_nan() -> Result<()> {
        let terms = |values: [f64; 3]| -> Terms {
            let names = ["a", "b", LOSS].map(str::to_owned);
            names
                .into_iter()
                .zip(values)
                .map(|(name, v)| (("arm".to_owned(), 1, name), v))
                .collect()
        };
        let want = terms([1., 1e-9, 50.]);
        assert_eq!(compare(&want, &want, true)?, 0.);
        // A tenth of the largest term, which the loss is not, stands for the one near zero.
        let share = compare(&want, &terms([1., 1e-9 + 0.05 * START * GROWTH, 50.]), false)?;
        assert!((share - 0.5).abs() < 1e-6, "{share}");
        assert!(compare(&want, &terms([1., 0.2 * START * GROWTH, 50.]), false).is_err());
        assert!(compare(&want, &terms([f64::NAN, 1e-9, 50.]), false).is_err());
        let mut fewer = want.clone();
        fewer.pop_first();
        for (a, b) in [(&want, &fewer), (&fewer, &want)] {
            let message = compare(a, b, false).unwrap_err().to_string();
            assert!(message.contains("got a of arm in step 1 on one side alone"), "{message}");
        }
        Ok(())
    }
}
