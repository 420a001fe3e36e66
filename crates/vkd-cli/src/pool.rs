//! Work on several items at a time.

use candle_core::{Result, bail};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Calls `work` on each item, `jobs` at a time and in order. After a failure no further item starts; the first error is
/// returned.
pub(crate) fn for_each<'a, T: Sync>(
    items: &'a [T],
    jobs: usize,
    work: impl Fn(&'a T) -> Result<()> + Sync,
) -> Result<()> {
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let one = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(e) = work(item) {
                next.store(items.len(), Ordering::Relaxed);
                if let Ok(mut failures) = failures.lock() {
                    failures.push(vkd_train::plain(&e));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(items.len()) {
            scope.spawn(one);
        }
    });
    match failures.into_inner().unwrap_or_default().first() {
        Some(message) => bail!("{message}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_done_and_a_failure_stops_the_rest() {
        let sum = AtomicUsize::new(0);
        let add = |n: &usize| match *n {
            7 => bail!("seven"),
            n => {
                sum.fetch_add(n, Ordering::Relaxed);
                Ok(())
            }
        };
        assert!(for_each(&[1, 2, 3, 4], 3, add).is_ok());
        assert_eq!(sum.load(Ordering::Relaxed), 10);
        let message = for_each(&[1, 7, 100, 100], 1, add).unwrap_err();
        assert_eq!(
            (vkd_train::plain(&message).as_str(), sum.load(Ordering::Relaxed)),
            ("seven", 11)
        );
    }
}
