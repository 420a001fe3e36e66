//! Axes: a range, its ticks, and where a value lies on it. Finite for every input.

use super::html::scientific;

/// One axis.
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    /// Value and label, from low to high.
    pub(super) ticks: Vec<(f64, String)>,
}

/// Ticks that an axis aims at.
const AIM: f64 = 5.;

impl Axis {
    /// Steps from 0 to `last`.
    pub(super) fn steps(last: f64) -> Self {
        let last = last.max(1.);
        let gap = nice(last / AIM).max(1.);
        let ticks = (0..=(last / gap) as usize)
            .map(|i| (i as f64 * gap, super::html::count((i as f64 * gap) as u64)))
            .collect();
        Self { low: 0., high: last, log: false, ticks }
    }

    /// A linear axis that covers `values`, rounded out to ticks.
    pub(super) fn linear(values: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = range(values).unwrap_or((0., 1.));
        if high - low <= 1e-9 * high.abs() {
            // One value only: it lies on the upper edge, so that no percentage passes 100.
            low = high - if high == 0. { 1. } else { 0.1 * high.abs() };
        }
        let gap = nice((high - low) / AIM);
        low = (low / gap + 1e-9).floor() * gap;
        high = (high / gap - 1e-9).ceil() * gap;
        let decimals = (-gap.log10().floor()).clamp(0., 9.) as usize;
        // 2.5, 0.25, ..: one digit more.
        let decimals = decimals + usize::from(((gap * 10f64.powi(decimals as i32)) % 1.) > 1e-6);
        let n = ((high - low) / gap).round().clamp(1., 20.) as usize;
        let label = |v: f64| match v.abs() {
            a if a >= 1e6 || gap < 1e-5 => scientific(v, 2),
            _ => format!("{v:.decimals$}"),
        };
        let ticks = (0..=n).map(|i| low + i as f64 * gap).map(|v| (v, label(v))).collect();
        Self { low, high, log: false, ticks }
    }

    /// A logarithmic axis that covers the positive ones of `values`; the others lie on the lower edge.
    pub(super) fn log(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = range(values.filter(|v| *v > 0.)).unwrap_or((1e-9, 1e-8));
        let rungs: Vec<(f64, bool)> = (-320..309)
            .flat_map(|e| [1., 2., 5.].map(|m| (format!("{m}e{e}").parse().unwrap_or(0.), m == 1.)))
            .filter(|(v, _): &(f64, bool)| *v > 0. && v.is_finite())
            .collect();
        let first = rungs.iter().rposition(|(v, _)| *v <= low).unwrap_or(0);
        let last = rungs.iter().position(|(v, _)| *v >= high).unwrap_or(rungs.len() - 1);
        let (first, last) =
            if first == last { (first.saturating_sub(1), last + 1) } else { (first, last) };
        let all = rungs.get(first..=last.min(rungs.len() - 1)).unwrap_or(&[]);
        // Every rung where they are few, else powers of ten, else every so many of them.
        let powers: Vec<f64> = all.iter().filter(|(_, ten)| *ten).map(|(v, _)| *v).collect();
        let ticks: Vec<f64> = match powers.len() {
            _ if all.len() <= 9 => all.iter().map(|(v, _)| *v).collect(),
            n => powers.iter().step_by(n.div_ceil(7).max(1)).copied().collect(),
        };
        let label = |v: f64| match v {
            v if (0.0099..1e4).contains(&v) => format!("{v}"),
            v => scientific(v, 0),
        };
        let edge = |rung: Option<&(f64, bool)>, or| rung.map_or(or, |(v, _)| *v);
        Self {
            low: edge(all.first(), low),
            high: edge(all.last(), high),
            log: true,
            ticks: ticks.into_iter().map(|v| (v, label(v))).collect(),
        }
    }

    /// Where `value` lies, from 0 at the lower edge to 1.
    pub(super) fn position(&self, value: f64) -> f64 {
        let along = |v: f64| if self.log { v.max(self.low).log10() } else { v };
        let share = (along(value) - along(self.low)) / (along(self.high) - along(self.low));
        if share.is_finite() { share.clamp(0., 1.) } else { 0. }
    }
}

/// Smallest and largest of the finite values.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|v| v.is_finite()).fold(None, |range, v| {
        let (low, high) = range.unwrap_or((v, v));
        Some((v.min(low), v.max(high)))
    })
}

/// 1, 2, 2.5 or 5 times a power of ten, `gap` or the next above.
fn nice(gap: f64) -> f64 {
    let power = 10f64.powf(gap.log10().floor());
    let nice = [1., 2., 2.5, 5., 10.].iter().map(|m| m * power).find(|g| *g >= gap * 0.999);
    nice.filter(|g| g.is_finite() && *g > 0.).unwrap_or(1.)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(&Axis::steps(720.)), ["0", "200", "400", "600"]);
        assert_eq!(labels(&Axis::steps(0.)), ["0", "1"]);
        assert_eq!(labels(&Axis::steps(3.)), ["0", "1", "2", "3"]);
        let axis = Axis::linear([61., 98.].into_iter());
        assert_eq!(labels(&axis), ["60", "70", "80", "90", "100"]);
        let axis = Axis::linear([0.1, 0.45].into_iter());
        assert_eq!(labels(&axis), ["0.1", "0.2", "0.3", "0.4", "0.5"]);
        let axis = Axis::log([2e-8, 1e-6].into_iter());
        assert_eq!(labels(&axis), ["2×10⁻⁸", "5×10⁻⁸", "10⁻⁷", "2×10⁻⁷", "5×10⁻⁷", "10⁻⁶"]);
        assert_eq!(labels(&Axis::log([3e-3, 2.9].into_iter())), ["0.01", "0.1", "1"]);
    }

    #[test]
    fn odd_input_gives_finite_axes() {
        let odd = [f64::NAN, f64::INFINITY, 0., -1., 1e-320, f64::MAX, f64::MIN, 100., 1. + 1e-16];
        let mut cases: Vec<Vec<f64>> = odd.iter().map(|v| vec![*v]).collect();
        cases.extend([vec![], odd.to_vec(), vec![1., 1. + 1e-16], vec![0., 1e-300]]);
        for values in &cases {
            for axis in [
                Axis::linear(values.iter().copied()),
                Axis::log(values.iter().copied()),
                Axis::steps(values.first().copied().unwrap_or(0.).clamp(0., 1e9)),
            ] {
                assert!(axis.ticks.len() <= 21, "{values:?}");
                for v in values.iter().chain(&[0.5]) {
                    assert!((0. ..=1.).contains(&axis.position(*v)), "{values:?} {v}");
                }
            }
        }
    }
}
