//! Random bytes from the host's kernel.

use crate::Result;
use crate::error::InternalError;

/// Returns `N` random bytes. Errors: `internal` where the host gives none.
pub fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes).map_err(InternalError::Random)?;
    Ok(bytes)
}

/// Returns `count` random hexadecimal digits, an even number up to 64.
pub fn hex_digits(count: usize) -> Result<String> {
    let bytes = random_bytes::<32>()?;
    Ok(bytes.iter().take(count / 2).map(|b| format!("{b:02x}")).collect())
}
