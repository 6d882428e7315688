//! Requests and replies. Each request is the first frame of a stream of its own; the reply is the
//! first frame back. What follows depends on the request.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of this protocol. 2: programs can be kept ([`Keep`]).
pub const VERSION: u32 = 2;

/// A node's request to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Asks for the agent's version and identity. Reply: [`Hello`].
    Hello,
    /// Gives the guest its own identity. Reply: nothing.
    Adopt(Box<Adopt>),
    /// Runs a program. Reply: nothing, or [`ProgramPosition`] if it is kept; then frames both ways until
    /// `Exit`.
    Exec(ExecRequest),
    /// Unpacks the tar archive that follows as `Data` frames up to `End`. A second reply follows.
    Put {
        /// The folder to unpack into; made if it is missing.
        path: String,
        /// Whether the second reply shall be [`mvm_archive::Notes`] instead of nothing. Guests of
        /// older versions do not know of it.
        #[serde(default)]
        notes: bool,
    },
    /// Sends a file or folder as a tar archive: `Data` frames up to `End`, or a reply with an
    /// error.
    Get {
        /// The absolute path of the file or folder.
        path: String,
        /// Whether a reply with [`mvm_archive::Notes`] shall come before `End`. Guests of older
        /// versions send none.
        #[serde(default)]
        notes: bool,
    },
    /// Asks what the guest uses. Reply: [`Stats`].
    Stats,
    /// Connects to a TCP port of the guest's loopback. Reply: nothing; then raw bytes both ways.
    Connect {
        /// The TCP port.
        port: u16,
    },
    /// Mounts the ext4 disk with this virtio serial. Reply: nothing. Idempotent.
    Mount {
        /// The disk's virtio serial.
        serial: String,
        /// The folder to mount at; made if it is missing.
        path: String,
    },
    /// Writes everything to the disk that is mounted at a folder, and unmounts it. Reply: nothing,
    /// or the code `busy` while a program has files of it open.
    Unmount {
        /// The folder where the disk is mounted.
        path: String,
    },
    /// Writes everything to the disks (sync(2)). Reply: nothing.
    Sync,
    /// Ends all programs and the machine. Reply: nothing, before it begins.
    Shutdown,
}

/// The answer to a request: a value, or an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The request was carried out; holds the value.
    Ok(serde_json::Value),
    /// The request failed.
    Error {
        /// A stable code.
        code: String,
        /// A message for people.
        message: String,
    },
}

/// The agent's version and identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The agent's [`VERSION`].
    pub protocol: u32,
    /// Version of the guest binary.
    pub version: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// Time since boot in ms.
    pub uptime_ms: u64,
    /// Chosen when the guest's agent began: an agent with another one knows nothing of its
    /// programs. Absent if the agent keeps no programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub life: Option<String>,
}

/// What makes a clone a machine of its own; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Adopt {
    /// Wall clock, in nanoseconds since the Unix epoch.
    pub wall_clock_ns: Option<u64>,
    /// The host name.
    pub hostname: Option<String>,
    /// machine-id(5): 32 hexadecimal digits.
    pub machine_id: Option<String>,
    /// Fresh random bytes for the kernel's generator (random(4), RNDADDENTROPY).
    pub entropy: Option<Vec<u8>>,
    /// The configuration of the network card.
    pub network: Option<GuestNetwork>,
    /// The SSH server's keys and port.
    pub ssh: Option<SshIdentity>,
}

/// The network interface's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNetwork {
    /// Address of the network card with its prefix length: `10.240.20.2/24`.
    pub address: String,
    /// Address of the default router.
    pub gateway: String,
    /// Addresses of the name servers.
    pub dns: Vec<String>,
    /// Domains that short names are looked up in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// The MTU in bytes; the card's own if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The MAC address to set; the card's own if absent.
    pub mac: Option<String>,
}

/// The SSH server's identity.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshIdentity {
    /// The host key in OpenSSH's private format.
    pub host_key: String,
    /// Keys that may log in as root, in authorized_keys format.
    pub authorized_keys: Vec<String>,
    /// TCP port to listen on.
    pub port: u16,
}

/// Shows the port only: the host key is a secret and must never get into a log.
impl std::fmt::Debug for SshIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SshIdentity").field("port", &self.port).finish_non_exhaustive()
    }
}

/// A program to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecRequest {
    /// Program and arguments; the program is looked up in the guest's PATH.
    pub argv: Vec<String>,
    /// Variables added to the default environment.
    pub env: BTreeMap<String, String>,
    /// Working directory, made if it is missing; the user's home if absent.
    pub cwd: Option<String>,
    /// User to run as; root if absent.
    pub user: Option<String>,
    /// The terminal to run on; absent means pipes.
    pub tty: Option<Tty>,
    /// Whether `Stdin` frames will come; otherwise the standard input is empty.
    pub stdin: bool,
    /// Makes the program outlive its stream. A guest of protocol 1 ignores this and replies
    /// nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
}

/// A program that outlives the stream over which it was started: its output is kept until the host
/// acknowledges it (`Ack`), and how it ended is remembered. A request with the same key attaches to
/// it, so that nothing runs twice. `End` from the host ends it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Keep {
    /// Names the program in its guest; 1 to 128 bytes, chosen by the host.
    pub key: String,
    /// The `life` from [`Hello`]: an agent with another one refuses with `guest_restarted`, since
    /// the program may have run before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub life: Option<String>,
    /// How many bytes of output the host has already: standard output and standard error together.
    pub offset: u64,
    /// Whether only to attach: the error is `not_found` if the program does not exist.
    pub attach: bool,
    /// After how many seconds without an attached host the program is ended; never if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unattended_s: Option<u64>,
}

/// The reply of a guest that keeps the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProgramPosition {
    /// Offset of the output that follows: `offset`, or a later one if more was acknowledged.
    pub from: u64,
    /// How many bytes of standard input the program was given so far; the host sends those after
    /// them.
    pub input: u64,
}

/// A terminal for a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tty {
    /// Number of lines.
    pub rows: u16,
    /// Number of columns.
    pub cols: u16,
    /// Value of `TERM`.
    pub term: String,
}

/// How a program ended: exactly one of the two is present, or none if it is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit status.
    pub code: Option<i32>,
    /// The number of the signal that ended the program.
    pub signal: Option<i32>,
}

impl Exit {
    /// Returns the status as a shell reports it: the exit status, or 128 plus the signal; 255 if
    /// unknown.
    pub fn shell_status(self) -> i32 {
        self.code.or(self.signal.map(|signal| 128 + signal)).unwrap_or(255)
    }
}

/// What a guest uses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Total memory in KiB.
    pub mem_total_kib: u64,
    /// Memory available to new programs in KiB (proc(5), MemAvailable).
    pub mem_available_kib: u64,
    /// Load averages over 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Time since boot in ms.
    pub uptime_ms: u64,
    /// CPU time spent idle, in clock ticks, all vCPUs together.
    pub cpu_idle_ticks: u64,
    /// CPU time, in clock ticks, all vCPUs together.
    pub cpu_total_ticks: u64,
    /// Size and used part of the writable root in KiB.
    pub root_kib: (u64, u64),
    /// Size and used part of `/data` in KiB; absent if it is not mounted.
    pub data_kib: Option<(u64, u64)>,
    /// Number of processes, threads counted too (proc(5), loadavg).
    pub processes: u64,
    /// Number of programs started by the host that run.
    pub execs: u64,
}
