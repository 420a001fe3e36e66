//! What is remembered in memory, and its files.

use super::CachePlan;
use super::rows::{Rows, checksums, first_difference, is_ours, output, parts};
use crate::checkpoints::unfinished;
use crate::fingerprint::hex;
use crate::folder::named;
use candle_core::{Device, Result, Tensor, bail};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vkd_tasks::NetworkOutput;

/// After so long an unfinished file belongs to nobody any more.
const ABANDONED: Duration = Duration::from_secs(3600);

/// The answers of one teacher to one data set, in memory and, part by part, in files that several processes may read and
/// write: a file is whole or not there, and is never changed.
pub(crate) struct Answers {
    dir: PathBuf,
    key: String,
    taps: BTreeSet<String>,
    /// Images times looks: a sample id modulo this is image and look.
    modulus: u64,
    /// Bytes of answers in memory alone from which on they are written.
    pub(super) flush_from: u64,
    row_bytes: u64,
    state: Mutex<State>,
}

/// Part and row.
type Place = (usize, usize);

#[derive(Default)]
struct State {
    parts: Vec<Rows>,
    places: HashMap<u64, Place>,
    /// Parts that are in no file yet.
    fresh: Vec<usize>,
    /// Names of the files that were read or written.
    files: BTreeSet<String>,
    /// Whether any answer was compared with a computed one.
    compared: bool,
}

impl Answers {
    /// The answers of `key` under `dir`, for a data set of so many `images`.
    ///
    /// A file that is damaged or belongs to something else is removed: its rows will be computed again.
    ///
    /// # Errors
    /// A folder that can't be made or read.
    pub(super) fn open(
        dir: &Path,
        key: String,
        taps: BTreeSet<String>,
        images: usize,
        plan: &CachePlan,
    ) -> Result<Self> {
        let dir = dir.join(hex(Sha256::new_with_prefix(&key)));
        std::fs::create_dir_all(&dir).map_err(|e| named(&dir, &e))?;
        let answers = Self {
            dir,
            key,
            taps,
            modulus: images as u64 * plan.looks,
            // What a kill may cost.
            flush_from: (plan.bytes() / 16).clamp(1 << 12, 64 << 20),
            row_bytes: plan.row_bytes,
            state: Mutex::default(),
        };
        answers.read_new_files(&mut answers.lock())?;
        Ok(answers)
    }

    /// The teacher's answer to `images`: what `compute` gives, remembered where every image of the batch is.
    ///
    /// # Errors
    /// What `compute` refuses, a remembered answer with other bits than the computed one, or a failed write.
    pub(super) fn ask(
        &self,
        images: &Tensor,
        sample_ids: &[u64],
        compute: impl FnOnce() -> Result<NetworkOutput>,
    ) -> Result<NetworkOutput> {
        let ids: Vec<u64> = sample_ids.iter().map(|id| id % self.modulus).collect();
        let sums = checksums(images)?;
        if sums.len() != ids.len() {
            bail!(
                "teacher.cache: expected a sample id an image, got {} for {}",
                ids.len(),
                sums.len()
            )
        }
        let mut state = self.lock();
        let found: Vec<Option<Place>> =
            ids.iter().zip(&sums).map(|(id, sum)| state.find(*id, *sum)).collect();
        let known: Vec<Place> = found.iter().flatten().copied().collect();
        if known.len() == ids.len() && state.compared {
            return output(state.gather(&known)?, images.device());
        }
        // Whole, in the batch as it stands: the bits are those of a run without this.
        let answer = compute()?;
        let computed = parts(&answer, &self.taps)?;
        if !known.is_empty() {
            let rows: Vec<usize> = (0..ids.len()).filter(|i| found[*i].is_some()).collect();
            let (old, new) = (state.gather(&known)?, select(&computed, &rows)?);
            for (name, new) in &new {
                if let Some(row) = first_difference(new, &old[name])? {
                    bail!(
                        "teacher.cache: {}: expected the {name} that the teacher computes for sample {}, got other bits; they \
                         were made by another build or machine: remove the folder, or run without the cache",
                        self.dir.display(),
                        ids[rows[row]]
                    )
                }
            }
            state.compared = true;
        }
        let mut seen = BTreeSet::new();
        let missing: Vec<usize> =
            (0..ids.len()).filter(|i| found[*i].is_none() && seen.insert(ids[*i])).collect();
        if !missing.is_empty() {
            let rows = Rows {
                ids: missing.iter().map(|i| ids[*i]).collect(),
                images: missing.iter().map(|i| sums[*i]).collect(),
                answers: select(&computed, &missing)?,
            };
            let part = state.add(rows);
            state.fresh.push(part);
            let waiting: usize = state.fresh.iter().map(|p| state.parts[*p].ids.len()).sum();
            if waiting as u64 * self.row_bytes >= self.flush_from {
                self.write(&mut state)?;
            }
        }
        Ok(answer)
    }

    /// Writes what is in memory alone.
    ///
    /// # Errors
    /// A failed write.
    pub(crate) fn flush(&self) -> Result<()> {
        self.write(&mut self.lock())
    }

    fn write(&self, state: &mut State) -> Result<()> {
        // What another process has written in the meantime takes the place of ours.
        self.read_new_files(state)?;
        let ours: Vec<Place> = state
            .fresh
            .iter()
            .flat_map(|part| (0..state.parts[*part].ids.len()).map(move |row| (*part, row)))
            .filter(|place| state.places.get(&state.parts[place.0].ids[place.1]) == Some(place))
            .collect();
        if !ours.is_empty() {
            let rows = Rows {
                ids: ours.iter().map(|(part, row)| state.parts[*part].ids[*row]).collect(),
                images: ours.iter().map(|(part, row)| state.parts[*part].images[*row]).collect(),
                answers: state.gather(&ours)?,
            };
            let name = rows.file_name();
            rows.save(&self.dir.join(&name), &self.key)?;
            state.files.insert(name);
            state.add(rows);
        }
        for part in std::mem::take(&mut state.fresh) {
            state.parts[part] = Rows::default();
        }
        Ok(())
    }

    fn read_new_files(&self, state: &mut State) -> Result<()> {
        for entry in std::fs::read_dir(&self.dir).map_err(|e| named(&self.dir, &e))? {
            let entry = entry.map_err(|e| named(&self.dir, &e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if unfinished(&name) {
                let age = entry.metadata().and_then(|m| m.modified()).map(|t| t.elapsed());
                if matches!(age, Ok(Ok(age)) if age > ABANDONED) {
                    std::fs::remove_file(entry.path()).ok();
                }
            } else if is_ours(&name) && state.files.insert(name) {
                if let Ok(rows) = Rows::load(&entry.path(), &self.key, &self.taps) {
                    state.add(rows);
                } else {
                    std::fs::remove_file(entry.path()).ok();
                }
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        // A training that ended in an error: what it has computed serves the next one, where it can be written.
        self.flush().ok();
    }
}

impl State {
    /// The place of an answer to these very pixels.
    fn find(&self, id: u64, sum: u32) -> Option<Place> {
        let place = *self.places.get(&id)?;
        (self.parts[place.0].images[place.1] == sum).then_some(place)
    }

    fn add(&mut self, rows: Rows) -> usize {
        let part = self.parts.len();
        self.places.extend(rows.ids.iter().enumerate().map(|(row, id)| (*id, (part, row))));
        self.parts.push(rows);
        part
    }

    /// The answers at `places`, a row each.
    fn gather(&self, places: &[Place]) -> Result<BTreeMap<String, Tensor>> {
        let Some((first, _)) = places.first() else { return Ok(BTreeMap::new()) };
        let of = |name: &String| {
            let row = |(part, row): &Place| self.parts[*part].answers[name].narrow(0, *row, 1);
            let rows = places.iter().map(row).collect::<Result<Vec<_>>>()?;
            Ok((name.clone(), Tensor::cat(&rows, 0)?))
        };
        self.parts[*first].answers.keys().map(of).collect()
    }
}

/// Some rows of each tensor, as copies.
fn select(all: &BTreeMap<String, Tensor>, rows: &[usize]) -> Result<BTreeMap<String, Tensor>> {
    let rows: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
    let rows = Tensor::new(rows, &Device::Cpu)?;
    let of =
        |(name, t): (&String, &Tensor)| Ok((name.clone(), t.contiguous()?.index_select(&rows, 0)?));
    all.iter().map(of).collect()
}
