//! Matches a discriminator's features of real and generated images to a teacher's.

use super::RunningWhitening;
use crate::distiller::geometry_of;
use crate::features::tap;
use crate::{
    ClassificationAdapter, FeatureAdapter, FeatureLoss, Projector, ProjectorConfig, Taps, Term,
};
use candle_core::{DType, Device, Error, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use vkd_loss::baselines::{kd_dlgan_features, kd_dlgan_texts};
use vkd_norm::{Context, Normalizer, Replicas, WhitenConfig, whiten_with};

/// How the teacher's features are normalised.
#[derive(Clone, Debug, PartialEq)]
pub enum TeacherNormalizer {
    /// By the batch, by a precomputed whitening, or not at all. V_kD whitens for generation.
    Fixed(Normalizer),
    /// Whitened by the covariance of the last batches, real and generated rows alike.
    Running {
        /// Method, shrinkage and rank.
        whiten: WhitenConfig,
        /// Share of what was gathered that a batch leaves, `[0, 1]`.
        keep: f64,
    },
}

/// What is compared with what.
#[derive(Clone, Debug)]
pub enum GenerationLoss {
    /// Each image's features with the teacher's of the same image: V_kD, FitNets, SPKD.
    Feature(FeatureLoss),
    /// KD-DLGAN: [`kd_dlgan_features`], and [`kd_dlgan_texts`] where there are texts, `(K, Ct)` of the classes' names. The published code
    /// weighs each by 10 and normalises nothing.
    KdDlgan {
        /// The teacher's features of texts.
        texts: Option<Tensor>,
    },
}

/// The tap of a discriminator that learns from the teacher, and how.
#[derive(Clone, Debug)]
pub struct GenerationTap {
    /// Tap of the discriminator.
    pub student: String,
    /// Its width Cs.
    pub student_width: usize,
    /// Tap of the teacher.
    pub teacher: String,
    /// Its width Ct.
    pub teacher_width: usize,
    /// Map from Cs to Ct; one for real and generated images.
    pub projector: ProjectorConfig,
    /// Applied to the projected features of all images.
    pub student_normalizer: Normalizer,
    /// Applied to the teacher.
    pub teacher_normalizer: TeacherNormalizer,
    /// Whether statistics of a batch are those of real and generated images together, as a running covariance's are. Else each side has its own, and looks the same to
    /// second order whatever the generator does.
    pub together: bool,
    /// What is compared.
    pub loss: GenerationLoss,
    /// Factor of the term of real images.
    pub real_weight: f64,
    /// Factor of the term of generated images.
    pub generated_weight: f64,
}

/// Something of the real images, and the same of the generated ones.
#[derive(Clone, Copy, Debug)]
pub struct Sides<T> {
    /// Of real images.
    pub real: T,
    /// Of generated images.
    pub generated: T,
}

impl<T> Sides<T> {
    /// `f` of each.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn map<U>(&self, f: impl Fn(&T) -> Result<U>) -> Result<Sides<U>> {
        Ok(Sides { real: f(&self.real)?, generated: f(&self.generated)? })
    }
}

/// Matches a discriminator to a teacher on real and generated images; owns the projector and nothing of the networks.
///
/// The published V_kD has no code for generation. What is fixed here: features of both sides go through one projector, and the teacher
/// sees the very images that the discriminator saw, augmentation included, as in KD-DLGAN (arXiv:2303.17158).
///
/// # Example: features of two networks of anyone's
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use vkd_norm::{Context, Normalizer};
/// use vkd_ortho::{OrthogonalConfig, OrthogonalMap};
/// use vkd_tasks::{
///     FeatureLoss, FeatureMap, GenerationDistiller, GenerationLoss, GenerationTap, Layout, ProjectorConfig, Sides, Taps,
///     TeacherNormalizer, weighted_sum,
/// };
///
/// # fn main() -> Result<()> {
/// let tap = GenerationTap {
///     student: "pooled".into(),
///     student_width: 4,
///     teacher: "embedding".into(),
///     teacher_width: 12,
///     projector: ProjectorConfig::Orthogonal(OrthogonalConfig::new(OrthogonalMap::Cayley, 0)),
///     student_normalizer: Normalizer::Identity,
///     // Five images a side in twelve dimensions: fewer rows than channels are no hindrance.
///     teacher_normalizer: TeacherNormalizer::Fixed("whiten".parse()?),
///     together: true,
///     loss: GenerationLoss::Feature(FeatureLoss::SmoothL1 { beta: 1. }),
///     real_weight: 1.,
///     generated_weight: 1.,
/// };
/// let vars = VarMap::new();
/// let distiller = GenerationDistiller::new(tap, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
///
/// // What your two networks hand over for five images: here anything.
/// let features = |name: &str, width: usize, shift: f64| -> Result<Taps> {
///     let rows = (Tensor::arange(0f32, 5. * width as f32, &Device::Cpu)?.sin()? + shift)?.reshape((5, width))?;
///     Ok(Taps::from([(name.to_owned(), FeatureMap::new(rows, Layout::Pooled)?)]))
/// };
/// let (real, generated) = (features("pooled", 4, 0.)?, features("pooled", 4, 1.)?);
/// let (teacher_real, teacher_generated) = (features("embedding", 12, 0.)?, features("embedding", 12, 2.)?);
/// let terms = distiller.terms(
///     &Sides { real, generated },
///     &Sides { real: teacher_real, generated: teacher_generated },
///     &Context::train(0, 0, []),
/// )?;
/// assert_eq!(terms[0].name, "real.pooled");
/// // Added to the discriminator's own loss, this is what is trained.
/// weighted_sum(&terms)?.backward()?;
/// # Ok(())
/// # }
/// ```
pub struct GenerationDistiller {
    tap: GenerationTap,
    projector: Projector,
    running: Option<RunningWhitening>,
    adapter: Box<dyn FeatureAdapter>,
    dtype: DType,
}

impl GenerationDistiller {
    /// A distiller whose projector's variables lie under `vb.pp(student)`, and its running covariance under `vb.pp(student).pp("teacher")`.
    /// The prefix has to be one that the discriminator's phase trains: see [`GenerationTask`](crate::GenerationTask).
    ///
    /// # Errors
    /// A zero width, a negative weight or one that is not finite, or what the projector, the loss or a normaliser refuses; the message has
    /// the tap's name.
    pub fn new(mut tap: GenerationTap, vb: VarBuilder) -> Result<Self> {
        if let GenerationLoss::KdDlgan { texts: Some(texts) } = &mut tap.loss {
            // Once, and not at each step.
            *texts = texts.to_device(vb.device())?;
        }
        let named = |e| at_tap(&tap.student, e);
        for (side, weight) in [("real", tap.real_weight), ("generated", tap.generated_weight)] {
            if !(weight >= 0. && weight.is_finite()) {
                let fault = format!("{side} weight: expected at least 0, got {weight}");
                return Err(named(Error::Msg(fault)));
            }
        }
        let entrywise = match &tap.loss {
            GenerationLoss::Feature(loss) => loss.is_entrywise(),
            GenerationLoss::KdDlgan { .. } => true,
        };
        let (own, taught) = (tap.student_width, tap.teacher_width);
        let projected = tap.projector.width(own, taught, entrywise).map_err(named)?;
        tap.student_normalizer.check(projected).map_err(named)?;
        if !tap.together && matches!(tap.teacher_normalizer, TeacherNormalizer::Running { .. }) {
            let fault = "together: expected true with a running covariance, which is of all rows";
            return Err(named(Error::Msg(fault.to_owned())));
        }
        match &tap.loss {
            GenerationLoss::Feature(loss) => {
                let zero = Tensor::zeros((2, 2), DType::F32, &Device::Cpu)?;
                if let FeatureLoss::SmoothL1 { .. } = loss {
                    loss.between(&zero, &zero).map_err(named)?;
                }
            }
            GenerationLoss::KdDlgan { texts: Some(texts) } => match *texts.dims() {
                [count, width] if count > 0 && width == tap.teacher_width => {}
                ref dims => {
                    let want = tap.teacher_width;
                    let fault = format!("texts: expected (K, {want}), got {dims:?}");
                    return Err(named(Error::Msg(fault)));
                }
            },
            GenerationLoss::KdDlgan { texts: None } => {}
        }
        let (dtype, vb) = (vb.dtype(), vb.pp(&tap.student));
        let running = match &tap.teacher_normalizer {
            TeacherNormalizer::Fixed(normalizer) => {
                normalizer.check(tap.teacher_width).map_err(named)?;
                None
            }
            TeacherNormalizer::Running { whiten, keep } => {
                let vb = vb.pp("teacher");
                Some(RunningWhitening::new(tap.teacher_width, *whiten, *keep, vb).map_err(named)?)
            }
        };
        let projector = Projector::new(tap.student_width, tap.teacher_width, &tap.projector, vb)?;
        let adapter = Box::new(ClassificationAdapter);
        Ok(Self { tap, projector, running, adapter, dtype })
    }

    /// With another adapter than the classification's, which pools to one row an image.
    pub fn with_adapter(mut self, adapter: impl FeatureAdapter + 'static) -> Self {
        self.adapter = Box::new(adapter);
        self
    }

    /// Checks that a discriminator and a teacher fit, from one output of each.
    ///
    /// # Errors
    /// A missing tap, a width other than the tap's, or features that the adapter can't pair.
    pub fn check(&self, student: &Taps, teacher: &Taps) -> Result<()> {
        let of = |owner: &str, taps, name: &str, width| {
            let found = tap(taps, owner, name)?;
            if found.width() != width {
                bail!("{owner} tap {name}: expected width {width}, got {}", found.width())
            }
            Ok(found)
        };
        let t = &self.tap;
        let student = of("discriminator", student, &t.student, t.student_width)?;
        let teacher = of("teacher", teacher, &t.teacher, t.teacher_width)?;
        self.adapter.check_pair(student, teacher).map_err(|e| at_tap(&t.student, e))
    }

    /// How the features of some images lie: `rank.TAP` and `teacher_rank.TAP` (effective ranks) and `cka.TAP`; none that isn't
    /// defined.
    ///
    /// # Errors
    /// Those of [`check`](Self::check).
    pub fn geometry(&self, student: &Taps, teacher: &Taps) -> Result<Vec<(String, f64)>> {
        self.check(student, teacher)?;
        let student = self.rows(student, "discriminator", &self.tap.student)?;
        let teacher = self.rows(teacher, "teacher", &self.tap.teacher)?;
        Ok(geometry_of(&self.tap.student, &student, &teacher))
    }

    /// A tap as rows.
    fn rows(&self, taps: &Taps, owner: &str, name: &str) -> Result<Tensor> {
        let features = tap(taps, owner, name)?;
        match features.tensor().dtype() {
            DType::F16 | DType::BF16 => self.adapter.adapt(&features.to_dtype(self.dtype)?),
            _ => self.adapter.adapt(features),
        }
    }

    /// The terms of one batch, `real.TAP` and `generated.TAP`, and for KD-DLGAN with texts `real.texts` and `generated.texts`.
    ///
    /// In training a running covariance takes in the batch first, and whitens with what it then holds.
    ///
    /// # Gradient
    /// To the discriminator's features and the projector; the teacher is constant.
    ///
    /// # Errors
    /// Those of [`check`](Self::check), a different number of rows of the two networks, and those of normalisers and losses.
    pub fn terms(
        &self,
        student: &Sides<Taps>,
        teacher: &Sides<Taps>,
        ctx: &Context,
    ) -> Result<Vec<Term>> {
        self.check(&student.real, &teacher.real)?;
        self.check(&student.generated, &teacher.generated)?;
        self.matched(student, teacher, ctx).map_err(|e| at_tap(&self.tap.student, e))
    }

    fn matched(
        &self,
        student: &Sides<Taps>,
        teacher: &Sides<Taps>,
        ctx: &Context,
    ) -> Result<Vec<Term>> {
        let t = &self.tap;
        let student = student.map(|taps| self.rows(taps, "discriminator", &t.student))?;
        let teacher = teacher.map(|taps| Ok(self.rows(taps, "teacher", &t.teacher)?.detach()))?;
        // One pass of both through the projector, whose map is the dear part.
        let joined = Tensor::cat(&[&student.real, &student.generated], 0)?;
        let projected = self.split(&self.projector.forward(&joined)?, &student)?;
        let student = self.each(&projected, |xs| t.student_normalizer.forward(xs, ctx))?;
        let teacher = self.normalised(&teacher, ctx)?;
        let mut terms = Vec::new();
        let mut add = |name: &str, weight: f64, value: Tensor| {
            terms.push(Term { name: name.to_owned(), weight, value });
        };
        let (real, generated) = (t.real_weight, t.generated_weight);
        let names = ["real", "generated"].map(|side| format!("{side}.{}", t.student));
        match &t.loss {
            GenerationLoss::Feature(loss) => {
                let replicas = ctx.replicas.as_ref();
                let of = |a: &Tensor, b: &Tensor| loss.among(a, b, replicas);
                add(&names[0], real, of(&student.real, &teacher.real)?);
                add(&names[1], generated, of(&student.generated, &teacher.generated)?);
            }
            GenerationLoss::KdDlgan { texts } => {
                let (a, b) = (&student.real, &student.generated);
                add(&names[0], real, kd_dlgan_features(a, b, &teacher.real)?);
                add(&names[1], generated, kd_dlgan_features(b, a, &teacher.generated)?);
                if let Some(texts) = texts {
                    let texts = texts.to_device(a.device())?.to_dtype(a.dtype())?;
                    // A sum over the batch, of which a replica has its part; the trainer takes the mean.
                    let parts = ctx.replicas.as_ref().map_or(1, Replicas::size) as f64;
                    let of = |own: &Tensor, taught: &Tensor| {
                        kd_dlgan_texts(own, taught, &texts)? * parts
                    };
                    add("real.texts", real, of(a, &teacher.real)?);
                    add("generated.texts", generated, of(b, &teacher.generated)?);
                }
            }
        }
        Ok(terms)
    }

    fn normalised(&self, teacher: &Sides<Tensor>, ctx: &Context) -> Result<Sides<Tensor>> {
        match (&self.tap.teacher_normalizer, &self.running) {
            (TeacherNormalizer::Fixed(normalizer), _) => {
                self.each(teacher, |rows| normalizer.forward(rows, ctx))
            }
            (TeacherNormalizer::Running { .. }, Some(running)) => {
                let whitener = match ctx.train {
                    true => {
                        let rows = Tensor::cat(&[&teacher.real, &teacher.generated], 0)?;
                        running.whitener_with(&rows, ctx.replicas.as_ref())?
                    }
                    false => running.whitener()?,
                };
                teacher.map(|rows| whiten_with(rows, &whitener))
            }
            (TeacherNormalizer::Running { .. }, None) => {
                bail!("expected a running covariance, got none")
            }
        }
    }

    /// `normalize` of both sides as one batch, or of each.
    fn each(
        &self,
        sides: &Sides<Tensor>,
        normalize: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Sides<Tensor>> {
        if !self.tap.together {
            return sides.map(normalize);
        }
        self.split(&normalize(&Tensor::cat(&[&sides.real, &sides.generated], 0)?)?, sides)
    }

    /// Rows of `like.real`, then those of `like.generated`.
    fn split(&self, rows: &Tensor, like: &Sides<Tensor>) -> Result<Sides<Tensor>> {
        let (real, generated) = (like.real.dim(0)?, like.generated.dim(0)?);
        Ok(Sides {
            real: rows.narrow(0, 0, real)?.contiguous()?,
            generated: rows.narrow(0, real, generated)?.contiguous()?,
        })
    }

    /// `max|WᵀW − I|` of an orthogonal projector, of rank 0 in f64; `None` without one.
    ///
    /// # Errors
    /// Those of the projector.
    pub fn residual(&self) -> Result<Option<Tensor>> {
        self.projector.residual()
    }
}

fn at_tap(name: &str, e: Error) -> Error {
    Error::Msg(format!("generation distiller: {name}: {e}"))
}
