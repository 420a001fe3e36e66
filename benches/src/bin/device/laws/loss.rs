//! The losses of vkd-loss: a student with a gradient, a teacher without.

use super::{Case, Function, drawn, one, shown};
use candle_core::{DType, Device, Result, Tensor};
use vkd_loss::Reduction::{self, BatchMean, Mean, Sum};
use vkd_loss::baselines::{
    CckdConfig, CckdKernel, DistConfig, DkdConfig, Form, RowNorm, attention_transfer, cckd,
    deit_hard, deit_soft, dist, dkd, fitnets, hinton, kd_dlgan_features, kd_dlgan_texts,
    logit_standardization, pkt, rkd_angle, rkd_distance, spkd, vid,
};
use vkd_loss::{
    FocalConfig, bce_with_logits, cosine, cross_entropy, giou, hinge_generated, hinge_generator,
    hinge_real, kl, l1, lecam, lecam_at, mse, sigmoid_focal, smooth_l1, smooth_l1_layer_norm,
    soft_cross_entropy, token_l2,
};
use vkd_testkit::uniform;

const REDUCTIONS: [(&str, Reduction); 4] =
    [("none", Reduction::None), ("mean", Mean), ("sum", Sum), ("batch_mean", BatchMean)];

const PAIRS: [&[usize]; 5] = [&[3, 1], &[5, 33], &[17, 257], &[2, 3, 40], &[64, 3024]];

/// Differences of nearly equal things: distances of rows, centred logits, shares of similarities.
const DIFFERENCES: f64 = 20.;

pub(super) fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    entries(&mut all)?;
    classes(&mut all)?;
    boxes_and_scores(&mut all)?;
    baselines(&mut all)?;
    Ok(all)
}

/// What compares entry by entry.
fn entries(all: &mut Vec<Case>) -> Result<()> {
    for dims in PAIRS {
        let terms = dims.iter().product();
        let pair = drawn(&[dims, dims])?;
        for (end, reduction) in REDUCTIONS {
            let mut add =
                |op: &str, inputs: Vec<Tensor>, f: fn(&[Tensor], Reduction) -> Result<Tensor>| {
                    let name = format!("{op} {} {end}", shown(dims));
                    all.push(Case::new(name, inputs, 1, terms, one(move |x| f(x, reduction))));
                };
            add("mse", pair.clone(), |x, r| mse(&x[0], &x[1], r));
            add("l1", pair.clone(), |x, r| l1(&x[0], &x[1], r));
            add("smooth_l1", pair.clone(), |x, r| smooth_l1(&x[0], &x[1], 0.7, r));
            let shares = vec![pair[0].clone(), uniform(dims, DType::F32, 3, 0., 1.)?];
            add("bce_with_logits", shares.clone(), |x, r| bce_with_logits(&x[0], &x[1], r));
            add("sigmoid_focal", shares, |x, r| {
                sigmoid_focal(&x[0], &x[1], FocalConfig::default(), r)
            });
            // One channel has no angle, and its distance no slope but its sign.
            if dims.len() == 2 && dims[1] > 1 {
                add("cosine", pair.clone(), |x, r| cosine(&x[0], &x[1], 1e-8, r));
                add("token_l2", pair.clone(), |x, r| token_l2(&x[0], &x[1], r));
            }
        }
        let name = format!("smooth_l1_layer_norm {}", shown(dims));
        let fused = |x: &[Tensor]| smooth_l1_layer_norm(&x[0], &x[1], 1., 1e-5);
        all.push(Case::new(name, pair, 1, terms, one(fused)));
    }
    Ok(())
}

fn labels(rows: usize, classes: usize) -> Result<Tensor> {
    let labels: Vec<u32> = (0..rows).map(|row| (37 * row % classes) as u32).collect();
    Tensor::from_vec(labels, rows, &Device::Cpu)
}

/// What compares distributions over classes.
fn classes(all: &mut Vec<Case>) -> Result<()> {
    for [rows, classes] in [[3, 2], [17, 33], [9, 1000], [257, 10]] {
        let dims: &[usize] = &[rows, classes];
        let (pair, name) = (drawn(&[dims, dims])?, shown(dims));
        let shares = vkd_norm::softmax(&drawn(&[&[1], dims])?[1])?;
        for (end, reduction) in REDUCTIONS {
            type Loss = fn(&[Tensor], Reduction) -> Result<Tensor>;
            let case = |op: &str, inputs: Vec<Tensor>, f: Loss| {
                let name = format!("{op} {name} {end}");
                Case::new(name, inputs, 1, rows * classes, one(move |x| f(x, reduction)))
            };
            // All arithmetic is in f64. A divergence is what is left over of terms of order one, and then times T².
            let divergence = |op, f: Loss, temperature: f64| -> Result<Case> {
                let left = kl(&pair[0], &pair[1], temperature, Reduction::None)?.max(0)?;
                let left = f64::from(left.to_scalar::<f32>()?);
                Ok(case(op, pair.clone(), f).in_f64().with_gain(temperature.powi(2) / left))
            };
            all.push(divergence("kl", |x, r| kl(&x[0], &x[1], 4., r), 4.)?);
            let soft: Loss = |x, r| deit_soft(&x[0], &x[1], 3., Form::Code, r);
            all.push(divergence("deit_soft", soft, 3.)?);
            let mut add = |op, inputs, f: Loss| all.push(case(op, inputs, f));
            let labelled = vec![pair[0].clone(), labels(rows, classes)?];
            add("cross_entropy", labelled, |x, r| cross_entropy(&x[0], &x[1], 0.1, r));
            add("deit_hard", pair.clone(), |x, r| deit_hard(&x[0], &x[1], r));
            let with_labels = [pair.clone(), vec![labels(rows, classes)?]].concat();
            add("hinton", with_labels.clone(), |x, r| hinton(&x[0], &x[1], &x[2], 0.3, 4., r));
            add("dkd", with_labels, |x, r| dkd(&x[0], &x[1], &x[2], DkdConfig::default(), r));
        }
        let soft = |x: &[Tensor]| soft_cross_entropy(&x[0], &x[1], Mean);
        let inputs = vec![pair[0].clone(), shares];
        let case =
            Case::new(format!("soft_cross_entropy {name}"), inputs, 1, rows * classes, one(soft));
        // Shares of a half type sum to one by its rounding alone, which the CPU's check of them refuses.
        all.push(case.of_dtypes(&super::FLOATS[..2]));
        // Two standardised logits are always one and minus one.
        if classes < 3 {
            continue;
        }
        let standardized = |x: &[Tensor]| logit_standardization(&x[0], &x[1], 2., Mean);
        let case = Case::new(
            format!("logit_standardization {name}"),
            pair.clone(),
            1,
            classes,
            one(standardized),
        );
        all.push(case.with_gain(DIFFERENCES));
        let config = DistConfig { beta: 0.7, gamma: 2., temperature: 2. };
        let correlations = move |x: &[Tensor]| dist(&x[0], &x[1], config);
        let case = Case::new(format!("dist {name}"), pair, 1, rows * classes, one(correlations));
        all.push(case.with_gain(DIFFERENCES));
    }
    Ok(())
}

fn boxes_and_scores(all: &mut Vec<Case>) -> Result<()> {
    for count in [1, 33, 257] {
        // Corners, so that each box has an area, and overlaps with some others.
        let corners = |seed| -> Result<Tensor> {
            let low = uniform(&[count, 2], DType::F32, seed, 0., 0.5)?;
            Tensor::cat(
                &[&low, &(&low + uniform(&[count, 2], DType::F32, seed + 1, 0.1, 0.5)?)?],
                1,
            )
        };
        let inputs = vec![corners(1)?, corners(3)?];
        let overlaps = |x: &[Tensor]| giou(&x[0], &x[1], Mean);
        let case = Case::new(format!("giou {count}"), inputs, 1, count, one(overlaps));
        // A half type moves corners by more than the overlap of some boxes is wide.
        all.push(case.of_dtypes(&super::FLOATS[..2]).with_gain(DIFFERENCES));
        let mut add =
            |op: &str, inputs: Vec<Tensor>, active, f: fn(&[Tensor]) -> Result<Tensor>| {
                all.push(Case::new(format!("{op} {count}"), inputs, active, count, one(f)));
            };
        add("hinge_real", drawn(&[&[count]])?, 1, |x| hinge_real(&x[0]));
        add("hinge_generated", drawn(&[&[count]])?, 1, |x| hinge_generated(&x[0]));
        add("hinge_generator", drawn(&[&[count]])?, 1, |x| hinge_generator(&x[0]));
        add("lecam", drawn(&[&[count], &[count]])?, 2, |x| lecam(&x[0], &x[1], 0.3, -0.2));
        add("lecam_at", drawn(&[&[count], &[count]])?, 2, |x| {
            lecam_at(&x[0], &x[1], &Tensor::new(&[0.3f64, -0.2], x[0].device())?)
        });
    }
    Ok(())
}

fn baselines(all: &mut Vec<Case>) -> Result<()> {
    for [rows, width] in [[3, 5], [17, 33], [65, 130]] {
        let dims: &[usize] = &[rows, width];
        let (pair, name) = (drawn(&[dims, dims])?, shown(dims));
        let mut add = |op: String, f: Function| {
            let case = Case::new(format!("{op} {name}"), pair.clone(), 1, rows * width, one(f));
            all.push(case.with_gain(DIFFERENCES));
        };
        add("rkd_distance".to_owned(), Box::new(|x| rkd_distance(&x[0], &x[1], Mean)));
        add("rkd_angle".to_owned(), Box::new(|x| rkd_angle(&x[0], &x[1], Mean)));
        for form in [Form::Paper, Form::Code] {
            // With a weight, without which the gradient lies below f16's normal numbers.
            add(format!("pkt {form:?}"), Box::new(move |x| pkt(&x[0], &x[1], form)? * 1e4));
            for kernel in [CckdKernel::Bilinear, CckdKernel::Gaussian { gamma: 0.4 }] {
                let config = CckdConfig { kernel, unit_rows: true, form };
                add(
                    format!("cckd {form:?} {kernel:?}"),
                    Box::new(move |x| cckd(&x[0], &x[1], config)),
                );
            }
        }
        for norm in [RowNorm::L2, RowNorm::L1] {
            add(format!("spkd {norm:?}"), Box::new(move |x| spkd(&x[0], &x[1], norm)));
        }
    }
    for [rows, width] in [[3, 5], [17, 33]] {
        let dims: &[usize] = &[rows, width];
        let (three, name) = (drawn(&[dims, dims, dims])?, shown(dims));
        let pair = |x: &[Tensor]| kd_dlgan_features(&x[0], &x[1], &x[2]);
        let case = format!("kd_dlgan_features {name}");
        all.push(Case::new(case, three, 2, rows * width, one(pair)));
        let inputs = drawn(&[dims, dims, &[7, width]])?;
        let texts = |x: &[Tensor]| kd_dlgan_texts(&x[0], &x[1], &x[2]);
        let case = Case::new(format!("kd_dlgan_texts {name}"), inputs, 1, rows * width, one(texts));
        all.push(case.with_gain(DIFFERENCES));
    }
    for dims in [[2, 3, 4, 2], [5, 17, 7, 9]] {
        let pair = drawn(&[&dims, &dims])?;
        let mut add = |op: &str, f: fn(&[Tensor]) -> Result<Tensor>| {
            let terms = dims.iter().product();
            let case = Case::new(format!("{op} {}", shown(&dims)), pair.clone(), 1, terms, one(f));
            all.push(case.with_gain(DIFFERENCES));
        };
        add("attention_transfer", |x| attention_transfer(&x[0], &x[1], 2., Form::Code));
        add("fitnets", |x| fitnets(&x[0], &x[1], Form::Paper));
        let scale: Vec<f32> = (0..dims[1]).map(|c| 0.5 - c as f32 / 7.).collect();
        let inputs = [pair.clone(), vec![Tensor::new(scale, &Device::Cpu)?]].concat();
        let variational = |x: &[Tensor]| vid(&x[0], &x[1], &x[2]);
        let terms = dims.iter().product();
        let case = Case::new(format!("vid {}", shown(&dims)), inputs, 1, terms, one(variational));
        all.push(case.with_gain(DIFFERENCES));
    }
    Ok(())
}
