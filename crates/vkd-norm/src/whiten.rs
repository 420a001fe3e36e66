//! What a whitening is made of: method, shrinkage, and what becomes of directions without spread.

mod whitener;

pub use whitener::{Whitener, whiten_with};

/// Which matrix `W` with `Wᵀ W = S⁻¹` whitens; any two differ by a rotation from the left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WhitenMethod {
    /// `W = L⁻¹` with `S = L Lᵀ`: the cheapest; depends on the order of the channels.
    Cholesky,
    /// `W = S^(-1/2)`, symmetric: of all whitenings the one that moves the features least.
    Zca,
    /// `W = Λ^(-1/2) Vᵀ`, components in order of falling variance, in each the entry of largest magnitude positive.
    ///
    /// Its gradient exists only where the eigenvalues are distinct: see [`whiten`](crate::whiten).
    Pca,
    /// `S^(-1/2)` by a fixed number of products: ZCA up to a residual, [`Whitener::residual`].
    NewtonSchulz {
        /// Iterations, at least one; IterNorm has 5.
        iterations: usize,
    },
}

/// How a covariance `S` is shrunk, `(1 - ρ) S + ρ τ I`, with `τ = tr(S) / d` but in the last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shrinkage {
    /// A given ρ in `[0, 1]`, so that the result does not depend on the unit of the features.
    Fixed(f64),
    /// ρ estimated by Ledoit and Wolf, *A well-conditioned estimator for large-dimensional covariance matrices* (2004).
    LedoitWolf,
    /// ρ by Chen, Wiesel, Eldar and Hero, *Shrinkage algorithms for MMSE covariance estimation* (arXiv:0907.4698), for Gaussian rows.
    Oas,
    /// A given ρ in `[0, 1)` with `τ = 1`, as the W-MSE code has it: it acts on the scale of the features.
    Absolute(f64),
}

/// What becomes of directions in which nothing is spread: all but `N - 1` of them where `N <= d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deficient {
    /// Whitens all that the shrunk covariance spans to working precision; the rest, if any, gives 0.
    Full,
    /// Whitens the directions that the rows themselves span; the others give 0, whatever the shrinkage.
    ///
    /// Cholesky keeps `N - 1` channels, chosen by the largest remaining share of variance, and gives 0 for the others.
    /// Newton-Schulz factors nothing and treats this as [`Deficient::Full`].
    Truncate,
    /// An error that names N, d and the smallest pivot, unless the rows span all directions.
    Refuse,
}

/// Method, shrinkage and rank of a whitening.
///
/// The default is the method of the W-MSE code that V_kD points to, Cholesky, with its advised ε of 1e-4 taken in
/// units of the mean variance; no finite batch makes it fail.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WhitenConfig {
    /// Which whitening.
    pub method: WhitenMethod,
    /// How the covariance is shrunk.
    pub shrinkage: Shrinkage,
    /// What becomes of directions without spread.
    pub deficient: Deficient,
}

impl Default for WhitenConfig {
    fn default() -> Self {
        Self {
            method: WhitenMethod::Cholesky,
            shrinkage: Shrinkage::Fixed(1e-4),
            deficient: Deficient::Full,
        }
    }
}
