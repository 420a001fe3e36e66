//! Attention with a bias, a mask, and others' keys and values.

use candle_core::{DType, Device, Result, Tensor};
use vkd_nn::ops::reference;
use vkd_nn::{cross_attention, multi_head_attention};
use vkd_testkit::{OpCase, normal};

/// Softmax over at most 150 keys of products of 8 terms; in f64 both ways round differently by some tens of units.
const F64: f64 = 1e-11;
const F32: f64 = 2e-5;

#[test]
fn a_bias_passes_the_op_harness() -> Result<()> {
    let cases: [(usize, usize, usize, &[usize]); 15] = [
        (2, 5, 2, &[2, 5, 5]),
        (2, 5, 2, &[1, 5, 5]),
        (3, 7, 2, &[3, 1, 7]),
        (3, 7, 1, &[1, 1, 7]),
        (1, 1, 1, &[1, 1, 1]),
        (1, 17, 3, &[3, 17, 17]),
        (3, 5, 2, &[3, 2, 5, 5]),
        (3, 5, 2, &[1, 2, 5, 5]),
        (3, 5, 2, &[3, 1, 5, 5]),
        (3, 5, 2, &[3, 2, 1, 5]),
        (3, 5, 2, &[1, 1, 5, 5]),
        (3, 5, 2, &[1, 1, 1, 5]),
        // More samples than sums, more queries than a block.
        (33, 2, 2, &[1, 2, 2, 2]),
        (2, 130, 1, &[1, 1, 130, 130]),
        (2, 130, 1, &[2, 1, 1, 130]),
    ];
    for (batch, tokens, heads, bias) in cases {
        let inputs =
            [normal(&[batch, tokens, 3 * 4 * heads], DType::F64, 1)?, normal(bias, DType::F64, 2)?];
        let what = format!("attention with bias {bias:?}");
        let case = OpCase {
            what: &what,
            inputs: &inputs,
            active: 2,
            f64_tolerance: F64,
            f32_tolerance: F32,
        };
        let op = |x: &[Tensor]| multi_head_attention(&x[0], Some(&x[1]), heads);
        let twin = |x: &[Tensor]| reference::multi_head_attention(&x[0], Some(&x[1]), heads);
        case.check(op, twin)?;
        if tokens == 5 && bias == [1, 2, 5, 5] {
            case.has_teeth(op, twin)?;
        }
    }
    Ok(())
}

#[test]
fn queries_on_others_pass_the_op_harness() -> Result<()> {
    for (batch, queries, keys, heads) in [(2, 3, 5, 2), (1, 7, 1, 1), (2, 1, 9, 3)] {
        let width = 3 * heads;
        let inputs = [
            normal(&[batch, queries, width], DType::F64, 1)?,
            normal(&[batch, keys, 2 * width], DType::F64, 2)?,
            normal(&[heads, queries, keys], DType::F64, 3)?,
        ];
        let what = format!("cross attention {queries} on {keys}");
        let case = OpCase {
            what: &what,
            inputs: &inputs,
            active: 3,
            f64_tolerance: F64,
            f32_tolerance: F32,
        };
        let op = |x: &[Tensor]| cross_attention(&x[0], &x[1], Some(&x[2]), heads);
        let twin = |x: &[Tensor]| reference::cross_attention(&x[0], &x[1], Some(&x[2]), heads);
        case.check(op, twin)?;
        let bare = OpCase { inputs: &inputs[..2], active: 2, ..case };
        let op = |x: &[Tensor]| cross_attention(&x[0], &x[1], None, heads);
        let twin = |x: &[Tensor]| reference::cross_attention(&x[0], &x[1], None, heads);
        bare.check(op, twin)?;
        bare.has_teeth(op, twin)?;
    }
    Ok(())
}

#[test]
fn a_masked_key_is_as_if_it_were_not_there() -> Result<()> {
    let qkv = normal(&[2, 6, 12], DType::F64, 1)?;
    let mask: Vec<f64> = (0..12).map(|i| if i % 6 < 4 { 0. } else { f64::NEG_INFINITY }).collect();
    let mask = Tensor::from_vec(mask, (2, 1, 6), &Device::Cpu)?;
    let masked = multi_head_attention(&qkv, Some(&mask), 2)?.narrow(1, 0, 4)?;
    let short = multi_head_attention(&qkv.narrow(1, 0, 4)?, None, 2)?;
    let difference = (masked - short)?.abs()?.max_all()?.to_scalar::<f64>()?;
    assert!(difference < 1e-14, "{difference}");
    let all = Tensor::full(f64::NEG_INFINITY, (2, 1, 6), &Device::Cpu)?;
    let none = multi_head_attention(&qkv, Some(&all), 2)?.flatten_all()?.to_vec1::<f64>()?;
    assert!(none.iter().all(|x| x.is_nan()), "a row without keys has no softmax");
    Ok(())
}

#[test]
fn bad_input_is_named() -> Result<()> {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu);
    let (qkv, q, kv) = (zeros(&[2, 3, 12])?, zeros(&[2, 3, 4])?, zeros(&[2, 5, 8])?);
    for result in [
        multi_head_attention(&qkv, Some(&zeros(&[3, 3])?), 2),
        multi_head_attention(&qkv, Some(&zeros(&[3, 3, 3])?), 2),
        multi_head_attention(&qkv, Some(&zeros(&[2, 1, 4])?), 2),
        multi_head_attention(&qkv, Some(&zeros(&[2, 3, 3])?.to_dtype(DType::F64)?), 2),
        multi_head_attention(&qkv, Some(&zeros(&[2, 3, 3, 3])?), 2),
        multi_head_attention(&qkv, Some(&zeros(&[2, 1, 3, 1])?), 2),
        cross_attention(&q, &zeros(&[1, 5, 8])?, None, 2),
        cross_attention(&q, &zeros(&[2, 5, 4])?, None, 2),
        cross_attention(&q, &kv, None, 0),
        cross_attention(&q, &kv.to_dtype(DType::F64)?, None, 2),
    ] {
        let message = result.map(|_| String::new()).unwrap_or_else(|e| e.to_string());
        assert!(message.contains("attention: expected"), "{message}");
    }
    assert_eq!(cross_attention(&q, &zeros(&[2, 0, 8])?, None, 2)?.dims(), [2, 3, 4]);
    assert_eq!(
        cross_attention(&zeros(&[0, 3, 4])?, &zeros(&[0, 5, 8])?, None, 2)?.dims(),
        [0, 3, 4]
    );
    Ok(())
}
