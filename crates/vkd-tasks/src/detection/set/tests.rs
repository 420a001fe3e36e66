//! The criterion against ViDT's recorded numbers and by its laws.

use super::*;
use candle_core::{Device, Var};
use vkd_testkit::{Golden, Tolerance, assert_close, gradcheck, normal, to_f64, uniform};

fn objects(classes: &[u32], centers: &[f64], size: ImageSize) -> Objects {
    let (w, h) = (size.width as f64, size.height as f64);
    let boxes = centers.chunks_exact(4).map(|c| {
        let [x0, y0, x1, y1] = corners([c[0], c[1], c[2], c[3]]);
        [x0 * w, y0 * h, x1 * w, y1 * h].map(|v| v as f32)
    });
    Objects { boxes: boxes.collect(), classes: classes.to_vec() }
}

struct Recorded {
    golden: Golden,
    predictions: QueryPredictions,
    objects: Vec<Objects>,
    sizes: Vec<ImageSize>,
}

fn recorded(dtype: DType) -> Result<Recorded> {
    let golden = Golden::open("detection")?;
    let (mut known, mut sizes) = (Vec::new(), Vec::new());
    for image in 0..2 {
        let size = golden.get("input.image_sizes")?.get(image)?.to_vec1::<f32>()?;
        let size = ImageSize { height: size[0] as usize, width: size[1] as usize };
        let of = |part: &str| golden.get(&format!("target.image{image}.{part}"));
        let classes = of("labels")?.to_dtype(DType::U32)?.to_vec1::<u32>()?;
        known.push(objects(&classes, &to_f64(&of("boxes")?)?, size));
        sizes.push(size);
    }
    let predictions = QueryPredictions {
        logits: golden.get("out.logits")?.to_dtype(dtype)?,
        boxes: golden.get("out.boxes")?.to_dtype(dtype)?,
    };
    Ok(Recorded { golden, predictions, objects: known, sizes })
}

/// Recorded numbers are rounded to f32 once, and so are our objects, in pixels.
const ROUNDED: Tolerance = Tolerance { relative: 1e-6, absolute: 0. };

#[test]
fn costs_pairs_and_losses_are_vidts() -> Result<()> {
    for dtype in [DType::F64, DType::F32] {
        let Recorded { golden, predictions, objects, sizes } = recorded(dtype)?;
        let criterion = SetCriterion::default();
        let wanted = wanted(&objects, &sizes, 7)?;
        for level in 0..3 {
            let (logits, boxes) = (predictions.logits.get(level)?, predictions.boxes.get(level)?);
            let pairs = criterion.pairs(&logits, &boxes, &objects, &sizes)?;
            let costs = golden.get(&format!("match.level{level}.cost"))?;
            for (image, (start, count)) in [(0, 3), (3, 2)].into_iter().enumerate() {
                let queries = seen(&logits.get(image)?, &boxes.get(image)?)?.to_vec2()?;
                let got = criterion.costs(&queries, &wanted[image]);
                let got = Tensor::from_vec(got, (8, count), &Device::Cpu)?;
                let want = costs.get(image)?.narrow(1, start, count)?;
                assert_close("costs", &got, &want, ROUNDED)?;
                let side = |s: &str| -> Result<Vec<u32>> {
                    let key = format!("match.level{level}.image{image}.{s}");
                    golden.get(&key)?.to_dtype(DType::U32)?.to_vec1()
                };
                let want: Vec<(usize, usize)> = side("queries")?
                    .into_iter()
                    .zip(side("targets")?)
                    .map(|(q, t)| (q as usize, t as usize))
                    .collect();
                assert_eq!(pairs[image], want, "level {level}, image {image}");
            }
        }
        let terms = criterion.terms(&predictions, &objects, &sizes)?;
        let names: Vec<&str> = terms.iter().map(|t| t.name.as_str()).collect();
        let all = ["class", "l1", "giou", "class.0", "l1.0", "giou.0", "class.1", "l1.1", "giou.1"];
        assert_eq!(names, all);
        let mut total = 0.;
        for term in &terms {
            let (name, end) = term.name.split_once('.').unwrap_or((&term.name, ""));
            let published = match name {
                "class" => "loss_ce",
                "l1" => "loss_bbox",
                _ => "loss_giou",
            };
            let end = if end.is_empty() { String::new() } else { format!("_{end}") };
            let want = golden.get(&format!("loss.{published}{end}"))?;
            assert_close(&term.name, &term.value, &want, ROUNDED)?;
            total += term.weight * to_f64(&term.value)?[0];
        }
        // Plus four times the distillation, the whole loss of the published training step.
        let of = |key: &str| Ok::<_, candle_core::Error>(to_f64(&golden.get(key)?)?[0]);
        total += 4. * of("loss.loss_distil")?;
        let want = of("loss.total")?;
        assert!((total - want).abs() < 1e-6 * want, "{total} {want}");
    }
    Ok(())
}

#[test]
fn auxiliary_terms_have_a_factor_of_their_own() -> Result<()> {
    let Recorded { predictions, objects, sizes, .. } = recorded(DType::F32)?;
    let criterion = SetCriterion { auxiliary: 0.5, ..SetCriterion::default() };
    let terms = criterion.terms(&predictions, &objects, &sizes)?;
    let weights: Vec<f64> = terms.iter().map(|term| term.weight).collect();
    assert_eq!(weights, [2., 5., 2., 1., 2.5, 1., 1., 2.5, 1.]);
    Ok(())
}

#[test]
fn gradients_are_those_of_differences() -> Result<()> {
    let sizes = [ImageSize { height: 50, width: 80 }; 2];
    let known = [
        objects(&[0, 2], &[0.3, 0.3, 0.2, 0.4, 0.6, 0.7, 0.3, 0.2], sizes[0]),
        objects(&[1], &[0.5, 0.5, 0.9, 0.8], sizes[1]),
    ];
    let logits = normal(&[2, 2, 4, 3], DType::F64, 1)?;
    let boxes = uniform(&[2, 2, 4, 4], DType::F64, 2, 0.1, 0.9)?;
    let criterion = SetCriterion::default();
    let total = |x: &[Tensor]| {
        let predictions = QueryPredictions { logits: x[0].clone(), boxes: x[1].clone() };
        vkd_loss::weighted_sum(&criterion.terms(&predictions, &known, &sizes)?)
    };
    gradcheck(total, &[logits, boxes])
}

#[test]
fn nothing_to_find_still_trains_the_classes() -> Result<()> {
    let (logits, boxes) = (
        Var::from_tensor(&normal(&[1, 1, 4, 3], DType::F32, 1)?)?,
        Var::from_tensor(&uniform(&[1, 1, 4, 4], DType::F32, 2, 0.1, 0.9)?)?,
    );
    let predictions =
        QueryPredictions { logits: logits.as_tensor().clone(), boxes: boxes.as_tensor().clone() };
    let size = [ImageSize { height: 5, width: 5 }];
    let terms = SetCriterion::default().terms(&predictions, &[Objects::default()], &size)?;
    let grads = vkd_loss::weighted_sum(&terms)?.backward()?;
    assert!(to_f64(grads.get(&logits).unwrap())?.iter().all(|g| *g > 0.));
    assert!(to_f64(grads.get(&boxes).unwrap())?.iter().all(|g| *g == 0.));
    // More objects than queries: every query has one.
    let many = objects(&[0; 6], &[0.5, 0.5, 0.2, 0.2].repeat(6), size[0]);
    let terms = SetCriterion::default().terms(&predictions, &[many], &size)?;
    assert!(to_f64(&terms[1].value)?[0] > 0.);
    Ok(())
}

#[test]
fn odd_input_is_named() -> Result<()> {
    let size = [ImageSize { height: 5, width: 5 }];
    let logits = normal(&[1, 1, 4, 3], DType::F32, 1)?;
    let boxes = uniform(&[1, 1, 4, 4], DType::F32, 2, 0.1, 0.9)?;
    let known = objects(&[2], &[0.5, 0.5, 0.2, 0.2], size[0]);
    let error = |logits: &Tensor, boxes: &Tensor, known: &[Objects], size: &[ImageSize]| {
        let predictions = QueryPredictions { logits: logits.clone(), boxes: boxes.clone() };
        SetCriterion::default().terms(&predictions, known, size).unwrap_err().to_string()
    };
    let one = std::slice::from_ref(&known);
    assert!(error(&logits, &logits, one, &size).contains("expected boxes [1, 1, 4, 4], got"));
    assert!(error(&logits, &boxes, &[], &[]).contains("of 0 images"));
    assert!(error(&logits, &boxes, one, &[]).contains("expected 1 image sizes, got 0"));
    let none = [ImageSize { height: 0, width: 5 }];
    assert!(error(&logits, &boxes, one, &none).contains("image 0: expected a size above 0"));
    let few = logits.narrow(3, 0, 2)?;
    assert!(
        error(&few, &boxes, one, &size)
            .contains("image 0: objects: box 0: expected a class below 2, got 2")
    );
    let short = [Objects { classes: vec![], ..known.clone() }];
    assert!(error(&logits, &boxes, &short, &size).contains("image 0: objects: expected 1 classes"));
    let nan = [Objects { boxes: vec![[f32::NAN, 0., 1., 1.]], ..known.clone() }];
    assert!(error(&logits, &boxes, &nan, &size).contains("image 0: objects: box 0: expected fin"));
    let large = (boxes.ones_like()? * f64::from(f32::MAX))?;
    assert_eq!(to_f64(&nothing(&large)?)?, [0.]);
    let e = error(&(&logits * f64::NAN)?, &boxes, one, &size);
    assert!(e.contains("image 0, query 0: expected finite logits and boxes"), "{e}");
    Ok(())
}
