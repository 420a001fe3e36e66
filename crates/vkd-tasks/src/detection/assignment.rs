//! The cheapest one-to-one assignment.

use candle_core::{Result, bail};

/// Pairs `(row, column)` of least total cost, `min(rows, columns)` of them, by ascending row: no row and no column twice.
///
/// `costs` is row-major. Costs may be negative and are compared exactly as f64; of several assignments of the same total one is
/// returned, always the same.
///
/// Shortest augmenting paths with prices (Jonker and Volgenant, Computing 38, 1987, for rectangular matrices as in Crouse, IEEE
/// Transactions on Aerospace and Electronic Systems 52, 2016): `O(n² m)` for `n <= m`, far less where rows want different columns.
///
/// # Errors
/// Other than `rows · columns` costs, or a cost that is not finite or so large that their sums are not.
///
/// # Example
/// ```
/// let costs = [4., 1., 3., 2., 0., 5.];
/// assert_eq!(vkd_tasks::hungarian(&costs, 2, 3)?, [(0, 1), (1, 0)]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn hungarian(costs: &[f64], rows: usize, columns: usize) -> Result<Vec<(usize, usize)>> {
    if costs.len() != rows * columns {
        bail!("hungarian: expected {rows} x {columns} costs, got {}", costs.len())
    }
    if let Some(at) = costs.iter().position(|c| !c.is_finite()) {
        let (row, column) = (at / columns, at % columns);
        bail!("hungarian: expected finite costs, got {} in row {row}, column {column}", costs[at])
    }
    if rows <= columns {
        return Ok(solve(costs, rows, columns)?.into_iter().enumerate().collect());
    }
    let turned: Vec<f64> =
        (0..columns).flat_map(|c| (0..rows).map(move |r| costs[r * columns + c])).collect();
    let row_of = solve(&turned, columns, rows)?;
    let mut pairs: Vec<_> = row_of.into_iter().enumerate().map(|(c, r)| (r, c)).collect();
    pairs.sort_unstable();
    Ok(pairs)
}

/// The column of each row, for `rows <= columns`.
fn solve(costs: &[f64], rows: usize, columns: usize) -> Result<Vec<usize>> {
    // Invariant: cost − price of row − price of column is never negative, and zero on the assignment.
    let (mut row_price, mut column_price) = (vec![0.; rows], vec![0.; columns]);
    let mut row_of: Vec<Option<usize>> = vec![None; columns];
    let mut column_of = vec![usize::MAX; rows];
    for free in 0..rows {
        // Shortest path over such differences from the free row to a column that has no row.
        let (mut distance, mut previous) = (vec![f64::INFINITY; columns], vec![free; columns]);
        let mut done = vec![false; columns];
        let (mut row, mut length) = (free, 0.);
        let end = loop {
            let mut nearest: Option<usize> = None;
            for column in (0..columns).filter(|c| !done[*c]) {
                let step = costs[row * columns + column] - row_price[row] - column_price[column];
                if length + step < distance[column] {
                    distance[column] = length + step;
                    previous[column] = row;
                }
                let nearer = |other: usize| {
                    let (a, b) = (distance[column], distance[other]);
                    // Of equal ones a free column ends the search.
                    a < b || a == b && row_of[column].is_none() && row_of[other].is_some()
                };
                if distance[column].is_finite() && nearest.is_none_or(nearer) {
                    nearest = Some(column);
                }
            }
            let Some(column) = nearest else {
                bail!("hungarian: expected costs whose sums are finite")
            };
            done[column] = true;
            length = distance[column];
            match row_of[column] {
                Some(owner) => row = owner,
                None => break column,
            }
        };
        row_price[free] += length;
        for column in (0..columns).filter(|c| done[*c]) {
            let change = length - distance[column];
            column_price[column] -= change;
            if let Some(owner) = row_of[column] {
                row_price[owner] += change;
            }
        }
        // Every row on the path moves on to the column that it was left for.
        let mut column = end;
        loop {
            let row = previous[column];
            row_of[column] = Some(row);
            column = std::mem::replace(&mut column_of[row], column);
            if row == free {
                break;
            }
        }
    }
    Ok(column_of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;
    use vkd_testkit::{Golden, normal};

    fn total(costs: &[f64], columns: usize, pairs: &[(usize, usize)]) -> f64 {
        pairs.iter().map(|(r, c)| costs[r * columns + c]).sum()
    }

    fn check(costs: &[f64], rows: usize, columns: usize) -> Result<f64> {
        let pairs = hungarian(costs, rows, columns)?;
        assert_eq!(pairs.len(), rows.min(columns));
        assert!(pairs.windows(2).all(|w| w[0].0 < w[1].0), "{pairs:?}");
        let mut used: Vec<_> = pairs.iter().map(|p| p.1).collect();
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len(), pairs.len());
        Ok(total(costs, columns, &pairs))
    }

    #[test]
    fn as_cheap_as_recorded() -> Result<()> {
        let golden = Golden::open("hungarian")?;
        let mut cases = 0;
        for key in golden.keys().into_iter().filter(|k| k.ends_with(".cost")) {
            let costs = golden.get(key)?;
            let (rows, columns) = costs.dims2()?;
            let costs = costs.flatten_all()?.to_vec1::<f64>()?;
            let want = golden.get(&key.replace(".cost", ".total"))?.to_scalar::<f64>()?;
            let got = check(&costs, rows, columns)?;
            // Only the order of a sum of up to 50 terms differs; near ties are 1e-9 apart.
            let largest = costs.iter().fold(0f64, |m, c| m.max(c.abs()));
            assert!((got - want).abs() <= 1e-14 * largest, "{key}: {got} {want}");
            cases += 1;
        }
        assert_eq!(cases, 20);
        Ok(())
    }

    #[test]
    fn no_other_assignment_is_cheaper() -> Result<()> {
        fn least(costs: &[f64], columns: usize, row: usize, used: &mut Vec<usize>) -> f64 {
            if row * columns == costs.len() {
                return 0.;
            }
            let mut best = f64::INFINITY;
            for c in 0..columns {
                if !used.contains(&c) {
                    used.push(c);
                    best =
                        best.min(costs[row * columns + c] + least(costs, columns, row + 1, used));
                    used.pop();
                }
            }
            best
        }
        for seed in 0..60 {
            let (rows, columns) = (1 + seed as usize % 5, 1 + seed as usize % 7);
            let (rows, columns) = (rows.min(columns), columns);
            let mut costs = normal(&[rows * columns], DType::F64, seed)?.to_vec1::<f64>()?;
            if seed % 2 == 0 {
                // Ties.
                costs.iter_mut().for_each(|c| *c = c.round());
            }
            let want = least(&costs, columns, 0, &mut Vec::new());
            assert!((check(&costs, rows, columns)? - want).abs() < 1e-12);
            let turned: Vec<f64> = (0..columns)
                .flat_map(|c| (0..rows).map(|r| costs[r * columns + c]).collect::<Vec<_>>())
                .collect();
            assert!((check(&turned, columns, rows)? - want).abs() < 1e-12);
        }
        Ok(())
    }

    #[test]
    fn odd_input_is_refused() -> Result<()> {
        assert_eq!(hungarian(&[], 0, 5)?, []);
        assert_eq!(hungarian(&[], 3, 0)?, []);
        let message = |costs: &[f64]| hungarian(costs, 2, 2).unwrap_err().to_string();
        assert!(message(&[1.; 3]).contains("expected 2 x 2 costs, got 3"));
        assert!(message(&[1., 2., f64::NAN, 4.]).contains("got NaN in row 1, column 0"));
        Ok(())
    }
}
