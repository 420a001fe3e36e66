//! The generation task.

use super::{
    DiffAugment, DiscriminatorNetwork, GenerationBatch, GenerationDistiller, GeneratorNetwork,
    Judgement, LecamConfig, Sides, lecam_term, uniform_classes, white_noise,
};
use crate::{DistillTask, FeatureMap, Phase, StepOutput, Taps, Teacher, Term, weighted_sum};
use candle_core::{DType, Error, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use std::ops::Range;
use std::sync::Arc;
use vkd_norm::Context;

/// Name of the phase that trains the discriminator and the projector: variables under `discriminator.`.
pub const DISCRIMINATOR: &str = "discriminator";
/// Name of the phase that trains the generator: variables under `generator.`.
pub const GENERATOR: &str = "generator";

/// Bit that tells the ids of generated rows from those of samples, by which random layers draw.
const GENERATED: u64 = 1 << 63;
/// Bit that tells the generator's phase from the discriminator's of the same step.
const OF_GENERATOR: u64 = 1 << 62;

/// Ids of generated rows in a phase.
fn generated_ids(phase: &str, rows: Range<usize>) -> Arc<[u64]> {
    let bits = GENERATED | if phase == GENERATOR { OF_GENERATOR } else { 0 };
    numbers(rows).map(|row| row | bits).collect()
}

/// Which rows of the whole batch's generated images are made here, where as many as `rows` are: of replicas each has its own.
fn made(rows: usize, ctx: &Context) -> Range<usize> {
    let first = ctx.replicas.as_ref().map_or(0, |replicas| replicas.rank() * rows);
    first..first + rows
}

fn numbers(rows: Range<usize>) -> impl Iterator<Item = u64> {
    rows.map(|row| row as u64)
}

/// What a [`GenerationTask`] is told beside its networks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GenerationConfig {
    /// Numbers of noise for each image.
    pub noise: usize,
    /// Classes of the data and of the generator.
    pub classes: usize,
    /// Updates of the discriminator for each of the generator; 4 in the published CIFAR runs.
    pub discriminator_steps: u64,
    /// Augmentation of all images that the discriminator sees.
    pub augment: DiffAugment,
    /// LeCam's regulariser, or none.
    pub lecam: Option<LecamConfig>,
}

/// Trains a class-conditional GAN with the hinge loss, and its discriminator's features on a teacher.
///
/// A step has two phases with an optimiser each. The discriminator's runs [`discriminator_steps`](GenerationConfig::discriminator_steps) times,
/// on a batch each time: hinge terms of real and generated images, LeCam's, and the distiller's terms, all on images that were augmented once
/// and that the teacher sees as well. The generator's runs once: the negative mean score of its augmented images. Both networks are in training
/// mode in both phases, as in BigGAN's code, so that batch statistics and power iterations of both move in both.
///
/// Noise, classes of generated images and augmentations are functions of `(seed, phase, step, row or sample id)`; every other state lies in
/// variables and buffers. So a checkpoint of those goes on to the bit.
///
/// Names of variables decide the phase: build the discriminator under `discriminator.` and the generator under `generator.`, and the
/// distiller under a prefix like `discriminator.projector`, as the projector learns with the discriminator.
///
/// # Example: a GAN of anyone's
/// ```
/// use candle_core::{DType, Device, Module, Result, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use vkd_norm::Context;
/// use vkd_tasks::{
///     DiffAugment, DistillTask, FeatureMap, GenerationBatch, GenerationConfig, GenerationTask, Judgement, Layout, Taps,
/// };
///
/// # fn main() -> Result<()> {
/// let vars = VarMap::new();
/// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// // Two linear maps; the classes are ignored.
/// let map = candle_nn::linear(3, 16, vb.pp("generator"))?;
/// let generator = move |noise: &Tensor, _: &Tensor, _: &Context| map.forward(noise)?.tanh()?.reshape(((), 1, 4, 4));
/// let features = candle_nn::linear(16, 8, vb.pp("discriminator.features"))?;
/// let score = candle_nn::linear(8, 1, vb.pp("discriminator.score"))?;
/// let discriminator = move |images: &Tensor, _: &Tensor, _: &Context| -> Result<Judgement> {
///     let rows = features.forward(&images.flatten_from(1)?)?.relu()?;
///     let taps = Taps::from([("features".to_owned(), FeatureMap::new(rows.clone(), Layout::Pooled)?)]);
///     Ok(Judgement { score: score.forward(&rows)?.squeeze(1)?, taps })
/// };
/// let config = GenerationConfig {
///     noise: 3,
///     classes: 2,
///     discriminator_steps: 2,
///     augment: DiffAugment::cifar(),
///     lecam: None,
/// };
/// let task = GenerationTask::new(generator, discriminator, None, config, vb)?;
/// let batch = GenerationBatch {
///     images: Tensor::ones((5, 1, 4, 4), DType::F32, &Device::Cpu)?,
///     labels: Tensor::new(&[0u32, 1, 0, 1, 0], &Device::Cpu)?,
///     sample_ids: [0, 1, 2, 3, 4].into(),
/// };
/// task.check(&batch)?;
/// for phase in task.phases() {
///     let ctx = Context::train(7, 0, GenerationTask::sample_ids(&batch));
///     let output = task.step(&batch, phase, &ctx)?;
///     // An optimiser over the variables under `phase.prefix` takes it from here.
///     output.loss.backward()?;
/// }
/// # Ok(())
/// # }
/// ```
pub struct GenerationTask {
    generator: Box<dyn GeneratorNetwork>,
    discriminator: Box<dyn DiscriminatorNetwork>,
    frozen: Option<Box<dyn DiscriminatorNetwork>>,
    frozen_generator: Option<Box<dyn GeneratorNetwork>>,
    distillation: Option<(Teacher, GenerationDistiller)>,
    config: GenerationConfig,
    /// LeCam's two averages, and how often they moved.
    averages: Option<Tensor>,
    phases: [Phase; 2],
}

impl GenerationTask {
    /// A task for two networks, with a teacher and a distiller or alone. LeCam's averages lie in the buffer
    /// `discriminator.lecam.running_mean` of `vb`, the builder that is the root of the networks' names.
    ///
    /// # Errors
    /// No noise, no class, no step of the discriminator, a weight or decay out of range, and what the augmentation refuses.
    pub fn new(
        generator: impl GeneratorNetwork + 'static,
        discriminator: impl DiscriminatorNetwork + 'static,
        distillation: Option<(Teacher, GenerationDistiller)>,
        config: GenerationConfig,
        vb: VarBuilder,
    ) -> Result<Self> {
        let GenerationConfig { noise, classes, discriminator_steps, augment, lecam } = config;
        if noise == 0 || classes == 0 || discriminator_steps == 0 {
            bail!(
                "generation: expected noise, classes and steps of the discriminator above 0, got {noise}, {classes} and {discriminator_steps}"
            )
        }
        augment.check()?;
        let averages = match lecam {
            None => None,
            Some(LecamConfig { weight, decay, .. }) => {
                if !(weight >= 0. && weight.is_finite() && (0. ..1.).contains(&decay)) {
                    bail!(
                        "generation: lecam: expected a weight of at least 0 and a decay in [0, 1), got {weight} and {decay}"
                    )
                }
                let vb = vb.pp(DISCRIMINATOR).pp("lecam");
                let none = Init::Const(0.);
                Some(vb.get_with_hints_dtype(3, "running_mean", none, DType::F64)?.detach())
            }
        };
        let phases = [
            Phase { name: DISCRIMINATOR, prefix: "discriminator." },
            Phase { name: GENERATOR, prefix: "generator." },
        ];
        Ok(Self {
            generator: Box::new(generator),
            discriminator: Box::new(discriminator),
            frozen: None,
            frozen_generator: None,
            distillation,
            config,
            averages,
            phases,
        })
    }

    /// With a discriminator for the generator's phase: the same network made of constants that share the variables' memory. The
    /// gradients of its weights, which nobody asks for there, are then not computed.
    pub fn with_frozen(mut self, discriminator: impl DiscriminatorNetwork + 'static) -> Self {
        self.frozen = Some(Box::new(discriminator));
        self
    }

    /// With a generator for the discriminator's phase, in the same way: what only the generator's gradient needs is then not kept.
    pub fn with_frozen_generator(mut self, generator: impl GeneratorNetwork + 'static) -> Self {
        self.frozen_generator = Some(Box::new(generator));
        self
    }

    /// How the discriminator's features of images and classes lie, beside the teacher's: see [`GenerationDistiller::geometry`]; nothing
    /// without a teacher.
    ///
    /// # Errors
    /// Those of the networks.
    pub fn geometry(&self, batch: &GenerationBatch) -> Result<Vec<(String, f64)>> {
        let Some((teacher, distiller)) = &self.distillation else { return Ok(Vec::new()) };
        let judged = self.discriminator.judge(&batch.images, &batch.labels, &Context::eval())?;
        distiller.geometry(&judged.taps, &taught(teacher, &batch.images)?)
    }

    /// Images of the generator in evaluation mode.
    ///
    /// # Errors
    /// Those of the network.
    pub fn generate(&self, noise: &Tensor, labels: &Tensor) -> Result<Tensor> {
        self.generator.generate(noise, labels, &Context::eval())
    }

    /// Runs all networks once in evaluation mode and checks that they fit the data and each other, before any training: real images with
    /// their classes, and generated ones of the last classes, as many as the batch has.
    ///
    /// # Errors
    /// A batch that contradicts itself, a network with fewer classes, generated images of another shape than real ones, a frozen
    /// network that is not the other's, and those of the networks and of [`GenerationDistiller::check`].
    pub fn check(&self, batch: &GenerationBatch) -> Result<()> {
        let rows = batch.check(self.config.classes)?;
        let (ctx, device) = (Context::eval(), batch.images.device());
        let last = |row: usize| (self.config.classes - 1 - row % self.config.classes) as u32;
        let labels = Tensor::from_vec((0..rows).map(last).collect::<Vec<_>>(), rows, device)?;
        let noise = white_noise(0, "noise.check", 0, 0..rows, self.config.noise, device)?;
        let noise = noise.to_dtype(batch.images.dtype())?;
        let generated = self.generator.generate(&noise, &labels, &ctx)?.detach();
        self.same_shape(&generated, batch)?;
        let judged = self.discriminator.judge(&generated, &labels, &ctx)?;
        self.judged(&judged, rows)?;
        if let Some(frozen) = &self.frozen_generator {
            same("generator", &generated, &frozen.generate(&noise, &labels, &ctx)?)?;
        }
        if let Some(frozen) = &self.frozen {
            let other = frozen.judge(&generated, &labels, &ctx)?;
            same("discriminator", &judged.score, &other.score)?;
        }
        let judged = self.discriminator.judge(&batch.images, &batch.labels, &ctx)?;
        self.judged(&judged, rows)?;
        if let Some((teacher, distiller)) = &self.distillation {
            distiller.check(&judged.taps, &taught(teacher, &batch.images)?)?;
        }
        Ok(())
    }

    /// Generated images and their classes, `rows` of them, by the streams of `phase`.
    fn draw(
        &self,
        phase: &str,
        rows: Range<usize>,
        batch: &GenerationBatch,
        ctx: &Context,
    ) -> Result<(Tensor, Tensor)> {
        let GenerationConfig { noise, classes, .. } = self.config;
        let (seed, step, device) = (ctx.seed, ctx.step, batch.images.device());
        let noise =
            white_noise(seed, &format!("noise.{phase}"), step, rows.clone(), noise, device)?;
        let labels = uniform_classes(
            seed,
            &format!("classes.{phase}"),
            step,
            rows.clone(),
            classes,
            device,
        )?;
        // Random layers of the generator draw by the number of the row.
        let ctx = Context { sample_ids: generated_ids(phase, rows), ..ctx.clone() };
        let noise = noise.to_dtype(batch.images.dtype())?;
        let generator = match &self.frozen_generator {
            Some(frozen) if phase == DISCRIMINATOR => frozen,
            _ => &self.generator,
        };
        Ok((generator.generate(&noise, &labels, &ctx)?, labels))
    }

    fn same_shape(&self, generated: &Tensor, batch: &GenerationBatch) -> Result<()> {
        let (got, want) = (generated.dims(), batch.images.dims());
        if got != want {
            bail!("generation: expected generated images of the real ones' {want:?}, got {got:?}")
        }
        Ok(())
    }

    fn judged(&self, judgement: &Judgement, rows: usize) -> Result<()> {
        match judgement.score.dims() {
            [got] if *got == rows => Ok(()),
            dims => bail!("generation: expected scores ({rows},), got {dims:?}"),
        }
    }

    fn discriminator_step(&self, batch: &GenerationBatch, ctx: &Context) -> Result<StepOutput> {
        let rows = batch.images.dim(0)?;
        let made = made(rows, ctx);
        let (generated, classes) = self.draw(DISCRIMINATOR, made.clone(), batch, ctx)?;
        self.same_shape(&generated, batch)?;
        let augment = |images: &Tensor, side: &str, ids: Arc<[u64]>| {
            let ctx = Context { sample_ids: ids, ..ctx.clone() };
            self.config.augment.apply(images, &format!("{side}.{DISCRIMINATOR}"), &ctx)
        };
        let generated = augment(&generated.detach(), "generated", numbers(made.clone()).collect())?;
        let real = augment(&batch.images, "real", batch.sample_ids.clone())?;
        // One pass of both, so that spectral norm makes one step.
        let images = Tensor::cat(&[&real, &generated], 0)?;
        let labels = Tensor::cat(&[&batch.labels, &classes], 0)?;
        // Random layers draw by these: generated rows are no samples of the data set, and must not share a real one's stream.
        let apart = generated_ids(DISCRIMINATOR, made);
        let ids = batch.sample_ids.iter().chain(apart.iter()).copied().collect();
        let both = Context { sample_ids: ids, ..ctx.clone() };
        let judged = self.discriminator.judge(&images, &labels, &both)?;
        self.judged(&judged, 2 * rows)?;
        let scores = Sides {
            real: judged.score.narrow(0, 0, rows)?,
            generated: judged.score.narrow(0, rows, rows)?,
        };
        let mut terms = vec![
            term("hinge.real", 1., vkd_loss::hinge_real(&scores.real)?),
            term("hinge.generated", 1., vkd_loss::hinge_generated(&scores.generated)?),
        ];
        if let (Some(lecam), Some(averages)) = (self.config.lecam, &self.averages) {
            terms.push(lecam_term(averages, &scores, lecam, ctx)?);
        }
        if let Some((teacher, distiller)) = &self.distillation {
            let student = halves(&judged.taps, rows)?;
            let teacher = halves(&taught(teacher, &images)?, rows)?;
            terms.extend(distiller.terms(&student, &teacher, ctx)?);
        }
        Ok(StepOutput { loss: weighted_sum(&terms)?, terms })
    }

    fn generator_step(&self, batch: &GenerationBatch, ctx: &Context) -> Result<StepOutput> {
        let rows = batch.images.dim(0)?;
        let made = made(rows, ctx);
        let (generated, classes) = self.draw(GENERATOR, made.clone(), batch, ctx)?;
        self.same_shape(&generated, batch)?;
        let seen = {
            let ctx = Context { sample_ids: numbers(made.clone()).collect(), ..ctx.clone() };
            self.config.augment.apply(&generated, &format!("generated.{GENERATOR}"), &ctx)?
        };
        let ctx = Context { sample_ids: generated_ids(GENERATOR, made), ..ctx.clone() };
        let judge = self.frozen.as_ref().unwrap_or(&self.discriminator);
        let judged = judge.judge(&seen, &classes, &ctx)?;
        self.judged(&judged, rows)?;
        let terms = vec![term("hinge", 1., vkd_loss::hinge_generator(&judged.score)?)];
        Ok(StepOutput { loss: weighted_sum(&terms)?, terms })
    }
}

impl DistillTask for GenerationTask {
    type Batch = GenerationBatch;

    fn sample_ids(batch: &GenerationBatch) -> Arc<[u64]> {
        batch.sample_ids.clone()
    }

    fn phases(&self) -> &[Phase] {
        &self.phases
    }

    fn repeats(&self, phase: &Phase) -> u64 {
        if phase.name == DISCRIMINATOR { self.config.discriminator_steps } else { 1 }
    }

    fn step(&self, batch: &GenerationBatch, phase: &Phase, ctx: &Context) -> Result<StepOutput> {
        batch.check(self.config.classes)?;
        let found = match phase.name {
            DISCRIMINATOR => self.discriminator_step(batch, ctx),
            GENERATOR => self.generator_step(batch, ctx),
            other => {
                bail!("generation: expected the phase {DISCRIMINATOR} or {GENERATOR}, got {other}")
            }
        };
        found.map_err(|e| e.context(format!("generation: {} phase", phase.name)))
    }

    fn residual(&self) -> Result<Option<Tensor>> {
        match &self.distillation {
            Some((_, distiller)) => distiller.residual(),
            None => Ok(None),
        }
    }
}

fn term(name: &str, weight: f64, value: Tensor) -> Term {
    Term { name: name.to_owned(), weight, value }
}

/// The teacher's features; what it refuses is most often the images' size.
fn taught(teacher: &Teacher, images: &Tensor) -> Result<Taps> {
    let refused =
        |e: Error| e.context(format!("generation: the teacher refuses images {:?}", images.dims()));
    Ok(teacher.forward(images).map_err(refused)?.taps)
}

/// Features of a batch of real images, then as many generated ones.
fn halves(taps: &Taps, rows: usize) -> Result<Sides<Taps>> {
    let half = |start: usize| -> Result<Taps> {
        let of = |(name, features): (&String, &FeatureMap)| {
            Ok((name.clone(), features.rows(start, rows)?))
        };
        taps.iter().map(of).collect()
    };
    Ok(Sides { real: half(0)?, generated: half(rows)? })
}

/// Refuses constants that are not those of the network's variables; rounding may differ. Once before a training: it waits for the
/// numbers.
fn same(what: &str, live: &Tensor, frozen: &Tensor) -> Result<()> {
    if live.dims() != frozen.dims() {
        bail!(
            "generation: expected a frozen {what} that is the same network, {:?}, got {:?}",
            live.dims(),
            frozen.dims()
        )
    }
    let largest = |xs: &Tensor| xs.abs()?.max_all()?.to_dtype(DType::F64)?.to_scalar::<f64>();
    let (live, frozen) = (live.detach(), frozen.detach());
    let (apart, scale) = (largest(&(&live - &frozen)?)?, largest(&live)?);
    if apart > 1e-2 * scale {
        bail!(
            "generation: expected a frozen {what} of the same weights, got outputs that differ by {apart:.1e} of {scale:.1e}"
        )
    }
    Ok(())
}
