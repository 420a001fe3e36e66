//! The suite on the CPU: it holds there, finds what is wrong, and misses no op.

use super::{Case, Op, SMALL, Unary, cases, results};
use candle_core::{DType, Device, Result, Tensor, bail};
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

/// Each result of the op through `change`.
fn broken(case: &Case, change: Unary) -> Op {
    let own = case.op.clone();
    Arc::new(move |x| own(x)?.iter().map(change).collect())
}

#[test]
fn it_finds_what_is_off_by_one_per_cent_or_cut() -> Result<()> {
    let value = |y: &Tensor| y * 1.01;
    let cut = |y: &Tensor| Ok(y.detach());
    // The value stays.
    let slope = |y: &Tensor| (y * 1.01)? - (y.detach() * 0.01)?;
    let mut names = BTreeSet::new();
    for case in small()? {
        let want = case.wanted(DType::F32)?;
        // Where nothing but zero is wanted, a share of it is nothing.
        let zero = |t: &Tensor| -> Result<bool> {
            Ok(t.to_dtype(DType::F64)?.abs()?.sum_all()?.to_scalar::<f64>()? == 0.)
        };
        let (outputs, slopes) = want.split_at(want.len() - case.active);
        let all_zero = |all: &[Tensor]| -> Result<bool> {
            all.iter().try_fold(true, |so_far, t| Ok(so_far && zero(t)?))
        };
        let mut faults: Vec<(&str, Unary)> = Vec::new();
        if !all_zero(outputs)? {
            faults.push(("a value", value));
        }
        if case.active > 0 {
            faults.push(("the tape", cut));
            if !all_zero(slopes)? {
                faults.push(("a gradient", slope));
            }
        }
        for (what, change) in faults {
            let op = broken(&case, change);
            if case.check(&op, DType::F32, &Device::Cpu, &want).is_ok() {
                bail!("{}: the suite accepts {what} that is wrong", case.name)
            }
        }
        names.insert(case.family().to_owned());
    }
    assert!(names.len() > 60, "{}", names.len());
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
