//! Makes flake references absolute, since the agent's working directory is not the user's.

use super::values::Pair;
use crate::error::CliError;
use mvm_model::Code;
use mvm_model::desired::is_path;
use std::collections::BTreeMap;
use std::path::Path;

/// Returns inputs to replace, with absolute paths.
pub fn absolute_inputs(inputs: &[Pair]) -> Result<BTreeMap<String, String>, CliError> {
    let absolute = |input: &Pair| Ok((input.name.clone(), absolute_flake(&input.value)?));
    inputs.iter().map(absolute).collect()
}

/// Returns the reference, with an absolute path if it is one. Errors: `flake_missing`.
pub fn absolute_flake(reference: &str) -> Result<String, CliError> {
    if !is_path(reference) {
        return Ok(reference.to_owned());
    }
    let (scheme, path) = match reference.strip_prefix("path:") {
        Some(path) => ("path:", path),
        None => ("", reference),
    };
    let found = Path::new(path).canonicalize().map_err(|cause| {
        CliError::new(Code::FlakeMissing, format!("there is no flake {path}: {cause}")).hint(
            "name a folder that holds a flake.nix, or a flake reference such as github:owner/repo; one of \
             Nix's registry is flake:NAME",
        )
    })?;
    if !found.join("flake.nix").is_file() {
        return Err(CliError::new(
            Code::FlakeMissing,
            format!("{} holds no flake.nix", found.display()),
        ));
    }
    Ok(format!("{scheme}{}", found.display()))
}
