//! The generation task: its distiller, its phases, its state, and what it refuses.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use std::collections::HashMap;
use vkd_loss::baselines::kd_dlgan_features;
use vkd_norm::{Context, Moments, Normalizer, WhitenConfig, Whitener, whiten, whiten_with};
use vkd_ortho::{OrthogonalConfig, OrthogonalMap};
use vkd_tasks::{
    DISCRIMINATOR, DiffAugment, DistillTask, FeatureLoss, FeatureMap, GENERATOR, GenerationBatch,
    GenerationConfig, GenerationDistiller, GenerationLoss, GenerationTap, GenerationTask,
    Judgement, Layout, LecamConfig, NetworkOutput, ProjectorConfig, Sides, Taps, Teacher,
    TeacherNormalizer, uniform_classes, white_noise,
};
use vkd_testkit::{Tolerance, assert_close, gradcheck, normal, to_f64};

fn vars(dtype: DType) -> (VarMap, VarBuilder<'static>) {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, dtype, &Device::Cpu);
    (map, vb)
}

fn tap() -> GenerationTap {
    GenerationTap {
        student: "pooled".into(),
        student_width: 6,
        teacher: "embedding".into(),
        teacher_width: 16,
        projector: ProjectorConfig::Orthogonal(OrthogonalConfig::new(OrthogonalMap::Cayley, 3)),
        student_normalizer: Normalizer::Identity,
        teacher_normalizer: TeacherNormalizer::Fixed("whiten_zca".parse().unwrap()),
        together: true,
        loss: GenerationLoss::Feature(FeatureLoss::Mse),
        real_weight: 2.,
        generated_weight: 0.5,
    }
}

fn pooled(name: &str, rows: &Tensor) -> Result<Taps> {
    Ok(Taps::from([(name.to_owned(), FeatureMap::new(rows.clone(), Layout::Pooled)?)]))
}

fn sides(name: &str, rows: &[Tensor; 2]) -> Result<Sides<Taps>> {
    Ok(Sides { real: pooled(name, &rows[0])?, generated: pooled(name, &rows[1])? })
}

/// Values of the terms for rows of the discriminator and the teacher.
fn values(
    distiller: &GenerationDistiller,
    student: &[Tensor; 2],
    teacher: &[Tensor; 2],
    ctx: &Context,
) -> Result<Vec<f64>> {
    let terms = distiller.terms(&sides("pooled", student)?, &sides("embedding", teacher)?, ctx)?;
    terms.iter().map(|t| t.value.to_dtype(DType::F64)?.to_scalar::<f64>()).collect()
}

fn rows(count: usize, width: usize, seed: u64) -> Result<[Tensor; 2]> {
    let at = |seed| normal(&[count, width], DType::F64, seed);
    Ok([at(seed)?, (at(seed + 1)? + 0.7)?])
}

#[test]
fn terms_are_the_losses_of_each_side_after_one_projector_and_one_whitening() -> Result<()> {
    let (map, vb) = vars(DType::F64);
    let distiller = GenerationDistiller::new(tap(), vb.clone())?;
    // Fewer rows together than the teacher has channels.
    let (student, teacher) = (rows(5, 6, 1)?, rows(5, 16, 3)?);
    let ctx = Context::train(0, 0, []);
    let got = values(&distiller, &student, &teacher, &ctx)?;
    let projector = vkd_tasks::Projector::new(6, 16, &tap().projector, vb.pp("pooled"))?;
    let joined = Tensor::cat(&teacher, 0)?;
    let TeacherNormalizer::Fixed(normalizer) = tap().teacher_normalizer else { unreachable!() };
    let white = normalizer.forward(&joined, &ctx)?;
    for (i, got) in got.iter().enumerate() {
        let projected = projector.forward(&student[i])?;
        let target = white.narrow(0, 5 * i, 5)?;
        let want = (projected - target)?.sqr()?.mean_all()?.to_scalar::<f64>()?;
        assert!((got - want).abs() < 1e-13 * want, "{got} {want}");
    }
    // Ten rows, whitened: each of nine directions has a spread of one.
    let spread = white.sqr()?.sum_all()?.to_scalar::<f64>()?;
    assert!((spread - 81.).abs() < 0.5, "{spread}");
    assert!(distiller.residual()?.unwrap().to_scalar::<f64>()? < 1e-12);
    let weights: Vec<f64> = distiller
        .terms(&sides("pooled", &student)?, &sides("embedding", &teacher)?, &ctx)?
        .iter()
        .map(|t| t.weight)
        .collect();
    assert_eq!(weights, [2., 0.5]);
    // The gradient reaches both sides and the projector, and is right.
    for loss in [
        GenerationLoss::Feature(FeatureLoss::SmoothL1 { beta: 1. }),
        GenerationLoss::KdDlgan { texts: Some(normal(&[3, 16], DType::F64, 9)?) },
    ] {
        let distiller = GenerationDistiller::new(GenerationTap { loss, ..tap() }, vb.clone())?;
        gradcheck(
            |x| {
                let student = [x[0].clone(), x[1].clone()];
                let terms = distiller.terms(
                    &sides("pooled", &student)?,
                    &sides("embedding", &teacher)?,
                    &ctx,
                )?;
                vkd_tasks::weighted_sum(&terms)
            },
            &student,
        )?;
        let terms =
            distiller.terms(&sides("pooled", &student)?, &sides("embedding", &teacher)?, &ctx)?;
        let grads = vkd_tasks::weighted_sum(&terms)?.backward()?;
        let trained =
            map.data().lock().unwrap().iter().filter(|(_, v)| grads.get(v).is_some()).count();
        assert_eq!(trained, 1);
    }
    Ok(())
}

#[test]
fn sides_may_be_whitened_apart() -> Result<()> {
    let (_, vb) = vars(DType::F64);
    let (student, teacher) = (rows(20, 6, 1)?, rows(20, 16, 3)?);
    let ctx = Context::train(0, 0, []);
    let apart = GenerationDistiller::new(GenerationTap { together: false, ..tap() }, vb.clone())?;
    let got = values(&apart, &student, &teacher, &ctx)?;
    let projector = vkd_tasks::Projector::new(6, 16, &tap().projector, vb.pp("pooled"))?;
    let TeacherNormalizer::Fixed(Normalizer::Whiten(config)) = tap().teacher_normalizer else {
        unreachable!()
    };
    for (i, got) in got.iter().enumerate() {
        let difference = (projector.forward(&student[i])? - whiten(&teacher[i], config)?)?;
        let want = difference.sqr()?.mean_all()?.to_scalar::<f64>()?;
        assert!((got - want).abs() < 1e-13 * want, "{got} {want}");
    }
    // A shift of all generated images is invisible then, and visible together.
    let moved = [teacher[0].clone(), (&teacher[1] + 5.)?];
    let again = values(&apart, &student, &moved, &ctx)?;
    assert!((again[1] - got[1]).abs() < 1e-9);
    let joint = GenerationDistiller::new(tap(), vb)?;
    let (a, b) =
        (values(&joint, &student, &teacher, &ctx)?, values(&joint, &student, &moved, &ctx)?);
    assert!((a[1] - b[1]).abs() > 1e-3, "{a:?} {b:?}");
    Ok(())
}

#[test]
fn a_running_covariance_whitens_and_resumes_at_the_same_bits() -> Result<()> {
    let config = WhitenConfig::default();
    let running = |keep| GenerationTap {
        teacher_normalizer: TeacherNormalizer::Running { whiten: config, keep },
        ..tap()
    };
    let student = rows(5, 6, 1)?;
    let train = Context::train(0, 0, []);
    // With everything kept it is the whitening by all rows seen so far.
    let (map, vb) = vars(DType::F32);
    let distiller = GenerationDistiller::new(running(1.), vb.clone())?;
    let student32 = [student[0].to_dtype(DType::F32)?, student[1].to_dtype(DType::F32)?];
    let eval = values(&distiller, &student32, &rows32(1)?, &Context::eval());
    assert!(eval.unwrap_err().to_string().contains("at least one row"), "nothing gathered yet");
    let mut all = Moments::new(16)?;
    let mut last = Vec::new();
    for step in 0..4 {
        let teacher = rows32(step)?;
        last = values(&distiller, &student32, &teacher, &train)?;
        all.merge(&Moments::from_rows(&Tensor::cat(&teacher, 0)?, None)?)?;
        let whitener = Whitener::new(&all, config)?;
        let projector = vkd_tasks::Projector::new(6, 16, &tap().projector, vb.pp("pooled"))?;
        let difference =
            (projector.forward(&student32[0])? - whiten_with(&teacher[0], &whitener)?)?;
        let want = f64::from(difference.sqr()?.mean_all()?.to_scalar::<f32>()?);
        // The same numbers from sums about another point: rounding, times the whitening's factor for directions without spread.
        assert!((last[0] - want).abs() < 1e-4 * want, "{step}: {} {want}", last[0]);
    }
    // In evaluation it stays.
    let still = values(&distiller, &student32, &rows32(3)?, &Context::eval())?;
    assert_eq!(still, last);
    // A state read back goes on to the bit.
    let state: HashMap<String, Tensor> = {
        let vars = map.data().lock().unwrap();
        vars.iter()
            .map(|(n, v)| Ok((n.clone(), v.as_detached_tensor().copy()?)))
            .collect::<Result<_>>()?
    };
    assert!(state.contains_key("pooled.teacher.moments"), "{:?}", state.keys());
    let again = |keep: f64| -> Result<Vec<f64>> {
        let (map, vb) = vars(DType::F32);
        let distiller = GenerationDistiller::new(running(keep), vb)?;
        for (name, var) in map.data().lock().unwrap().iter() {
            var.set(&state[name])?;
        }
        let mut all = Vec::new();
        for step in 4..7 {
            all.extend(values(&distiller, &student32, &rows32(step)?, &train)?);
        }
        Ok(all)
    };
    let mut on = Vec::new();
    for step in 4..7 {
        on.extend(values(&distiller, &student32, &rows32(step)?, &train)?);
    }
    assert_eq!(on, again(1.)?);
    assert_ne!(on, again(0.9)?);
    Ok(())
}

fn rows32(seed: u64) -> Result<[Tensor; 2]> {
    let at = |seed| normal(&[5, 16], DType::F32, 100 + seed);
    Ok([at(2 * seed)?, (at(2 * seed + 1)? * 3.)?])
}

#[test]
fn fifty_images_a_side_whiten_against_a_width_of_512() -> Result<()> {
    let at = |rows: usize, seed| normal(&[rows, 512], DType::F32, seed);
    // Correlated channels of very different size, as a teacher's are.
    let mix = at(512, 1)?.broadcast_mul(&(at(1, 2)?.exp()? * 0.05)?)?;
    let teacher = [at(50, 3)?.matmul(&mix)?, (at(50, 4)?.matmul(&mix)? + 0.3)?];
    let mut moments = Moments::new(512)?;
    for seed in 10..30 {
        moments.merge(&Moments::from_rows(&at(50, seed)?.matmul(&mix)?, None)?)?;
    }
    let whitener = Whitener::new(&moments, WhitenConfig::default())?;
    let running = |keep| TeacherNormalizer::Running { whiten: WhitenConfig::default(), keep };
    let fixed = |name: &str| TeacherNormalizer::Fixed(name.parse().unwrap());
    let student: Vec<Var> = [5, 6]
        .into_iter()
        .map(|seed| Var::from_tensor(&normal(&[50, 256], DType::F32, seed)?))
        .collect::<Result<_>>()?;
    for teacher_normalizer in [
        fixed("whiten"),
        fixed("whiten_zca"),
        fixed("whiten_pca"),
        running(0.),
        running(0.99),
        TeacherNormalizer::Fixed(Normalizer::Precomputed(whitener)),
    ] {
        for together in [true, false] {
            let (_, vb) = vars(DType::F32);
            let what = format!("{teacher_normalizer:?} {together}");
            let teacher_normalizer = teacher_normalizer.clone();
            let wide = GenerationTap {
                student_width: 256,
                teacher_width: 512,
                teacher_normalizer,
                together,
                ..tap()
            };
            let running = matches!(wide.teacher_normalizer, TeacherNormalizer::Running { .. });
            let distiller = match GenerationDistiller::new(wide, vb) {
                Err(e) if running && !together => {
                    assert!(e.to_string().contains("together: expected true"), "{e}");
                    continue;
                }
                distiller => distiller?,
            };
            let rows = [student[0].as_tensor().clone(), student[1].as_tensor().clone()];
            let terms = distiller.terms(
                &sides("pooled", &rows)?,
                &sides("embedding", &teacher)?,
                &Context::train(0, 0, []),
            )?;
            for term in &terms {
                // Unit features and targets that are white or less: a few at most.
                let value = term.value.to_scalar::<f32>()?;
                assert!(value.is_finite() && value > 0. && value < 20., "{what}: {value}");
            }
            let grads = vkd_tasks::weighted_sum(&terms)?.backward()?;
            for var in &student {
                let grad = to_f64(grads.get(var).unwrap())?;
                assert!(
                    grad.iter().all(|g| g.is_finite()) && grad.iter().any(|g| *g != 0.),
                    "{what}"
                );
            }
            assert!(distiller.residual()?.unwrap().to_scalar::<f64>()? < 1e-5, "{what}");
        }
    }
    Ok(())
}

#[test]
fn the_comparison_arm_is_kd_dlgan() -> Result<()> {
    let (_, vb) = vars(DType::F64);
    let arm = GenerationTap {
        projector: ProjectorConfig::Linear,
        teacher_normalizer: TeacherNormalizer::Fixed(Normalizer::Identity),
        loss: GenerationLoss::KdDlgan { texts: Some(normal(&[3, 16], DType::F64, 9)?) },
        real_weight: 10.,
        generated_weight: 10.,
        ..tap()
    };
    let distiller = GenerationDistiller::new(arm, vb.clone())?;
    let (student, teacher) = (rows(5, 6, 1)?, rows(5, 16, 3)?);
    let got = values(&distiller, &student, &teacher, &Context::eval())?;
    assert_eq!(got.len(), 4);
    let projector = vkd_tasks::Projector::new(6, 16, &ProjectorConfig::Linear, vb.pp("pooled"))?;
    let (real, generated) = (projector.forward(&student[0])?, projector.forward(&student[1])?);
    let want =
        kd_dlgan_features(&real.detach(), &generated.detach(), &teacher[0])?.to_scalar::<f64>()?;
    assert!((got[0] - want).abs() < 1e-12 * want);
    let want =
        kd_dlgan_features(&generated.detach(), &real.detach(), &teacher[1])?.to_scalar::<f64>()?;
    assert!((got[1] - want).abs() < 1e-12 * want);
    Ok(())
}

const CLASSES: usize = 3;

/// Two linear maps as a GAN; the discriminator looks at the class.
fn task(
    vb: &VarBuilder<'static>,
    lecam: Option<LecamConfig>,
    distil: bool,
) -> Result<GenerationTask> {
    let weight = |name: &str, rows: usize, columns: usize, seed: u64| -> Result<Tensor> {
        let vb = vb.pp(name);
        let weight = vb.get_with_hints((rows, columns), "weight", candle_nn::Init::Const(0.))?;
        // Values that are the same for every map.
        let value =
            (normal(&[rows, columns], DType::F64, seed)? * 0.4)?.to_dtype(weight.dtype())?;
        weight.slice_set(&value, 0, 0)?;
        Ok(weight)
    };
    let g = weight("generator", 16, 4, 1)?;
    let d = weight("discriminator.body", 6, 16, 2)?;
    let classes = weight("discriminator.classes", CLASSES, 6, 3)?;
    let generator = move |noise: &Tensor, _: &Tensor, _: &Context| {
        noise.matmul(&g.t()?)?.tanh()?.reshape(((), 1, 4, 4))
    };
    let discriminator = move |images: &Tensor, labels: &Tensor, _: &Context| -> Result<Judgement> {
        let rows = images.flatten_from(1)?.matmul(&d.t()?)?;
        let score = (&rows * classes.index_select(labels, 0)?)?.sum(1)?;
        Ok(Judgement { score, taps: pooled("pooled", &rows)? })
    };
    let distillation = match distil {
        false => None,
        true => {
            let fixed = normal(&[16, 16], DType::F64, 4)?;
            let teacher = Teacher::new(move |images: &Tensor, _: &Context| {
                let rows = images.flatten_from(1)?.matmul(&fixed.to_dtype(images.dtype())?)?;
                Ok(NetworkOutput::new(rows.clone())
                    .with_tap("embedding", FeatureMap::new(rows, Layout::Pooled)?))
            });
            let vb = vb.pp("discriminator.projector");
            Some((teacher, GenerationDistiller::new(tap(), vb)?))
        }
    };
    let config = GenerationConfig {
        noise: 4,
        classes: CLASSES,
        discriminator_steps: 3,
        augment: DiffAugment::all(),
        lecam,
    };
    GenerationTask::new(generator, discriminator, distillation, config, vb.clone())
}

fn batch(dtype: DType) -> Result<GenerationBatch> {
    Ok(GenerationBatch {
        images: normal(&[5, 1, 4, 4], dtype, 7)?,
        labels: Tensor::new(&[0u32, 2, 1, 0, 2], &Device::Cpu)?,
        sample_ids: [10, 20, 30, 40, 50].into(),
    })
}

fn gradients(task: &GenerationTask, map: &VarMap, phase: &str) -> Result<Vec<String>> {
    let batch = batch(DType::F32)?;
    let phase = task.phases().iter().find(|p| p.name == phase).unwrap();
    let output = task.step(&batch, phase, &Context::train(1, 2, batch.sample_ids.clone()))?;
    let grads = output.loss.backward()?;
    let mut names: Vec<String> = map
        .data()
        .lock()
        .unwrap()
        .iter()
        .filter(|(_, v)| grads.get(v).is_some_and(|g| to_f64(g).unwrap().iter().any(|v| *v != 0.)))
        .map(|(n, _)| n.clone())
        .collect();
    names.sort();
    Ok(names)
}

#[test]
fn each_phase_trains_its_own() -> Result<()> {
    let (map, vb) = vars(DType::F32);
    let task = task(&vb, Some(LecamConfig { weight: 0.3, decay: 0.9, start: 0 }), true)?;
    task.check(&batch(DType::F32)?)?;
    let found = gradients(&task, &map, DISCRIMINATOR)?;
    assert!(found.iter().all(|n| n.starts_with("discriminator.")), "{found:?}");
    assert_eq!(found.len(), 3, "{found:?}");
    let found = gradients(&task, &map, GENERATOR)?;
    assert!(found.contains(&"generator.weight".to_owned()), "{found:?}");
    let repeats: Vec<u64> = task.phases().iter().map(|p| task.repeats(p)).collect();
    assert_eq!(repeats, [3, 1]);
    assert!(task.residual()?.unwrap().to_scalar::<f64>()? < 1e-5);
    let data = batch(DType::F32)?;
    let output = task.step(&data, &task.phases()[0], &Context::train(1, 2, []))?;
    let names: Vec<&str> = output.terms.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(
        names,
        ["hinge.real", "hinge.generated", "lecam", "real.pooled", "generated.pooled"]
    );
    Ok(())
}

#[test]
fn a_frozen_discriminator_gives_the_generator_the_same_gradient() -> Result<()> {
    let (map, vb) = vars(DType::F32);
    let plain = task(&vb, None, false)?;
    let frozen = |images: Tensor,
                  weights: &HashMap<String, Tensor>,
                  labels: &Tensor|
     -> Result<Judgement> {
        let rows = images.flatten_from(1)?.matmul(&weights["discriminator.body.weight"].t()?)?;
        let score =
            (&rows * weights["discriminator.classes.weight"].index_select(labels, 0)?)?.sum(1)?;
        Ok(Judgement { score, taps: Taps::new() })
    };
    let weights: HashMap<String, Tensor> = map
        .data()
        .lock()
        .unwrap()
        .iter()
        .map(|(n, v)| (n.clone(), v.as_detached_tensor()))
        .collect();
    let other = task(&vb, None, false)?.with_frozen(
        move |images: &Tensor, labels: &Tensor, _: &Context| {
            frozen(images.clone(), &weights, labels)
        },
    );
    let data = batch(DType::F32)?;
    let grad = |task: &GenerationTask| -> Result<(Vec<f64>, bool)> {
        let output = task.step(&data, &task.phases()[1], &Context::train(1, 2, []))?;
        let grads = output.loss.backward()?;
        let vars = map.data().lock().unwrap();
        let others = grads.get(&vars["discriminator.body.weight"]).is_some();
        Ok((to_f64(grads.get(&vars["generator.weight"]).unwrap())?, others))
    };
    let (a, b) = (grad(&plain)?, grad(&other)?);
    assert_eq!(a.0, b.0);
    assert!(a.1 && !b.1);
    Ok(())
}

#[test]
fn a_step_is_a_function_of_seed_step_and_variables() -> Result<()> {
    let lecam = Some(LecamConfig { weight: 0.3, decay: 0.9, start: 0 });
    let data = batch(DType::F32)?;
    let run = |vb: &VarBuilder<'static>,
               seed: u64,
               steps: std::ops::Range<u64>|
     -> Result<Vec<f64>> {
        let task = task(vb, lecam, true)?;
        let mut all = Vec::new();
        for step in steps {
            for phase in task.phases() {
                let output =
                    task.step(&data, phase, &Context::train(seed, step, data.sample_ids.clone()))?;
                all.push(f64::from(output.loss.to_scalar::<f32>()?));
            }
        }
        Ok(all)
    };
    let (map, vb) = vars(DType::F32);
    let whole = run(&vb, 1, 0..4)?;
    let averages = |map: &VarMap| -> Result<Tensor> {
        map.data().lock().unwrap()["discriminator.lecam.running_mean"].as_detached_tensor().copy()
    };
    assert_eq!(averages(&map)?.to_vec1::<f64>()?[2], 4.);
    // From the state after two steps on.
    let (map, vb) = vars(DType::F32);
    let first = run(&vb, 1, 0..2)?;
    let state = averages(&map)?;
    let (map, vb) = vars(DType::F32);
    task(&vb, lecam, true)?;
    map.data().lock().unwrap()["discriminator.lecam.running_mean"].set(&state)?;
    let second = run(&vb, 1, 2..4)?;
    assert_eq!([first, second].concat(), whole);
    let (_, vb) = vars(DType::F32);
    assert_ne!(run(&vb, 2, 0..4)?, whole);
    Ok(())
}

#[test]
fn noise_and_classes_are_what_they_say() -> Result<()> {
    let noise = white_noise(3, "noise", 5, 0..2000, 8, &Device::Cpu)?;
    let values = to_f64(&noise)?;
    let mean = |f: &dyn Fn(f64) -> f64| values.iter().map(|v| f(*v)).sum::<f64>() / 16000.;
    // Deviations of the means: 0.008, 0.011, 0.077.
    assert!(mean(&|v| v).abs() < 0.04 && (mean(&|v| v * v) - 1.).abs() < 0.05);
    assert!((mean(&|v| v.powi(4)) - 3.).abs() < 0.35);
    assert_ne!(to_f64(&white_noise(3, "noise", 6, 0..2, 8, &Device::Cpu)?)?, values[..16]);
    let drawn = uniform_classes(3, "classes", 5, 0..3000, 3, &Device::Cpu)?.to_vec1::<u32>()?;
    let counts = [0, 1, 2].map(|c| drawn.iter().filter(|d| **d == c).count());
    assert!(counts.iter().all(|c| (880..1120).contains(c)), "{counts:?}");
    assert!(uniform_classes(3, "classes", 5, 0..1, 0, &Device::Cpu).is_err());
    Ok(())
}

#[test]
fn what_does_not_fit_is_named() -> Result<()> {
    let (_, vb) = vars(DType::F32);
    let plain = task(&vb, None, true)?;
    let says = |data: GenerationBatch| plain.check(&data).unwrap_err().to_string();
    let good = batch(DType::F32)?;
    let labels = Tensor::new(&[0u32, 2, 3, 0, 2], &Device::Cpu)?;
    assert!(
        says(GenerationBatch { labels, ..good.clone() }).contains("below the generator's 3, got 3")
    );
    let few = says(GenerationBatch { sample_ids: [1].into(), ..good.clone() });
    assert!(few.contains("5 sample ids, got 1"), "{few}");
    let large =
        says(GenerationBatch { images: normal(&[5, 1, 8, 8], DType::F32, 1)?, ..good.clone() });
    assert!(large.contains("real ones' [5, 1, 8, 8], got [5, 1, 4, 4]"), "{large}");
    // A diverged discriminator: the scores are named, with the phase.
    let wild = GenerationBatch { images: (&good.images * f64::NAN)?, ..good.clone() };
    let phase = plain.phases()[0].clone();
    let e = plain.step(&wild, &phase, &Context::train(0, 0, good.sample_ids.clone())).unwrap_err();
    let e = format!("{e}");
    assert!(
        e.contains("discriminator phase") && e.contains("hinge_real: expected finite scores"),
        "{e}"
    );
    let e = plain.step(&good, &vkd_tasks::Phase { name: "x", prefix: "" }, &Context::eval());
    assert!(e.is_err());
    let distiller = |tap: GenerationTap| {
        let (_, vb) = vars(DType::F32);
        GenerationDistiller::new(tap, vb).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let e = distiller(GenerationTap { real_weight: -1., ..tap() });
    assert!(e.contains("pooled: real weight: expected at least 0, got -1"), "{e}");
    let e = distiller(GenerationTap {
        loss: GenerationLoss::KdDlgan { texts: Some(normal(&[2, 5], DType::F32, 1)?) },
        ..tap()
    });
    assert!(e.contains("texts: expected (K, 16), got [2, 5]"), "{e}");
    let running = TeacherNormalizer::Running { whiten: WhitenConfig::default(), keep: 1.5 };
    let e = distiller(GenerationTap { teacher_normalizer: running, ..tap() });
    assert!(e.contains("share kept in [0, 1], got 16 and 1.5"), "{e}");
    let (_, vb) = vars(DType::F32);
    let built = GenerationDistiller::new(tap(), vb)?;
    let (student, teacher) = (normal(&[2, 6], DType::F32, 1)?, normal(&[2, 15], DType::F32, 1)?);
    let e = built.check(&pooled("pooled", &student)?, &pooled("embedding", &teacher)?);
    let e = e.unwrap_err().to_string();
    assert!(e.contains("teacher tap embedding: expected width 16, got 15"), "{e}");
    let e = built.check(&pooled("other", &student)?, &pooled("embedding", &teacher)?);
    assert!(e.unwrap_err().to_string().contains("a tap named pooled, got other"));
    // Teachers say so themselves; the task adds which images they saw.
    let refusing = Teacher::new(|_: &Tensor, _: &Context| -> Result<NetworkOutput> {
        candle_core::bail!("expected 32 by 32 pixels")
    });
    let (map, vb) = vars(DType::F32);
    let config = GenerationConfig {
        noise: 4,
        classes: 3,
        discriminator_steps: 1,
        augment: DiffAugment::none(),
        lecam: None,
    };
    let generator =
        |noise: &Tensor, _: &Tensor, _: &Context| noise.repeat((1, 4))?.reshape(((), 1, 4, 4));
    let judge = |images: &Tensor, _: &Tensor, _: &Context| -> Result<Judgement> {
        let rows = images.flatten_from(1)?.narrow(1, 0, 6)?.contiguous()?;
        Ok(Judgement { score: rows.sum(1)?, taps: pooled("pooled", &rows)? })
    };
    let distiller = GenerationDistiller::new(tap(), vb.clone())?;
    let refused =
        GenerationTask::new(generator, judge, Some((refusing, distiller)), config, vb.clone())?;
    let e = format!("{}", refused.check(&good).unwrap_err());
    assert!(e.contains("the teacher refuses images [5, 1, 4, 4]") && e.contains("32 by 32"), "{e}");
    for odd in [
        GenerationConfig { noise: 0, ..config },
        GenerationConfig { discriminator_steps: 0, ..config },
        GenerationConfig { lecam: Some(LecamConfig { weight: 1., decay: 1., start: 0 }), ..config },
        GenerationConfig {
            augment: DiffAugment { cutout: Some(2.), ..DiffAugment::none() },
            ..config
        },
    ] {
        assert!(GenerationTask::new(generator, judge, None, odd, vb.clone()).is_err(), "{odd:?}");
    }
    drop(map);
    let var = Var::from_tensor(&good.images)?;
    assert_close("untouched", &var, &good.images, Tolerance::EXACT)
}
