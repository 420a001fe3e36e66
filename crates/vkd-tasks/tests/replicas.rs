//! Replicas with a part of the batch each have, on average, the loss of one with all of it, and its gradient.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use vkd_norm::{Context, Normalizer, Replicas};
use vkd_tasks::{
    DenseCriterion, DenseLevel, DetectionAdapter, Distiller, FeatureLoss, FeatureMap,
    GenerationDistiller, GenerationLoss, GenerationTap, ImageSize, Layout, LogitDistance,
    LogitLoss, NetworkOutput, Objects, Padding, ProjectorConfig, QueryPredictions, SetCriterion,
    Sides, TapConfig, Taps, TeacherNormalizer, Term, weighted_sum,
};
use vkd_testkit::{Tolerance, assert_close, normal, sums_among, uniform};

/// Terms of some images, the first of them and how many given, as one of the replicas or as nobody's.
type Work<'a> = dyn Fn(&[Tensor], usize, usize, &Context) -> Result<Vec<Term>> + Sync + 'a;

/// Loss and gradients of `inputs`, whose rows are images.
fn pass(
    work: &Work,
    inputs: &[Tensor],
    start: usize,
    count: usize,
    ctx: &Context,
) -> Result<(f64, Vec<Tensor>)> {
    let own = |x: &Tensor| Var::from_tensor(&x.narrow(0, start, count)?.contiguous()?);
    let vars = inputs.iter().map(own).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let loss = weighted_sum(&work(&tensors, start, count, ctx)?)?;
    let grads = loss.backward()?;
    let grad = |var: &Var| match grads.get(var) {
        Some(grad) => Ok(grad.clone()),
        None => var.zeros_like(),
    };
    let loss = loss.to_dtype(DType::F64)?.to_scalar()?;
    Ok((loss, vars.iter().map(grad).collect::<Result<_>>()?))
}

/// The law for every split of the images.
fn law(what: &str, inputs: &[Tensor], splits: &[&[usize]], work: &Work) -> Result<()> {
    let ctx = Context::train(0, 0, []);
    let images = inputs[0].dim(0)?;
    let (want, gradients) = pass(work, inputs, 0, images, &ctx)?;
    for parts in splits {
        let what = format!("{what} {parts:?}");
        assert_eq!(parts.iter().sum::<usize>(), images);
        let sums = sums_among(parts.len());
        let one = |rank: usize| {
            let replicas = Replicas::new(rank, parts.len(), sums[rank].clone())?;
            let start = parts[..rank].iter().sum();
            pass(work, inputs, start, parts[rank], &ctx.clone().with_replicas(Some(replicas)))
        };
        let found = std::thread::scope(|scope| {
            let start = |rank| scope.spawn(move || one(rank));
            let threads: Vec<_> = (0..parts.len()).map(start).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect::<Result<Vec<_>>>()
        })?;
        let size = parts.len() as f64;
        let mean = found.iter().map(|(loss, _)| loss).sum::<f64>() / size;
        assert!((mean - want).abs() < 1e-9 * want.abs().max(1.), "{what}: {mean} and {want}");
        for (k, want) in gradients.iter().enumerate() {
            let parts: Vec<&Tensor> = found.iter().map(|(_, grads)| &grads[k]).collect();
            let got = (Tensor::cat(&parts, 0)? / size)?;
            assert_close(&format!("{what}: input {k}"), &got, want, Tolerance::relative(1e-8))?;
        }
    }
    Ok(())
}

/// Of four images the second has no objects and the third most.
fn objects() -> Vec<Objects> {
    let of = |boxes: &[[f32; 4]]| Objects {
        boxes: boxes.to_vec(),
        classes: (0..boxes.len() as u32).map(|i| i % 3).collect(),
    };
    vec![
        of(&[[3., 3., 17., 15.]]),
        of(&[]),
        of(&[[2., 1., 31., 30.], [20., 18., 29., 30.], [1., 14., 13., 29.]]),
        of(&[[5., 5., 12., 25.]]),
    ]
}

#[test]
fn detectors_divide_by_the_objects_of_all() -> Result<()> {
    let splits: [&[usize]; 4] = [&[2, 2], &[1, 1, 1, 1], &[3, 1], &[1, 3]];
    let known = objects();
    let (levels, queries) = (2, 6);
    let logits = normal(&[4, levels, queries, 3], DType::F64, 1)?;
    let boxes = uniform(&[4, levels, queries, 4], DType::F64, 2, 0.2, 0.8)?;
    let size = ImageSize { width: 32, height: 32 };
    let set = |x: &[Tensor], start: usize, count: usize, ctx: &Context| {
        let predictions = QueryPredictions {
            logits: x[0].transpose(0, 1)?.contiguous()?,
            boxes: x[1].transpose(0, 1)?.contiguous()?,
        };
        let (objects, sizes) = (&known[start..start + count], vec![size; count]);
        let criterion = SetCriterion::default();
        criterion.terms_among(&predictions, objects, &sizes, ctx.replicas.as_ref())
    };
    law("queries", &[logits, boxes], &splits, &set)?;

    let side = 8;
    let maps = [
        normal(&[4, 3, side, side], DType::F64, 1)?,
        uniform(&[4, 4, side, side], DType::F64, 2, 1., 20.)?,
        normal(&[4, 1, side, side], DType::F64, 3)?,
    ];
    let dense = |x: &[Tensor], start: usize, count: usize, ctx: &Context| {
        let level = DenseLevel {
            logits: x[0].clone(),
            distances: x[1].clone(),
            centerness: x[2].clone(),
            stride: 4,
        };
        let criterion = DenseCriterion { reach: 8., ..DenseCriterion::default() };
        criterion.terms_among(&[level], &known[start..start + count], ctx.replicas.as_ref())
    };
    law("maps", &maps, &splits, &dense)
}

fn distiller(loss: FeatureLoss, normalizers: [&str; 2], vars: &VarMap) -> Result<Distiller> {
    let tap = TapConfig {
        student: "x".into(),
        student_width: 3,
        teacher: "y".into(),
        teacher_width: 3,
        projector: ProjectorConfig::Identity,
        student_normalizer: normalizers[0].parse()?,
        teacher_normalizer: normalizers[1].parse::<Normalizer>()?,
        loss,
        weight: 1.5,
    };
    let vb = VarBuilder::from_varmap(vars, DType::F64, &Device::Cpu);
    Distiller::new(vec![tap], None, vb)
}

fn taps(name: &str, features: FeatureMap) -> Taps {
    Taps::from([(name.to_owned(), features)])
}

#[test]
fn features_are_compared_over_all_rows() -> Result<()> {
    let splits: [&[usize]; 2] = [&[3, 3], &[2, 2, 2]];
    let (student, teacher) = (normal(&[6, 3], DType::F64, 1)?, normal(&[6, 3], DType::F64, 2)?);
    for loss in [
        FeatureLoss::SmoothL1 { beta: 1. },
        FeatureLoss::Mse,
        FeatureLoss::Spkd,
        FeatureLoss::Pkt,
        FeatureLoss::RkdDistance,
        FeatureLoss::RkdAngle,
    ] {
        for normalizers in [["identity", "layer_norm"], ["standardize", "whiten"]] {
            let (vars, what) = (VarMap::new(), format!("{loss:?} {normalizers:?}"));
            let work = |x: &[Tensor], start: usize, count: usize, ctx: &Context| {
                let distiller = distiller(loss, normalizers, &vars)?;
                let own = FeatureMap::new(x[0].clone(), Layout::Pooled)?;
                let taught = FeatureMap::new(teacher.narrow(0, start, count)?, Layout::Pooled)?;
                distiller.feature_terms(&taps("x", own), &taps("y", taught), ctx)
            };
            law(&what, std::slice::from_ref(&student), &splits, &work)?;
        }
    }
    Ok(())
}

#[test]
fn padding_that_is_left_out_leaves_replicas_unequal_rows() -> Result<()> {
    let splits: [&[usize]; 3] = [&[1, 3], &[2, 2], &[1, 1, 1, 1]];
    let student = normal(&[4, 3, 2, 3], DType::F64, 1)?;
    let teacher = normal(&[4, 3, 2, 3], DType::F64, 2)?;
    // Of six places two, none, four and one are padding.
    let padding: Vec<u8> =
        [2, 0, 4, 1].iter().flat_map(|n| (0..6).map(move |i| u8::from(i < *n))).collect();
    let padding = Tensor::from_vec(padding, (4, 2, 3), &Device::Cpu)?;
    for (loss, root) in
        [(FeatureLoss::SmoothL1 { beta: 0.5 }, None), (FeatureLoss::TokenL2, Some(4.))]
    {
        let vars = VarMap::new();
        let work = |x: &[Tensor], start: usize, count: usize, ctx: &Context| {
            let adapter = DetectionAdapter { padding: Padding::Masked };
            let mut distiller =
                distiller(loss, ["standardize", "standardize"], &vars)?.with_adapter(adapter);
            if let Some(weight) = root {
                distiller = distiller.with_root(weight)?;
            }
            let mask = padding.narrow(0, start, count)?;
            let map = |t: Tensor| FeatureMap::new(t, Layout::Grid)?.with_padding(mask.clone());
            let (own, taught) = (map(x[0].clone())?, map(teacher.narrow(0, start, count)?)?);
            distiller.feature_terms(&taps("x", own), &taps("y", taught), ctx)
        };
        law(&format!("{loss:?}"), std::slice::from_ref(&student), &splits, &work)?;
    }
    Ok(())
}

#[test]
fn logits_are_compared_over_all_rows() -> Result<()> {
    let splits: [&[usize]; 2] = [&[3, 3], &[2, 2, 2]];
    let (student, teacher) = (normal(&[6, 4], DType::F64, 1)?, normal(&[6, 4], DType::F64, 2)?);
    for distance in [LogitDistance::Kl, LogitDistance::Dist, LogitDistance::Standardized] {
        let vars = VarMap::new();
        let work = |x: &[Tensor], start: usize, count: usize, ctx: &Context| {
            let vb = VarBuilder::from_varmap(&vars, DType::F64, &Device::Cpu);
            let logits = Some(LogitLoss { temperature: 2., weight: 1.5 });
            let distiller = Distiller::new(vec![], logits, vb)?.with_logit_distance(distance);
            let taught = NetworkOutput::new(teacher.narrow(0, start, count)?);
            distiller.terms(&NetworkOutput::new(x[0].clone()), &taught, ctx)
        };
        law(&format!("{distance:?}"), std::slice::from_ref(&student), &splits, &work)?;
    }
    Ok(())
}

/// A rank has its part of the labelled images, which come first in a batch, and of the others.
#[test]
fn the_decoupled_distance_is_of_the_labelled_rows_of_all() -> Result<()> {
    let (student, teacher) = (normal(&[6, 4], DType::F64, 1)?, normal(&[6, 4], DType::F64, 2)?);
    let labels = Tensor::new(&[2u32, 0, 3, 1, 1, 0], &Device::Cpu)?;
    // Rows of a rank, and how many of them are labelled.
    for (rows, labelled) in [(3, 1), (3, 2), (2, 2), (1, 1)] {
        let (vars, splits) = (VarMap::new(), vec![rows; 6 / rows]);
        let work = |x: &[Tensor], start: usize, count: usize, ctx: &Context| {
            let vb = VarBuilder::from_varmap(&vars, DType::F64, &Device::Cpu);
            let logits = Some(LogitLoss { temperature: 2., weight: 1.5 });
            let distance = LogitDistance::Decoupled { alpha: 0.7, beta: 3. };
            let distiller = Distiller::new(vec![], logits, vb)?.with_logit_distance(distance);
            let all = (start..start + count).map(|i| i as u32);
            let (known, others): (Vec<u32>, Vec<u32>) =
                all.partition(|i| *i as usize % rows < labelled);
            let order = [known.clone(), others].concat();
            let own: Vec<u32> = order.iter().map(|i| i - start as u32).collect();
            let at = |rows: Vec<u32>| Tensor::new(rows, &Device::Cpu);
            let student = NetworkOutput::new(x[0].index_select(&at(own)?, 0)?);
            let taught = NetworkOutput::new(teacher.index_select(&at(order)?, 0)?);
            let labels = labels.index_select(&at(known)?, 0)?;
            distiller.terms_with_labels(&student, &taught, &labels, ctx)
        };
        let what = format!("dkd, {labelled} of {rows} labelled");
        law(&what, std::slice::from_ref(&student), &[&splits], &work)?;
    }
    Ok(())
}

#[test]
fn kd_dlgan_sums_its_texts_over_all_rows() -> Result<()> {
    let splits: [&[usize]; 2] = [&[3, 3], &[2, 2, 2]];
    let rows = |seed| normal(&[6, 3], DType::F64, seed);
    let (real, generated) = (rows(1)?, rows(2)?);
    let (taught_real, taught_generated) = (rows(3)?, rows(4)?);
    let texts = normal(&[5, 3], DType::F64, 9)?;
    for texts in [None, Some(texts)] {
        let vars = VarMap::new();
        let work = |x: &[Tensor], start: usize, count: usize, ctx: &Context| {
            let tap = GenerationTap {
                student: "x".into(),
                student_width: 3,
                teacher: "y".into(),
                teacher_width: 3,
                projector: ProjectorConfig::Identity,
                student_normalizer: Normalizer::Identity,
                teacher_normalizer: TeacherNormalizer::Fixed(Normalizer::Identity),
                together: true,
                loss: GenerationLoss::KdDlgan { texts: texts.clone() },
                real_weight: 1.5,
                generated_weight: 0.5,
            };
            let vb = VarBuilder::from_varmap(&vars, DType::F64, &Device::Cpu);
            let distiller = GenerationDistiller::new(tap, vb)?;
            let of = |name: &str, t: &Tensor| -> Result<Taps> {
                Ok(taps(name, FeatureMap::new(t.clone(), Layout::Pooled)?))
            };
            let own = |t: &Tensor| of("y", &t.narrow(0, start, count)?);
            let student = Sides { real: of("x", &x[0])?, generated: of("x", &x[1])? };
            let teacher = Sides { real: own(&taught_real)?, generated: own(&taught_generated)? };
            let terms = distiller.terms(&student, &teacher, ctx)?;
            assert_eq!(terms.len(), if texts.is_some() { 4 } else { 2 });
            Ok(terms)
        };
        let what = format!("KD-DLGAN, texts: {}", texts.is_some());
        law(&what, &[real.clone(), generated.clone()], &splits, &work)?;
    }
    Ok(())
}
