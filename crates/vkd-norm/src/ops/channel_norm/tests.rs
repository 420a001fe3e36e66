//! Batch norm and group norm: against their twins, finite differences, torch, in every layout, and at their edges.

use super::{ChannelStats, batch_norm, batch_norm_with, group_norm, reference};
use candle_core::{DType, Device, Result, Tensor, Var};
use vkd_testkit::{Golden, OpCase, Tolerance, assert_close, normal, to_f64};

const EPS: f64 = 1e-5;

fn case<'a>(what: &'a str, inputs: &'a [Tensor]) -> OpCase<'a> {
    OpCase { what, inputs, active: 3, f64_tolerance: 1e-12, f32_tolerance: 3e-6 }
}

fn inputs(dims: &[usize], seed: u64) -> Result<[Tensor; 3]> {
    let channels = dims[dims.len() - 1];
    Ok([
        (normal(dims, DType::F64, seed)? + 0.5)?,
        (normal(&[channels], DType::F64, seed + 10)? + 1.)?,
        normal(&[channels], DType::F64, seed + 20)?,
    ])
}

fn batch(x: &[Tensor]) -> Result<Tensor> {
    Ok(batch_norm(&x[0], &x[1], &x[2], EPS)?.0)
}

fn batch_twin(x: &[Tensor]) -> Result<Tensor> {
    reference::channel_norm(&x[0], x[1].dim(0)?, 1, &x[1], &x[2], EPS)
}

fn statistics(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let channels = x.dim(0)?;
    let mean = normal(&[channels], x.dtype(), 31)?;
    Ok((mean, (normal(&[channels], x.dtype(), 32)?.abs()? + 0.1)?))
}

fn with(x: &[Tensor]) -> Result<Tensor> {
    let (mean, variance) = statistics(&x[1])?;
    batch_norm_with(&x[0], &x[1], &x[2], &mean, &variance, EPS)
}

fn with_twin(x: &[Tensor]) -> Result<Tensor> {
    let (mean, variance) = statistics(&x[1])?;
    reference::batch_norm_with(&x[0], &x[1], &x[2], &mean, &variance, EPS)
}

fn group(groups: usize) -> impl Fn(&[Tensor]) -> Result<Tensor> {
    move |x| group_norm(&x[0], groups, &x[1], &x[2], EPS)
}

fn group_twin(groups: usize) -> impl Fn(&[Tensor]) -> Result<Tensor> {
    move |x| reference::channel_norm(&x[0], groups, x[0].dim(0)?, &x[1], &x[2], EPS)
}

#[test]
fn batch_norm_agrees_with_its_twin() -> Result<()> {
    for (dims, seed) in [
        (vec![2, 1], 1),
        (vec![33, 7], 2),
        (vec![2, 3, 1, 5], 3),
        (vec![1, 7, 9, 33], 4),
        (vec![3, 4, 4, 16], 5),
    ] {
        let inputs = inputs(&dims, seed)?;
        case("batch_norm", &inputs).check(batch, batch_twin)?;
        case("batch_norm_with", &inputs).check(with, with_twin)?;
    }
    case("batch_norm_with", &inputs(&[1, 7], 6)?).check(with, with_twin)
}

#[test]
fn group_norm_agrees_with_its_twin() -> Result<()> {
    for (dims, groups, seed) in [
        (vec![2, 6], 2, 1),
        (vec![1, 3, 6], 1, 2),
        (vec![3, 5, 7, 6], 3, 3),
        (vec![2, 1, 1, 12], 3, 4),
        (vec![2, 3, 3, 5], 5, 5),
    ] {
        let inputs = inputs(&dims, seed)?;
        case("group_norm", &inputs).check(group(groups), group_twin(groups))?;
    }
    Ok(())
}

#[test]
fn harness_has_teeth() -> Result<()> {
    for dims in [[2, 3, 4], [3, 7, 6]] {
        let inputs = inputs(&dims, 1)?;
        case("batch_norm", &inputs).has_teeth(batch, batch_twin)?;
        case("batch_norm_with", &inputs).has_teeth(with, with_twin)?;
        case("group_norm", &inputs).has_teeth(group(2), group_twin(2))?;
    }
    Ok(())
}

#[test]
fn group_norm_equals_torchs() -> Result<()> {
    let golden = Golden::open("nn_optim")?;
    let get = |key: &str| golden.get(&format!("group_norm.{key}"));
    let vars = ["x", "weight", "bias"].map(|key| Var::from_tensor(&get(key)?));
    let [xs, weight, bias] = vars;
    let (xs, weight, bias) = (xs?, weight?, bias?);
    let ys = group_norm(&xs, 3, &weight, &bias, 1e-5)?;
    let grads = (&ys * get("cot")?)?.sum_all()?.backward()?;
    // Sums of 24 terms of order one.
    let same = Tolerance::relative(1e-13);
    assert_close("y", &ys, &get("y")?, same)?;
    for (key, var) in [("x", &xs), ("weight", &weight), ("bias", &bias)] {
        assert_close(key, grads.get(var).unwrap(), &get(&format!("grad_{key}"))?, same)?;
    }
    Ok(())
}

#[test]
fn large_tensors_and_any_number_of_threads_give_the_same_bits() -> Result<()> {
    // Above the threshold of the parallel path, with blocks that cross from one sample to the next.
    let dims = [5, 37, 19, 24];
    let inputs = inputs(&dims, 3)?.map(|x| x.to_dtype(DType::F32));
    let [xs, weight, bias] = inputs;
    let (xs, weight, bias) = (xs?, weight?, bias?);
    let run = |groups: Option<usize>| -> Result<Vec<Tensor>> {
        let vars = [&xs, &weight, &bias].map(Var::from_tensor);
        let [x, w, b] = vars;
        let (x, w, b) = (x?, w?, b?);
        let ys = match groups {
            None => batch_norm(&x, &w, &b, EPS)?.0,
            Some(groups) => group_norm(&x, groups, &w, &b, EPS)?,
        };
        let grads = (&ys * normal(&dims, DType::F32, 9)?)?.sum_all()?.backward()?;
        let grads = [&x, &w, &b].map(|v| grads.get(v).unwrap().clone());
        Ok([ys.detach()].into_iter().chain(grads).collect())
    };
    for groups in [None, Some(6)] {
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (one, three) = (pool(1).install(|| run(groups))?, pool(3).install(|| run(groups))?);
        // Against f64 throughout.
        let wide = [&xs, &weight, &bias].map(|x| Var::from_tensor(&x.to_dtype(DType::F64)?));
        let [x, w, b] = wide;
        let (x, w, b) = (x?, w?, b?);
        let (groups, samples) = groups.map_or((24, 1), |groups| (groups, 5));
        let ys = reference::channel_norm(&x, groups, samples, &w, &b, EPS)?;
        let cotangent = normal(&dims, DType::F32, 9)?.to_dtype(DType::F64)?;
        let grads = (&ys * cotangent)?.sum_all()?.backward()?;
        let want = [ys, grads.get(&x).unwrap().clone(), grads.get(&w).unwrap().clone()];
        for (i, (one, three)) in one.iter().zip(&three).enumerate() {
            assert_close("threads", one, three, Tolerance::EXACT)?;
            if let Some(want) = want.get(i) {
                let tolerance = Tolerance::for_op(DType::F32, DType::F32, 37 * 19);
                assert_close(&format!("part {i}"), one, want, tolerance)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_mean_far_above_the_deviation_costs_what_the_input_lost() -> Result<()> {
    let xs = (normal(&[700, 5], DType::F32, 1)? + 1e4)?;
    let (w, b) = (Tensor::ones(5, DType::F32, &Device::Cpu)?, xs.narrow(0, 0, 1)?.squeeze(0)?);
    let b = b.zeros_like()?;
    let exact = batch_twin(&[&xs, &w, &b].map(|x| x.to_dtype(DType::F64).unwrap()))?;
    let (ys, stats) = batch_norm(&xs, &w, &b, EPS)?;
    assert_close("offset", &ys, &exact, Tolerance::relative(1e-6))?;
    assert!(to_f64(stats.biased())?.iter().all(|v| (v - 1.).abs() < 0.2));
    // A constant channel gives the bias.
    let constant = Tensor::full(0.1f32, (7, 5), &Device::Cpu)?;
    let ys = batch_norm(&constant, &w, &(b + 3.)?, EPS)?.0;
    assert!(to_f64(&ys)?.iter().all(|y| *y == 3.));
    Ok(())
}

#[test]
fn statistics_join_to_those_of_the_whole() -> Result<()> {
    let xs = (normal(&[40, 3], DType::F64, 1)? * 2.)?;
    let part = |start, len| ChannelStats::of("test", &xs.narrow(0, start, len)?.contiguous()?);
    let joined = ChannelStats::joined(&[part(0, 1)?, part(1, 17)?, part(18, 22)?])?;
    let whole = part(0, 40)?;
    assert_eq!(joined.rows(), 40);
    assert_close("mean", joined.mean(), whole.mean(), Tolerance::relative(1e-14))?;
    let unbiased = whole.unbiased()?;
    assert_close("variance", &joined.unbiased()?, &unbiased, Tolerance::relative(1e-13))?;
    let sent = ChannelStats::new(40, whole.mean().to_vec1()?, whole.biased().to_vec1()?)?;
    assert_eq!((sent.rows(), sent.channels()), (40, 3));
    assert_close("sent", sent.biased(), whole.biased(), Tolerance::EXACT)?;
    let other = ChannelStats::new(2, vec![0.], vec![1.])?;
    assert!(ChannelStats::joined(&[whole, other]).is_err() && ChannelStats::joined(&[]).is_err());
    assert!(ChannelStats::new(0, vec![0.], vec![1.]).is_err());
    Ok(())
}

#[test]
fn half_types_are_computed_in_f32() -> Result<()> {
    let [xs, w, b] = inputs(&[9, 4, 6], 2)?.map(|x| x.to_dtype(DType::BF16));
    let (xs, w, b) = (xs?, w?, b?);
    let wide = [&xs, &w, &b].map(|x| x.to_dtype(DType::F64).unwrap());
    let tolerance = Tolerance::for_op(DType::F32, DType::BF16, 36);
    let ys = batch_norm(&xs, &w, &b, EPS)?.0;
    assert_eq!(ys.dtype(), DType::BF16);
    assert_close("batch_norm", &ys, &batch_twin(&wide)?, tolerance)?;
    assert_close("group_norm", &group_norm(&xs, 3, &w, &b, EPS)?, &group_twin(3)(&wide)?, tolerance)
}

#[test]
fn bad_arguments_are_named() -> Result<()> {
    let xs = normal(&[3, 4], DType::F32, 1)?;
    let (w, b) = (normal(&[4], DType::F32, 2)?, normal(&[4], DType::F32, 3)?);
    let message = |r: Result<Tensor>| r.map(|_| ()).unwrap_err().to_string();
    let one = batch_norm(&xs.narrow(0, 0, 1)?, &w, &b, EPS).map(|y| y.0);
    let text = message(one);
    assert!(text.contains("batch_norm: expected at least 2 values per channel"), "{text}");
    for eps in [0., -1., f64::NAN] {
        assert!(batch_norm(&xs, &w, &b, eps).is_err() && group_norm(&xs, 2, &w, &b, eps).is_err());
    }
    for groups in [0, 3, 8] {
        let text = message(group_norm(&xs, groups, &w, &b, EPS));
        assert!(text.contains("expected groups that divide 4 channels"), "{text}");
    }
    assert!(group_norm(&xs.narrow(0, 0, 1)?.squeeze(0)?, 2, &w, &b, EPS).is_err());
    let short = b.narrow(0, 0, 3)?;
    let text = message(batch_norm(&xs, &w, &short, EPS).map(|y| y.0));
    assert!(text.contains("expected bias of shape [4], got [3]"), "{text}");
    let text = message(batch_norm_with(&xs, &w, &b, &b, &(w.abs()? * -1.)?, EPS));
    assert!(text.contains("batch_norm_with: expected a sensible variance"), "{text}");
    let tracked = Var::from_tensor(&b)?;
    assert!(batch_norm_with(&xs, &w, &b, &tracked, &w.abs()?, EPS).is_err());
    // Empty batches: nothing to normalise where statistics are given or per sample.
    let none = xs.narrow(0, 0, 0)?;
    assert_eq!(batch_norm_with(&none, &w, &b, &b, &w.abs()?, EPS)?.dims(), &[0, 4]);
    assert_eq!(group_norm(&none, 2, &w, &b, EPS)?.dims(), &[0, 4]);
    assert!(batch_norm(&none, &w, &b, EPS).is_err());
    Ok(())
}

#[test]
fn the_range_is_what_is_stated() -> Result<()> {
    let noise = (normal(&[12, 6], DType::F64, 1)?.tanh()? * 0.999)?;
    let (weight, bias) = (normal(&[6], DType::F64, 2)?, normal(&[6], DType::F64, 3)?);
    let least = f64::from(f32::MIN_POSITIVE);
    let (batch, _) = batch_norm(&noise, &weight, &bias, least)?;
    let group = group_norm(&noise, 2, &weight, &bias, least)?;
    for (dtype, size, accuracy) in
        [(DType::F32, f64::from(f32::MAX) / 2., 2e-6), (DType::F64, 1e150, 1e-13)]
    {
        let xs = (&noise * size)?.to_dtype(dtype)?;
        let (w, b) = (weight.to_dtype(dtype)?, bias.to_dtype(dtype)?);
        let allowed = Tolerance::relative(accuracy);
        assert_close("batch", &batch_norm(&xs, &w, &b, 1e-5)?.0, &batch, allowed)?;
        assert_close("group", &group_norm(&xs, 2, &w, &b, 1e-5)?, &group, allowed)?;
        let twin = reference::channel_norm(&xs, 6, 1, &w, &b, 1e-5)?;
        assert_close("twin of batch", &twin, &batch, allowed)?;
        let twin = reference::channel_norm(&xs, 2, 12, &w, &b, 1e-5)?;
        assert_close("twin of group", &twin, &group, allowed)?;
    }
    Ok(())
}
