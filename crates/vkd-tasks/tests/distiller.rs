//! The distiller on two toy networks: who gets a gradient, what is named, and what is refused.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use std::sync::Arc;
use vkd_loss::baselines::{DkdConfig, dkd};
use vkd_loss::{Reduction, smooth_l1};
use vkd_norm::{Context, Moments, Normalizer, Shrinkage, WhitenConfig, Whitener, layer_norm};
use vkd_ortho::{OrthogonalConfig, OrthogonalMap};
use vkd_tasks::{
    Batch, ClassificationTask, DistillTask, Distiller, FeatureLoss, FeatureMap, Layout,
    LogitDistance, LogitLoss, NetworkOutput, ProjectorConfig, TapConfig, Teacher,
};
use vkd_testkit::{Tolerance, assert_close, gradcheck_variables, normal};

const CLASSES: usize = 3;

/// A network whose features are one linear map of the image: tokens for the student, a grid for the teacher.
struct Toy {
    features: Var,
    head: Var,
    dist: Var,
}

impl Toy {
    fn new(width: usize, seed: u64) -> Result<Self> {
        let var = |dims: &[usize], s| Var::from_tensor(&normal(dims, DType::F64, s)?);
        Ok(Self {
            features: var(&[4, 2 * width], seed)?,
            head: var(&[width, CLASSES], seed + 1)?,
            dist: var(&[width, CLASSES], seed + 2)?,
        })
    }

    fn named(&self, prefix: &str) -> Vec<(String, Var)> {
        [("features", &self.features), ("head", &self.head), ("dist", &self.dist)]
            .map(|(n, v)| (format!("{prefix}.{n}"), v.clone()))
            .to_vec()
    }

    fn student(&self) -> impl Fn(&Tensor, &Context) -> Result<NetworkOutput> + use<> {
        let (w, head, dist) = (self.features.clone(), self.head.clone(), self.dist.clone());
        move |images, _| {
            let tokens = images.matmul(&w)?.reshape((images.dim(0)?, 2, ()))?;
            let pooled = tokens.mean(1)?;
            Ok(NetworkOutput::new(pooled.matmul(&head)?)
                .with_distillation_logits(pooled.matmul(&dist)?)
                .with_tap("tokens", FeatureMap::new(tokens, Layout::Tokens)?))
        }
    }

    fn teacher(&self) -> impl Fn(&Tensor, &Context) -> Result<NetworkOutput> + use<> {
        let (w, head) = (self.features.clone(), self.head.clone());
        move |images, _| {
            let grid = images.matmul(&w)?.reshape((images.dim(0)?, (), 2, 1))?;
            let pooled = grid.flatten_from(2)?.mean(D::Minus1)?;
            Ok(NetworkOutput::new(pooled.matmul(&head)?)
                .with_tap("grid", FeatureMap::new(grid, Layout::Grid)?))
        }
    }
}

fn tap(projector: ProjectorConfig) -> TapConfig {
    TapConfig {
        student: "tokens".into(),
        student_width: 3,
        teacher: "grid".into(),
        teacher_width: 5,
        projector,
        student_normalizer: Normalizer::Identity,
        teacher_normalizer: Normalizer::LayerNorm { eps: 1e-5 },
        loss: FeatureLoss::SmoothL1 { beta: 1. },
        weight: 2.,
    }
}

fn orthogonal(map: OrthogonalMap) -> ProjectorConfig {
    ProjectorConfig::Orthogonal(OrthogonalConfig::new(map, 3))
}

const LOGITS: Option<LogitLoss> = Some(LogitLoss { temperature: 2., weight: 1.5 });

fn batch(labels: usize) -> Result<Batch> {
    Ok(Batch {
        images: normal(&[6, 4], DType::F64, 9)?,
        labels: Tensor::new((0..labels as u32).map(|l| l % 3).collect::<Vec<_>>(), &Device::Cpu)?,
        sample_ids: Arc::from((0..6).collect::<Vec<u64>>()),
    })
}

fn named(map: &VarMap) -> Vec<(String, Var)> {
    let mut all: Vec<_> = match map.data().lock() {
        Ok(data) => data.iter().map(|(n, v)| (n.clone(), v.clone())).collect(),
        Err(_) => vec![],
    };
    all.retain(|(n, _)| !n.ends_with("base"));
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn the_whole_loss_has_right_gradients_and_the_teacher_has_none() -> Result<()> {
    let configs = OrthogonalMap::ALL
        .iter()
        .map(|m| orthogonal(*m))
        .chain([ProjectorConfig::Linear, ProjectorConfig::Mlp { hidden: 7 }])
        .collect::<Vec<_>>();
    for config in configs {
        let (student, teacher, map) = (Toy::new(3, 10)?, Toy::new(5, 20)?, VarMap::new());
        let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
        let weights = if let ProjectorConfig::Mlp { .. } = config { 2 } else { 1 };
        let distiller = Distiller::new(vec![tap(config)], LOGITS, vb)?;
        if weights == 2 {
            // A drawn weight could put a relu's kink within the step of the differences.
            for (i, (_, var)) in named(&map).into_iter().enumerate() {
                var.set(&normal(var.dims(), DType::F64, 70 + i as u64)?)?;
            }
        }
        let distillation = Some((Teacher::new(teacher.teacher()), distiller));
        let task = ClassificationTask::new(student.student(), distillation, 0.1)?;
        task.check(&batch(0)?.images)?;
        let loss = |labels| task.step(&batch(labels)?, &task.phases()[0], &Context::eval());
        // With labels on four of the six images every student and projector variable learns.
        let all = [student.named("student"), named(&map)].concat();
        assert_eq!(all.len(), 3 + weights);
        gradcheck_variables(&all, || Ok(loss(4)?.loss))?;
        let grads = loss(4)?.loss.backward()?;
        for (name, var) in teacher.named("teacher") {
            assert!(grads.get(&var).is_none(), "{name} must be off the tape");
        }
        // Without labels both heads learn the teacher's logits.
        gradcheck_variables(&all, || Ok(loss(0)?.loss))?;
        let names: Vec<String> = loss(0)?.terms.into_iter().map(|t| t.name).collect();
        assert_eq!(names, ["logits", "feature.tokens"]);
    }
    Ok(())
}

#[test]
fn terms_are_named_and_sum_to_the_loss() -> Result<()> {
    let (student, teacher, map) = (Toy::new(3, 10)?, Toy::new(5, 20)?, VarMap::new());
    let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
    let distiller = Distiller::new(vec![tap(orthogonal(OrthogonalMap::Cayley))], LOGITS, vb)?;
    let task = ClassificationTask::new(
        student.student(),
        Some((Teacher::new(teacher.teacher()), distiller)),
        0.,
    )?;
    let out = task.step(&batch(2)?, &task.phases()[0], &Context::eval())?;
    let names: Vec<&str> = out.terms.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["label", "logits", "feature.tokens"]);
    let mut sum = 0.;
    for term in &out.terms {
        sum += term.weight * term.value.to_scalar::<f64>()?;
    }
    assert!((sum - out.loss.to_scalar::<f64>()?).abs() < 1e-12);
    assert!(task.residual()?.unwrap().to_scalar::<f64>()? <= 1e-13);
    Ok(())
}

#[test]
fn alone_both_heads_learn_the_labels() -> Result<()> {
    let student = Toy::new(3, 10)?;
    let task = ClassificationTask::new(student.student(), None, 0.)?;
    gradcheck_variables(&student.named("student"), || {
        Ok(task.step(&batch(6)?, &task.phases()[0], &Context::eval())?.loss)
    })?;
    assert!(task.residual()?.is_none());
    // Nothing to learn from at all is an error, not a silent step.
    assert!(task.step(&batch(0)?, &task.phases()[0], &Context::eval()).is_err());
    Ok(())
}

#[test]
fn the_fused_tap_is_the_two_ops_up_to_rounding() -> Result<()> {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
    let distiller = Distiller::new(vec![tap(ProjectorConfig::Linear)], None, vb)?;
    let (_, weight) = &named(&map)[0];
    let output = |logits| Tensor::zeros((6, logits), DType::F64, &Device::Cpu);
    let tokens = Var::from_tensor(&normal(&[6, 2, 3], DType::F64, 1)?)?;
    let grid = normal(&[6, 5, 2, 2], DType::F64, 2)?;
    let student = NetworkOutput::new(output(CLASSES)?)
        .with_tap("tokens", FeatureMap::new(tokens.as_tensor().clone(), Layout::Tokens)?);
    let teacher = NetworkOutput::new(output(CLASSES)?)
        .with_tap("grid", FeatureMap::new(grid.clone(), Layout::Grid)?);
    let terms = distiller.terms(&student, &teacher, &Context::eval())?;
    // That it is the fused op shows in whose name it refuses.
    let broken = NetworkOutput::new(output(CLASSES)?)
        .with_tap("grid", FeatureMap::new((&grid * f64::NAN)?, Layout::Grid)?);
    let e = distiller.terms(&student, &broken, &Context::eval()).err().map(|e| e.to_string());
    let e = e.unwrap_or_default();
    assert!(e.contains("smooth_l1_layer_norm: expected finite teacher, got NaN"), "{e}");
    let projected = tokens.mean(1)?.matmul(&weight.t()?)?;
    let target = layer_norm(&grid.flatten_from(2)?.mean(D::Minus1)?, 1e-5)?;
    let want = smooth_l1(&projected, &target, 1., Reduction::Mean)?;
    // Sums of a few products in another order.
    let allowed = Tolerance::relative(1e-13);
    assert_close("loss", &terms[0].value, &want, allowed)?;
    let (got, want) = (terms[0].value.backward()?, want.backward()?);
    for var in [&tokens, weight] {
        assert_close("gradient", got.get(var).unwrap(), want.get(var).unwrap(), allowed)?;
    }
    Ok(())
}

#[test]
fn logits_without_weight_are_no_term() -> Result<()> {
    let (student, teacher, map) = (Toy::new(3, 10)?, Toy::new(5, 20)?, VarMap::new());
    let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
    let none = Some(LogitLoss { temperature: 2., weight: 0. });
    let distiller = Distiller::new(vec![tap(ProjectorConfig::Linear)], none, vb)?;
    let task = ClassificationTask::new(
        student.student(),
        Some((Teacher::new(teacher.teacher()), distiller)),
        0.,
    )?;
    let out = task.step(&batch(6)?, &task.phases()[0], &Context::eval())?;
    let names: Vec<&str> = out.terms.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["label", "feature.tokens"]);
    // Both heads learn the labels then, as they do alone.
    let grads = out.loss.backward()?;
    for head in [&student.head, &student.dist] {
        assert!(grads.get(head).is_some());
    }
    Ok(())
}

#[test]
fn the_decoupled_distance_sees_the_labelled_rows_alone() -> Result<()> {
    let map = VarMap::new();
    let vb = || VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
    let decoupled = LogitDistance::Decoupled { alpha: 0.5, beta: 3. };
    let distiller = Distiller::new(vec![], LOGITS, vb())?.with_logit_distance(decoupled);
    let student = Var::from_tensor(&normal(&[6, CLASSES], DType::F64, 1)?)?;
    let output = NetworkOutput::new(student.as_tensor().clone());
    let teacher = NetworkOutput::new(normal(&[6, CLASSES], DType::F64, 2)?);
    let labels = batch(4)?.labels;
    let terms = distiller.terms_with_labels(&output, &teacher, &labels, &Context::eval())?;
    let config = DkdConfig { alpha: 0.5, beta: 3., temperature: 2. };
    let four = |t: &Tensor| t.narrow(0, 0, 4);
    let want = dkd(&four(&student)?, &four(&teacher.logits)?, &labels, config, Reduction::Mean)?;
    assert_close("loss", &terms[0].value, &want, Tolerance::EXACT)?;
    let grads = terms[0].value.backward()?;
    let grad = grads.get(&student).map(|g| g.to_vec2::<f64>()).transpose()?.unwrap_or_default();
    assert!(grad[..4].iter().all(|row| row.iter().any(|g| *g != 0.)));
    assert!(grad[4..].iter().flatten().all(|g| *g == 0.));
    gradcheck_variables(&[("logits".to_owned(), student.clone())], || {
        let terms = distiller.terms_with_labels(&output, &teacher, &labels, &Context::eval())?;
        Ok(terms[0].value.clone())
    })?;
    // Nobody's class, a mixture of classes, and a caller who has no labels to give.
    let shares = Tensor::full(1. / 3., (6, CLASSES), &Device::Cpu)?;
    for (labels, part) in
        [(Some(batch(0)?.labels), "none"), (Some(shares), "[6, 3]"), (None, "none")]
    {
        let terms = match &labels {
            Some(l) => distiller.terms_with_labels(&output, &teacher, l, &Context::eval()),
            None => distiller.terms(&output, &teacher, &Context::eval()),
        };
        let message = terms.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(
            message.contains("expected labels of one class each") && message.contains(part),
            "{message}"
        );
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() -> Result<()> {
    let map = VarMap::new();
    let vb = || VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
    let cayley = || tap(orthogonal(OrthogonalMap::Cayley));
    let refused =
        |taps, logits| Distiller::new(taps, logits, vb().pp("x")).err().map(|e| e.to_string());
    for (taps, logits, part) in [
        (vec![TapConfig { weight: f64::NAN, ..cayley() }], None, "tokens: expected a weight"),
        (vec![TapConfig { student_width: 0, ..cayley() }], None, "above 0, got 0 -> 5"),
        (vec![cayley(), cayley()], None, "one tap on tokens, got two"),
        (
            vec![TapConfig { loss: FeatureLoss::SmoothL1 { beta: 0. }, ..cayley() }],
            None,
            "distiller: tokens: smooth_l1: expected a finite beta > 0",
        ),
        (
            vec![TapConfig { loss: FeatureLoss::SmoothL1 { beta: 1e-300 }, ..cayley() }],
            None,
            "distiller: tokens: smooth_l1: expected a finite beta > 0",
        ),
        (
            vec![],
            Some(LogitLoss { temperature: 0., weight: 1. }),
            "distiller: logits: kl: expected a finite temperature > 0",
        ),
        (
            vec![],
            Some(LogitLoss { temperature: 1e7, weight: 1. }),
            "distiller: logits: kl: expected a temperature of at most 1e6",
        ),
        (
            vec![TapConfig { teacher_normalizer: Normalizer::LayerNorm { eps: 0. }, ..cayley() }],
            None,
            "distiller: tokens: teacher normalizer: layer_norm: expected a finite eps",
        ),
        (
            vec![TapConfig { student_normalizer: Normalizer::Standardize { eps: 1. }, ..cayley() }],
            None,
            "distiller: tokens: student normalizer: standardize: expected 0 < eps < 1, got 1e0",
        ),
        (
            vec![TapConfig {
                teacher_normalizer: Normalizer::Whiten(WhitenConfig {
                    shrinkage: Shrinkage::Fixed(2.),
                    ..WhitenConfig::default()
                }),
                ..cayley()
            }],
            None,
            "distiller: tokens: teacher normalizer: whiten: expected a shrinkage 0 <= rho <= 1",
        ),
        (
            vec![TapConfig {
                teacher_normalizer: Normalizer::Precomputed(Whitener::new(
                    &Moments::from_rows(&normal(&[9, 4], DType::F64, 1)?, None)?,
                    WhitenConfig::default(),
                )?),
                ..cayley()
            }],
            None,
            "distiller: tokens: teacher normalizer: whiten_with: expected 4 channels, got 5",
        ),
    ] {
        let message = refused(taps, logits).unwrap_or_default();
        assert!(message.contains(part), "{part}: {message}");
    }
    let (student, teacher) = (Toy::new(3, 10)?, Toy::new(5, 20)?);
    let images = batch(0)?.images;
    let check = |tap: TapConfig, name: &str| -> Result<String> {
        let distiller = Distiller::new(vec![tap], LOGITS, vb().pp(name))?;
        let task = ClassificationTask::new(
            student.student(),
            Some((Teacher::new(teacher.teacher()), distiller)),
            0.,
        )?;
        Ok(task.check(&images).err().map(|e| e.to_string()).unwrap_or_default())
    };
    let wrong = check(TapConfig { teacher_width: 7, ..cayley() }, "a")?;
    assert!(wrong.contains("teacher tap grid: expected width 7, got 5"), "{wrong}");
    let wrong = check(TapConfig { student: "token".into(), ..cayley() }, "b")?;
    assert!(wrong.contains("student: expected a tap named token, got tokens"), "{wrong}");
    assert!(ClassificationTask::new(student.student(), None, 1.).is_err());
    Ok(())
}
