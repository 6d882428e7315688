//! Flake references: what a pool's image is built from.
//!
//! In a document, a path may be relative to the document. Only the reader of the document knows its
//! folder, and resolves such paths. A bare name is also such a path, and not one of Nix's registry,
//! which is somewhere on the internet: that is `flake:NAME`.

use crate::error::Fault;
use mvm_code::Code;
use std::collections::BTreeMap;

/// Returns the scheme of a URL and what follows; `None` if the reference is a path.
fn url(reference: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = reference.split_once(':')?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    is_scheme.then_some((scheme, rest))
}

/// Returns the relative path of a reference, and what precedes it; `None` if the reference is not
/// relative.
fn relative(reference: &str) -> Option<(&str, &str)> {
    let (before, path) = match url(reference) {
        Some(("path", path)) => ("path:", path),
        Some(_) => return None,
        None => ("", reference),
    };
    (!path.starts_with('/')).then_some((before, path))
}

/// Returns whether a reference is a path rather than a URL that Nix looks up elsewhere.
pub fn is_path(reference: &str) -> bool {
    matches!(url(reference), None | Some(("path", _)))
}

/// Resolves a relative reference against `folder`.
pub fn rebase(reference: &mut String, folder: &str) {
    if let Some((before, path)) = relative(reference) {
        let path = path.strip_prefix("./").unwrap_or(path);
        *reference = format!("{before}{}/{path}", folder.trim_end_matches('/'));
    }
}

/// Refuses a relative reference; `path` is the JSON path of the field.
pub fn settled(reference: &str, path: &str) -> Result<(), Fault> {
    if relative(reference).is_none() {
        return Ok(());
    }
    let message = format!("{reference:?} starts nowhere: it is relative, or a name");
    let hint = "give an absolute path, or a URL such as github:owner/repo; a name of Nix's registry is \
                flake:NAME";
    Err(Fault::new(Code::InvalidValue, message).hint(hint).at(path.to_owned()))
}

/// Refuses the first relative flake reference; each comes with its position in the document.
pub(crate) fn settled_all<'a>(
    pools: impl Iterator<Item = (usize, usize, &'a String, &'a BTreeMap<String, String>)>,
) -> Result<(), Fault> {
    for (tenant, pool, flake, inputs) in pools {
        let path = format!("$.tenants[{tenant}].pools[{pool}]");
        settled(flake, &format!("{path}.flake_ref"))?;
        for (name, input) in inputs {
            settled(input, &format!("{path}.override_inputs.{name}"))?;
        }
    }
    Ok(())
}

/// Returns whether trying again is useless: somebody must change the document, the flake or the
/// machine first.
pub fn needs_a_person(code: Code) -> bool {
    matches!(
        code,
        Code::FlakeEvaluationFailed
            | Code::FlakeMissing
            | Code::Invalid
            | Code::InvalidValue
            | Code::KernelCompression
            | Code::KernelMissing
            | Code::KernelUnfit
            | Code::NixMissing
            | Code::NotAKernel
            | Code::ProfileMissing
            | Code::QuotaExceeded
            | Code::ToolMissing
    )
}
