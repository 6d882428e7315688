//! The state directory: what lies where.

use crate::Result;
use crate::problem::io;
use mvm_api::Problem;
use mvm_identity::IdentityDir;
pub use mvm_identity::files::{make_dir, write_atomically};
use mvm_model::{Code, InstanceId, Name, PoolRef};
use mvm_server::private;
use std::fs;
use std::path::{Path, PathBuf};

/// A Unix socket's path has at most 107 bytes (unix(7)); the longest one below the root is
/// `/instances/i-xxxxxxxx/vm/incoming.sock`.
const LONGEST_ROOT: usize = 64;

/// The state directory of one agent.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
    id: String,
}

impl StateDir {
    /// Opens or makes the state directory `path`, which is closed to others (`root_open` where it is
    /// open, and may be anything).
    pub fn open(path: &Path) -> Result<StateDir> {
        private::own_dir(path)?;
        let path = path.canonicalize().map_err(|e| io(format!("open {}", path.display()), e))?;
        if path.as_os_str().len() > LONGEST_ROOT {
            return Err(Problem::new(
                Code::RootTooLong,
                format!(
                    "the state directory {} has {} characters; a Unix socket's path allows {LONGEST_ROOT}",
                    path.display(),
                    path.as_os_str().len()
                ),
            )
            .hint("choose a shorter --root (or MVM_ROOT)"));
        }
        let file = path.join("root-id");
        let id = match fs::read_to_string(&file) {
            Ok(id) if id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit()) => id,
            Ok(_) => {
                return Err(Problem::new(
                    Code::RootDamaged,
                    format!("{} does not hold sixteen hexadecimal digits", file.display()),
                ));
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

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Four hexadecimal digits in the names of links and tables.
    pub fn short_id(&self) -> &str {
        &self.id[..4]
    }

    /// The mark in a hypervisor process' arguments.
    pub fn marker(&self, id: InstanceId) -> String {
        format!("{}{id}", self.marker_prefix())
    }

    /// What all our marks begin with.
    pub fn marker_prefix(&self) -> String {
        format!("mvm:{}:", self.id)
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join("agent.sock")
    }

    /// The node's identity, once it has joined.
    pub fn identity(&self) -> IdentityDir {
        identity_dir(&self.path)
    }

    /// All tenants' directories.
    pub fn tenants(&self) -> PathBuf {
        self.path.join("tenants")
    }

    /// A tenant's directory.
    pub fn tenant(&self, tenant: &Name) -> PathBuf {
        self.tenants().join(tenant.as_str())
    }

    /// All instances' directories.
    pub fn instances(&self) -> PathBuf {
        self.path.join("instances")
    }

    /// All templates' directories.
    pub fn templates(&self) -> PathBuf {
        self.path.join("templates")
    }

    /// The audit logs' directory.
    pub fn audit(&self) -> PathBuf {
        self.path.join("audit")
    }

    /// All jobs' directories.
    pub fn jobs(&self) -> PathBuf {
        self.path.join("jobs")
    }

    /// All pools' caches.
    pub fn caches(&self) -> PathBuf {
        self.path.join("caches")
    }

    /// One pool's caches.
    pub fn caches_of(&self, pool: &PoolRef) -> PathBuf {
        self.caches().join(pool.tenant.as_str()).join(pool.pool.as_str())
    }

    /// The files of one instance.
    pub fn files(&self, id: InstanceId) -> Files {
        Files { dir: self.instances().join(id.to_string()) }
    }
}

/// Whether there is a state directory at `path` whose id begins with these digits.
pub(crate) fn is_root(path: &Path, short_id: &str) -> bool {
    fs::read_to_string(path.join("root-id")).is_ok_and(|id| id.starts_with(short_id))
}

/// The identity of the node whose state directory is `root`.
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
    /// The hypervisor's own directory: sockets and logs, and all that it can see when confined.
    pub fn vm(&self) -> PathBuf {
        self.dir.join("vm")
    }
    /// Guest memory.
    pub fn memory(&self) -> PathBuf {
        self.dir.join("memory")
    }
    /// Device state of a sleeping machine.
    pub fn snapshot(&self) -> PathBuf {
        self.dir.join("snapshot")
    }
    /// The snapshot of a machine that is just being resumed: void once its guest has run.
    pub fn resuming(&self) -> PathBuf {
        self.dir.join("snapshot.resuming")
    }
    /// A snapshot that is being written.
    pub fn snapshot_part(&self) -> PathBuf {
        self.dir.join("snapshot.part")
    }
    /// The disk below the writable root.
    pub fn scratch(&self) -> PathBuf {
        self.dir.join("scratch.raw")
    }
    /// The disk at `/data`.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data.raw")
    }
    /// Its copy of the pool's cache with this index.
    pub fn cache(&self, index: usize) -> PathBuf {
        self.dir.join(format!("cache-{index}.raw"))
    }
    /// The disk over which host and guest hand each other large pieces. Where it is, the machine was
    /// booted with it, or the machine that its template was made of.
    pub fn window(&self) -> PathBuf {
        self.dir.join("window.raw")
    }
    /// The SSH host key.
    pub fn host_key(&self) -> PathBuf {
        self.dir.join("ssh_host_key")
    }
    /// The known_hosts file that pins it.
    pub fn known_hosts(&self) -> PathBuf {
        self.dir.join("known_hosts")
    }
    /// The machine's id, 32 hexadecimal digits.
    pub fn machine_id(&self) -> PathBuf {
        self.dir.join("machine-id")
    }
    /// The guest's console.
    pub fn console(&self) -> PathBuf {
        self.vm().join("console.log")
    }
}

/// Removes a file that may not be there.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(io(format!("remove {}", path.display()), e))
        }
        _ => Ok(()),
    }
}

/// Removes a directory that may not be there.
pub fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(io(format!("remove {}", path.display()), e))
        }
        _ => Ok(()),
    }
}
