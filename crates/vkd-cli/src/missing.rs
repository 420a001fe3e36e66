//! What a comparison still has to train.
//!
//! `OUT/teachers/HASH` holds a teacher for all that learn from it, `OUT/runs/ARM-seedN-HASH` an arm of a seed. The hashes are of
//! what decides them, so a recipe that changes finds whatever it has left as it was, and so does another process: each part
//! trains under a lock, and who comes second takes what the first one made.

use crate::progress::Progress;
use crate::{distill, pool};
use candle_core::{Result, bail};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use vkd_train::{ArmResult, RecipeOf, RunFolderOf, Workload, teacher_fingerprint};

/// A grid's recipe and places.
pub(crate) struct Missing<'a, W: Workload> {
    pub(crate) recipe: &'a RecipeOf<W>,
    pub(crate) data: &'a W::Data,
    /// Each arm with the hash of what decides it.
    pub(crate) fingerprints: &'a [(String, String)],
    /// Teachers and runs lie below it.
    pub(crate) out: &'a Path,
    /// Folder of the result files.
    pub(crate) results: &'a Path,
}

/// One missing result.
struct Place {
    seed: u64,
    arm: String,
    fingerprint: String,
    /// The hash of the teacher.
    teacher: String,
}

impl<W: Workload> Missing<'_, W> {
    /// Trains what has no result yet, `jobs` parts side by side.
    pub(crate) fn train(&self, seeds: &[u64], jobs: usize) -> Result<()> {
        let (mut places, mut teachers) = (Vec::new(), Vec::new());
        for &seed in seeds {
            let mut arms = Vec::new();
            for (arm, fingerprint) in self.fingerprints {
                if ArmResult::find(self.results, arm, seed, fingerprint)?.is_none() {
                    arms.push((arm.clone(), fingerprint.clone()));
                }
            }
            if !arms.is_empty() {
                let teacher = teacher_fingerprint(&self.of_seed(seed), self.data)?;
                places.extend(arms.into_iter().map(|(arm, fingerprint)| Place {
                    seed,
                    arm,
                    fingerprint,
                    teacher: teacher.clone(),
                }));
                teachers.push((seed, teacher));
            }
        }
        let (all, progress) = (self.fingerprints.len() * seeds.len(), Progress::new());
        progress.line(&format!(
            "{}: {} arms, {} seeds; {} of {all} runs found in {}, {} to train",
            self.recipe.name,
            self.fingerprints.len(),
            seeds.len(),
            all - places.len(),
            self.results.display(),
            places.len()
        ));
        // All teachers first: every arm of a seed needs its own.
        unheld_first(
            &teachers,
            jobs,
            |(_, hash)| self.held(&self.teacher_dir(hash), "teacher"),
            |(seed, hash)| {
                let run = RunFolderOf::take(&self.teacher_dir(hash), self.of_seed(*seed))?;
                distill::teacher(&run, self.data, &format!("seed {seed} teacher"), &progress)
                    .map(|_| ())
            },
        )?;
        unheld_first(
            &places,
            jobs,
            |p| self.held(&self.arm_dir(p), &p.arm),
            |place| self.arm(place, &progress),
        )
    }

    fn arm(&self, place: &Place, progress: &Progress) -> Result<()> {
        let Place { seed, arm, fingerprint, teacher } = place;
        // Another process may have come first.
        if ArmResult::find(self.results, arm, *seed, fingerprint)?.is_some() {
            return Ok(());
        }
        let recipe = RecipeOf { arms: vec![arm.clone()], ..self.of_seed(*seed) };
        let run = RunFolderOf::take(&self.arm_dir(place), recipe)?;
        run.take_teacher(&RunFolderOf::<W>::open(&self.teacher_dir(teacher))?)?;
        distill::arm(&run, arm, &format!("seed {seed} {arm}"), progress)?;
        let result = ArmResult::gather(&run, self.data, arm)?;
        if result.fingerprint != *fingerprint {
            bail!(
                "{arm}: expected the fingerprint {fingerprint} at the end as at the start, got {}: the teacher's file or the \
                 data changed meanwhile",
                result.fingerprint
            )
        }
        result.write(self.results)
    }

    /// Whether another process trains a part of a run; none where the run is not there yet.
    fn held(&self, dir: &Path, part: &str) -> Result<bool> {
        match dir.join("recipe.toml").exists() {
            true => Ok(RunFolderOf::<W>::open(dir)?.trained_by(part)?.is_some()),
            false => Ok(false),
        }
    }

    /// The students of the seed that has left most of them here, each with what it is called: results may lie in a folder of
    /// their own, without the runs that made them.
    pub(crate) fn students(&self, seeds: &[u64]) -> Result<Vec<(String, PathBuf)>> {
        let mut most = Vec::new();
        for &seed in seeds {
            let mut students = Vec::new();
            for (arm, fingerprint) in self.fingerprints {
                let dir = self.run_dir(arm, seed, fingerprint);
                if !dir.join("recipe.toml").exists() {
                    continue;
                }
                let path = RunFolderOf::<W>::open(&dir)?.arm_path(arm, "student.safetensors");
                if path.is_file() {
                    students.push((format!("{arm}, seed {seed}"), path));
                }
            }
            if students.len() > most.len() {
                most = students;
            }
        }
        Ok(most)
    }

    fn of_seed(&self, seed: u64) -> RecipeOf<W> {
        RecipeOf { seed, ..self.recipe.clone() }
    }

    fn teacher_dir(&self, hash: &str) -> PathBuf {
        self.out.join("teachers").join(hash)
    }

    fn arm_dir(&self, place: &Place) -> PathBuf {
        self.run_dir(&place.arm, place.seed, &place.fingerprint)
    }

    fn run_dir(&self, arm: &str, seed: u64, fingerprint: &str) -> PathBuf {
        self.out.join("runs").join(ArmResult::name(arm, seed, fingerprint))
    }
}

/// Does the work on each item, `jobs` at a time; last those that another process is at, which may be done by then.
fn unheld_first<T: Sync>(
    items: &[T],
    jobs: usize,
    held: impl Fn(&T) -> Result<bool> + Sync,
    work: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    let later = Mutex::new(Vec::new());
    pool::for_each(items, jobs, |item| {
        if !held(item)? {
            return work(item);
        }
        later.lock().unwrap_or_else(PoisonError::into_inner).push(item);
        Ok(())
    })?;
    let later = later.into_inner().unwrap_or_else(PoisonError::into_inner);
    pool::for_each(&later, jobs, |item| work(item))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::bail;

    #[test]
    fn what_another_process_is_at_comes_last() {
        let done = Mutex::new(Vec::new());
        let work = |n: &u32| {
            done.lock().unwrap().push(*n);
            Ok(())
        };
        unheld_first(&[1, 2, 3, 4], 1, |n| Ok(n % 2 == 1), work).unwrap();
        assert_eq!(*done.lock().unwrap(), [2, 4, 1, 3]);
        assert!(unheld_first(&[1], 1, |_| bail!("unreadable"), work).is_err());
    }
}
