//! The choice of map.

use crate::{cayley, householder_product, matrix_exp};
use candle_core::{Error, Result, Tensor};
use std::fmt;
use std::str::FromStr;

/// Smooth map from a free `(.., n, k)` tensor onto matrices with orthonormal columns, `n >= k`.
///
/// The names of [`Display`](fmt::Display) and [`FromStr`] are PyTorch's: `householder`, `cayley`, `matrix_exp`.
///
/// ```
/// use vkd_ortho::OrthogonalMap;
/// assert_eq!("cayley".parse::<OrthogonalMap>()?, OrthogonalMap::Cayley);
/// assert_eq!(OrthogonalMap::MatrixExp.to_string(), "matrix_exp");
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OrthogonalMap {
    /// Product of `k` reflectors: [`householder_product`]. Zero maps to minus the identity.
    Householder,
    /// Cayley transform of a skew matrix: [`cayley`]. Zero maps to the identity.
    Cayley,
    /// Exponential of a skew matrix: [`matrix_exp`]. Zero maps to the identity.
    MatrixExp,
}

impl OrthogonalMap {
    /// All maps, for tests and menus.
    pub const ALL: [Self; 3] = [Self::Householder, Self::Cayley, Self::MatrixExp];

    /// Applies the map to `raw` of shape `(.., n, k)`; see the function of the same name for all else.
    ///
    /// # Errors
    /// Those of the function.
    pub fn apply(self, raw: &Tensor) -> Result<Tensor> {
        match self {
            Self::Householder => householder_product(raw),
            Self::Cayley => cayley(raw),
            Self::MatrixExp => matrix_exp(raw),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Householder => "householder",
            Self::Cayley => "cayley",
            Self::MatrixExp => "matrix_exp",
        }
    }
}

impl fmt::Display for OrthogonalMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for OrthogonalMap {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|map| map.name() == name).ok_or_else(|| {
            Error::msg(format!(
                "orthogonal map: expected householder, cayley or matrix_exp, got {name:?}"
            ))
        })
    }
}
