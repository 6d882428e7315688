//! The layout of the state directory.

use crate::Result;
use crate::blocking::blocking;
use crate::error::{NodeError, io};
use mvm_identity::IdentityDir;
use mvm_identity::files;
use mvm_model::{InstanceId, Name, PoolRef};
use mvm_server::private;
use std::fs;
use std::path::{Path, PathBuf};

/// The maximum length of the root's path, in bytes. A Unix socket's path has at most 107 bytes
/// (unix(7)), and the longest one below the root is `/instances/i-xxxxxxxx/vm/incoming.sock`.
const LONGEST_ROOT: usize = 64;

/// Makes a directory and its parents, with this mode where they are new.
pub fn make_dir(path: &Path, mode: u32) -> Result<()> {
    Ok(files::make_dir(path, mode)?)
}

/// Writes a whole file. A crash leaves the old contents or the new ones.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    Ok(files::write_atomically(path, bytes, mode)?)
}

/// The state directory of one agent.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
    id: String,
}

impl StateDir {
    /// Opens or makes the state directory `path`, which only its owner may access. The error is
    /// `root_open` if others can access it and it may be another directory.
    pub fn open(path: &Path) -> Result<StateDir> {
        private::own_dir(path)?;
        let path = path.canonicalize().map_err(|e| io(format!("open {}", path.display()), e))?;
        if path.as_os_str().len() > LONGEST_ROOT {
            return Err(NodeError::RootTooLong { path, longest: LONGEST_ROOT }.into());
        }
        let file = path.join("root-id");
        let id = match fs::read_to_string(&file) {
            Ok(id) if id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit()) => id,
            Ok(_) => {
                return Err(NodeError::RootDamaged { file }.into());
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let id = crate::random::hex_digits(16)?;
                write_atomically(&file, id.as_bytes(), 0o600)?;
                id
            }
            Err(e) => return Err(io(format!("read {}", file.display()), e)),
        };
        for part in ["tenants", "instances", "templates", "jobs", "caches"] {
            make_dir(&path.join(part), 0o700)?;
        }
        Ok(StateDir { path, id })
    }

    /// Returns the directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the four hexadecimal digits that are in the names of links and tables.
    pub fn short_id(&self) -> &str {
        &self.id[..4]
    }

    /// Returns the marker in the arguments of an instance's hypervisor process.
    pub fn marker(&self, id: InstanceId) -> String {
        format!("{}{id}", self.marker_prefix())
    }

    /// Returns the prefix of all markers of this state directory.
    pub fn marker_prefix(&self) -> String {
        format!("mvm:{}:", self.id)
    }

    /// Returns the path of the agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join("agent.sock")
    }

    /// Returns the directory of the node's identity, which exists once the node has joined.
    pub fn identity(&self) -> IdentityDir {
        identity_dir(&self.path)
    }

    /// Returns the directory that holds all tenants' directories.
    pub fn tenants(&self) -> PathBuf {
        self.path.join("tenants")
    }

    /// Returns a tenant's directory.
    pub fn tenant(&self, tenant: &Name) -> PathBuf {
        self.tenants().join(tenant.as_str())
    }

    /// Returns the directory that holds all instances' directories.
    pub fn instances(&self) -> PathBuf {
        self.path.join("instances")
    }

    /// Returns the directory that holds all templates' directories.
    pub fn templates(&self) -> PathBuf {
        self.path.join("templates")
    }

    /// Returns the directory of the audit logs.
    pub fn audit(&self) -> PathBuf {
        self.path.join("audit")
    }

    /// Returns the directory that holds all jobs' directories.
    pub fn jobs(&self) -> PathBuf {
        self.path.join("jobs")
    }

    /// Returns the directory that holds all pools' caches.
    pub fn caches(&self) -> PathBuf {
        self.path.join("caches")
    }

    /// Returns the directory of one pool's caches.
    pub fn caches_of(&self, pool: &PoolRef) -> PathBuf {
        self.caches().join(pool.tenant.as_str()).join(pool.pool.as_str())
    }

    /// Returns the files of one instance.
    pub fn files(&self, id: InstanceId) -> Files {
        Files { dir: self.instances().join(id.to_string()) }
    }
}

/// Returns whether there is a state directory at `path` whose id begins with these digits.
pub(crate) fn is_root(path: &Path, short_id: &str) -> bool {
    fs::read_to_string(path.join("root-id")).is_ok_and(|id| id.starts_with(short_id))
}

/// Returns the identity of the node whose state directory is `root`.
pub fn identity_dir(root: &Path) -> IdentityDir {
    IdentityDir::new(root.join("identity"))
}

/// The files of one instance.
#[derive(Clone, Debug)]
pub struct Files {
    /// The directory that holds all of them.
    pub dir: PathBuf,
}

impl Files {
    /// Returns the hypervisor's own directory: sockets, logs, and all that a confined hypervisor
    /// can see.
    pub fn vm(&self) -> PathBuf {
        self.dir.join("vm")
    }
    /// Returns the file of the guest's memory.
    pub fn memory(&self) -> PathBuf {
        self.dir.join("memory")
    }
    /// Returns the file of a sleeping machine's device state.
    pub fn snapshot(&self) -> PathBuf {
        self.dir.join("snapshot")
    }
    /// Returns the snapshot of a machine that is being resumed, which is void once the guest has
    /// run.
    pub fn resuming(&self) -> PathBuf {
        self.dir.join("snapshot.resuming")
    }
    /// Returns the snapshot that is being written.
    pub fn snapshot_part(&self) -> PathBuf {
        self.dir.join("snapshot.part")
    }
    /// Returns the disk below the writable root.
    pub fn scratch(&self) -> PathBuf {
        self.dir.join("scratch.raw")
    }
    /// Returns the disk that the guest mounts at `/data`.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data.raw")
    }
    /// Returns the instance's copy of the pool's cache with this index.
    pub fn cache(&self, index: usize) -> PathBuf {
        self.dir.join(format!("cache-{index}.raw"))
    }
    /// Returns the disk over which host and guest exchange large pieces. It exists if the machine,
    /// or the machine of its template, was booted with it.
    pub fn window(&self) -> PathBuf {
        self.dir.join("window.raw")
    }
    /// Returns the file of the SSH host key.
    pub fn host_key(&self) -> PathBuf {
        self.dir.join("ssh_host_key")
    }
    /// Returns the known_hosts file that pins the host key.
    pub fn known_hosts(&self) -> PathBuf {
        self.dir.join("known_hosts")
    }
    /// Returns the file of the machine's id, 32 hexadecimal digits.
    pub fn machine_id(&self) -> PathBuf {
        self.dir.join("machine-id")
    }
    /// Returns the log of the guest's console.
    pub fn console(&self) -> PathBuf {
        self.vm().join("console.log")
    }
}

/// Removes a file, if it exists.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(io(format!("remove {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

/// Removes a directory with its content, which may be GiB, if it exists.
pub(crate) async fn remove_tree(path: PathBuf) -> Result<()> {
    blocking(move || remove_dir(&path)).await
}

/// Removes a directory with its content, if it exists, on the calling thread.
pub fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(io(format!("remove {}", path.display()), e))
        }
        _ => Ok(()),
    }
}
