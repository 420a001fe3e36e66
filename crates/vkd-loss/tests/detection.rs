//! The losses of detectors: laws of boxes, what focal loss is made of, recorded values, and how bad input is named.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use proptest::prelude::*;
use vkd_loss::Reduction::{self, Mean, Sum};
use vkd_loss::boxes::{cxcywh_to_xyxy, generalized_iou, iou, xyxy_to_cxcywh};
use vkd_loss::{FocalConfig, bce_with_logits, giou, l1, sigmoid_focal};
use vkd_testkit::{
    Golden, Tolerance, assert_close, gradcheck, holds, layouts, normal, to_f64, uniform,
};

/// Corners: low ones normal, sides between `thin` and 3.
fn boxes(count: usize, thin: f64, seed: u64) -> Result<Tensor> {
    let low = normal(&[count, 2], DType::F64, seed)?;
    let high = (&low + uniform(&[count, 2], DType::F64, seed + 1, thin, 3.)?)?;
    Tensor::cat(&[low, high], 1)
}

fn corners(boxes: &Tensor) -> Result<Vec<[f64; 4]>> {
    Ok(boxes.to_vec2::<f64>()?.iter().map(|b| [b[0], b[1], b[2], b[3]]).collect())
}

fn entries(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    giou(a, b, Reduction::None)
}

proptest! {
    #[test]
    fn giou_is_a_number_of_the_two_shapes_alone(
        seed in 0u64..1000,
        shift in -1e3f64..1e3,
        size in (-6f64..6.).prop_map(f64::exp),
    ) {
        holds((|| {
            let (a, b) = (boxes(20, 0., seed)?, boxes(20, 0., seed + 500)?);
            let loss = entries(&a, &b)?;
            for (i, (l, (a, b))) in
                to_f64(&loss)?.into_iter().zip(corners(&a)?.into_iter().zip(corners(&b)?)).enumerate()
            {
                assert!((0. ..=2.).contains(&l), "{i}: {l}");
                assert_eq!(l, 1. - generalized_iou(a, b));
                assert!(generalized_iou(a, b) <= iou(a, b) && (0. ..=1.).contains(&iou(a, b)));
            }
            let exact = |what, other: &Tensor, tolerance| assert_close(what, other, &loss, tolerance);
            exact("symmetric", &entries(&b, &a)?, Tolerance::EXACT)?;
            // A shift by s leaves s · eps of a side of about one; areas double it.
            let rounding = Tolerance { relative: 0., absolute: 40. * f64::EPSILON * (1. + shift.abs()) / 0.01 };
            let thick = (boxes(20, 0.1, seed)?, boxes(20, 0.1, seed + 500)?);
            let want = entries(&thick.0, &thick.1)?;
            let moved = |x: &Tensor| x + shift;
            assert_close("moved", &entries(&moved(&thick.0)?, &moved(&thick.1)?)?, &want, rounding)?;
            let scaled = entries(&(&thick.0 * size)?, &(&thick.1 * size)?)?;
            assert_close("scaled", &scaled, &want, Tolerance::relative(1e-13))?;
            // Axes swapped.
            let order = Tensor::new(&[1u32, 0, 3, 2], &Device::Cpu)?;
            let swap = |x: &Tensor| x.index_select(&order, 1);
            exact("swapped", &entries(&swap(&a)?, &swap(&b)?)?, Tolerance::relative(1e-14))?;
            let same = entries(&a, &a)?;
            assert_close("itself", &same, &same.zeros_like()?, Tolerance { relative: 0., absolute: 1e-15 })
        })())?;
    }

    #[test]
    fn the_two_forms_of_a_box_are_one(seed in 0u64..1000) {
        holds((|| {
            let corners = boxes(10, 0., seed)?.reshape((2, 5, 4))?;
            let there = xyxy_to_cxcywh(&corners)?;
            assert_eq!(there.dims(), [2, 5, 4]);
            assert_close("there and back", &cxcywh_to_xyxy(&there)?, &corners, Tolerance::relative(1e-15))
        })())?;
    }
}

#[test]
fn gradients_are_those_of_differences() -> Result<()> {
    for reduction in [Mean, Sum, Reduction::None] {
        let (a, b) = (boxes(8, 0.1, 3)?, boxes(8, 0.1, 4)?);
        gradcheck(|x| giou(&x[0], &b, reduction), std::slice::from_ref(&a))?;
        let centers = xyxy_to_cxcywh(&a)?;
        gradcheck(|x| giou(&cxcywh_to_xyxy(&x[0])?, &b, reduction), &[centers])?;
        let logits = normal(&[3, 4], DType::F64, 5)?;
        let classes = Tensor::new(&[1u32, 4, 0], &Device::Cpu)?;
        let config = FocalConfig::default();
        gradcheck(|x| sigmoid_focal(&x[0], &classes, config, reduction), &[logits])?;
    }
    Ok(())
}

#[test]
fn focal_loss_without_focus_is_half_the_cross_entropy() -> Result<()> {
    let logits = normal(&[2, 3, 5], DType::F64, 1)?;
    let targets = uniform(&[2, 3, 5], DType::F64, 2, 0., 1.)?;
    let plain = FocalConfig { alpha: 0.5, gamma: 0. };
    let got = sigmoid_focal(&logits, &targets, plain, Reduction::None)?;
    let want = (bce_with_logits(&logits, &targets, Reduction::None)? * 0.5)?;
    assert_close("gamma 0", &got, &want, Tolerance::relative(1e-15))?;
    // With a focus every entry loses weight, the more so the righter it is.
    let less =
        sigmoid_focal(&logits, &targets, FocalConfig { gamma: 2., ..plain }, Reduction::None)?;
    assert!(to_f64(&(got - less)?)?.iter().all(|d| *d > 0.));
    Ok(())
}

#[test]
fn classes_are_rows_of_one_one() -> Result<()> {
    let logits = normal(&[2, 3, 4], DType::F32, 1)?;
    let classes = Tensor::new(&[[0u32, 4, 3], [4, 4, 1]], &Device::Cpu)?;
    let mut targets = vec![0f32; 24];
    for (row, class) in [(0, 0), (2, 3), (5, 1)] {
        targets[row * 4 + class] = 1.;
    }
    let targets = Tensor::from_vec(targets, (2, 3, 4), &Device::Cpu)?;
    let config = FocalConfig::default();
    for (_, logits) in layouts(&logits)? {
        let by_class = sigmoid_focal(&logits, &classes, config, Reduction::None)?;
        let by_row = sigmoid_focal(&logits, &targets, config, Reduction::None)?;
        assert_close("classes", &by_class, &by_row, Tolerance::EXACT)?;
    }
    let half = sigmoid_focal(&logits.to_dtype(DType::BF16)?, &classes, config, Sum)?;
    assert_eq!(half.dtype(), DType::F32);
    Ok(())
}

/// Losses of the three levels of a recorded ViDT run on its own matches, in f64 from f32 inputs that are rounded once.
#[test]
fn recorded_losses_of_vidt() -> Result<()> {
    let golden = Golden::open("detection")?;
    let get = |key: &str| golden.get(key)?.to_dtype(DType::F64);
    let indices = |key: &str| golden.get(key)?.to_dtype(DType::U32)?.to_vec1::<u32>();
    for (level, end) in [(0, "_0"), (1, "_1"), (2, "")] {
        let (logits, boxes) = (get("out.logits")?.get(level)?, get("out.boxes")?.get(level)?);
        let mut classes = vec![7u32; 16];
        let (mut found, mut wanted) = (Vec::new(), Vec::new());
        for image in 0..2 {
            let labels = indices(&format!("target.image{image}.labels"))?;
            let known = get(&format!("target.image{image}.boxes"))?;
            let side = |s: &str| indices(&format!("match.level{level}.image{image}.{s}"));
            for (query, target) in side("queries")?.into_iter().zip(side("targets")?) {
                classes[8 * image + query as usize] = labels[target as usize];
                found.push(boxes.get(image)?.get(query as usize)?);
                wanted.push(known.get(target as usize)?);
            }
        }
        let (found, wanted) = (Tensor::stack(&found, 0)?, Tensor::stack(&wanted, 0)?);
        let objects = wanted.dim(0)? as f64;
        let classes = Tensor::from_vec(classes, (2, 8), &Device::Cpu)?;
        for (name, loss) in [
            ("ce", sigmoid_focal(&logits, &classes, FocalConfig::default(), Sum)?),
            ("bbox", l1(&found, &wanted, Sum)?),
            ("giou", giou(&cxcywh_to_xyxy(&found)?, &cxcywh_to_xyxy(&wanted)?, Sum)?),
        ] {
            let want = get(&format!("loss.loss_{name}{end}"))?;
            // Logits, boxes and losses of the file are rounded to f32.
            assert_close(name, &(loss / objects)?, &want, Tolerance::relative(1e-6))?;
        }
    }
    Ok(())
}

#[test]
fn bad_input_is_named() -> Result<()> {
    let logits = normal(&[3, 4], DType::F32, 1)?;
    let classes = Tensor::new(&[0u32, 5, 1], &Device::Cpu)?;
    let config = FocalConfig::default();
    let focal =
        |config, t: &Tensor| sigmoid_focal(&logits, t, config, Mean).unwrap_err().to_string();
    assert!(
        focal(config, &classes)
            .contains("sigmoid_focal: expected class <= 4, got class 5 in row 1")
    );
    assert!(
        focal(config, &classes.narrow(0, 0, 2)?).contains("without the last dimension, got [2]")
    );
    assert!(focal(config, &(&logits * 9.)?).contains("expected targets in [0, 1], got"));
    let ones = logits.ones_like()?;
    assert!(
        focal(config, Var::from_tensor(&ones)?.as_tensor()).contains("targets without gradient")
    );
    assert!(focal(FocalConfig { alpha: 2., ..config }, &ones).contains("alpha in [0, 1], got 2"));
    assert!(focal(FocalConfig { gamma: -1., ..config }, &ones).contains("at least 0, got -1"));
    let nan = sigmoid_focal(&(&logits * f64::NAN)?, &ones, config, Mean).unwrap_err().to_string();
    assert!(nan.contains("sigmoid_focal: expected finite logits, got NaN in row 0"), "{nan}");

    let (a, b) = (boxes(3, 0.1, 1)?, boxes(3, 0.1, 2)?);
    let error = |a: &Tensor, b: &Tensor| giou(a, b, Mean).unwrap_err().to_string();
    assert!(error(&a.narrow(1, 0, 3)?, &b).contains("giou: expected boxes (.., 4), got [3, 3]"));
    assert!(
        error(&a, &b.narrow(0, 0, 2)?).contains("expected targets of the shape [3, 4], got [2, 4]")
    );
    assert!(error(&a.neg()?, &b).contains("giou: expected boxes with x0 <= x1 and y0 <= y1, got"));
    assert!(error(&a, Var::from_tensor(&b)?.as_tensor()).contains("targets without gradient"));
    assert!(error(&a, &(&b * f64::INFINITY)?).contains("expected finite targets, got"));
    assert!(
        error(&(&a * f64::NAN)?, &b).contains("expected finite boxes, got NaN in row 0, entry 0")
    );
    let none = a.narrow(0, 0, 0)?;
    assert!(error(&none, &none).contains("at least one entry"));
    assert!(cxcywh_to_xyxy(&a.narrow(D::Minus1, 0, 2)?).is_err());
    Ok(())
}
