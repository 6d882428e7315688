//! The identity of a guest: keys, machine id, entropy.

use crate::error::{InternalError, NodeError, io};
use crate::random::hex_digits;
use crate::state_dir::{Files, StateDir, make_dir, write_atomically};
use crate::{Error, Result};
use mvm_model::{InstanceId, Name};
use ssh_key::{Algorithm, LineEnding, PrivateKey};
use std::fs;
use std::path::Path;

/// Returns the public key of the tenant's SSH key pair, which is made at the first call.
pub fn tenant_key(root: &StateDir, tenant: &Name) -> Result<String> {
    let dir = root.tenant(tenant);
    make_dir(&dir, 0o700)?;
    let key = load_or_make(&dir.join("ssh_key"), &format!("mvm tenant {tenant}"))?;
    public(&key)
}

/// Returns an instance's SSH host key in OpenSSH's private format. The key is made at the first
/// call, and pinned in the instance's known_hosts file under `alias`.
pub fn host_key(files: &Files, alias: &str) -> Result<String> {
    let key = load_or_make(&files.host_key(), alias)?;
    let line = format!("{alias} {}\n", public(&key)?);
    if fs::read_to_string(files.known_hosts()).ok().as_deref() != Some(&line) {
        write_atomically(&files.known_hosts(), line.as_bytes(), 0o600)?;
    }
    let text = key.to_openssh(LineEnding::LF).map_err(key_error)?;
    Ok(text.to_string())
}

/// Returns an instance's machine-id(5), which is made at the first call.
pub fn machine_id(files: &Files) -> Result<String> {
    if let Ok(id) = fs::read_to_string(files.machine_id()) {
        return Ok(id);
    }
    let id = hex_digits(32)?;
    write_atomically(&files.machine_id(), id.as_bytes(), 0o600)?;
    Ok(id)
}

/// Returns the guest's host name: pool and id, as an RFC 1123 label.
pub fn host_name(pool: &Name, id: InstanceId) -> String {
    let digits = id.digits();
    let mut name: String = pool.as_str().chars().take(63 - 1 - digits.len()).collect();
    name.push('-');
    name.push_str(&digits);
    name
}

fn load_or_make(path: &Path, comment: &str) -> Result<PrivateKey> {
    match fs::read(path) {
        Ok(bytes) => PrivateKey::from_openssh(bytes)
            .map_err(|source| NodeError::KeyDamaged { path: path.to_owned(), source }.into()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let mut key = PrivateKey::random(&mut ssh_key::rand_core::OsRng, Algorithm::Ed25519)
                .map_err(key_error)?;
            key.set_comment(comment);
            let text = key.to_openssh(LineEnding::LF).map_err(key_error)?;
            write_atomically(path, text.as_bytes(), 0o600)?;
            Ok(key)
        }
        Err(e) => Err(io(format!("read {}", path.display()), e)),
    }
}

fn public(key: &PrivateKey) -> Result<String> {
    key.public_key().to_openssh().map_err(key_error)
}

fn key_error(cause: ssh_key::Error) -> Error {
    InternalError::SshKey(cause).into()
}
