//! The digits distilled on a device and on the CPU: the first steps of three tasks, and where a classifier ends.

mod steps;

use candle_core::{Result, bail};
use vkd_train::{ComputeDevice, Dataset, Recipe, RunFolder, check, train_arm, train_teacher};

const RECIPE: &str = include_str!("../../../../../crates/vkd-cli/recipes/digits.toml");

/// The arm that is compared.
const ARM: &str = "vkd";

/// Steps of a short run: enough to learn something, not all.
const SHORT: [&str; 3] = ["teacher.steps=60", "training.steps=60", "teacher.floor=0.3"];

/// Compares the first steps of a classifier, a GAN and a detector on the CPU and on `device`; then trains teacher and student of the
/// digits on both and compares what they come to on the test images.
///
/// # Errors
/// Losses that differ by more than rounding, accuracies that differ by more than chance, a projector that is not orthonormal, and
/// whatever training refuses.
pub(crate) fn run(device: ComputeDevice, short: bool) -> Result<()> {
    steps::run(device)?;
    let mut found = Vec::new();
    for place in [ComputeDevice::Cpu, device] {
        let (scores, images) = accuracies(place, short)?;
        let [teacher, student, residual] = scores;
        println!(
            "{}: teacher {teacher:.4}, student {student:.4} on {images} test images, max|WᵀW−I| {residual:.1e}",
            place.describe()?
        );
        frame(ARM, residual)?;
        found.push((scores, images));
    }
    let [(cpu, images), (other, _)] = found[..] else { bail!("digits: expected two runs") };
    for (who, at) in [("teacher", 0), ("student", 1)] {
        let allowed = chance(cpu[at], images);
        let apart = (cpu[at] - other[at]).abs();
        println!("{who}: {apart:.4} apart, {allowed:.4} allowed");
        if !(apart <= allowed) {
            bail!(
                "digits: expected the {who}'s accuracy on {device} within {allowed:.4} of the CPU's {:.4}, got {:.4}",
                cpu[at],
                other[at]
            )
        }
    }
    Ok(())
}

/// The law of vkd-ortho in f32.
fn frame(arm: &str, residual: f64) -> Result<()> {
    match residual <= 1e-6 {
        true => Ok(()),
        false => bail!("{arm}: expected max|WᵀW−I| of at most 1e-6, got {residual:e}"),
    }
}

/// How far apart the accuracies of two equally good networks on `images` images may be: three standard errors of a difference of two
/// shares. Rounding takes the two trainings apart, so that they end in different networks.
fn chance(accuracy: f64, images: usize) -> f64 {
    let images = images as f64;
    // As if at least one image were wrong, as no error leaves no width.
    let wrong = (1. - accuracy).max(1. / images);
    3. * (2. * wrong * (1. - wrong) / images).sqrt()
}

/// Test accuracies of teacher and student and the projector's largest residual; and how many test images there are.
fn accuracies(device: ComputeDevice, short: bool) -> Result<([f64; 3], usize)> {
    let mut set = vec![format!("training.device={device}"), format!("arms=[\"{ARM}\"]")];
    if short {
        set.extend(SHORT.map(str::to_owned));
    }
    let recipe = Recipe::parse(RECIPE, "digits.toml", &set)?;
    let data = Dataset::open(&recipe.data)?;
    check(&recipe, &data)?;
    let folder = tempfile::tempdir()?;
    let run = RunFolder::create(folder.path(), recipe, false)?;
    let teacher = train_teacher(&run, &data, &mut |_| Ok(()))?;
    let student = train_arm(&run, &data, ARM, &mut |_| Ok(()))?;
    let (trained_on, want) = (run.facts(ARM)?.map(|facts| facts.device), device.describe()?);
    if trained_on.as_ref() != Some(&want) {
        bail!("digits: expected a run on {want}, got one on {trained_on:?}")
    }
    let of = |scores: &vkd_train::Scores| scores.get("accuracy").copied().unwrap_or(f64::NAN);
    let residual = student.projector_residual_max.unwrap_or(f64::NAN);
    Ok(([of(&teacher.metrics), of(&student.metrics), residual], data.test.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_three_standard_errors() {
        // Of 0.9 on 400 images: the variance of a difference is twice 0.9 · 0.1 / 400.
        assert!((chance(0.9, 400) - 3. * 0.021_213).abs() < 1e-5);
        assert!(chance(1., 400) > 0.);
    }

    #[test]
    fn the_cpu_agrees_with_itself() -> Result<()> {
        run(ComputeDevice::Cpu, true)
    }
}
