//! Sums of rows about a point, and the same about another point.

/// Of `x` less a point: count, `Σ x`, `Σ x xᵀ`, `Σ ‖x‖² x`, `Σ ‖x‖⁴`, and the squares of the rows' weights.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sums {
    pub(super) count: f64,
    pub(super) first: Vec<f64>,
    /// `d x d`.
    pub(super) second: Vec<f64>,
    pub(super) cubic: Vec<f64>,
    pub(super) quartic: f64,
    /// The count itself unless rows are weighed.
    pub(super) squares: f64,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Sums {
    pub(super) fn new(channels: usize) -> Self {
        let zero = vec![0.; channels];
        let second = vec![0.; channels * channels];
        Self { count: 0., first: zero.clone(), second, cubic: zero, quartic: 0., squares: 0. }
    }

    /// About a point that is `by` further.
    pub(super) fn shifted(&self, by: &[f64]) -> Self {
        let Self { count: n, first, second, cubic, quartic, .. } = self;
        let d = by.len();
        let moved = second.chunks_exact(d).map(|row| dot(row, by)).collect::<Vec<_>>();
        let spread = (0..d).map(|i| second[i * d + i]).sum::<f64>();
        let (square, along) = (dot(by, by), dot(by, first));
        let mut out = self.clone();
        for i in 0..d {
            out.first[i] = first[i] - n * by[i];
            out.cubic[i] =
                cubic[i] - spread * by[i] - 2. * moved[i] + 2. * along * by[i] + square * first[i]
                    - n * square * by[i];
            for j in 0..d {
                // Written so that the result is symmetric in every bit.
                out.second[i * d + j] =
                    second[i * d + j] + n * (by[i] * by[j]) - (first[i] * by[j] + by[i] * first[j]);
            }
        }
        out.quartic = quartic + 4. * dot(by, &moved) + n * square * square - 4. * dot(by, cubic)
            + 2. * spread * square
            - 4. * square * along;
        out
    }

    pub(super) fn add(&mut self, other: &Self) {
        let add = |a: &mut [f64], b: &[f64]| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        self.count += other.count;
        self.quartic += other.quartic;
        self.squares += other.squares;
        add(&mut self.first, &other.first);
        add(&mut self.second, &other.second);
        add(&mut self.cubic, &other.cubic);
    }

    pub(super) fn scale(&mut self, by: f64) {
        self.count *= by;
        self.quartic *= by;
        self.squares *= by * by;
        for part in [&mut self.first, &mut self.second, &mut self.cubic] {
            part.iter_mut().for_each(|x| *x *= by);
        }
    }

    /// Numbers of a flat form.
    pub(super) fn len(channels: usize) -> usize {
        channels * channels + 2 * channels + 3
    }

    pub(super) fn flatten(&self) -> Vec<f64> {
        let mut flat = vec![self.count];
        for part in [&self.first, &self.second, &self.cubic] {
            flat.extend_from_slice(part);
        }
        flat.extend([self.quartic, self.squares]);
        flat
    }

    pub(super) fn unflatten(flat: &[f64], channels: usize) -> Option<Self> {
        if flat.len() != Self::len(channels) {
            return None;
        }
        let (count, rest) = flat.split_first()?;
        let (first, rest) = rest.split_at(channels);
        let (second, rest) = rest.split_at(channels * channels);
        let (cubic, rest) = rest.split_at(channels);
        let [quartic, squares] = *rest else { return None };
        Some(Self {
            count: *count,
            first: first.to_vec(),
            second: second.to_vec(),
            cubic: cubic.to_vec(),
            quartic,
            squares,
        })
    }
}
