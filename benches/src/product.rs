//! A product of matrices in a floor, and what it is computed in.

use candle_core::DType;
use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

/// What a work computes in.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// Single precision.
    #[default]
    F32,
    /// bf16.
    Bf16,
}

impl Dtype {
    /// Its name in a row and in a request.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// candle's name.
    pub fn candle(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// `count` products of (m, k) and (k, n), `2 m k n` operations each: `[m, k, n, count]`, or `[m, k, n, count, "f32"]` where the
/// product is of another dtype than the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Rows of the left matrix.
    pub m: usize,
    /// What is summed over.
    pub k: usize,
    /// Columns of the right matrix.
    pub n: usize,
    /// How often it occurs.
    pub count: usize,
    /// What it is computed in; `None` as the work.
    pub dtype: Option<Dtype>,
}

impl<'de> Deserialize<'de> for Product {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_seq(Parts)
    }
}

struct Parts;

impl<'de> Visitor<'de> for Parts {
    type Value = Product;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[m, k, n, count] or [m, k, n, count, dtype]")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Product, A::Error> {
        let mut sizes = [0; 4];
        for (at, size) in sizes.iter_mut().enumerate() {
            let Some(found) = seq.next_element()? else {
                return Err(A::Error::invalid_length(at, &self));
            };
            *size = found;
        }
        let dtype = seq.next_element()?;
        if seq.next_element::<IgnoredAny>()?.is_some() {
            return Err(A::Error::invalid_length(6, &self));
        }
        let [m, k, n, count] = sizes;
        Ok(Product { m, k, n, count, dtype })
    }
}

#[cfg(test)]
mod tests {
    use super::{Dtype, Product};
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    struct Floor {
        matmuls: Vec<Product>,
    }

    fn read(line: &str) -> Result<Vec<Product>, String> {
        let floor = toml::from_str::<Floor>(&format!("matmuls = [{line}]"));
        floor.map(|floor| floor.matmuls).map_err(|e| e.to_string())
    }

    #[test]
    fn a_product_may_say_its_dtype() {
        let product = Product { m: 2, k: 3, n: 4, count: 5, dtype: None };
        let half = Product { dtype: Some(Dtype::Bf16), ..product };
        assert_eq!(read(r#"[2, 3, 4, 5], [2, 3, 4, 5, "bf16"]"#), Ok(vec![product, half]));
        for (line, part) in [
            ("[2, 3, 4]", "expected [m, k, n, count] or [m, k, n, count, dtype]"),
            (r#"[2, 3, 4, 5, "f32", 6]"#, "expected [m, k, n, count] or"),
            (r#"[2, 3, 4, 5, "f8"]"#, "expected `f32` or `bf16`"),
            ("[2, 3, 4, -5]", "expected usize"),
            (r#"[2, 3, "f32", 5]"#, "expected usize"),
            ("7", "expected [m, k, n, count] or"),
        ] {
            let message = read(line).unwrap_err();
            assert!(message.contains(part) && message.contains("line 1"), "{line}: {message}");
        }
    }
}
