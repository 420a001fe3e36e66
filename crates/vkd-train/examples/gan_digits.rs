//! A conditional GAN on the embedded digits, written out with the library's parts: networks, task, optimisers, averages, measures.
//!
//!     cargo run --release -p vkd-train --example gan_digits -- [none|fitnet|layernorm|whiten] [images] [steps] [seed] [grid.png]
//!
//! It trains a classifier that the GAN never sees, a teacher with another seed, and the GAN on so many of the training images; then it
//! says which share of 1,000 conditional samples the classifier gives their class, and how far the samples lie from the test images.

use candle_core::{D, DType, Device, Result, Tensor, bail};
use rand::Rng;
use std::collections::HashMap;
use std::time::Instant;
use vkd_models::{
    Architecture, CnnConfig, Discriminator, DiscriminatorConfig, Generator, GeneratorConfig, Model,
    ModelConfig, write_atomically,
};
use vkd_nn::{AdamW, AdamWConfig, Context, Ema, VarStore, stream};
use vkd_norm::{Moments, Normalizer, WhitenConfig, Whitener};
use vkd_ortho::{OrthogonalConfig, OrthogonalMap};
use vkd_tasks::{
    DISCRIMINATOR, DiffAugment, DistillTask, FeatureLoss, GENERATOR, GenerationBatch,
    GenerationConfig, GenerationDistiller, GenerationLoss, GenerationTap, GenerationTask,
    ProjectorConfig, Teacher, TeacherNormalizer, white_noise,
};
use vkd_train::metrics::{ManifoldScores, frechet_distance, manifold_scores};
use vkd_train::{Dataset, discriminator_network, generator_network, network, sample_grid};

const CLASSES: usize = 10;
const BATCH: usize = 32;
const SAMPLES: usize = 1000;
const JUDGE_SEED: u64 = 1 << 40;

/// What a run asks for.
#[derive(Clone, Copy, Debug)]
struct Setup {
    /// What the discriminator learns from the teacher.
    arm: Arm,
    /// Training images of the GAN.
    images: usize,
    /// Updates of the generator.
    steps: u64,
    /// Updates of the judging classifier, and of the teacher.
    classifier_steps: u64,
    /// Of everything random.
    seed: u64,
}

/// How the discriminator's features meet the teacher's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arm {
    /// Not at all.
    None,
    /// FitNets: an unconstrained projector, nothing normalised.
    Fitnet,
    /// V_kD with layer norm.
    LayerNorm,
    /// V_kD with whitening by the training images' covariance.
    Whiten,
}

/// What a run is worth.
#[derive(Clone, Debug)]
struct Outcome {
    /// Accuracy of the judging classifier on test images.
    judge: f64,
    /// Share of samples that it gives their class.
    recognised: f64,
    /// Fréchet distance of its features to those of the test images.
    frechet: f64,
    /// Precision, recall, density and coverage of the same, five neighbours.
    manifold: ManifoldScores,
    /// Largest `max|WᵀW − I|` of the projector.
    residual: Option<f64>,
    /// Seconds of the GAN's training.
    seconds: f64,
    /// The samples, `(1000, 1, 8, 8)`, classes in turn.
    samples: Tensor,
}

/// Images from -1 to 1 with their classes.
struct Images {
    pixels: Tensor,
    labels: Vec<u32>,
}

impl Images {
    fn new(data: &Dataset, indices: &[usize]) -> Result<Self> {
        let mut pixels = Vec::new();
        for &index in indices {
            pixels.extend(data.image(index)?.pixels().iter().map(|p| f32::from(*p) / 8. - 1.));
        }
        let pixels = Tensor::from_vec(pixels, (indices.len(), 1, 8, 8), &Device::Cpu)?;
        Ok(Self { pixels, labels: indices.iter().map(|i| data.label(*i)).collect() })
    }

    /// Rows drawn by `(seed, name, number)`, with repetition.
    fn batch(&self, seed: u64, name: &str, number: u64) -> Result<GenerationBatch> {
        let mut rng = stream(seed, name, number, 0);
        let count = self.labels.len() as u32;
        let rows: Vec<u32> = (0..BATCH).map(|_| rng.random_range(0..count)).collect();
        let labels: Vec<u32> = rows.iter().map(|r| self.labels[*r as usize]).collect();
        Ok(GenerationBatch {
            sample_ids: rows.iter().map(|r| u64::from(*r)).collect(),
            images: self.pixels.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?,
            labels: Tensor::new(labels, &Device::Cpu)?,
        })
    }
}

/// A classifier of the training images.
fn classifier(images: &Images, steps: u64, seed: u64) -> Result<Box<dyn Model>> {
    let architecture = Architecture::Cnn(CnnConfig { widths: vec![32, 64, 128] });
    let config = ModelConfig { image_size: 8, channels: 1, classes: CLASSES, architecture };
    let store = VarStore::new(seed, DType::F32, &Device::Cpu);
    let model = config.build(store.builder())?;
    let mut optimizer =
        AdamW::new(store.parameters(), AdamWConfig::default(), |_, var| var.rank() > 1)?;
    for step in 0..steps {
        let batch = images.batch(seed, "classifier", step)?;
        let logits = model.forward(&batch.images, &Context::train(seed, step, batch.sample_ids))?;
        let loss =
            vkd_loss::cross_entropy(&logits.logits, &batch.labels, 0., vkd_loss::Reduction::Mean)?;
        optimizer.step(&loss.backward()?, vkd_nn::cosine(step, steps, 0, 3e-3, 0.))?;
    }
    // Constants: nothing is recorded when it is asked.
    config.build(store.frozen())
}

/// Pooled features, and the share of images whose largest logit is their class's.
fn judged(model: &dyn Model, pixels: &Tensor, labels: &[u32]) -> Result<(Tensor, f64)> {
    let output = model.forward(pixels, &Context::eval())?;
    let found = output.logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
    let hits = found.iter().zip(labels).filter(|(a, b)| a == b).count();
    Ok((output.tap("pooled")?.clone(), hits as f64 / labels.len() as f64))
}

/// How the arm's tap is matched; `features` are the teacher's of the training images.
fn tap(arm: Arm, seed: u64, features: &Tensor, width: usize) -> Result<Option<GenerationTap>> {
    let orthogonal =
        ProjectorConfig::Orthogonal(OrthogonalConfig::new(OrthogonalMap::Cayley, seed));
    let (projector, normalizer) = match arm {
        Arm::None => return Ok(None),
        Arm::Fitnet => (ProjectorConfig::Linear, Normalizer::Identity),
        Arm::LayerNorm => (orthogonal, Normalizer::LayerNorm { eps: 1e-5 }),
        Arm::Whiten => {
            let moments = Moments::from_rows(features, None)?;
            let whitener = Whitener::new(&moments, WhitenConfig::default())?;
            (orthogonal, Normalizer::Precomputed(whitener))
        }
    };
    Ok(Some(GenerationTap {
        student: "pooled".to_owned(),
        student_width: width,
        teacher: "pooled".to_owned(),
        teacher_width: features.dim(1)?,
        projector,
        student_normalizer: Normalizer::Identity,
        teacher_normalizer: TeacherNormalizer::Fixed(normalizer),
        together: true,
        loss: GenerationLoss::Feature(FeatureLoss::SmoothL1 { beta: 1. }),
        real_weight: 1.,
        generated_weight: 1.,
    }))
}

/// Trains everything and measures.
///
/// # Errors
/// A data set that can't be read, or a training that diverges.
fn run(setup: Setup, mut say: impl FnMut(&str)) -> Result<Outcome> {
    let Setup { arm, images, steps, classifier_steps, seed } = setup;
    let config = toml::from_str("kind = \"digits\"\nvalidation = 200\nlabels = 100\ntrain = 1000");
    let data = Dataset::open(&config.map_err(candle_core::Error::wrap)?)?;
    if !(1..=data.train.len()).contains(&images) {
        bail!("gan_digits: expected 1 to {} images, got {images}", data.train.len())
    }
    let (train, test) = (Images::new(&data, &data.train)?, Images::new(&data, &data.test)?);
    let few = Images::new(&data, &data.train[..images])?;
    // One judge for all seeds: its features are the scale.
    let judge = classifier(&train, classifier_steps, JUDGE_SEED)?;
    let (real_features, accuracy) = judged(judge.as_ref(), &test.pixels, &test.labels)?;
    say(&format!("judge: {:.1} % of the test images", 100. * accuracy));

    let (generator_config, discriminator_config) =
        (GeneratorConfig::digits(), DiscriminatorConfig::digits());
    let build = |store: &VarStore| -> Result<(Generator, Discriminator)> {
        let vb = store.builder();
        Ok((
            Generator::new(&generator_config, 1, CLASSES, vb.pp(GENERATOR))?,
            Discriminator::new(&discriminator_config, 1, CLASSES, vb.pp(DISCRIMINATOR))?,
        ))
    };
    let store = VarStore::new(seed, DType::F32, &Device::Cpu);
    let (generator, discriminator) = build(&store)?;
    let frozen = store.frozen().pp(DISCRIMINATOR);
    let frozen = Discriminator::new(&discriminator_config, 1, CLASSES, frozen)?;
    let teacher = classifier(&train, classifier_steps, seed)?;
    // Of the images that the GAN may see.
    let (features, _) = judged(teacher.as_ref(), &few.pixels, &few.labels)?;
    let distillation = match tap(arm, seed, &features, discriminator_config.width)? {
        None => None,
        Some(tap) => {
            let vb = store.builder().pp(DISCRIMINATOR).pp("projector");
            Some((Teacher::new(network(teacher)), GenerationDistiller::new(tap, vb)?))
        }
    };
    let task = GenerationTask::new(
        generator_network(generator),
        discriminator_network(discriminator),
        distillation,
        GenerationConfig {
            noise: generator_config.noise,
            classes: CLASSES,
            discriminator_steps: 2,
            augment: DiffAugment { translation: Some(0.125), ..DiffAugment::none() },
            lecam: None,
        },
        store.builder(),
    )?
    .with_frozen(discriminator_network(frozen));
    task.check(&few.batch(seed, "gan", 0)?)?;

    let adam = AdamWConfig { beta1: 0., weight_decay: 0., ..AdamWConfig::default() };
    let mut optimizers = Vec::new();
    for phase in task.phases() {
        let own = store.parameters().into_iter().filter(|(n, _)| n.starts_with(phase.prefix));
        optimizers.push(AdamW::new(own.collect(), adam, |_, _| false)?);
    }
    let mut averages = Ema::new(&store, 0.995, true)?;
    let now = || task.residual()?.map(|r| r.to_scalar::<f64>()).transpose();
    let (started, mut residual) = (Instant::now(), now()?);
    for step in 0..steps {
        let mut line = format!("step {step}:");
        for (phase, optimizer) in task.phases().iter().zip(&mut optimizers) {
            for repeat in 0..task.repeats(phase) {
                let number = step * task.rounds() + repeat;
                let batch = few.batch(seed, "gan", number)?;
                let ctx = Context::train(seed, number, batch.sample_ids.clone());
                let output = task.step(&batch, phase, &ctx)?;
                optimizer.step(&output.loss.backward()?, 1e-3)?;
                if repeat == 0 {
                    for term in &output.terms {
                        line += &format!(" {} {:.3}", term.name, term.value.to_scalar::<f32>()?);
                    }
                }
            }
        }
        averages.update()?;
        if step % 100 == 0 || step + 1 == steps {
            residual = residual.zip(now()?).map(|(a, b)| a.max(b));
            say(&line);
        }
    }
    let seconds = started.elapsed().as_secs_f64();

    // The averaged generator, by the batch's statistics, as the published evaluations do it.
    let averaged = VarStore::new(seed, DType::F32, &Device::Cpu);
    let (generator, _) = build(&averaged)?;
    let own = averaged.tensors();
    let values = averages.tensors().into_iter().filter(|(name, _)| own.contains_key(name));
    averaged.load(&values.collect::<HashMap<_, _>>())?;
    let labels: Vec<u32> = (0..SAMPLES).map(|i| (i % CLASSES) as u32).collect();
    let noise = white_noise(seed, "samples", 0, 0..SAMPLES, generator.noise(), &Device::Cpu)?;
    let samples = generator.sample(&noise, &Tensor::new(labels.clone(), &Device::Cpu)?)?.detach();
    let (features, recognised) = judged(judge.as_ref(), &samples, &labels)?;
    let of = |rows: &Tensor| Moments::from_rows(rows, None);
    Ok(Outcome {
        judge: accuracy,
        recognised,
        frechet: frechet_distance(&of(&real_features)?, &of(&features)?)?,
        manifold: manifold_scores(&real_features, &features, 5)?,
        residual,
        seconds,
        samples,
    })
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: u64| arguments.get(i).map_or(Ok(default), |a| a.parse());
    let arm = match arguments.first().map_or("whiten", String::as_str) {
        "none" => Arm::None,
        "fitnet" => Arm::Fitnet,
        "layernorm" => Arm::LayerNorm,
        "whiten" => Arm::Whiten,
        other => bail!("gan_digits: expected none, fitnet, layernorm or whiten, got {other}"),
    };
    let (images, steps, seed) = (number(1, 1000)?, number(2, 1000)?, number(3, 0)?);
    let setup = Setup { arm, images: images as usize, steps, classifier_steps: 400, seed };
    let found = run(setup, |line| println!("{line}"))?;
    println!("{setup:?}: {:.0} s", found.seconds);
    println!(
        "{:.1} % of the samples recognised by a classifier of {:.1} %; Fréchet distance {:.3}, {}",
        100. * found.recognised,
        100. * found.judge,
        found.frechet,
        found.manifold
    );
    if let Some(residual) = found.residual {
        println!("max|WᵀW − I| of the projector: {residual:.1e}");
    }
    if let Some(path) = arguments.get(4) {
        let first = found.samples.narrow(0, 0, 100)?;
        write_atomically(path.as_ref(), &sample_grid(&first, CLASSES)?.to_png()?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
