//! The key that identifies a claim, or a program in a guest.

use crate::error::CliError;

/// Draws a random key that no other claim or program has.
pub fn draw_key() -> Result<String, CliError> {
    let mut drawn = [0; 16];
    getrandom::fill(&mut drawn).map_err(|e| CliError::internal(e.to_string()))?;
    Ok(mvm_model::hex::digits(drawn))
}
