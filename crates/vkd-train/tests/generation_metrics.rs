//! Scores of generators: recorded numbers of SciPy and of the published code, and laws.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use candle_core::{DType, Device, Result, Tensor};
use vkd_testkit::{Golden, normal, permutation, to_f64};
use vkd_train::metrics::{
    Features, GenerationScores, InceptionScore, Moments, SubsetDistances, frechet_distance,
    kernel_distance, kernel_distance_subsets, manifold_scores, neighbour_radii,
};

fn moments(rows: &Tensor) -> Result<Moments> {
    Moments::from_rows(rows, None)
}

fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    frechet_distance(&moments(a)?, &moments(b)?)
}

fn number(golden: &Golden, key: &str) -> Result<f64> {
    Ok(to_f64(&golden.get(key)?)?[0])
}

/// An orthogonal matrix: a product of reflections.
fn rotation(d: usize, seed: u64) -> Result<Tensor> {
    let mut q = Tensor::eye(d, DType::F64, &Device::Cpu)?;
    for i in 0..3 {
        let v = normal(&[d, 1], DType::F64, seed + i)?;
        let scale = 2. / v.sqr()?.sum_all()?.to_scalar::<f64>()?;
        q = (&q - (v.matmul(&v.t()?.matmul(&q)?)? * scale)?)?;
    }
    Ok(q)
}

#[test]
fn frechet_is_the_exact_value_of_the_recorded_cases() -> Result<()> {
    let golden = Golden::open("metrics")?;
    let pairs = [
        ("full", "full_a", "full_b"),
        ("same", "full_a", "full_a"),
        ("few_vs_full", "few_a", "full_b"),
        ("few_vs_few", "few_a", "few_b"),
        ("const_vs_full", "const_channel", "full_b"),
    ];
    for (case, a, b) in pairs {
        let features = |name: &str| golden.get(&format!("frechet.features.{name}"));
        let got = distance(&features(a)?, &features(b)?)?;
        let exact = number(&golden, &format!("frechet.{case}.exact"))?;
        let scipy = number(&golden, &format!("frechet.{case}.scipy_sqrtm"))?;
        let traces = moments(&features(a)?)?.covariance(true)?;
        let size = to_f64(&traces)?.iter().step_by(9).sum::<f64>();
        // Of the terms that cancel: 50 digits against ours, a few hundred roundings.
        assert!((got - exact).abs() <= 1e-12 * (size + exact), "{case}: {got:e} {exact:e}");
        // SciPy's own error in the singular cases is 2e-7.
        assert!((got - scipy).abs() <= 1e-6 * (1. + scipy), "{case}: {got:e} {scipy:e}");
    }
    Ok(())
}

#[test]
fn frechet_keeps_its_laws() -> Result<()> {
    for (n, m, d) in [(30, 40, 6), (5, 7, 12), (3, 90, 10)] {
        let a = normal(&[n, d], DType::F64, 1)?;
        let b = (normal(&[m, d], DType::F64, 2)? * 1.7)?;
        let plain = distance(&a, &b)?;
        let near = |got: f64, want: f64| (got - want).abs() <= 1e-10 * (1. + want);
        assert!(near(distance(&b, &a)?, plain), "symmetric");
        let q = rotation(d, 9)?;
        assert!(near(distance(&a.matmul(&q)?, &b.matmul(&q)?)?, plain), "turned together");
        assert!(near(distance(&(&a * 3.)?, &(&b * 3.)?)?, 9. * plain), "scaled together");
        let shift = normal(&[1, d], DType::F64, 3)?;
        let far = shift.sqr()?.sum_all()?.to_scalar::<f64>()?;
        assert!(near(distance(&a, &a.broadcast_add(&shift)?)?, far), "moved");
        assert!(distance(&a, &a)? < 1e-11 * d as f64, "itself");
        // In batches, in another order.
        let shuffled = a.index_select(&permutation(n, 4)?, 0)?;
        let mut streamed = Moments::new(d)?;
        for row in 0..n {
            streamed.merge(&moments(&shuffled.narrow(0, row, 1)?)?)?;
        }
        assert!(near(frechet_distance(&streamed, &moments(&b)?)?, plain), "streamed");
    }
    // Variances over many orders, turned: rounding must not take the small ones out of one term alone.
    let d = 96;
    let spread = |power: i32, scale: f64| -> Result<Tensor> {
        let value = |row: usize, column: usize| match row / 2 == column {
            true => [1., -1.][row % 2] * scale * (column as f64 + 1.).powi(-power),
            false => 0.,
        };
        let values: Vec<f64> = (0..2 * d * d).map(|i| value(i / d, i % d)).collect();
        Tensor::from_vec(values, (2 * d, d), &Device::Cpu)?.matmul(&rotation(d, 5)?)
    };
    for power in [1, 2, 3] {
        let (a, twice) = (spread(power, 1.)?, spread(power, 2.)?);
        // (2σ - σ)² in each channel.
        let trace = |p: i32| (1..=d).map(|i| (i as f64).powi(-2 * p)).sum::<f64>();
        let want = 2. / (2. * d as f64 - 1.) * trace(power);
        assert!(distance(&a, &a)? < 1e-13 * want, "{power}");
        assert!((distance(&a, &twice)? - want).abs() < 1e-12 * want, "{power}");
    }
    // Independent channels: the sum of (σ - τ)².
    let a = Tensor::new(&[[1f64, 0.], [-1., 0.], [0., 3.], [0., -3.]], &Device::Cpu)?;
    let b = Tensor::new(&[[2f64, 0.], [-2., 0.], [0., 1.], [0., -1.]], &Device::Cpu)?;
    let deviation = |x: f64| (2. * x * x / 3.).sqrt();
    let want = (deviation(1.) - deviation(2.)).powi(2) + (deviation(3.) - deviation(1.)).powi(2);
    assert!((distance(&a, &b)? - want).abs() < 1e-13);
    Ok(())
}

#[test]
fn kernel_distance_is_the_recorded_one() -> Result<()> {
    let golden = Golden::open("metrics")?;
    let features = |name: &str| golden.get(&format!("frechet.features.{name}"));
    let (a, b) = (features("full_a")?, features("full_b")?);
    let (few_a, few_b) = (features("few_a")?, features("few_b")?);
    let first = b.narrow(0, 0, 150)?;
    let near = |got: f64, want: f64| {
        assert!((got - want).abs() <= 1e-11 * (1. + want.abs()), "{got:e} {want:e}")
    };
    near(kernel_distance(&a, &b)?, number(&golden, "kid.full.value")?);
    near(kernel_distance(&a, &first)?, number(&golden, "kid.unequal_200_150.value")?);
    near(kernel_distance(&few_a, &few_b)?, number(&golden, "kid.few_vs_few.value")?);
    let ids = |key: &str, i: usize| {
        golden.get(&format!("kid.subsets.index_{key}"))?.get(i)?.to_dtype(DType::U32)
    };
    let value =
        |i| kernel_distance(&a.index_select(&ids("a", i)?, 0)?, &b.index_select(&ids("b", i)?, 0)?);
    let found = SubsetDistances::of((0..8).map(value).collect::<Result<_>>()?);
    for (got, want) in found.values.iter().zip(to_f64(&golden.get("kid.subsets.values")?)?) {
        near(*got, want);
    }
    near(found.mean, number(&golden, "kid.subsets.mean")?);
    near(found.deviation, number(&golden, "kid.subsets.std_population")?);
    Ok(())
}

#[test]
fn kernel_distance_keeps_its_laws() -> Result<()> {
    // More rows than a block has.
    let a = normal(&[300, 5], DType::F64, 1)?;
    let b = (normal(&[280, 5], DType::F64, 2)? + 0.3)?;
    let plain = kernel_distance(&a, &b)?;
    let near = |got: f64| (got - plain).abs() < 1e-11 * (1. + plain.abs());
    assert!(near(kernel_distance(&b, &a)?));
    let q = rotation(5, 3)?;
    assert!(near(kernel_distance(&a.matmul(&q)?, &b.matmul(&q)?)?));
    assert!(near(kernel_distance(&a.index_select(&permutation(300, 4)?, 0)?, &b)?));
    // By the definition, pair by pair.
    let (x, y) = (a.narrow(0, 0, 4)?.to_vec2::<f64>()?, b.narrow(0, 0, 3)?.to_vec2::<f64>()?);
    let kernel =
        |p: &[f64], q: &[f64]| (p.iter().zip(q).map(|(a, b)| a * b).sum::<f64>() / 5. + 1.).powi(3);
    let mut want = 0.;
    for (rows, pairs) in [(&x, 12.), (&y, 6.)] {
        for (i, p) in rows.iter().enumerate() {
            want += rows
                .iter()
                .enumerate()
                .filter(|(j, _)| *j != i)
                .map(|(_, q)| kernel(p, q))
                .sum::<f64>()
                / pairs;
        }
    }
    want -= 2. * x.iter().flat_map(|p| y.iter().map(|q| kernel(p, q))).sum::<f64>() / 12.;
    let got = kernel_distance(&a.narrow(0, 0, 4)?, &b.narrow(0, 0, 3)?)?;
    assert!((got - want).abs() < 1e-12, "{got} {want}");
    // Subsets are a function of the seed, and have no bias: their mean is near the whole's.
    let subsets = |seed| kernel_distance_subsets(&a, &b, 100, 40, seed);
    assert_eq!(subsets(1)?, subsets(1)?);
    assert_ne!(subsets(1)?.values, subsets(2)?.values);
    let found = subsets(1)?;
    let error = found.deviation / (40f64).sqrt();
    assert!((found.mean - plain).abs() < 5. * error, "{found:?} {plain}");
    Ok(())
}

#[test]
fn the_inception_score_is_the_recorded_one() -> Result<()> {
    let golden = Golden::open("metrics")?;
    let score = |probabilities: &Tensor, batch: usize| -> Result<f64> {
        let (rows, classes) = probabilities.dims2()?;
        let mut score = InceptionScore::new(classes);
        for start in (0..rows).step_by(batch) {
            score.add(&probabilities.narrow(0, start, batch.min(rows - start))?)?;
        }
        score.finish()
    };
    for case in ["soft", "one_hot", "uniform", "with_zeros"] {
        let probabilities = golden.get(&format!("inception.{case}.probs"))?;
        let want = number(&golden, &format!("inception.{case}.score"))?;
        for batch in [7, 100] {
            let got = score(&probabilities, batch)?;
            assert!((got - want).abs() <= 1e-12 * want, "{case}: {got} {want}");
        }
        if case == "uniform" {
            continue;
        }
        let splits = (0..5).map(|i| score(&probabilities.narrow(0, 20 * i, 20)?, 20));
        let found = SubsetDistances::of(splits.collect::<Result<_>>()?);
        let key = |name: &str| format!("inception.{case}.splits5.{name}");
        for (got, want) in found.values.iter().zip(to_f64(&golden.get(&key("scores"))?)?) {
            assert!((got - want).abs() <= 1e-12 * want, "{case}: {got} {want}");
        }
        assert!((found.mean - number(&golden, &key("mean"))?).abs() <= 1e-12 * found.mean);
        assert!((found.deviation - number(&golden, &key("std_population"))?).abs() <= 1e-11);
    }
    Ok(())
}

#[test]
fn manifold_scores_are_the_recorded_ones() -> Result<()> {
    let golden = Golden::open("metrics")?;
    for case in ["typical", "same", "disjoint", "collapsed"] {
        let get = |name: &str| golden.get(&format!("prdc.{case}.{name}"));
        let (real, fake) = (get("real")?, get("fake")?);
        for k in [3, 5] {
            let found = manifold_scores(&real, &fake, k)?;
            let want = |name: &str| number(&golden, &format!("prdc.{case}.k{k}.{name}"));
            // Counts over counts: equal but for the last division.
            for (name, got) in [
                ("precision", found.precision),
                ("recall", found.recall),
                ("density", found.density),
                ("coverage", found.coverage),
            ] {
                let want = want(name)?;
                assert!((got - want).abs() < 1e-14, "{case} k {k} {name}: {got} {want}");
            }
        }
        for (name, rows) in [("real", &real), ("fake", &fake)] {
            let radii = neighbour_radii(rows, 5)?;
            let want = to_f64(&get(&format!("k5.radius_{name}"))?)?;
            for (got, want) in radii.iter().zip(want) {
                assert!((got - want).abs() <= 1e-13 * want, "{case}: {got} {want}");
            }
        }
    }
    Ok(())
}

#[test]
fn manifold_scores_keep_their_laws() -> Result<()> {
    let (a, b) = (normal(&[60, 11], DType::F64, 1)?, (normal(&[50, 11], DType::F64, 2)? * 0.8)?);
    let (forth, back) = (manifold_scores(&a, &b, 4)?, manifold_scores(&b, &a, 4)?);
    // Precision one way is recall the other.
    assert_eq!((forth.precision, forth.recall), (back.recall, back.precision));
    let q = rotation(11, 3)?;
    let turned = manifold_scores(&(a.matmul(&q)? * 2.)?, &(b.matmul(&q)? * 2.)?, 4)?;
    assert_eq!(turned, forth);
    let far = manifold_scores(&a, &(&b + 1e3)?, 4)?;
    assert_eq!((far.precision, far.recall, far.density, far.coverage), (0., 0., 0., 0.));
    // One image again and again covers at most the balls it lies in.
    let one = a.narrow(0, 0, 1)?.repeat((20, 1))?;
    let collapsed = manifold_scores(&a, &one, 4)?;
    assert_eq!((collapsed.precision, collapsed.recall), (1., 0.));
    assert!(collapsed.coverage < 0.5, "{collapsed}");
    Ok(())
}

#[test]
fn too_few_samples_say_how_many_are_needed() -> Result<()> {
    let rows = |n: usize, d: usize| normal(&[n, d], DType::F64, 1);
    let says = |result: Result<f64>| result.unwrap_err().to_string();
    let one = says(distance(&rows(5, 3)?, &rows(1, 3)?));
    assert!(one.contains("frechet distance: expected at least 2 generated samples"), "{one}");
    let none = says(frechet_distance(&Moments::new(3)?, &moments(&rows(5, 3)?)?));
    assert!(none.contains("2 real samples for a covariance, got 0"), "{none}");
    assert!(says(distance(&rows(5, 3)?, &rows(5, 4)?)).contains("one width, got 3 and 4"));
    let one = says(kernel_distance(&rows(1, 3)?, &rows(5, 3)?));
    assert!(one.contains("kernel distance: expected at least 2 real samples, got 1"), "{one}");
    let subsets = kernel_distance_subsets(&rows(50, 3)?, &rows(9, 3)?, 10, 5, 0);
    let few = says(subsets.map(|s| s.mean));
    assert!(few.contains("at least 10 generated samples, got 9"), "{few}");
    assert!(kernel_distance_subsets(&rows(50, 3)?, &rows(9, 3)?, 1, 5, 0).is_err());
    let few = says(manifold_scores(&rows(9, 3)?, &rows(5, 3)?, 5).map(|s| s.recall));
    assert!(few.contains("at least 6 generated samples for the 5-th neighbour, got 5"), "{few}");
    assert!(manifold_scores(&rows(9, 3)?, &rows(5, 3)?, 0).is_err());
    let odd = says(manifold_scores(&rows(9, 3)?, &(rows(9, 3)? * f64::NAN)?, 2).map(|s| s.recall));
    assert!(odd.contains("finite generated features, got NaN in row 0"), "{odd}");
    assert!(says(InceptionScore::new(3).finish()).contains("at least one image"));
    let mut score = InceptionScore::new(3);
    assert!(score.add(&rows(2, 4)?.abs()?).is_err());
    let sum =
        score.add(&Tensor::new(&[[0.5f32, 0.4, 0.3]], &Device::Cpu)?).unwrap_err().to_string();
    assert!(sum.contains("sum to 1"), "{sum}");
    Ok(())
}

#[test]
fn scores_of_gathered_features_are_those_of_all_at_once() -> Result<()> {
    let (a, b) = (normal(&[70, 6], DType::F32, 1)?, (normal(&[90, 6], DType::F32, 2)? + 0.4)?);
    let gathered = |rows: &Tensor, batch: usize, keep: usize| -> Result<Features> {
        let mut features = Features::new("none", 6, keep)?;
        let count = rows.dim(0)?;
        for start in (0..count).step_by(batch) {
            features.add(&rows.narrow(0, start, batch.min(count - start))?)?;
        }
        Ok(features)
    };
    let (real, generated) = (gathered(&a, 16, 50)?, gathered(&b, 7, 50)?);
    let found = GenerationScores::between(&real, &generated, 3)?;
    assert_eq!((found.real, found.generated, found.extractor.as_str()), (70, 90, "none"));
    let whole = distance(&a, &b)?;
    assert!((found.frechet - whole).abs() < 1e-10 * whole, "{found:?} {whole}");
    // Fifty of all rows, the same whatever the batches.
    assert_eq!((found.real_rows, found.generated_rows), (50, 50));
    let (kept, others) = (real.rows()?, generated.rows()?);
    assert_eq!(to_f64(&kept)?, to_f64(&gathered(&a, 70, 50)?.rows()?)?);
    assert_eq!(found.kernel, kernel_distance(&kept, &others)?);
    assert_eq!(found.manifold, manifold_scores(&kept, &others, 3)?);
    let numbers = Tensor::arange(0f32, 4000., &Device::Cpu)?.reshape((4000, 1))?;
    let mut sample = Features::new("numbers", 1, 400)?;
    sample.add(&numbers)?;
    let mut found: Vec<f64> = to_f64(&sample.rows()?)?;
    found.sort_by(f64::total_cmp);
    found.dedup();
    // An even sample of 400 has mean 1999.5 with a standard error of 55.
    let mean = found.iter().sum::<f64>() / 400.;
    assert!(found.len() == 400 && (mean - 1999.5).abs() < 200., "{} {mean}", found.len());
    let all = gathered(&a, 16, 1000)?;
    assert_eq!(all.rows()?.dims(), [70, 6]);
    assert_eq!((all.extractor(), all.moments().count()), ("none", 70.));
    let mut other = Features::new("other", 6, 50)?;
    other.add(&b)?;
    let e = GenerationScores::between(&real, &other, 3).unwrap_err().to_string();
    assert!(e.contains("one extractor, got none and other"), "{e}");
    assert!(other.add(&a.narrow(1, 0, 5)?).unwrap_err().to_string().contains("width 6, got 5"));
    let before = other.moments().clone();
    assert!(other.add(&(&a * f64::NAN)?).is_err());
    assert_eq!(&before, other.moments());
    assert!(Features::new("", 6, 1).is_err() && Features::new("x", 0, 1).is_err());
    Ok(())
}
