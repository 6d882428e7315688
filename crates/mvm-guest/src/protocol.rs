//! Requests and replies. Each request is the first frame of a stream of its own; the reply is the
//! first frame back. What follows depends on the request.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of this protocol. 2: programs can be kept ([`Keep`]).
pub const VERSION: u32 = 2;

/// What a node asks of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Who are you? Reply: [`Hello`].
    Hello,
    /// Be this machine. Reply: nothing.
    Adopt(Box<Adopt>),
    /// Run a program. Reply: nothing, or [`Kept`] where it is kept; then frames both ways until `Exit`.
    Exec(ExecRequest),
    /// Unpack the tar archive that follows as `Data` frames up to `End`. A second reply follows.
    Put {
        /// A folder; made if it is not there.
        path: String,
        /// Whether the second reply is to be [`mvm_archive::Notes`], and not nothing. Guests of older
        /// versions do not know of it.
        #[serde(default)]
        notes: bool,
    },
    /// Send a file or folder as a tar archive: `Data` frames up to `End`, or a reply with an error.
    Get {
        /// An absolute path.
        path: String,
        /// Whether a reply with [`mvm_archive::Notes`] is to come before `End`. Guests of older
        /// versions send none.
        #[serde(default)]
        notes: bool,
    },
    /// What do you use? Reply: [`Stats`].
    Stats,
    /// Connect to a TCP port of the guest's loopback. Reply: nothing; then raw bytes both ways.
    Connect {
        /// The port.
        port: u16,
    },
    /// Mount the ext4 disk with this virtio serial. Reply: nothing. Repeating it changes nothing.
    Mount {
        /// The disk.
        serial: String,
        /// A folder; made if it is not there.
        path: String,
    },
    /// Write to the disk that is mounted there all that is to be, and let go of it. Reply: nothing,
    /// or the code `busy` while a program has files of it open.
    Unmount {
        /// The folder.
        path: String,
    },
    /// Write everything to the disks (sync(2)). Reply: nothing.
    Sync,
    /// End all programs and the machine. Reply: nothing, before it begins.
    Shutdown,
}

/// The reply: a value, or why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done; what comes back.
    Ok(serde_json::Value),
    /// Not done.
    Error {
        /// A stable code.
        code: String,
        /// Words for a person.
        message: String,
    },
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub protocol: u32,
    /// Version of the guest binary.
    pub version: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// Time since boot in ms.
    pub uptime_ms: u64,
    /// Drawn when the guest's agent began: another one knows nothing of its programs. Absent where
    /// none are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub life: Option<String>,
}

/// What makes a guest itself; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Adopt {
    /// Wall clock, nanoseconds since the Unix epoch.
    pub wall_clock_ns: Option<u64>,
    /// Host name.
    pub hostname: Option<String>,
    /// machine-id(5): 32 hexadecimal digits.
    pub machine_id: Option<String>,
    /// Fresh random bytes for the kernel's generator (random(4), RNDADDENTROPY).
    pub entropy: Option<Vec<u8>>,
    /// The network.
    pub network: Option<GuestNetwork>,
    /// SSH.
    pub ssh: Option<SshIdentity>,
}

/// The network interface's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNetwork {
    /// `10.240.20.2/24`.
    pub address: String,
    /// The default route.
    pub gateway: String,
    /// Name servers.
    pub dns: Vec<String>,
    /// Domains that short names are looked up in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// The largest packet; the card's own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The MAC address to have, where it may differ from the card's.
    pub mac: Option<String>,
}

/// The SSH server's identity.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshIdentity {
    /// The host key in OpenSSH's private format.
    pub host_key: String,
    /// Keys that may log in as root, in authorized_keys format.
    pub authorized_keys: Vec<String>,
    /// TCP port.
    pub port: u16,
}

/// The host key is a secret: it never gets into a log.
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
    /// Added to the default environment.
    pub env: BTreeMap<String, String>,
    /// Working directory; root's home where absent. Made if it is not there.
    pub cwd: Option<String>,
    /// User to run as; root where absent.
    pub user: Option<String>,
    /// A terminal, where one is wanted.
    pub tty: Option<Tty>,
    /// Whether `Stdin` frames will come; otherwise the standard input is empty.
    pub stdin: bool,
    /// It outlives its stream. A guest of protocol 1 passes this over, and replies nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
}

/// A program that outlives the stream that it was started over: its output is kept until the host
/// acknowledges it (`Ack`), and how it ended is remembered. A request with the same key attaches to
/// it, so that nothing runs twice. `End` from the host ends it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Keep {
    /// Names the program in its guest; 1 to 128 bytes, drawn by whoever starts it.
    pub key: String,
    /// The `life` that [`Hello`] told: an agent of another one refuses with `guest_restarted`, since
    /// the program may have run before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub life: Option<String>,
    /// How much of its output is there already: bytes of standard output and standard error together.
    pub offset: u64,
    /// Only attach: `not_found` where there is no such program.
    pub attach: bool,
    /// It is ended when nobody has been attached for so many seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unattended_s: Option<u64>,
}

/// The reply of a guest that keeps the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// Where the output that follows begins: at `offset`, or later where that was acknowledged.
    pub from: u64,
    /// Bytes of standard input that the program was given so far: what follows them is to be sent.
    pub input: u64,
}

/// A terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tty {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
    /// `TERM`.
    pub term: String,
}

/// How a program ended: exactly one of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit status.
    pub code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
}

impl Exit {
    /// As a shell says it: the status, or 128 and the signal.
    pub fn shell_status(self) -> i32 {
        self.code.or(self.signal.map(|signal| 128 + signal)).unwrap_or(255)
    }
}

/// What a guest uses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Memory in KiB.
    pub mem_total_kib: u64,
    /// Of it available to new programs (proc(5), MemAvailable).
    pub mem_available_kib: u64,
    /// Load averages over 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Time since boot in ms.
    pub uptime_ms: u64,
    /// CPU time spent idle, in clock ticks, all vCPUs together.
    pub cpu_idle_ticks: u64,
    /// CPU time, in clock ticks, all vCPUs together.
    pub cpu_total_ticks: u64,
    /// Size and use of the writable root in KiB.
    pub root_kib: (u64, u64),
    /// Size and use of `/data` in KiB.
    pub data_kib: Option<(u64, u64)>,
    /// Processes, threads counted too (proc(5), loadavg).
    pub processes: u64,
    /// Programs running under exec.
    pub execs: u64,
}
