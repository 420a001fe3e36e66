//! The ops of vkd-nn.

use super::{Case, FLOATS, Function, Unary, drawn, one, shown};
use candle_core::{DType, Device, Result, Tensor};
use vkd_nn::ops::{
    Body, conv_transpose2d, conv2d, conv2d_relu, linear, modulate, modulate_relu, sublayer,
};
use vkd_nn::{
    Activation, BatchNormConfig, Context, Conv2dConfig, ConvTranspose2dConfig, Pool2dConfig,
    VarStore, avg_pool2d, batch_norm2d, cross_attention, deformable_attention, drop_path, dropout,
    gather_rows, gelu, gelu_tanh, global_avg_pool2d, max_pool2d, multi_head_attention,
    pixel_shuffle, pixel_unshuffle, relu, relu6, silu, spectral_norm, upsample_bilinear2d,
    upsample_nearest2d,
};
use vkd_testkit::uniform;

pub(super) fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    entries(&mut all)?;
    products(&mut all)?;
    attention(&mut all)?;
    convolutions(&mut all)?;
    maps(&mut all)?;
    layers(&mut all)?;
    Ok(all)
}

/// What a case of several ops in a row may be off by: a few roundings, each of what the ones before left.
const SEVERAL: f64 = 4.;

/// A factor that is no number of the half type is rounded to it before a device multiplies.
const OF_FACTOR: f64 = 1.;

/// A product in the half type itself, the gradient of rows that are picked on a device: cuBLAS may sum a few parts of it and add
/// them in that type. Their errors grow with the root of their number.
const OF_PARTS: f64 = 2.;

/// The kernel subtracts from the slopes their mean, which it takes of the rounded result: each slope has that error, and so have the
/// sums of slopes.
const OF_MEANS: f64 = 2.;

fn push(
    all: &mut Vec<Case>,
    name: String,
    shapes: &[&[usize]],
    terms: usize,
    f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<()> {
    all.push(Case::new(name, drawn(shapes)?, shapes.len(), terms, one(f)));
    Ok(())
}

fn entries(all: &mut Vec<Case>) -> Result<()> {
    let ops: [(&str, Unary); 5] = [
        ("gelu", gelu),
        ("gelu_tanh", gelu_tanh),
        ("relu", relu),
        ("relu6", relu6),
        ("silu", silu),
    ];
    for dims in [&[1][..], &[3, 37], &[300, 250]] {
        for (op, f) in ops {
            push(all, format!("{op} {}", shown(dims)), &[dims], 1, move |x| f(&x[0]))?;
        }
    }
    for dims in [[7, 33], [300, 250]] {
        let ids: Vec<u64> = (0..dims[0] as u64).collect();
        let ctx = Context::train(3, 7, ids);
        let other = ctx.clone();
        let name = shown(&dims);
        let inputs = || drawn(&[&dims]);
        let dropped = one(move |x| dropout(&x[0], 0.25, "d", &ctx));
        let path = one(move |x| drop_path(&x[0], 0.25, "p", &other));
        let cases = [
            Case::new(format!("dropout {name}"), inputs()?, 1, 1, dropped),
            Case::new(format!("drop_path {name}"), inputs()?, 1, 1, path),
        ];
        all.extend(cases.map(|case| case.with_roundings(OF_FACTOR)));
    }
    for (rows, width, picked) in [(5, 3, 7), (600, 128, 900)] {
        // Some rows several times, some never.
        let ids = Tensor::from_iter((0..picked).map(|i: u32| i * i % rows), &Device::Cpu)?;
        let inputs = [drawn(&[&[rows as usize, width]])?, vec![ids]].concat();
        let terms = picked as usize;
        let pick = |x: &[Tensor]| gather_rows(&x[0], &x[1]);
        let case = Case::new(format!("gather_rows {rows}x{width}"), inputs, 1, terms, one(pick));
        all.push(case.with_roundings(OF_PARTS));
    }
    Ok(())
}

fn products(all: &mut Vec<Case>) -> Result<()> {
    for (rows, inner, outer) in [(3, 5, 7), (129, 65, 33), (450, 96, 200)] {
        let shapes: [&[usize]; 3] = [&[rows, inner], &[outer, inner], &[outer]];
        for activation in [Activation::Identity, Activation::Gelu, Activation::Relu] {
            let name = format!("linear {rows}x{inner}x{outer} {activation:?}");
            push(all, name, &shapes, rows.max(inner), move |x| {
                linear(&x[0], &x[1], Some(&x[2]), activation)
            })?;
        }
    }
    // On a device each op of the sublayer rounds: norm, first product, attention, second product and scale forward, and as many
    // gradients backward; the sum at its end is the last rounding. As sums, these errors grow with the root of their number.
    let bodies = [
        (Body::Mlp(Activation::Gelu), 96, 96, 8.),
        (Body::Attention { heads: 2 }, 144, 48, 10. + OF_MEANS),
    ];
    for (body, inner, outer, roundings) in bodies {
        let shapes: [&[usize]; 7] =
            [&[8, 50, 48], &[48], &[48], &[inner, 48], &[inner], &[48, outer], &[48]];
        let name = format!("sublayer {body:?}");
        let mut inputs = drawn(&shapes)?;
        // As layers start, so that a product is as large as its input. Larger scores leave a softmax that is nearly one row.
        for (at, width) in [(3, 48), (5, outer)] {
            inputs[at] = (&inputs[at] / (width as f64).sqrt())?;
        }
        let block = move |x: &[Tensor]| {
            let parameters = [&x[1], &x[2], &x[3], &x[4], &x[5], &x[6]];
            sublayer(&x[0], parameters, body, 1e-6, Some(&[1.25; 8]))
        };
        let case = Case::new(name, inputs, 7, 400, one(block));
        all.push(case.with_gain(SEVERAL).with_roundings(f64::sqrt(roundings)));
    }
    Ok(())
}

fn attention(all: &mut Vec<Case>) -> Result<()> {
    let mut rounded = Vec::new();
    for (batch, tokens, width, heads) in
        [(1, 1, 6, 1), (2, 17, 24, 2), (5, 50, 192, 4), (2, 198, 192, 3)]
    {
        let name = format!("multi_head_attention {batch}x{tokens}x{width}");
        push(&mut rounded, name.clone(), &[&[batch, tokens, 3 * width]], width, move |x| {
            multi_head_attention(&x[0], None, heads)
        })?;
        for bias in [[1, heads, tokens, tokens], [batch, 1, tokens, tokens], [1, 1, 1, tokens]] {
            let shapes: [&[usize]; 2] = [&[batch, tokens, 3 * width], &bias];
            push(
                &mut rounded,
                format!("{name} with {}", shown(&bias)),
                &shapes,
                width.max(batch * tokens),
                move |x| multi_head_attention(&x[0], Some(&x[1]), heads),
            )?;
        }
    }
    for (queries, keys) in [(1, 3), (9, 70), (100, 33)] {
        let shapes: [&[usize]; 3] = [&[5, queries, 96], &[5, keys, 192], &[4, queries, keys]];
        push(
            &mut rounded,
            format!("cross_attention {queries} of {keys}"),
            &shapes,
            96.max(5 * queries),
            |x| cross_attention(&x[0], &x[1], Some(&x[2]), 4),
        )?;
    }
    all.extend(rounded.into_iter().map(|case: Case| case.with_roundings(OF_MEANS)));
    for (queries, heads, width) in [(3, 2, 5), (40, 4, 24)] {
        let inputs = vec![
            drawn(&[&[2, 62, heads, width]])?.remove(0),
            uniform(&[2, queries, heads, 2, 3, 2], DType::F32, 5, -0.1, 1.1)?,
            drawn(&[&[2, queries, heads, 2, 3]])?.remove(0),
        ];
        let sampled = |x: &[Tensor]| deformable_attention(&x[0], &[(6, 9), (2, 4)], &x[1], &x[2]);
        let name = format!("deformable_attention {queries}x{heads}x{width}");
        all.push(Case::new(name, inputs, 3, queries * 6, one(sampled)).with_gain(SEVERAL));
    }
    Ok(())
}

fn convolutions(all: &mut Vec<Case>) -> Result<()> {
    let plain = Conv2dConfig::default();
    let same = Conv2dConfig { padding: (1, 1), ..plain };
    let kinds = [
        ("3x3", 16, [32, 16, 3, 3], same),
        ("1x1", 16, [32, 16, 1, 1], plain),
        ("strided", 16, [24, 8, 3, 3], Conv2dConfig { stride: (2, 2), groups: 2, ..same }),
        ("depthwise", 32, [32, 1, 3, 3], Conv2dConfig { groups: 32, ..same }),
        ("dilated", 32, [32, 1, 3, 3], Conv2dConfig { groups: 32, dilation: (2, 2), ..same }),
    ];
    for (height, width) in [(5, 7), (26, 24)] {
        let terms = (4 * height * width).max(16 * 9);
        let mut add = |name: String, shapes: &[&[usize]], terms, f: Function| -> Result<()> {
            // The product is rounded before the bias is added; the gradient of an image is a sum of as many products as windows hold a
            // pixel, each rounded, whose errors add as those of sums do. Depthwise rounds once.
            let [taps, own] = [shapes[1][2] * shapes[1][3], shapes[1][1]];
            let bias = if shapes.len() == 3 && own > 1 { 1. } else { 0. };
            let images = if own > 1 { (taps as f64).sqrt() } else { 0. };
            let f = std::sync::Arc::new(f);
            let forward = f.clone();
            let case = Case::new(
                format!("{name}, forward"),
                drawn(shapes)?,
                0,
                terms,
                one(move |x| forward(x)),
            );
            all.push(case.of_dtypes(&FLOATS[2..]).with_roundings(bias));
            let case = Case::new(name, drawn(shapes)?, shapes.len(), terms, one(move |x| f(x)));
            all.push(case.with_roundings(bias + images));
            Ok(())
        };
        for (kind, channels, filters, config) in kinds {
            let shapes: [&[usize]; 3] = [&[4, height, width, channels], &filters, &filters[..1]];
            let name = format!("conv2d {height}x{width} {kind}");
            let op = move |x: &[Tensor]| conv2d(&x[0], &x[1], Some(&x[2]), config);
            add(name, &shapes, terms, Box::new(op))?;
        }
        let image: &[usize] = &[4, height, width, 16];
        let op = move |x: &[Tensor]| conv2d_relu(&x[0], &x[1], None, same);
        let name = format!("conv2d_relu {height}x{width}");
        add(name, &[image, &[32, 16, 3, 3]], terms, Box::new(op))?;
        let double = ConvTranspose2dConfig { stride: (2, 2), ..ConvTranspose2dConfig::default() };
        // Its windows leave the last row and column of the result alone.
        let beyond = ConvTranspose2dConfig {
            stride: (1, 1),
            dilation: (2, 2),
            output_padding: (1, 1),
            ..double
        };
        for (end, config, side) in [("", double, 2), (" beyond", beyond, 1)] {
            let filters = [16, 32, side, side];
            let shapes: [&[usize]; 3] = [image, &filters, &[32]];
            let op = move |x: &[Tensor]| conv_transpose2d(&x[0], &x[1], Some(&x[2]), config);
            let name = format!("conv_transpose2d {height}x{width}{end}");
            add(name, &shapes, 4 * terms, Box::new(op))?;
        }
    }
    Ok(())
}

fn maps(all: &mut Vec<Case>) -> Result<()> {
    for dims in [[1, 3, 5, 4], [4, 26, 24, 32]] {
        let name = shown(&dims);
        let area = dims[1] * dims[2];
        let mut add = |op: &str, f: Function| {
            let case = Case::new(format!("{op} {name}"), drawn(&[&dims])?, 1, area, one(f));
            all.push(case);
            Ok::<_, candle_core::Error>(())
        };
        let pool = Pool2dConfig { stride: (2, 2), padding: (1, 1), ..Pool2dConfig::new(3) };
        add("max_pool2d", Box::new(move |x| max_pool2d(&x[0], pool)))?;
        add("avg_pool2d", Box::new(move |x| avg_pool2d(&x[0], pool)))?;
        add("global_avg_pool2d", Box::new(|x| global_avg_pool2d(&x[0])))?;
        add("upsample_nearest2d", Box::new(|x| upsample_nearest2d(&x[0], (40, 37))))?;
        add("upsample_bilinear2d", Box::new(|x| upsample_bilinear2d(&x[0], (40, 37), false)))?;
        add(
            "upsample_bilinear2d aligned",
            Box::new(|x| upsample_bilinear2d(&x[0], (7, 11), true)),
        )?;
        add("pixel_shuffle", Box::new(|x| pixel_shuffle(&x[0], 2)))?;
    }
    for dims in [[1, 1, 1, 3], [4, 26, 24, 33]] {
        let affine = [dims[0], dims[3]];
        let shapes: [&[usize]; 3] = [&dims, &affine, &affine];
        let (name, area) = (shown(&dims), dims[1] * dims[2]);
        push(all, format!("modulate {name}"), &shapes, area, |x| modulate(&x[0], &x[1], &x[2]))?;
        push(all, format!("modulate_relu {name}"), &shapes, area, |x| {
            modulate_relu(&x[0], &x[1], &x[2])
        })?;
    }
    push(all, "pixel_unshuffle 2x6x4x3".to_owned(), &[&[2, 6, 4, 3]], 1, |x| {
        pixel_unshuffle(&x[0], 2)
    })
}

/// Layers with buffers: what they give, and what they keep.
fn layers(all: &mut Vec<Case>) -> Result<()> {
    for (rows, channels) in [(33, 5), (900, 32)] {
        let norm = move |x: &[Tensor]| {
            let store = VarStore::new(1, x[0].dtype(), x[0].device());
            let norm = batch_norm2d(channels, BatchNormConfig::default(), store.builder())?;
            let output = norm.forward(&x[0], &Context::train(0, 0, []))?;
            // Without a gradient of their own.
            let kept = store.tensors();
            let [mean, variance] = ["running_mean", "running_var"].map(|name| kept[name].copy());
            Ok(vec![output, mean?, variance?])
        };
        let inputs = drawn(&[&[rows, channels]])?;
        let case = Case::new(format!("batch_norm2d {rows}x{channels}"), inputs, 1, rows, norm);
        all.push(case.with_gain(SEVERAL));
    }
    for dims in [[5, 7], [64, 100]] {
        let sigma = move |x: &[Tensor]| {
            let store = VarStore::new(1, x[0].dtype(), x[0].device());
            let norm = spectral_norm(dims[0], store.builder())?;
            (0..3).try_for_each(|_| norm.forward(&x[0], true).map(drop))?;
            norm.forward(&x[0], false)
        };
        let case = Case::new(
            format!("spectral_norm {}", shown(&dims)),
            drawn(&[&dims])?,
            1,
            dims[1],
            one(sigma),
        );
        all.push(case.of_dtypes(&FLOATS[..2]).with_gain(SEVERAL));
    }
    Ok(())
}
