//! Deformable attention against its twin, torch, differences, laws and its own edge cases.

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use vkd_nn::deformable_attention;
use vkd_nn::ops::reference;
use vkd_testkit::{Golden, OpCase, Tolerance, assert_close, normal, to_f64, uniform};

type Levels = &'static [(usize, usize)];

/// Batch, queries, heads, width, points and levels.
fn sizes() -> [([usize; 5], Levels); 5] {
    [
        ([1, 1, 1, 1, 1], &[(1, 1)]),
        ([1, 2, 1, 3, 1], &[(2, 3)]),
        ([2, 3, 2, 5, 2], &[(3, 2), (1, 4)]),
        ([1, 4, 3, 17, 3], &[(6, 9), (4, 5), (3, 2), (1, 2)]),
        ([2, 40, 2, 32, 4], &[(7, 5), (4, 3)]),
    ]
}

/// Values, locations of which a good part is outside, and weights.
fn inputs([b, q, h, d, p]: [usize; 5], levels: Levels, dtype: DType) -> Result<[Tensor; 3]> {
    let pixels = levels.iter().map(|(rows, cols)| rows * cols).sum();
    Ok([
        normal(&[b, pixels, h, d], dtype, 1)?,
        uniform(&[b, q, h, levels.len(), p, 2], dtype, 2, -0.4, 1.4)?,
        normal(&[b, q, h, levels.len(), p], dtype, 3)?,
    ])
}

#[test]
fn it_passes_the_op_harness() -> Result<()> {
    for (sizes, levels) in sizes() {
        let inputs = inputs(sizes, levels, DType::F64)?;
        let what = format!("deformable_attention {sizes:?} {levels:?}");
        // Sums over the corners of all points, and in the gradients over width and queries; a position of the twin in f64 is
        // rounded by the width of its map, which the slopes multiply again.
        let terms = 4 * levels.len() * sizes[4] * sizes[3].max(sizes[1]);
        let slack = 32. * (terms as f64).sqrt();
        let case = OpCase {
            what: &what,
            inputs: &inputs,
            active: 3,
            f64_tolerance: slack * f64::EPSILON,
            f32_tolerance: slack * f64::from(f32::EPSILON),
        };
        case.has_teeth(
            |x| deformable_attention(&x[0], levels, &x[1], &x[2]),
            |x| reference::deformable_attention(&x[0], levels, &x[1], &x[2]),
        )?;
    }
    Ok(())
}

fn golden_levels(shapes: &Tensor) -> Result<Vec<(usize, usize)>> {
    let rows = shapes.to_vec2::<f32>()?;
    Ok(rows.iter().map(|hw| (hw[0] as usize, hw[1] as usize)).collect())
}

#[test]
fn results_and_gradients_are_torchs() -> Result<()> {
    let golden = Golden::open("ms_deform_attn")?;
    let names = ["value", "sampling_locations", "attention_weights"];
    let levels = golden_levels(&golden.get("spatial_shapes")?)?;
    for dtype in [DType::F64, DType::F32] {
        // In f64 what is stored was rounded to f32. Sums of 4 · 12 corners, and of 7 · 12 in a pixel's gradient.
        let tolerance = match dtype {
            DType::F64 => Tolerance::for_op(DType::F64, DType::F32, 1),
            _ => Tolerance::for_op(DType::F32, DType::F32, 84),
        };
        let vars = names
            .iter()
            .map(|name| Var::from_tensor(&golden.get(name)?.to_dtype(dtype)?))
            .collect::<Result<Vec<_>>>()?;
        let ys = deformable_attention(&vars[0], &levels, &vars[1], &vars[2])?;
        assert_close("output", &ys, &golden.get("output")?, tolerance)?;
        let cotangent = golden.get("grad_output")?.to_dtype(dtype)?;
        let loss = (ys * cotangent)?.sum_all()?;
        assert_close("loss", &loss, &golden.get("loss")?, tolerance)?;
        let grads = loss.backward()?;
        for (name, var) in names.iter().zip(&vars) {
            let Some(grad) = grads.get(var) else { bail!("{name}: no gradient") };
            assert_close(name, grad, &golden.get(&format!("grad.{name}"))?, tolerance)?;
        }
        let [value, at, weights] =
            names.map(|name| golden.get(&format!("border.{name}"))?.to_dtype(dtype));
        let levels = golden_levels(&golden.get("border.spatial_shapes")?)?;
        let ys = deformable_attention(&value?, &levels, &at?, &weights?)?;
        assert_close("border.output", &ys, &golden.get("border.output")?, tolerance)?;
    }
    Ok(())
}

/// Weights that sum to one over levels and points, and locations at least half a pixel inside every map.
fn inside(levels: Levels) -> Result<[Tensor; 2]> {
    let least = levels.iter().map(|(rows, cols)| *rows.min(cols)).min().unwrap_or(1);
    let edge = 0.5 / least as f64;
    let at = uniform(&[2, 5, 3, levels.len(), 2, 2], DType::F64, 5, edge, 1. - edge)?;
    let weights = normal(&[2, 5, 3, 2 * levels.len()], DType::F64, 6)?;
    let weights = vkd_nn::softmax(&weights)?.reshape((2, 5, 3, levels.len(), 2))?;
    Ok([at, weights])
}

#[test]
fn inside_a_map_constants_stay_and_straight_lines_give_the_position() -> Result<()> {
    let levels: Levels = &[(6, 9), (4, 5)];
    let [at, weights] = inside(levels)?;
    let ones = Tensor::ones((2, 74, 3, 4), DType::F64, &Device::Cpu)?;
    let exact = Tolerance::relative(32. * f64::EPSILON);
    let ys = deformable_attention(&ones, levels, &at, &weights)?;
    assert_close("ones", &ys, &ys.ones_like()?, exact)?;
    // Pixels that hold their own place: what comes out is the weighted mean of the locations.
    let mut values = Vec::new();
    for &(rows, cols) in levels {
        for row in 0..rows {
            for col in 0..cols {
                let x = (col as f64 + 0.5) / cols as f64;
                values.extend([x, (row as f64 + 0.5) / rows as f64]);
            }
        }
    }
    let values = Tensor::from_vec(values, (1, 74, 1, 2), &Device::Cpu)?;
    let values = values.broadcast_as((2, 74, 3, 2))?;
    let ys = deformable_attention(&values, levels, &at, &weights)?;
    let mean = at.broadcast_mul(&weights.unsqueeze(5)?)?.sum((3, 4))?;
    assert_close("places", &ys, &mean.flatten_from(2)?, exact)
}

#[test]
fn a_pixels_centre_gives_the_pixel_and_the_border_fades_over_one() -> Result<()> {
    // One map of 1 x 4, one query a position; the row is the pixel's.
    let values = Tensor::new(&[3f64, 5., 7., 11.], &Device::Cpu)?.reshape((1, 4, 1, 1))?;
    let cases = [
        (0.5, 3.),
        (1.5, 5.),
        (3.5, 11.),
        (1., 4.),
        (0., 1.5),
        (-0.25, 0.75),
        (-0.5, 0.),
        (4., 5.5),
        (4.5, 0.),
        (f64::INFINITY, 0.),
        (f64::NEG_INFINITY, 0.),
        (1e300, 0.),
    ];
    let sample = |x: f64, y: f64| -> Result<(f64, Vec<f64>)> {
        let at = Var::from_tensor(&Tensor::new(&[x / 4., y], &Device::Cpu)?)?;
        let at_shaped = at.reshape((1, 1, 1, 1, 1, 2))?;
        let weights = Tensor::ones((1, 1, 1, 1, 1), DType::F64, &Device::Cpu)?;
        let levels = [(1, 4)];
        let twin = reference::deformable_attention(&values, &levels, &at_shaped, &weights)?;
        let twin = twin.sum_all()?;
        let ys = deformable_attention(&values, &levels, &at_shaped, &weights)?.sum_all()?;
        assert_eq!(twin.to_scalar::<f64>()?, ys.to_scalar::<f64>()?, "twin at {x}, {y}");
        let slope = |ys: &Tensor| -> Result<Vec<f64>> {
            Ok(ys.backward()?.get(&at).map(to_f64).transpose()?.unwrap_or_default())
        };
        assert!(slope(&twin)?.iter().all(|g| g.is_finite()), "twin at {x}, {y}");
        let grad = slope(&ys)?;
        Ok((ys.to_scalar()?, grad))
    };
    for (x, want) in cases {
        let (got, grad) = sample(x, 0.5)?;
        assert_eq!(got, want, "at {x}");
        assert!(grad.len() == 2 && grad.iter().all(|g| g.is_finite()), "at {x}: {grad:?}");
        // Beyond the border there is no slope; on the last column where anything is left, the way is down to nothing.
        if !(-0.5..4.5).contains(&x) {
            assert_eq!(grad, [0., 0.], "at {x}");
        }
        // Half a pixel up: half of it.
        assert_eq!(sample(x, 0.)?.0, want / 2., "at {x}");
    }
    // Per unit of the map, not of the pixel.
    assert_eq!(sample(0.75, 0.5)?.1[0], 4. * (5. - 3.));
    assert_eq!(sample(0.75, 0.25)?.1[1], 3.5);
    Ok(())
}

#[test]
fn a_nan_stays_with_its_query_and_head() -> Result<()> {
    let levels: Levels = &[(2, 3), (1, 4)];
    let [values, at, weights] = inputs([1, 2, 2, 3, 2], levels, DType::F64)?;
    let set = |xs: &Tensor, entry: usize| -> Result<Tensor> {
        let mut all = to_f64(xs)?;
        all[entry] = f64::NAN;
        Tensor::from_vec(all, xs.dims(), &Device::Cpu)
    };
    // The second head of the first query, in the second level.
    let clean = to_f64(&deformable_attention(&values, levels, &at, &weights)?)?;
    for (at, weights) in [
        (set(&at, 12)?, weights.clone()),
        (set(&at, 13)?, weights.clone()),
        (at.clone(), set(&weights, 6)?),
    ] {
        let at = Var::from_tensor(&at)?;
        let twin = to_f64(&reference::deformable_attention(&values, levels, &at, &weights)?)?;
        assert!(
            twin.iter().enumerate().all(|(i, v)| v.is_nan() == (3..6).contains(&i)),
            "{twin:?}"
        );
        let ys = deformable_attention(&values, levels, &at, &weights)?;
        for (i, (got, want)) in to_f64(&ys)?.iter().zip(&clean).enumerate() {
            assert!(if (3..6).contains(&i) { got.is_nan() } else { got == want }, "{i}: {got}");
        }
        let grads = ys.sum_all()?.backward()?;
        let grad = grads.get(&at).map(to_f64).transpose()?.unwrap_or_default();
        assert_eq!(grad.iter().filter(|g| g.is_nan()).count(), 2);
    }
    Ok(())
}

#[test]
fn half_types_are_computed_in_f32_and_rounded_once() -> Result<()> {
    // Wide enough that a position of eight binary digits would be off by a pixel.
    let levels: Levels = &[(3, 400), (2, 7)];
    for (dtype, rounding) in [(DType::BF16, 2f64.powi(-8)), (DType::F16, 2f64.powi(-11))] {
        let [values, at, weights] = inputs([1, 6, 2, 3, 2], levels, dtype)?;
        let got = deformable_attention(&values, levels, &at, &weights)?;
        assert_eq!(got.dtype(), dtype);
        let [values, at, weights] =
            [&values, &at, &weights].map(|x| x.to_dtype(DType::F64).and_then(|x| x.contiguous()));
        let want = reference::deformable_attention(&values?, levels, &at?, &weights?)?;
        for (got, want) in to_f64(&got)?.into_iter().zip(to_f64(&want)?) {
            // Half a unit in the last place, and f32's own rounding of sums whose parts may cancel.
            let slack = rounding * want.abs() + 1e-5;
            assert!((got - want).abs() <= slack, "{dtype:?}: {got} {want}");
        }
    }
    Ok(())
}

#[test]
fn no_queries_and_no_batch_are_empty_results() -> Result<()> {
    for (b, q) in [(0, 3), (2, 0)] {
        let [values, at, weights] = inputs([b, q, 2, 3, 2], &[(2, 2)], DType::F32)?;
        let values = Var::from_tensor(&values)?;
        let ys = deformable_attention(&values, &[(2, 2)], &at, &weights)?;
        assert_eq!(ys.dims(), [b, q, 6]);
        let grads = ys.sum_all()?.backward()?;
        let grad = grads.get(&values).map(to_f64).transpose()?.unwrap_or_default();
        assert_eq!(grad, vec![0.; b * 4 * 6]);
    }
    Ok(())
}

#[test]
fn bad_input_is_named() -> Result<()> {
    let levels: Levels = &[(2, 3), (1, 4)];
    let [values, at, weights] = inputs([1, 2, 2, 3, 2], levels, DType::F32)?;
    let says = |v: &Tensor, levels: &[(usize, usize)], l: &Tensor, w: &Tensor| {
        let message = deformable_attention(v, levels, l, w).unwrap_err().to_string();
        assert!(message.contains("deformable_attention: expected"), "{message}");
        message
    };
    assert!(says(&values, &[(2, 3), (0, 4)], &at, &weights).contains("0 x 4 as level 1"));
    assert!(says(&values, &[(2, 3)], &at, &weights).contains("values (B, 6, heads, D)"));
    assert!(says(&values, &[], &at, &weights).contains("values"));
    assert!(says(&values, &[(usize::MAX, 2)], &at, &weights).contains("level 0"));
    assert!(says(&values.squeeze(0)?, levels, &at, &weights).contains("values"));
    assert!(says(&values, levels, &at, &weights.squeeze(0)?).contains("weights (1, Q, 2, 2, P)"));
    assert!(says(&values, levels, &at.squeeze(0)?, &weights).contains("[1, 2, 2, 2, 2, 2]"));
    let narrow = at.narrow(5, 0, 1)?;
    assert!(says(&values, levels, &narrow, &weights).contains("locations"));
    let half = weights.to_dtype(DType::BF16)?;
    assert!(says(&values, levels, &at, &half).contains("weights of dtype F32"));
    let [values, at, weights] =
        [&values, &at, &weights].map(|x| x.to_dtype(DType::U32).and_then(|x| x.contiguous()));
    assert!(deformable_attention(&values?, levels, &at?, &weights?).is_err());
    Ok(())
}
