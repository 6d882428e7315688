//! The error codes: one table of them all, with the meaning of each and what to do about it.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;

/// Makes the enum, the spellings and the texts of all codes from one table: under the headings of
/// docs/errors.md, what a code means, its variant, its spelling, and what to do next.
macro_rules! codes {
    ($($heading:literal {
        $($(#[doc = $meaning:literal])+ $name:ident = $text:literal: $advice:literal;)+
    })+) => {
        /// A stable, machine-readable code; scripts may depend on it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($($(#[doc = $meaning])+ $name,)+)+
        }

        impl Code {
            /// All codes, under the headings of docs/errors.md.
            pub const BY_TOPIC: &[(&str, &[Code])] = &[$(($heading, &[$(Code::$name),+])),+];

            /// Returns the code as it appears in problem documents and JSON output.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($(Code::$name => $text,)+)+
                }
            }

            /// Returns the code with this spelling; `None` if this version knows none.
            pub fn of(text: &str) -> Option<Code> {
                match text {
                    $($($text => Some(Code::$name),)+)+
                    _ => None,
                }
            }

            /// Returns what the code means and what causes it: Markdown, in sentences.
            pub fn meaning(self) -> &'static str {
                match self {
                    $($(Code::$name => concat!($($meaning),+).trim_ascii_start(),)+)+
                }
            }

            /// Returns what to do next: Markdown, in sentences.
            pub fn advice(self) -> &'static str {
                match self {
                    $($(Code::$name => $advice,)+)+
                }
            }
        }
    };
}

codes! {
    "Refused: nothing was changed" {
        /// A name is not 1 to 63 characters of `a-z 0-9 -`, or begins or ends with a hyphen.
        InvalidName = "invalid_name": "Choose another name.";
        /// A reference is not a valid `tenant/pool` or `tenant/pool/i-xxxxxxxx`.
        InvalidReference = "invalid_reference":
            "Copy it from `mvm pool list` or `mvm instance list`.";
        /// A network is not a usable IPv4 subnet, or a net id is not valid.
        InvalidNetwork = "invalid_network": "Give a private IPv4 subnet, such as 10.40.0.0/24.";
        /// A value is outside its range, or cannot be read; `path` says which.
        InvalidValue = "invalid_value": "Give a value that the message or the hint names.";
        /// A request to build an image or a disk has a value that cannot be.
        Invalid = "invalid": "Change the value that the message names.";
        /// A document cannot be read; `path` says where.
        InvalidDocument = "invalid_document": "Correct the document there.";
        /// A body is sent as something else than JSON.
        NotJson = "not_json": "Send it with `Content-Type: application/json`.";
        /// A body or an upload is longer than what is taken.
        TooLarge = "too_large": "Send less; the message names the limit.";
        /// A document has a `schema_version` that this mvm does not know.
        UnsupportedVersion = "unsupported_version":
            "Write the version that the message names, or update mvm.";
        /// Something stands twice in one document.
        Duplicate = "duplicate": "Remove one of the two.";
        /// What is asked for contradicts what is there, or belongs to somebody else.
        Conflict = "conflict": "Follow the hint: change the one or the other.";
        /// It exists already, with other properties.
        Exists = "exists": "Choose another name, or change what is there.";
        /// The subnet overlaps with that of another tenant or of the host.
        SubnetTaken = "subnet_taken": "Choose another subnet.";
        /// The subnet has fewer addresses than the quotas allow instances.
        SubnetTooSmall = "subnet_too_small": "Choose a larger subnet, or lower the quota.";
        /// The tenant's subnet has no address left.
        SubnetFull = "subnet_full": "Destroy instances, or give the tenant a larger subnet.";
        /// A quota does not allow it; the message names the quota, its limit, what is in use and
        /// what was asked.
        QuotaExceeded = "quota_exceeded": "Ask for less, or raise the quota.";
        /// A machine of this shape has more memory than the host.
        ExceedsHost = "exceeds_host": "Give the pool less memory.";
        /// As many jobs wait in the pool as may.
        QueueFull = "queue_full": "Submit it later, or allow more with `mvm pool update`.";
        /// The state of the instance or job does not allow it; the message lists what it allows.
        WrongState = "wrong_state": "Bring it into another state first, as the hint says.";
        /// The `Idempotency-Key` stands for a request with another body.
        IdempotencyKeyReused = "idempotency_key_reused": "Send a new key with each new request.";
        /// An earlier request with this `Idempotency-Key` is still served.
        IdempotencyKeyInUse = "idempotency_key_in_use": "Ask again in a moment.";
        /// The server ended while it served the request with this `Idempotency-Key`.
        IdempotencyOutcomeUnknown = "idempotency_outcome_unknown":
            "Look whether the thing is there before you ask with another key.";
        /// There is no such tenant, pool, instance, job, image, kernel or file.
        NotFound = "not_found": "List what there is.";
        /// A prefix fits several.
        Ambiguous = "ambiguous": "Give more of the digits.";
        /// Something else needs it.
        InUse = "in_use": "Remove or end first what the message names.";
        /// Somebody else holds the instance; the message names the holder, the lease and its
        /// purpose.
        Leased = "leased": "Wait for the lease's end, or take another instance.";
        /// The lease under which something was asked has ended meanwhile.
        LeaseEnded = "lease_ended": "Claim or acquire anew.";
        /// Another program listens on the port that a front is to listen on.
        PortInUse = "port_in_use":
            "Choose another port, or end what listens there: see `ss -ltnp`.";
        /// A front cannot listen at this address.
        ListenFailed = "listen_failed":
            "Name an address of this machine, in the agent's network namespace.";
        /// It is too busy: too many wait already, or somebody else is at the same thing.
        Busy = "busy": "Try again later.";
        /// A connection through a front found no instance in time, and is reset.
        WakeTimeout = "wake_timeout":
            "See `mvm instance list`; raise the pool's counts or the front's patience.";
        /// The pool has no image yet.
        NotBuilt = "not_built": "Build it: `mvm pool build`.";
        /// The caller's role, or its tenant, does not allow it; the message says which would.
        Forbidden = "forbidden": "Ask with an identity that may.";
        /// The API has no such path here.
        NoSuchRoute = "no_such_route":
            "Check the path, and that both sides are of versions that know it.";
        /// The path does not take this method.
        MethodNotAllowed = "method_not_allowed": "Send one of the methods that `Allow` names.";
        /// The route speaks a raw stream and needs an `Upgrade` header.
        UpgradeRequired = "upgrade_required": "Send `Upgrade: mvm-stream`.";
        /// The command line is not valid. The exit status is 2.
        Usage = "usage": "See `--help` of the command.";
        /// Something would be removed, and there is no terminal to ask at.
        NotConfirmed = "not_confirmed": "Give `--yes`.";
    }
    "Identities and other machines" {
        /// The process has no identity.
        IdentityMissing = "identity_missing":
            "For a node `mvm node join`, for all others `mvm ca issue`; `--identity` names \
            the directory.";
        /// The identity is of a role that cannot serve here.
        WrongIdentity = "wrong_identity":
            "A node joins with `mvm node join`; for a coordinator: `mvm ca issue --role \
            coordinator`.";
        /// The files of an identity or authority cannot be read, or do not fit together.
        IdentityDamaged = "identity_damaged":
            "Restore them from a backup, or get a new identity.";
        /// A certificate cannot be read.
        CertificateUnreadable = "certificate_unreadable":
            "Give one that mvm's authority has issued, in PEM.";
        /// A revocation list cannot be read, or is not of this authority.
        CrlInvalid = "crl_invalid": "Give the list that the authority publishes.";
        /// There is no authority in that directory.
        CaMissing = "ca_missing":
            "Make one with `mvm ca init`, or name its directory with `--dir`.";
        /// The text is not a valid join token.
        TokenInvalid = "token_invalid": "Give what `mvm node invite` prints, whole.";
        /// The join token has expired.
        TokenExpired = "token_expired": "Ask for a new one: `mvm node invite`.";
        /// The join token was used already.
        TokenUsed = "token_used":
            "If that was not you, remove the node; then ask for a new token.";
        /// The identity does not say who renews it.
        NoSigner = "no_signer": "Name an address when it is issued: `--address`.";
        /// The coordinator that was asked has no key of the authority.
        NotASigner = "not_a_signer": "Ask the one that was started with `--ca`.";
        /// The other side does not accept our certificate: it has expired, was revoked, or is of
        /// another authority.
        CertificateRefused = "certificate_refused":
            "Get a certificate of the same authority that is good: see \
            [identity](identity.md).";
        /// We do not trust the other side: its certificate is not good, or somebody else answers
        /// there.
        PeerUntrusted = "peer_untrusted":
            "Check the address, and that both sides are of the same authority.";
        /// A certificate that was good when the connection began has expired since.
        CertificateExpired = "certificate_expired": "Connect anew, with one that is good.";
        /// A certificate that was good when the connection began was revoked since.
        CertificateRevoked = "certificate_revoked": "Get a new identity.";
        /// What answers there does not speak TLS 1.3 as mvm does.
        TlsFailed = "tls_failed":
            "Check the address: the agent serves TLS 1.3 at what `--listen` says.";
    }
    "Fleets" {
        /// No coordinator serves this root, and none is named.
        CoordinatorUnreachable = "coordinator_unreachable":
            "Name one with `--coordinator`, or start one: `mvm coordinator serve`.";
        /// The agent or coordinator takes connections and has answered none for 40 s: it was
        /// stopped, or hangs.
        AgentSilent = "agent_silent":
            "See the process with ps(1); what was asked may still be carried out.";
        /// No coordinator leads now. `mvm` asks again for `--patience`.
        NoLeader = "no_leader": "Ask again; see `mvm fleet status`.";
        /// The coordinator that was asked does not lead any more. `mvm` asks again for
        /// `--patience`.
        LeaderChanged = "leader_changed": "Ask again.";
        /// The coordinator was just started and has not read the store yet.
        NotReady = "not_ready": "Ask again in a moment.";
        /// The node that has it is out of reach, or no node in reach has the pool. `mvm` waits
        /// for it.
        NodeUnreachable = "node_unreachable": "See `mvm fleet nodes`.";
        /// No node had a machine for the claim in time, or those that were asked had none.
        NoMachine = "no_machine":
            "See `mvm fleet status`; raise the pool's counts or the claim's patience.";
        /// The node was lost while it served the claim, or the machine of an earlier request for
        /// it is being given back.
        ClaimLost = "claim_lost": "Claim again, with another `Idempotency-Key`.";
        /// An earlier request for the same claim (its `Idempotency-Key`) is still served.
        ClaimUnderWay = "claim_under_way": "Ask again.";
        /// The claim was asked for once more (`again`), and is not there.
        ClaimEnded = "claim_ended": "Claim anew.";
        /// The leader that asks the node has been succeeded by another.
        StaleLeader = "stale_leader": "Nothing: the new leader asks.";
        /// The node is of another fleet than the leader that asks it.
        OtherFleet = "other_fleet": "Give the node a state directory of its own.";
        /// A node does not answer the coordinator in time.
        Timeout = "timeout": "See `mvm fleet nodes`, and the node's log.";
    }
    "Images and kernels" {
        /// Nix, which building needs, is not installed.
        NixMissing = "nix_missing": "Install it; the message names the package.";
        /// A program that building needs is not installed.
        ToolMissing = "tool_missing": "Install the package that the message names.";
        /// There is no flake there.
        FlakeMissing = "flake_missing": "Name a folder or URL that has a `flake.nix`.";
        /// The flake has no such attribute.
        ProfileMissing = "profile_missing": "Choose one of those that the message lists.";
        /// The flake is a git repository of another user, which git does not read.
        FlakeForeign = "flake_foreign": "Have it read as the message says.";
        /// Nix could not build the flake, or could not fetch what it needs; the message has Nix's
        /// own words.
        FlakeBuildFailed = "flake_build_failed":
            "Mend the flake, or try again if it was the network.";
        /// Nix cannot make sense of the flake, and will not the next time either; the message has
        /// Nix's own words.
        FlakeEvaluationFailed = "flake_evaluation_failed": "Mend the flake.";
        /// Builders cannot be put into a sandbox here, and nothing is built outside of one.
        SandboxUnavailable = "sandbox_unavailable":
            "Allow namespaces as the message says, or build on another node.";
        /// The flake wants to build outside of the sandbox (`__noChroot`).
        SandboxRefused = "sandbox_refused":
            "Change the flake, or start the agent with `--nix-sandbox relaxed`.";
        /// The file is not a Linux kernel.
        NotAKernel = "not_a_kernel": "Give a `vmlinux` or `bzImage`.";
        /// The kernel is compressed in a way that mvm cannot unpack.
        KernelCompression = "kernel_compression": "Give another kernel, or its `vmlinux`.";
        /// The kernel lacks what a guest needs; the message says what.
        KernelUnfit = "kernel_unfit": "Give a kernel that has it.";
        /// There is no kernel yet.
        KernelMissing = "kernel_missing": "Fetch or import one: `mvm kernel --help`.";
        /// Fetching the kernel failed; the message says where it stopped.
        KernelFetchFailed = "kernel_fetch_failed": "Try again, or import a file.";
        /// There is no such image any more.
        RevisionMissing = "revision_missing": "See `mvm image list`; build it anew.";
        /// An image is not whole.
        ImageDamaged = "image_damaged": "Build it anew: `mvm pool build`.";
        /// The pool's `--prewarm` command ended badly in the guest; the message has its last
        /// words.
        PrewarmFailed = "prewarm_failed": "Change it: `mvm pool update --prewarm`.";
        /// What another node offers is not the image that is wanted.
        ImageRefused = "image_refused": "See that both nodes run the same version of mvm.";
        /// A file of an image came with other bytes than its digest says, and was thrown away.
        ImageCorrupt = "image_corrupt": "Try again.";
        /// A program that the build ran has failed.
        ToolFailed = "tool_failed": "Read its last words in the message.";
        /// The build was ended, by somebody or with the agent.
        Interrupted = "interrupted": "Build it again.";
    }
    "Machines and guests" {
        /// QEMU is not installed.
        QemuNotFound = "qemu_not_found": "Install it; `mvm doctor` names what is missing.";
        /// QEMU does not work here.
        QemuUnusable = "qemu_unusable": "See `mvm doctor`.";
        /// KVM is wanted (`mvm agent serve --accelerator kvm`), or a machine that began under KVM
        /// needs it, and this host does not offer it; the message says why.
        KvmUnavailable = "kvm_unavailable":
            "See `mvm doctor --production`; `mvm agent probe` tries KVM again.";
        /// The machine began on another CPU than this host has, and cannot go on here; the message
        /// names both. It still sleeps.
        CpuDiffers = "cpu_differs":
            "Wake it on a host with such a CPU, or destroy it and start another.";
        /// No machine with this CPU model can be started here: QEMU does not know the name, or the
        /// host's CPU lacks features of the model; the message says which. What sleeps still sleeps.
        CpuModelUnavailable = "cpu_model_unavailable":
            "Use `--cpu-model host` or another model, or a node that offers this one.";
        /// The machine's process could not be started.
        SpawnFailed = "spawn_failed": "Read the system's words in the message.";
        /// The machine ended while it booted; the message has its last lines.
        DiedAtBoot = "died_at_boot": "See the instance's console: `mvm instance logs`.";
        /// The machine ended by itself; the message has its last lines.
        MachineDied = "machine_died": "See `mvm instance info`; start it again.";
        /// A machine like this cannot be: it has too much memory for the host, say.
        InvalidSpec = "invalid_spec": "Change the pool's shape.";
        /// QEMU does not answer.
        QmpTimeout = "qmp_timeout":
            "See the load of the host; destroy the instance if it stays so.";
        /// QEMU refuses a command.
        QmpFailed = "qmp_failed": "Read its words in the message.";
        /// The machine could not be put to sleep: it is as it was.
        SnapshotFailed = "snapshot_failed": "Read the cause in the message, and try again.";
        /// A snapshot needs a machine that is paused.
        NotPaused = "not_paused": "Try again; report it if it comes back.";
        /// The tap of a live machine was deleted ([network](network.md#links-that-vanish)), and
        /// the machine failed.
        NetworkLost = "network_lost": "Start it again.";
        /// The snapshot does not load: the instance stays asleep.
        RestoreFailed = "restore_failed":
            "Read the cause in the message; destroy the instance if it stays so.";
        /// A process is another's than the record says.
        NotOurs = "not_ours": "Nothing was ended; see the message.";
        /// The machine's process is still there.
        AlreadyRunning = "already_running": "Try again in a moment.";
        /// The machine's process has ended.
        Gone = "gone": "See `mvm instance info`.";
        /// A test asked the simulated driver for a fault.
        Injected = "injected": "Nothing: it only comes in tests.";
        /// The instance was destroyed while this was under way.
        Destroyed = "destroyed": "Take another instance.";
        /// The instance failed on its way; the message says why.
        InstanceFailed = "instance_failed": "See `mvm instance info`.";
        /// The channel to the guest's agent cannot be opened.
        GuestUnreachable = "guest_unreachable":
            "See `mvm instance info`; start the instance again.";
        /// The guest's agent does not answer.
        GuestSilent = "guest_silent": "See the instance's console: `mvm instance logs`.";
        /// The channel to the guest's agent broke.
        GuestChannelBroken = "guest_channel_broken": "Try again; see `mvm instance info`.";
        /// The guest answered with an error of its own, whose code mvm does not know.
        GuestError = "guest_error": "Read its words; update mvm if the guest is newer.";
        /// Reading, writing or starting something failed in the guest.
        GuestIo = "guest_io": "Read the system's words in the message.";
        /// The guest was started anew, and does not have the program any more.
        GuestRestarted = "guest_restarted": "Run it again.";
        /// The guest has no such program. The exit status is 127.
        CommandNotFound = "command_not_found": "Check the name, and that the image has it.";
        /// The guest may not run the program. The exit status is 126.
        CommandNotExecutable = "command_not_executable": "Make the file executable.";
        /// Nobody listens on that port in the guest.
        ConnectionRefused = "connection_refused":
            "Start the server in the guest, or name another port.";
        /// The guest's system does not permit it.
        PermissionDenied = "permission_denied": "Ask as another user of the guest.";
        /// The guest has no network card to set up.
        NoNetworkCard = "no_network_card": "Use a kernel with virtio-net.";
        /// The guest's agent is not asked from a place where it may do this.
        NotAllowed = "not_allowed": "Ask a real guest.";
        /// Somebody else has attached to the program.
        TakenOver = "taken_over": "Attach again if you want it back.";
        /// Copying files in or out failed on this side.
        ArchiveIo = "archive_io": "Read the system's words in the message.";
        /// mvm could not do its part of a job; the message says what.
        JobFailed = "job_failed": "Read the message, and submit it again.";
        /// The machine or the agent went away under a job, which is not run again by itself.
        JobLost = "job_lost": "Submit it again if running it twice does no harm.";
        /// The upload of a job's inputs broke off: the job does not run.
        InputsIncomplete = "inputs_incomplete": "Submit it again.";
        /// A job that was waited for takes longer.
        NotEnded = "not_ended": "Wait again: `mvm job wait`.";
        /// The connection of an exec or run ended early.
        SessionLost = "session_lost":
            "See `mvm instance info`: what became of the program is not known.";
    }
    "Host" {
        /// The disk is full, or inputs and artifacts would take what is [kept
        /// back](jobs.md#artifacts-and-the-disk); what was under way was undone. In a job's
        /// reason: its machine was [paused](instances.md#paused-by-the-host) for want of space
        /// for too long.
        NoSpace = "no_space": "Free some space: `mvm image gc`, or destroy instances.";
        /// The system refused something about a file.
        Io = "io": "Read the system's words in the message.";
        /// A file or directory on this side, where `mvm` runs, cannot be read or written.
        LocalFile = "local_file": "Check the path and its permissions.";
        /// A socket cannot be listened on.
        Socket = "socket": "Choose an address of this machine, and a port that is free.";
        /// What a guest sends has more files or bytes than `--max-files` and `--max-size` say;
        /// what was copied so far stays.
        CopyTooLarge = "copy_too_large": "Take more with `--max-files` or `--max-size`.";
        /// A guest's link leads out of the folder that is copied to, and `--links refuse` was
        /// given.
        LinkRefused = "link_refused": "Leave such links out with `--links skip`.";
        /// Our own output could not be written, on a full disk say. The exit status is 125. What
        /// the command was to do may be done.
        OutputFailed = "output_failed": "Look before you run it again.";
        /// Whoever read our output has gone (`mvm … | head`). The exit status is 141, and nothing
        /// is said.
        OutputClosed = "output_closed": "Nothing.";
        /// nft(8) is not installed.
        NftMissing = "nft_missing": "Install nftables.";
        /// nft(8) refuses the firewall's rules.
        NftRefused = "nft_refused": "Read its words in the message; see `mvm doctor`.";
        /// The kernel refuses a change of the network.
        NetworkFailed = "network_failed": "Read its words in the message; see `mvm doctor`.";
        /// The agent or `mvm` lacks the privilege.
        NotPermitted = "not_permitted":
            "Run it as root, or with the capabilities that `mvm doctor` names.";
        /// There is no such network namespace.
        NetnsNotFound = "netns_not_found": "Make it first: `ip netns add`.";
        /// Another has a link or a table of that name.
        NameTaken = "name_taken": "Remove it, if it is not used.";
        /// Others keep changing the same records.
        StoreConflict = "store_conflict": "Try again.";
        /// Another process has the records open.
        StoreLocked = "store_locked": "End the other agent of this state directory.";
        /// The records were written by a later version of mvm.
        StoreTooNew = "store_too_new": "Update mvm.";
        /// The file of the records is damaged.
        StoreDamaged = "store_damaged": "Restore the state directory from a backup.";
        /// The engine of the records failed.
        StoreFailed = "store_failed": "Read its words in the message.";
        /// A session of the store was not kept alive in time, and its records are gone.
        SessionEnded = "session_ended": "Ask again.";
        /// The cluster of the records does not answer: nothing was written.
        StoreUnreachable = "store_unreachable": "See that its members are up.";
        /// The answer to a change of the records was lost.
        StoreUnknown = "store_unknown": "Read before you try again.";
        /// A change has more than the cluster of the records takes in one.
        StoreTooLarge = "store_too_large": "Change less at once.";
        /// Changes of the records from so long ago are not kept.
        StoreCompacted = "store_compacted": "List the records anew.";
        /// The directory named as state directory is open to others and holds what is not mvm's;
        /// nothing was changed.
        RootOpen = "root_open": "Name a directory of its own with `--root`.";
        /// The path of the state directory is too long for a Unix socket in it.
        RootTooLong = "root_too_long": "Name a shorter one with `--root`.";
        /// The state directory lacks something that it had.
        RootDamaged = "root_damaged": "Restore it from a backup.";
        /// A record cannot be read.
        RecordDamaged = "record_damaged": "Restore the state directory from a backup.";
        /// The key of a guest or of the host cannot be read.
        KeyDamaged = "key_damaged": "Restore the state directory from a backup.";
        /// The agent was started, and did not come up.
        AgentNotStarted = "agent_not_started": "Read its log, which the message names.";
        /// Nobody answers where the agent or coordinator should be.
        AgentUnreachable = "agent_unreachable": "See `mvm agent status`, or start it.";
        /// The connection broke while a request was served, which may have been carried out; the
        /// message says whose.
        ConnectionBroken = "connection_broken": "Look whether it was done before you ask again.";
        /// ssh(1) is not installed.
        SshMissing = "ssh_missing": "Install OpenSSH's client.";
        /// A record of an audit log was edited, removed, added or moved; the message says which
        /// is the first.
        AuditBroken = "audit_broken": "Find out who did: see [audit](audit.md).";
        /// A measurement could not be made.
        BenchFailed = "bench_failed": "Read the cause in the message.";
        /// What was waited for did not come in time.
        NotConverged = "not_converged": "Wait again; see `mvm pool list`.";
        /// What is waited for cannot come before somebody mends the flake, the document or the
        /// machine; the words are the node's.
        NeedsMending = "needs_mending": "Mend what the message names.";
        /// The answer is not one of mvm's.
        Unexpected = "unexpected": "Check the address: somebody else may answer there.";
        /// This is a fault of mvm's own.
        Internal = "internal": "Report it, with `agent.log`.";
    }
}

impl Code {
    /// Returns all codes.
    pub fn all() -> impl Iterator<Item = Code> {
        Code::BY_TOPIC.iter().flat_map(|(_, codes)| codes.iter().copied())
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        Code::of(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a code")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_spelled_as_its_variant() {
        for code in Code::all() {
            let camel = code.as_str().split('_').map(|word| {
                let (first, rest) = word.split_at(1);
                first.to_uppercase() + rest
            });
            assert_eq!(camel.collect::<String>(), format!("{code:?}"));
            assert_eq!(Code::of(code.as_str()), Some(code));
        }
    }
}
