//! A grid of results, arms by seeds: what may be compared with what, means, and paired differences.
//!
//! Invariants: every difference is one of two arms on the same seed; an interval is of the mean over seeds by Student's t and
//! is not there for one seed; results of one arm with different settings never meet, nor arms with different data, students,
//! trainings or teachers.

use crate::summary::Summary;
use candle_core::{Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use vkd_train::ArmResult;

/// Results by arm and seed, all of one task and data set.
pub(crate) struct Grid {
    /// Arms in the order of the report.
    pub(crate) arms: Vec<String>,
    /// The arm that others are compared with.
    pub(crate) reference: String,
    results: BTreeMap<(String, u64), ArmResult>,
}

/// One arm minus another, seed by seed.
pub(crate) struct Pair {
    pub(crate) left: String,
    pub(crate) right: String,
    pub(crate) difference: Summary,
    /// Seeds where the left one is better, equal, worse; of a metric of which more is better before it is known which.
    pub(crate) counts: [usize; 3],
}

impl Grid {
    /// A grid of `results`. Without `arms` the order is the one in which arms that people compare are usually listed.
    ///
    /// # Errors
    /// No results, two of an arm and seed, several tasks or data sets, an arm with two sets of settings,
    /// arms that differ in more than their method, or a reference that is not among the arms.
    pub(crate) fn new(
        results: Vec<ArmResult>,
        arms: Option<Vec<String>>,
        reference: Option<&str>,
    ) -> Result<Self> {
        let Some(first) = results.first().cloned() else {
            bail!("compare: expected at least one result, got none")
        };
        let mut by_place: BTreeMap<(String, u64), ArmResult> = BTreeMap::new();
        for result in results {
            let name = result.arm.name.clone();
            if (&result.task, &result.dataset) != (&first.task, &first.dataset) {
                bail!(
                    "compare: expected one task and data set, got {} on {} and {} on {}",
                    first.task,
                    first.dataset,
                    result.task,
                    result.dataset
                )
            }
            let same = |r: &&ArmResult| r.arm.name == name;
            if let Some(other) = by_place.values().find(same)
                && (&other.fingerprint, &other.arm.terms)
                    != (&result.fingerprint, &result.arm.terms)
            {
                bail!(
                    "compare: expected one setting of arm {name}, got two: seeds {} and {} differ{}",
                    other.seed,
                    result.seed,
                    difference(other, &result)
                )
            }
            for other in by_place.values() {
                let apart = apart(other, &result);
                if !apart.is_empty() {
                    bail!(
                        "compare: expected arms that share all but the method, got {} and {name}{apart}",
                        other.arm.name
                    )
                }
            }
            let seed = result.seed;
            if by_place.insert((name.clone(), seed), result).is_some() {
                bail!("compare: expected one result of arm {name} and seed {seed}, got two")
            }
        }
        let known: BTreeSet<&String> = by_place.keys().map(|(arm, _)| arm).collect();
        let arms = arms.unwrap_or_else(|| usual(&known));
        let default = if arms.iter().any(|a| a == "none") { "none" } else { arms[0].as_str() };
        let reference = reference.unwrap_or(default).to_owned();
        if !arms.contains(&reference) {
            bail!("compare: expected a reference among {}, got {reference}", arms.join(", "))
        }
        Ok(Self { arms, reference, results: by_place })
    }

    /// Any one of the results.
    pub(crate) fn first(&self) -> Option<&ArmResult> {
        self.results.values().next()
    }

    /// All results, arms in the report's order, then seeds.
    pub(crate) fn results(&self) -> impl Iterator<Item = &ArmResult> {
        self.arms.iter().flat_map(|arm| self.of(arm))
    }

    /// The results of an arm by seed.
    pub(crate) fn of<'a>(&'a self, arm: &'a str) -> impl Iterator<Item = &'a ArmResult> {
        self.results.values().filter(move |r| r.arm.name == arm)
    }

    /// Every seed of any arm.
    pub(crate) fn seeds(&self) -> BTreeSet<u64> {
        self.results.keys().map(|(_, seed)| *seed).collect()
    }

    /// The name of an arm, with its number of seeds where it lacks some that others have.
    pub(crate) fn label(&self, arm: &str) -> String {
        match (self.of(arm).count(), self.seeds().len()) {
            (n, all) if n < all => format!("{arm} (n = {n})"),
            _ => arm.to_owned(),
        }
    }

    /// A metric of an arm by seed; seeds without a finite one are left out.
    pub(crate) fn values(&self, arm: &str, metric: &str) -> BTreeMap<u64, f64> {
        let value = |r: &ArmResult| Some((r.seed, *r.arm.metrics.get(metric)?));
        self.of(arm).filter_map(value).filter(|(_, v)| v.is_finite()).collect()
    }

    /// A metric of the teachers by seed. Where any arm is known to learn from its teacher, only such arms' teachers count: a
    /// result of another arm is found again whatever teacher stood beside it.
    pub(crate) fn teacher(&self, metric: &str) -> BTreeMap<u64, f64> {
        let any = self.results().any(is_taught);
        let value = |r: &ArmResult| Some((r.seed, *r.teacher.metrics.get(metric)?));
        let counts = self.results().filter(|r| !any || is_taught(r));
        counts.filter_map(value).filter(|(_, v)| v.is_finite()).collect()
    }

    /// Differences of a metric: every arm minus the reference, `vkd` (`vkd-whiten` of GANs) minus every other, and along the paper's order every arm
    /// minus the one before it; each pair once.
    pub(crate) fn pairs(&self, metric: &str) -> Vec<Pair> {
        let others = |arm: &str| {
            let arm = arm.to_owned();
            self.arms.iter().filter(move |other| **other != arm)
        };
        let mut wanted: Vec<(&str, &str)> =
            others(&self.reference).map(|arm| (arm.as_str(), self.reference.as_str())).collect();
        let gans = self.first().is_some_and(|result| result.task == "generation");
        let (order, ours) = match gans {
            true => (PAPER_OF_GANS.as_slice(), "vkd-whiten"),
            false => (PAPER.as_slice(), "vkd"),
        };
        if self.arms.iter().any(|arm| arm == ours) {
            wanted.extend(others(ours).map(|arm| (ours, arm.as_str())));
        }
        let known = |name: &&&str| self.arms.iter().any(|arm| arm == **name);
        let chain: Vec<&str> = order.iter().filter(known).copied().collect();
        wanted.extend(chain.windows(2).map(|pair| (pair[1], pair[0])));
        let mut pairs: Vec<Pair> = Vec::new();
        for (left, right) in wanted {
            let known = |p: &Pair| {
                (p.left == left && p.right == right) || (p.left == right && p.right == left)
            };
            if !pairs.iter().any(known) {
                pairs.extend(self.pair(left, right, metric));
            }
        }
        pairs
    }

    fn pair(&self, left: &str, right: &str, metric: &str) -> Option<Pair> {
        let (a, b) = (self.values(left, metric), self.values(right, metric));
        let both: Vec<(f64, f64)> =
            a.iter().filter_map(|(seed, a)| Some((*a, *b.get(seed)?))).collect();
        let differences: Vec<f64> = both.iter().map(|(a, b)| a - b).collect();
        let count = |f: fn(&f64, &f64) -> bool| both.iter().filter(|(a, b)| f(a, b)).count();
        Some(Pair {
            left: left.to_owned(),
            right: right.to_owned(),
            difference: Summary::of(&differences)?,
            counts: [count(|a, b| a > b), count(|a, b| a == b), count(|a, b| a < b)],
        })
    }

    /// The arm's validation scores over the steps, summed up over seeds; steps that not all of its seeds have are left
    /// out.
    pub(crate) fn curve(&self, arm: &str) -> Vec<(u64, Summary)> {
        let mut by_step: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for (step, value) in self.of(arm).flat_map(|r| &r.curve) {
            by_step.entry(*step).or_default().push(*value);
        }
        let seeds = self.of(arm).count();
        let whole = by_step.into_iter().filter(|(_, values)| values.len() == seeds);
        whole.filter_map(|(step, values)| Some((step, Summary::of(&values)?))).collect()
    }

    /// Largest projector residual of an arm over all its seeds.
    pub(crate) fn residual(&self, arm: &str) -> Option<f64> {
        self.of(arm).filter_map(|r| r.arm.projector_residual_max).reduce(f64::max)
    }
}

/// What differs in the settings of two results, at most three keys.
fn difference(a: &ArmResult, b: &ArmResult) -> String {
    differing(a, b, |_| true)
}

/// What differs in what arms of one comparison share: data, student, training, and the teacher where both have one. Empty
/// where nothing does, or where the settings are not known.
fn apart(a: &ArmResult, b: &ArmResult) -> String {
    let known = !a.settings.is_empty() && !b.settings.is_empty();
    let teachers = is_taught(a) && is_taught(b);
    differing(a, b, |key| {
        let shared = ["task", "data.", "student.", "training.", "criterion."];
        known
            && (shared.iter().any(|table| key.starts_with(table))
                || teachers && key.starts_with("teacher."))
    })
}

/// Whether the settings say that the arm learnt from its teacher.
fn is_taught(result: &ArmResult) -> bool {
    result.settings.keys().any(|key| key.starts_with("teacher."))
}

fn differing(a: &ArmResult, b: &ArmResult, wanted: impl Fn(&str) -> bool) -> String {
    let keys: BTreeSet<&String> = a.settings.keys().chain(b.settings.keys()).collect();
    let show = |r: &ArmResult, key: &String| {
        r.settings.get(key).map_or("nothing".to_owned(), ToString::to_string)
    };
    let found = keys.into_iter().filter(|key| wanted(key));
    let found = found.filter(|k| a.settings.get(*k) != b.settings.get(*k));
    let found: Vec<String> =
        found.take(3).map(|k| format!("{k} is {} and {}", show(a, k), show(b, k))).collect();
    if found.is_empty() { String::new() } else { format!(": {}", found.join("; ")) }
}

/// Arms in the order that the paper expects of their scores.
const PAPER: [&str; 5] = ["none", "logits", "linear", "mlp", "vkd"];

/// The same of generation.
const PAPER_OF_GANS: [&str; 4] = ["none", "fitnet", "vkd-layernorm", "vkd-whiten"];

/// Those of the paper first, in its order, then what takes parts away from vkd, then the rest by name.
fn usual(known: &BTreeSet<&String>) -> Vec<String> {
    let gans = PAPER_OF_GANS.into_iter().filter(|name| !PAPER.contains(name));
    let first = PAPER.into_iter().chain(gans).chain(["vkd-no-norm", "vkd-as-published"]);
    let mut arms: Vec<String> = first.map(str::to_owned).filter(|a| known.contains(a)).collect();
    let rest: Vec<String> =
        known.iter().filter(|a| !arms.contains(a)).map(|a| (*a).clone()).collect();
    arms.extend(rest);
    arms
}

#[cfg(test)]
pub(crate) mod tests;
