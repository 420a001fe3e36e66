//! A conditional GAN on the embedded digits, trained by the example's plain loop.

#[path = "../examples/gan_digits.rs"]
mod gan_digits;

use candle_core::Result;
use gan_digits::{Arm, Outcome, Setup, run};

fn trained(arm: Arm, steps: u64, classifier_steps: u64) -> Result<Outcome> {
    let setup = Setup { arm, images: 1000, steps, classifier_steps, seed: 0 };
    let found = run(setup, |line| println!("{line}"))?;
    println!("{setup:?}: {found:?}, {:.0} s", found.seconds);
    Ok(found)
}

#[test]
fn every_arm_takes_steps() -> Result<()> {
    for arm in [Arm::None, Arm::Fitnet, Arm::LayerNorm, Arm::Whiten] {
        let found = trained(arm, 3, 40)?;
        assert!(found.judge > 0.6, "{arm:?}: {found:?}");
        // Noise yet: far from the digits, but a number.
        assert!(found.frechet.is_finite() && found.frechet > 1., "{arm:?}: {found:?}");
        let orthogonal = matches!(arm, Arm::LayerNorm | Arm::Whiten);
        assert_eq!(found.residual.is_some(), orthogonal);
        assert!(found.residual.is_none_or(|r| r < 1e-5), "{arm:?}: {found:?}");
    }
    Ok(())
}

/// Ten classes: chance is a tenth.
fn looks_like_digits(found: &Outcome) {
    assert!(found.recognised >= 0.9, "{found:?}");
    assert!(found.manifold.coverage >= 0.6, "{found:?}");
}

#[test]
#[ignore = "minutes; cargo xtask ci --full runs it"]
fn a_classifier_that_the_gan_never_saw_recognises_its_samples() -> Result<()> {
    looks_like_digits(&trained(Arm::None, 1500, 400)?);
    Ok(())
}

#[test]
#[ignore = "minutes; cargo xtask ci --full runs it"]
fn a_discriminator_that_learns_from_a_whitened_teacher_does_so_too() -> Result<()> {
    let found = trained(Arm::Whiten, 1500, 400)?;
    looks_like_digits(&found);
    assert!(found.residual.is_some_and(|r| r < 1e-5), "{found:?}");
    Ok(())
}
