//! The distiller: named taps, each an adapter, a projector, two normaliser slots and a loss.

use crate::features::tap;
use crate::{
    ClassificationAdapter, FeatureAdapter, FeatureMap, NetworkOutput, Projector, ProjectorConfig,
    Taps, Term, weighted_sum,
};
use candle_core::{DType, Device, Error, Module, Result, Tensor, bail};
use candle_nn::VarBuilder;
use vkd_loss::{Reduction, baselines, geometry};
use vkd_norm::{Context, Normalizer, Replicas};

/// Distance between the projected student and the normalised teacher.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FeatureLoss {
    /// Smooth-L1, mean over all elements; the published code has beta 1.
    SmoothL1 {
        /// Where the square turns into the absolute value.
        beta: f64,
    },
    /// Mean squared difference, as on the paper's poster.
    Mse,
    /// [`vkd_loss::token_l2`], mean over all rows: the distance of ViDT's token matching.
    TokenL2,
    /// [`vkd_loss::baselines::spkd`] with rows of Euclidean size one; like the next three it compares relations within the
    /// batch, so the two widths may differ.
    Spkd,
    /// [`vkd_loss::baselines::pkt`], the form of its code.
    Pkt,
    /// [`vkd_loss::baselines::rkd_distance`].
    RkdDistance,
    /// [`vkd_loss::baselines::rkd_angle`]; its cost grows with the cube of the batch.
    RkdAngle,
}

impl FeatureLoss {
    /// Whether it compares rows entry by entry, and not relations within the batch.
    pub(crate) fn is_entrywise(self) -> bool {
        matches!(self, Self::SmoothL1 { .. } | Self::Mse | Self::TokenL2)
    }

    /// [`between`](Self::between) the rows of all replicas, of which these are one's: their mean over replicas is the loss of all
    /// rows. Relations within the batch are those of the whole batch; of entries each replica looks at its own.
    pub(crate) fn among(
        self,
        student: &Tensor,
        teacher: &Tensor,
        replicas: Option<&Replicas>,
    ) -> Result<Tensor> {
        match replicas {
            None => self.between(student, teacher),
            Some(replicas) if self.is_entrywise() => {
                own_mean(&self.between(student, teacher)?, student.dim(0)?, replicas)
            }
            Some(replicas) => self.between(&replicas.gather(student)?, &replicas.gather(teacher)?),
        }
    }

    pub(crate) fn between(self, student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
        match self {
            Self::SmoothL1 { beta } => vkd_loss::smooth_l1(student, teacher, beta, Reduction::Mean),
            Self::Mse => vkd_loss::mse(student, teacher, Reduction::Mean),
            Self::TokenL2 => vkd_loss::token_l2(student, teacher, Reduction::Mean),
            Self::Spkd => baselines::spkd(student, teacher, baselines::RowNorm::L2),
            Self::Pkt => baselines::pkt(student, teacher, baselines::Form::Code),
            Self::RkdDistance => baselines::rkd_distance(student, teacher, Reduction::Mean),
            Self::RkdAngle => baselines::rkd_angle(student, teacher, Reduction::Mean),
        }
    }
}

/// A mean over this replica's rows, as its part of the mean over all rows.
fn own_mean(mean: &Tensor, rows: usize, replicas: &Replicas) -> Result<Tensor> {
    let rows = rows as f64;
    // Exactly one where all have as many rows.
    mean * (rows / replicas.divisor(rows, 1.)?)
}

/// One tap: which features are matched, and how.
#[derive(Clone, Debug)]
pub struct TapConfig {
    /// Tap of the student.
    pub student: String,
    /// Its width Cs.
    pub student_width: usize,
    /// Tap of the teacher.
    pub teacher: String,
    /// Its width Ct.
    pub teacher_width: usize,
    /// Map from Cs to Ct.
    pub projector: ProjectorConfig,
    /// Applied to the projected student; `Identity` for classification.
    pub student_normalizer: Normalizer,
    /// Applied to the teacher; layer norm for classification.
    pub teacher_normalizer: Normalizer,
    /// Distance.
    pub loss: FeatureLoss,
    /// Factor in the loss.
    pub weight: f64,
}

/// KL divergence to the teacher's logits (Hinton et al., arXiv:1503.02531).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitLoss {
    /// Temperature; the published V_kD code has 1.
    pub temperature: f64,
    /// Factor in the loss.
    pub weight: f64,
}

/// What the logits' term measures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum LogitDistance {
    /// [`vkd_loss::kl`], as [`LogitLoss`] says.
    #[default]
    Kl,
    /// [`vkd_loss::baselines::dist`] with weights of 1.
    Dist,
    /// [`vkd_loss::baselines::logit_standardization`].
    Standardized,
    /// [`vkd_loss::baselines::dkd`]. It is defined by a row's class, so it sees the labelled rows alone, and refuses shares of
    /// classes.
    Decoupled {
        /// Weight of the class's part.
        alpha: f64,
        /// Weight of the other classes' part.
        beta: f64,
    },
}

struct Tap {
    config: TapConfig,
    projector: Projector,
}

fn at_tap(name: &str, e: Error) -> Error {
    Error::Msg(format!("distiller: {name}: {e}"))
}

/// Matches a student to a teacher; owns the projectors and nothing of the two networks.
///
/// Features of a half type are cast to the dtype of the projectors first, so that with networks in bf16 the pooling, the
/// projectors, the normalisers and the losses are all computed in f32.
pub struct Distiller {
    taps: Vec<Tap>,
    logits: Option<LogitLoss>,
    distance: LogitDistance,
    adapter: Box<dyn FeatureAdapter>,
    /// Of the projectors.
    dtype: DType,
    root: Option<f64>,
}

impl Distiller {
    /// Builds the projectors under `vb`, each at the name of its student tap, with the classification adapter.
    ///
    /// Logits with a weight of 0 are no term at all.
    ///
    /// # Errors
    /// A zero width, two taps on the same student features, a weight that is negative or not finite, a loss or
    /// normaliser parameter out of range (with the tap's name). Whether networks have these taps and widths shows at their first batch:
    /// [`check`](Self::check) tells before any training.
    pub fn new(taps: Vec<TapConfig>, logits: Option<LogitLoss>, vb: VarBuilder) -> Result<Self> {
        let weights = taps
            .iter()
            .map(|t| (t.student.as_str(), t.weight))
            .chain(logits.map(|l| ("logits", l.weight)));
        for (name, weight) in weights {
            if !(weight >= 0. && weight.is_finite()) {
                bail!("distiller: {name}: expected a weight of at least 0, got {weight}")
            }
        }
        // The losses know their own ranges: one entry shows whether they take the number.
        let zero = Tensor::zeros((1, 1), DType::F64, &Device::Cpu)?;
        if let Some(LogitLoss { temperature, .. }) = logits {
            vkd_loss::kl(&zero, &zero, temperature, Reduction::Mean)
                .map_err(|e| at_tap("logits", e))?;
        }
        let dtype = vb.dtype();
        let mut built: Vec<Tap> = Vec::new();
        for config in taps {
            if built.iter().any(|t| t.config.student == config.student) {
                bail!("distiller: expected one tap on {}, got two", config.student)
            }
            let name = |e| at_tap(&config.student, e);
            // The only loss with a number of its own; those on relations would want more rows.
            if let FeatureLoss::SmoothL1 { .. } = config.loss {
                config.loss.between(&zero, &zero).map_err(name)?;
            }
            let (widths, entrywise) =
                ([config.student_width, config.teacher_width], config.loss.is_entrywise());
            let projected =
                config.projector.width(widths[0], widths[1], entrywise).map_err(name)?;
            for (side, normalizer, width) in [
                ("student", &config.student_normalizer, projected),
                ("teacher", &config.teacher_normalizer, config.teacher_width),
            ] {
                let side = |e| Error::Msg(format!("{side} normalizer: {e}"));
                normalizer.check(width).map_err(side).map_err(name)?;
            }
            let projector = Projector::new(
                config.student_width,
                config.teacher_width,
                &config.projector,
                vb.pp(&config.student),
            )?;
            built.push(Tap { config, projector });
        }
        let logits = logits.filter(|l| l.weight > 0.);
        let distance = LogitDistance::default();
        let adapter = Box::new(ClassificationAdapter);
        Ok(Self { taps: built, logits, distance, adapter, dtype, root: None })
    }

    /// With another adapter than the classification's, for all taps.
    pub fn with_adapter(mut self, adapter: impl FeatureAdapter + 'static) -> Self {
        self.adapter = Box::new(adapter);
        self
    }

    /// With one term `feature` of this weight in place of one a tap: the square root of the taps' weighted sum.
    ///
    /// With [`FeatureLoss::TokenL2`], no projectors and the number of stacked layers as the weight of a tap, this is ViDT's token
    /// matching (arXiv:2110.03921), whose own weight is 4.
    ///
    /// # Errors
    /// A weight that is negative or not finite.
    pub fn with_root(mut self, weight: f64) -> Result<Self> {
        if !(weight >= 0. && weight.is_finite()) {
            bail!("distiller: root: expected a weight of at least 0, got {weight}")
        }
        self.root = Some(weight);
        Ok(self)
    }

    /// With another distance of the logits than the KL divergence.
    pub fn with_logit_distance(mut self, distance: LogitDistance) -> Self {
        self.distance = distance;
        self
    }

    /// Checks that two networks fit, from one output of each (any batch will do).
    ///
    /// # Errors
    /// A missing tap, a width other than the tap's, or different numbers of classes; names and both values are given.
    pub fn check(&self, student: &NetworkOutput, teacher: &NetworkOutput) -> Result<()> {
        self.check_features(&student.taps, &teacher.taps)?;
        let (s, t) = (student.logits.dims2()?.1, teacher.logits.dims2()?.1);
        if self.logits.is_some() && s != t {
            bail!("logits: expected the student to have the teacher's {t} classes, got {s}")
        }
        Ok(())
    }

    /// [`check`](Self::check) of the features alone, for networks that are no classifiers; the adapter looks too whether rows
    /// can be paired, such as the number of tokens.
    ///
    /// # Errors
    /// A missing tap, a width other than the tap's, or features that the adapter can't pair; with the tap's name.
    pub fn check_features(&self, student: &Taps, teacher: &Taps) -> Result<()> {
        for Tap { config, .. } in &self.taps {
            let of = |owner: &str, taps, name: &str, width| {
                let found = tap(taps, owner, name)?;
                let got = found.width();
                if got != width {
                    bail!("{owner} tap {name}: expected width {width}, got {got}")
                }
                Ok(found)
            };
            let student = of("student", student, &config.student, config.student_width)?;
            let teacher = of("teacher", teacher, &config.teacher, config.teacher_width)?;
            self.adapter.check_pair(student, teacher).map_err(|e| at_tap(&config.student, e))?;
        }
        Ok(())
    }

    /// The distillation terms of one batch: `logits`, then `feature.TAP` for each tap.
    ///
    /// # Errors
    /// Those of [`check`](Self::check), those of the losses, and a distance of the logits that needs labels.
    pub fn terms(
        &self,
        student: &NetworkOutput,
        teacher: &NetworkOutput,
        ctx: &Context,
    ) -> Result<Vec<Term>> {
        self.all_terms(student, teacher, None, ctx)
    }

    /// [`terms`](Self::terms) of a batch whose first rows have `labels`, in the form of
    /// [`Batch::labels`](crate::Batch::labels). Where it has none, both heads of a student with two learn the teacher's logits:
    /// nothing else would train the first.
    ///
    /// # Errors
    /// Those of [`terms`](Self::terms).
    pub fn terms_with_labels(
        &self,
        student: &NetworkOutput,
        teacher: &NetworkOutput,
        labels: &Tensor,
        ctx: &Context,
    ) -> Result<Vec<Term>> {
        self.all_terms(student, teacher, Some(labels), ctx)
    }

    fn all_terms(
        &self,
        student: &NetworkOutput,
        teacher: &NetworkOutput,
        labels: Option<&Tensor>,
        ctx: &Context,
    ) -> Result<Vec<Term>> {
        self.check(student, teacher)?;
        let mut terms = Vec::new();
        if let Some(LogitLoss { weight, temperature }) = self.logits {
            let distance =
                |head: &Tensor| self.logit_loss(head, &teacher.logits, labels, temperature, ctx);
            let none = labels.map(|l| l.dim(0)).transpose()? == Some(0);
            let value = match &student.distillation_logits {
                Some(other) if none => ((distance(&student.logits)? + distance(other)?)? * 0.5)?,
                Some(other) => distance(other)?,
                None => distance(&student.logits)?,
            };
            terms.push(Term { name: "logits".to_owned(), weight, value });
        }
        terms.extend(self.matched(&student.taps, &teacher.taps, ctx)?);
        Ok(terms)
    }

    fn adapt(&self, features: &FeatureMap) -> Result<Tensor> {
        match features.tensor().dtype() {
            DType::F16 | DType::BF16 => self.adapter.adapt(&features.to_dtype(self.dtype)?),
            _ => self.adapter.adapt(features),
        }
    }

    fn logit_loss(
        &self,
        student: &Tensor,
        teacher: &Tensor,
        labels: Option<&Tensor>,
        temperature: f64,
        ctx: &Context,
    ) -> Result<Tensor> {
        let mean = Reduction::Mean;
        match self.distance {
            LogitDistance::Kl => vkd_loss::kl(student, teacher, temperature, mean),
            LogitDistance::Dist => {
                let config = baselines::DistConfig { temperature, ..Default::default() };
                // It compares classes over the batch.
                match &ctx.replicas {
                    None => baselines::dist(student, teacher, config),
                    Some(all) => {
                        baselines::dist(&all.gather(student)?, &all.gather(teacher)?, config)
                    }
                }
            }
            LogitDistance::Standardized => {
                baselines::logit_standardization(student, teacher, temperature, mean)
            }
            LogitDistance::Decoupled { alpha, beta } => {
                let labels = match labels {
                    Some(labels) if labels.rank() == 1 && labels.dim(0)? > 0 => labels,
                    other => bail!(
                        "distiller: logits: expected labels of one class each for the decoupled distance, got {}",
                        match other.map(Tensor::dims) {
                            None | Some([0, ..]) => "none".to_owned(),
                            Some(dims) => format!("shares {dims:?}"),
                        }
                    ),
                };
                let labelled = |logits: &Tensor| logits.narrow(0, 0, labels.dim(0)?);
                let config = baselines::DkdConfig { alpha, beta, temperature };
                baselines::dkd(&labelled(student)?, &labelled(teacher)?, labels, config, mean)
            }
        }
    }

    /// The terms of the taps alone, for networks that are no classifiers: `feature.TAP` for each.
    ///
    /// # Errors
    /// Those of [`check_features`](Self::check_features), and those of the losses.
    pub fn feature_terms(
        &self,
        student: &Taps,
        teacher: &Taps,
        ctx: &Context,
    ) -> Result<Vec<Term>> {
        self.check_features(student, teacher)?;
        self.matched(student, teacher, ctx)
    }

    fn matched(&self, student: &Taps, teacher: &Taps, ctx: &Context) -> Result<Vec<Term>> {
        let mut terms = Vec::new();
        for tap in &self.taps {
            let Tap { config, .. } = tap;
            let name = format!("feature.{}", config.student);
            let value = self
                .tap_loss(tap, student, teacher, ctx)
                .map_err(|e| at_tap(&config.student, e))?;
            terms.push(Term { name, weight: config.weight, value });
        }
        match self.root {
            Some(weight) if !terms.is_empty() => {
                // The guard keeps the slope finite where all taps agree, and vanishes beside any other sum.
                let own = weighted_sum(&terms)?;
                // The root of the whole batch's sum, of which each replica's terms are a part.
                let sum = match &ctx.replicas {
                    None => own,
                    Some(replicas) => (replicas.sum(&own)? / replicas.size() as f64)?,
                };
                let sum = (sum + f64::from(f32::MIN_POSITIVE))?;
                Ok(vec![Term { name: "feature".to_owned(), weight, value: sum.sqrt()? }])
            }
            _ => Ok(terms),
        }
    }

    fn tap_loss(&self, at: &Tap, student: &Taps, teacher: &Taps, ctx: &Context) -> Result<Tensor> {
        let c = &at.config;
        let projected = at.projector.forward(&self.adapt(tap(student, "student", &c.student)?)?)?;
        let target = self.adapt(tap(teacher, "teacher", &c.teacher)?)?;
        // The published pairing has an op of its own, which never writes the normalised teacher down.
        if let (
            Normalizer::Identity,
            Normalizer::LayerNorm { eps },
            FeatureLoss::SmoothL1 { beta },
        ) = (&c.student_normalizer, &c.teacher_normalizer, c.loss)
        {
            let value = vkd_loss::smooth_l1_layer_norm(&projected, &target, beta, *eps)?;
            return match &ctx.replicas {
                None => Ok(value),
                Some(replicas) => own_mean(&value, projected.dim(0)?, replicas),
            };
        }
        let student = c.student_normalizer.forward(&projected, ctx)?;
        let target = c.teacher_normalizer.forward(&target, ctx)?;
        c.loss.among(&student, &target, ctx.replicas.as_ref())
    }

    /// How the student's features lie and how like the teacher's they are, before any projector, for the log: `rank.TAP` and
    /// `teacher_rank.TAP`, the effective ranks, and `cka.TAP`, each where it is defined (features that are the same for all
    /// images have none).
    ///
    /// # Errors
    /// Those of [`check`](Self::check).
    pub fn geometry(
        &self,
        student: &NetworkOutput,
        teacher: &NetworkOutput,
    ) -> Result<Vec<(String, f64)>> {
        self.check(student, teacher)?;
        self.geometry_of(&student.taps, &teacher.taps)
    }

    /// [`geometry`](Self::geometry) of the features alone, for networks that are no classifiers.
    ///
    /// # Errors
    /// Those of [`check_features`](Self::check_features).
    pub fn feature_geometry(&self, student: &Taps, teacher: &Taps) -> Result<Vec<(String, f64)>> {
        self.check_features(student, teacher)?;
        self.geometry_of(student, teacher)
    }

    fn geometry_of(&self, student: &Taps, teacher: &Taps) -> Result<Vec<(String, f64)>> {
        let mut found = Vec::new();
        for Tap { config, .. } in &self.taps {
            let student = self.adapt(tap(student, "student", &config.student)?)?;
            let teacher = self.adapt(tap(teacher, "teacher", &config.teacher)?)?;
            found.extend(geometry_of(&config.student, &student, &teacher));
        }
        Ok(found)
    }

    /// Largest `max|WᵀW − I|` of the orthogonal projectors, of rank 0 in f64; infinite where one is broken, `None` without one.
    pub fn residual(&self) -> Result<Option<Tensor>> {
        let mut worst = None;
        for tap in &self.taps {
            if let Some(r) = tap.projector.residual()? {
                worst = Some(match worst {
                    None => r,
                    Some(worst) => r.maximum(&worst)?,
                });
            }
        }
        Ok(worst)
    }
}

/// Ranks and alignment of two matrices of features, those that are defined, by name.
pub(crate) fn geometry_of(name: &str, student: &Tensor, teacher: &Tensor) -> Vec<(String, f64)> {
    let values = [
        ("rank", geometry::effective_rank(student)),
        ("teacher_rank", geometry::effective_rank(teacher)),
        ("cka", geometry::linear_cka(student, teacher)),
    ];
    let named = |(kind, value): (&str, Result<f64>)| Some((format!("{kind}.{name}"), value.ok()?));
    values.into_iter().filter_map(named).collect()
}
