//! DiffAugment: the recorded images and gradients of every part, and laws of the draws.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_norm::Context;
use vkd_tasks::{DiffAugment, brightness, contrast, cutout, saturation, translation};
use vkd_testkit::{Golden, Tolerance, assert_close, gradcheck, normal, to_f64};

struct Case {
    golden: Golden,
    name: &'static str,
    part: &'static str,
}

impl Case {
    fn get(&self, key: &str) -> Result<Tensor> {
        self.golden.get(&format!("diffaug.{}.{}.{key}", self.name, self.part))
    }

    /// `draw_KEY`, or `draw_PART_KEY` where several parts are recorded together.
    fn draw(&self, part: &str, key: &str) -> Result<Tensor> {
        self.get(&if self.part == "all" {
            format!("draw_{part}_{key}")
        } else {
            format!("draw_{key}")
        })
    }

    fn numbers(&self, part: &str) -> Result<Vec<f64>> {
        to_f64(&self.draw(part, "u")?)
    }

    fn pairs(&self, part: &str) -> Result<Vec<[i64; 2]>> {
        let rows = self.draw(part, "h")?.to_vec1::<i64>()?;
        let columns = self.draw(part, "w")?.to_vec1::<i64>()?;
        Ok(rows.into_iter().zip(columns).map(|(h, w)| [h, w]).collect())
    }

    fn run(&self, part: &str, xs: &Tensor) -> Result<Tensor> {
        match part {
            "brightness" => brightness(xs, &self.numbers(part)?),
            "saturation" => saturation(xs, &self.numbers(part)?),
            "contrast" => contrast(xs, &self.numbers(part)?),
            "translation" => translation(xs, &self.pairs(part)?),
            _ => {
                // ⌊size / 2 + ½⌋
                let size = [xs.dim(2)?, xs.dim(3)?].map(|side| side.div_ceil(2));
                cutout(xs, size, &self.pairs(part)?)
            }
        }
    }
}

#[test]
fn every_part_gives_the_recorded_images_and_gradients() -> Result<()> {
    let parts = ["brightness", "saturation", "contrast", "translation", "cutout"];
    let mut compared = 0;
    for name in ["sq", "odd"] {
        for part in parts.into_iter().chain(["all"]) {
            // The single parts are recorded on the odd images.
            if name == "sq" && part != "all" {
                continue;
            }
            let case = Case { golden: Golden::open("biggan")?, name, part };
            for dtype in [DType::F64, DType::F32] {
                let input =
                    |key: &str| case.golden.get(&format!("diffaug.{name}.{key}"))?.to_dtype(dtype);
                let xs = Var::from_tensor(&input("x")?)?;
                let ys = match part {
                    "all" => {
                        parts.iter().try_fold(xs.as_tensor().clone(), |ys, p| case.run(p, &ys))?
                    }
                    _ => case.run(part, &xs)?,
                };
                let tolerance = Tolerance::relative(if dtype == DType::F64 { 1e-14 } else { 1e-6 });
                assert_close(&format!("{name} {part}"), &ys, &case.get("y")?, tolerance)?;
                let grads = (ys * input("cot")?)?.sum_all()?.backward()?;
                let grad = grads.get(&xs).unwrap();
                assert_close(
                    &format!("{name} {part} grad"),
                    grad,
                    &case.get("grad_x")?,
                    tolerance,
                )?;
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 14);
    Ok(())
}

fn ids(count: u64) -> Context {
    Context::train(5, 3, (0..count).collect::<Vec<_>>())
}

#[test]
fn gradients_equal_differences() -> Result<()> {
    let images = normal(&[3, 2, 6, 5], DType::F64, 1)?;
    let parts = [
        DiffAugment { color: true, ..DiffAugment::none() },
        DiffAugment { translation: Some(0.3), ..DiffAugment::none() },
        DiffAugment { cutout: Some(0.5), ..DiffAugment::none() },
        DiffAugment::all(),
    ];
    for augment in parts {
        gradcheck(|x| augment.apply(&x[0], "x", &ids(3)), std::slice::from_ref(&images))?;
    }
    Ok(())
}

#[test]
fn draws_are_functions_of_seed_name_step_and_sample() -> Result<()> {
    let images = normal(&[6, 1, 8, 8], DType::F32, 1)?;
    let all = DiffAugment::all();
    let run = |name: &str, ctx: &Context| to_f64(&all.apply(&images, name, ctx)?);
    let ctx = ids(6);
    let base = run("real", &ctx)?;
    assert_eq!(base, run("real", &ctx)?);
    assert_ne!(base, run("generated", &ctx)?);
    assert_ne!(base, run("real", &Context { seed: 6, ..ctx.clone() })?);
    assert_ne!(base, run("real", &Context { step: 4, ..ctx.clone() })?);
    // In another order, each image looks as before.
    let turned: Vec<u64> = (0..6).rev().collect();
    let order = Tensor::new(turned.iter().map(|i| *i as u32).collect::<Vec<_>>(), &Device::Cpu)?;
    let other = all.apply(
        &images.index_select(&order, 0)?,
        "real",
        &Context { sample_ids: turned.into(), ..ctx.clone() },
    )?;
    assert_eq!(to_f64(&other.index_select(&order, 0)?)?, base);
    // Without colour, shift and box stay the same: zeros lie where they lay.
    let plain = to_f64(&DiffAugment::cifar().apply(&images, "real", &ctx)?)?;
    for (a, b) in plain.iter().zip(&base) {
        assert_eq!(*a == 0., *b == 0.);
    }
    assert_eq!(run("real", &Context::eval())?, to_f64(&images)?);
    assert_eq!(
        to_f64(&DiffAugment::none().apply(&images, "x", &Context::train(0, 0, []))?)?,
        to_f64(&images)?
    );
    Ok(())
}

#[test]
fn draws_cover_what_the_publication_says() -> Result<()> {
    // Ones: what is left tells shift and box. Sizes of 8: shifts of -1, 0 and 1, boxes of 4 by 4 at 9 places an axis.
    let images = Tensor::ones((4000, 1, 8, 8), DType::F32, &Device::Cpu)?;
    let shifted = DiffAugment { translation: Some(0.125), ..DiffAugment::none() };
    let mut counts = [0usize; 3];
    for image in shifted.apply(&images, "x", &ids(4000))?.to_vec3_rows()? {
        let [first, last] = [0, 7].map(|row| image[row * 8 + 3] + image[row * 8 + 4] > 0.);
        counts[usize::from(first) + 2 * usize::from(last) - 1] += 1;
    }
    // Each a third of 4,000, with a deviation of 30.
    assert!(counts.iter().all(|c| (1180..1490).contains(c)), "{counts:?}");
    let boxed = DiffAugment { cutout: Some(0.5), ..DiffAugment::none() };
    let mut sizes = [0usize; 17];
    for image in boxed.apply(&images, "x", &ids(4000))?.to_vec3_rows()? {
        sizes[image.iter().filter(|v| **v == 0.).count()] += 1;
    }
    // Offsets 0 and 8 leave 2 rows, 1 and 7 leave 3, the other five 4; and columns alike.
    let share = |n: usize| sizes[n] as f64 / 4000.;
    assert!(
        (share(16) - 25. / 81.).abs() < 0.04 && (share(4) - 4. / 81.).abs() < 0.02,
        "{sizes:?}"
    );
    assert_eq!(
        sizes
            .iter()
            .enumerate()
            .filter(|(n, c)| ![4, 6, 8, 9, 12, 16].contains(n) && **c > 0)
            .count(),
        0
    );
    Ok(())
}

trait Rows {
    fn to_vec3_rows(&self) -> Result<Vec<Vec<f32>>>;
}

impl Rows for Tensor {
    fn to_vec3_rows(&self) -> Result<Vec<Vec<f32>>> {
        self.flatten_from(1)?.to_vec2()
    }
}

#[test]
fn what_does_not_fit_is_named() -> Result<()> {
    let images = normal(&[2, 1, 4, 4], DType::F32, 1)?;
    let says = |result: Result<Tensor>| result.unwrap_err().to_string();
    assert!(says(DiffAugment::all().apply(&images, "x", &ids(3))).contains("2 sample ids, got 3"));
    let wild = DiffAugment { cutout: Some(1.5), ..DiffAugment::none() };
    assert!(says(wild.apply(&images, "x", &ids(2))).contains("cutout: expected a share in [0, 1]"));
    assert!(says(brightness(&images, &[0.5])).contains("each of 2 images, got 1"));
    assert!(says(translation(&images, &[[0, 0]])).contains("each of 2 images, got 1"));
    assert!(says(cutout(&images, [2, 2], &[])).contains("each of 2 images, got 0"));
    assert!(DiffAugment::all().apply(&images.flatten_from(1)?, "x", &ids(2)).is_err());
    // Shifts and boxes beyond the image leave nothing, and do not stop.
    let gone = translation(&images, &[[9, 0], [0, -7]])?;
    assert!(to_f64(&gone)?.iter().all(|v| *v == 0.));
    let all = cutout(&images, [40, 40], &[[0, 0], [2, 2]])?;
    assert!(to_f64(&all)?.iter().all(|v| *v == 0.));
    Ok(())
}
