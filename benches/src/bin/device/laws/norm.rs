//! The ops of vkd-norm.

use super::{Case, FLOATS, Function, Unary, drawn, one, shown};
use candle_core::{DType, Device, Result, Tensor};
use vkd_norm::{
    Deficient, Moments, Shrinkage, Variance, WhitenConfig, WhitenMethod, Whitener, batch_norm,
    batch_norm_with, group_norm, layer_norm, layer_norm_affine, log_softmax, rms_norm, softmax,
    standardize, standardize_masked, standardize_with, whiten, whiten_cholesky, whiten_with,
};
use vkd_testkit::uniform;

const EPS: f64 = 1e-5;

/// Rows of a few lengths: one block, several, and lengths that no number of threads divides.
const ROWS: [&[usize]; 7] =
    [&[3, 1], &[2, 7], &[5, 33], &[17, 257], &[2, 3, 40], &[3, 1025], &[64, 3024]];

/// Batches of channels.
const CHANNELS: [&[usize]; 5] = [&[5, 3], &[33, 7], &[257, 17], &[2050, 5], &[64, 3024]];

/// The kernel makes the gradient of the rounded result: each entry has the rounding of its own share, and that of the row's sum.
const OF_RESULT: f64 = 2.;

pub(super) fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    for dims in ROWS {
        let (name, width) = (shown(dims), dims[dims.len() - 1]);
        let rows: usize = dims[..dims.len() - 1].iter().product();
        let mut add = |op: &str, inputs: &[&[usize]], terms, f: fn(&[Tensor]) -> Result<Tensor>| {
            let inputs = drawn(inputs)?;
            let active = inputs.len();
            all.push(Case::new(format!("{op} {name}"), inputs, active, terms, one(f)));
            Ok::<_, candle_core::Error>(())
        };
        add("layer_norm", &[dims], width, |x| layer_norm(&x[0], EPS))?;
        add("layer_norm_affine", &[dims, &[width], &[width]], width.max(rows), |x| {
            layer_norm_affine(&x[0], &x[1], &x[2], EPS)
        })?;
        // Of one channel the slope is what eps leaves of nothing.
        if width > 1 {
            add("rms_norm", &[dims, &[width]], width.max(rows), |x| rms_norm(&x[0], &x[1], EPS))?;
        }
        for (op, f) in [("softmax", softmax as Unary), ("log_softmax", log_softmax)] {
            let case = Case::new(
                format!("{op} {name}"),
                drawn(&[dims])?,
                1,
                width,
                one(move |x| f(&x[0])),
            );
            all.push(case.with_roundings(OF_RESULT));
        }
    }
    for dims in CHANNELS {
        by_channel(&mut all, dims)?;
    }
    for (dims, groups) in [([2, 5, 3, 8], 4), ([3, 7, 9, 33], 3), ([4, 26, 24, 32], 4)] {
        let channels = dims[3];
        let inputs = drawn(&[&dims, &[channels], &[channels]])?;
        let terms = dims[..3].iter().product::<usize>() * channels / groups;
        let name = format!("group_norm {} in {groups}", shown(&dims));
        all.push(Case::new(
            name,
            inputs,
            3,
            terms,
            one(move |x| group_norm(&x[0], groups, &x[1], &x[2], EPS)),
        ));
    }
    whitening(&mut all)?;
    Ok(all)
}

fn by_channel(all: &mut Vec<Case>, dims: &'static [usize]) -> Result<()> {
    let (name, rows, channels) = (shown(dims), dims[0], dims[1]);
    let add =
        |all: &mut Vec<Case>, op: &str, inputs, active, f: fn(&[Tensor]) -> Result<Tensor>| {
            all.push(Case::new(format!("{op} {name}"), inputs, active, rows, one(f)));
        };
    add(all, "standardize", drawn(&[dims])?, 1, |x| standardize(&x[0], EPS));
    // The first and the last row stay.
    let mask = (0..rows).map(|row| u8::from(row % 3 != 1 || row + 1 == rows)).collect::<Vec<_>>();
    let mask = Tensor::from_vec(mask, rows, &Device::Cpu)?;
    let masked = [drawn(&[dims])?, vec![mask]].concat();
    add(all, "standardize_masked", masked.clone(), 1, |x| {
        standardize_masked(&x[0], Some(&x[1]), Variance::Unbiased, EPS)
    });
    add(all, "standardize_masked biased", masked, 1, |x| {
        standardize_masked(&x[0], Some(&x[1]), Variance::Biased, EPS)
    });
    let given = |rest: &[&[usize]]| -> Result<Vec<Tensor>> {
        let variance = uniform(&[channels], DType::F32, 9, 0.5, 2.)?;
        Ok([drawn(&[&[dims], rest].concat())?, drawn(&[&[channels]])?, vec![variance]].concat())
    };
    add(all, "standardize_with", given(&[])?, 1, |x| standardize_with(&x[0], &x[1], &x[2], EPS));
    let affine: [&[usize]; 2] = [&[channels], &[channels]];
    add(all, "batch_norm", drawn(&[&[dims], &affine[..]].concat())?, 3, |x| {
        Ok(batch_norm(&x[0], &x[1], &x[2], EPS)?.0)
    });
    add(all, "batch_norm_with", given(&affine)?, 3, |x| {
        batch_norm_with(&x[0], &x[1], &x[2], &x[3], &x[4], EPS)
    });
    Ok(())
}

fn whitening(all: &mut Vec<Case>) -> Result<()> {
    // With three rows a channel the covariance's condition stays below some tens, which rounding meets twice: in the factor and in
    // its gradient. With fewer rows than channels it is some thousands, by the shrinkage.
    const CONDITION: f64 = 100.;
    const DEFICIENT: f64 = 1e7;
    let fixed = Shrinkage::Fixed(1e-3);
    let newton = WhitenMethod::NewtonSchulz { iterations: 5 };
    let methods = [
        ("cholesky", WhitenMethod::Cholesky, fixed, Deficient::Full),
        ("cholesky ledoit_wolf", WhitenMethod::Cholesky, Shrinkage::LedoitWolf, Deficient::Full),
        ("cholesky refuse", WhitenMethod::Cholesky, fixed, Deficient::Refuse),
        ("zca", WhitenMethod::Zca, fixed, Deficient::Full),
        ("newton_schulz", newton, fixed, Deficient::Full),
        ("cholesky oas", WhitenMethod::Cholesky, Shrinkage::Oas, Deficient::Full),
        ("zca ledoit_wolf", WhitenMethod::Zca, Shrinkage::LedoitWolf, Deficient::Full),
        ("pca", WhitenMethod::Pca, fixed, Deficient::Full),
    ];
    // The last two have fewer rows than channels: batches of 50 and width 512 are the paper's own case.
    for (rows, channels) in [(9, 3), (101, 33), (201, 65), (900, 256), (7, 33), (50, 512)] {
        let dims: [&[usize]; 1] = [&[rows, channels]];
        let name = shown(dims[0]);
        let mut add = |op: String, f: Function| {
            let case = Case::new(format!("{op} {name}"), drawn(&dims)?, 1, rows, one(f));
            let gain = if rows > channels { CONDITION } else { DEFICIENT };
            all.push(case.with_gain(gain).in_f64());
            Ok::<_, candle_core::Error>(())
        };
        add("whiten_cholesky".to_owned(), Box::new(|x| whiten_cholesky(&x[0], 1e-4)))?;
        for (what, method, shrinkage, deficient) in methods {
            // Its eigenvectors have no gradient where eigenvalues are equal, and it refuses what the rows do not span.
            let undefined = method == WhitenMethod::Pca || deficient == Deficient::Refuse;
            if undefined && rows <= channels {
                continue;
            }
            let config = WhitenConfig { method, shrinkage, deficient };
            add(format!("whiten {what}"), Box::new(move |x| whiten(&x[0], config)))?;
        }
        let whitener =
            Whitener::new(&Moments::from_rows(&drawn(&dims)?[0], None)?, WhitenConfig::default())?;
        add("whiten_with".to_owned(), Box::new(move |x| whiten_with(&x[0], &whitener)))?;
        // On the CPU by contract; `results` wants to see it beside the inputs.
        let moments = |x: &[Tensor]| {
            Moments::from_rows(&x[0], None)?.covariance(true)?.to_device(x[0].device())
        };
        let case = Case::new(format!("moments {name}"), drawn(&dims)?, 0, rows, one(moments));
        all.push(case.of_dtypes(&FLOATS[..2]));
    }
    Ok(())
}
