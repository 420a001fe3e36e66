//! The suite on the CPU: it holds there, finds what is wrong, and misses no op.

use super::{Case, Op, SMALL, cases, results};
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};
use std::collections::BTreeSet;
use std::sync::Arc;

fn small() -> Result<Vec<Case>> {
    Ok(cases()?.into_iter().filter(|case| case.values() <= SMALL).collect())
}

#[test]
fn it_holds_on_the_cpu() -> Result<()> {
    for case in small()? {
        for &dtype in &case.dtypes {
            let want = case.wanted(dtype)?;
            if let Err(e) = case.check(&case.op, dtype, &Device::Cpu, &want) {
                bail!("{} {dtype:?}: {e}", case.name)
            }
        }
    }
    Ok(())
}

/// A copy whose gradient is off by a share.
struct Slope(f64);

impl CustomOp1 for Slope {
    fn name(&self) -> &'static str {
        "slope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((storage.clone(), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        off(grad, self.0).map(Some)
    }
}

/// Off by a share, rounded once.
fn off(x: &Tensor, share: f64) -> Result<Tensor> {
    (x.to_dtype(DType::F64)? * (1. + share))?.to_dtype(x.dtype())
}

/// Each result of the op through `change`.
fn broken(case: &Case, change: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static) -> Op {
    let own = case.op.clone();
    Arc::new(move |x| own(x)?.iter().map(&change).collect())
}

/// Ways to be wrong that the suite must find in a case in `dtype`, each with what the message begins with.
fn faults(case: &Case, dtype: DType, want: &[Tensor]) -> Result<Vec<(&'static str, Op)>> {
    // Where roundings of a half type are allowed, no less than they can be found.
    let share = 0.01 + 2. * case.law.between(dtype);
    // Where nothing but zero is wanted, a share of it is nothing.
    let some = |all: &[Tensor]| -> Result<bool> {
        all.iter().try_fold(false, |so_far, t| {
            let sum = t.to_dtype(DType::F64)?.abs()?.sum_all()?.to_scalar::<f64>()?;
            Ok(so_far || sum > 0.)
        })
    };
    let (outputs, slopes) = want.split_at(want.len() - case.active);
    let mut found: Vec<(&str, Op)> = Vec::new();
    if some(outputs)? {
        // The tape sees the copy alone.
        let value = move |y: &Tensor| off(&y.detach(), share)? + (y - y.detach())?;
        found.push(("result", broken(case, value)));
    }
    if case.active > 0 {
        found.push(("expected a gradient", broken(case, |y| Ok(y.detach()))));
        if some(slopes)? {
            let slope = move |y: &Tensor| y.force_contiguous()?.apply_op1(Slope(share));
            found.push(("gradient of input", broken(case, slope)));
        }
    }
    Ok(found)
}

#[test]
fn it_finds_what_is_off_by_one_per_cent_or_cut() -> Result<()> {
    let (mut names, mut whole, mut accepted) = (BTreeSet::new(), 0, Vec::new());
    for case in small()? {
        for &dtype in &case.dtypes {
            let want = case.wanted(dtype)?;
            for (start, op) in faults(&case, dtype, &want)? {
                match case.check(&op, dtype, &Device::Cpu, &want) {
                    Ok(_) => accepted.push(format!("{} {dtype:?}: {start}", case.name)),
                    Err(e) => {
                        let message = vkd_train::plain(&e);
                        assert!(message.starts_with(start), "{} {dtype:?}: {message}", case.name);
                    }
                }
            }
            whole += usize::from(case.law.between(dtype) == 0.);
        }
        names.insert(case.family().to_owned());
    }
    assert!(accepted.is_empty(), "accepted though it is wrong: {accepted:#?}");
    assert!(names.len() > 60 && whole > 1000, "{} {whole}", names.len());
    Ok(())
}

/// Functions that a file hands out: the words of its `pub use` lines that begin with a small letter.
fn handed_out(text: &str) -> Vec<&str> {
    let uses = text.split("\npub use ").skip(1).filter_map(|rest| rest.split(';').next());
    let words =
        uses.flat_map(|line| line.rsplit("::").next().unwrap_or_default().split([',', '{', '}']));
    words.map(str::trim).filter(|w| w.starts_with(|c: char| c.is_ascii_lowercase())).collect()
}

#[test]
fn every_op_has_a_case() -> Result<()> {
    let files = [
        include_str!("../../../../../crates/vkd-norm/src/ops/mod.rs"),
        include_str!("../../../../../crates/vkd-loss/src/lib.rs"),
        include_str!("../../../../../crates/vkd-loss/src/baselines/mod.rs"),
        include_str!("../../../../../crates/vkd-nn/src/ops/mod.rs"),
        include_str!("../../../../../crates/vkd-ortho/src/ops/mod.rs"),
    ];
    // No ops, or ops on numbers of the host; what replicas share needs several of them; `dkd` is the sum of its parts; the last three
    // are what batch norm across replicas alone uses.
    let apart = [
        "cpu as layer_norm_rows",
        "log_sum_exp",
        "softmax_row",
        "standardize_synchronised",
        "whiten_synchronised",
        "weighted_sum",
        "dkd_parts",
        "shared_gradient",
        "shared_statistics",
        "shared_sums",
    ];
    let all = cases()?;
    let known: BTreeSet<&str> = all.iter().map(Case::family).collect();
    let mut seen = 0;
    for name in files.into_iter().flat_map(handed_out).filter(|name| !apart.contains(name)) {
        assert!(known.contains(name), "no case of {name}");
        seen += 1;
    }
    assert!(seen > 65, "{seen}");
    Ok(())
}

#[test]
fn gradients_follow_results() -> Result<()> {
    let square: Op = Arc::new(|x| Ok(vec![x[0].sqr()?, x[0].detach()]));
    let x = Tensor::new(&[3f64, -1.], &Device::Cpu)?;
    let found = results(&square, &[x], 1, 0)?;
    assert_eq!(found.len(), 3);
    assert_eq!(found[0].to_vec1::<f64>()?, [9., 1.]);
    Ok(())
}
