//! The HTTP status of each error: a code has one status, wherever it arises.

use mvm_model::{AnyCode, Code};

/// Returns the status of this code's problem documents.
pub fn status(code: Code) -> u16 {
    match code {
        Code::InvalidName
        | Code::InvalidReference
        | Code::InvalidNetwork
        | Code::InvalidValue
        | Code::Invalid
        | Code::InvalidDocument
        | Code::UnsupportedVersion
        | Code::SubnetTooSmall
        | Code::ExceedsHost
        | Code::Usage
        | Code::WrongIdentity
        | Code::CertificateUnreadable
        | Code::CrlInvalid
        | Code::TokenInvalid
        | Code::TokenExpired
        | Code::InputsIncomplete
        | Code::LocalFile
        | Code::CopyTooLarge
        | Code::LinkRefused
        | Code::RootOpen
        | Code::RootTooLong => 400,
        Code::CertificateRefused | Code::CertificateExpired | Code::CertificateRevoked => 401,
        Code::SubnetFull | Code::QuotaExceeded | Code::Forbidden => 403,
        Code::NotFound | Code::NoSuchRoute | Code::CaMissing | Code::RevisionMissing => 404,
        Code::MethodNotAllowed => 405,
        Code::Duplicate
        | Code::Conflict
        | Code::Exists
        | Code::SubnetTaken
        | Code::WrongState
        | Code::IdempotencyKeyInUse
        | Code::IdempotencyOutcomeUnknown
        | Code::Ambiguous
        | Code::InUse
        | Code::Leased
        | Code::LeaseEnded
        | Code::PortInUse
        | Code::NotBuilt
        | Code::NotConfirmed
        | Code::IdentityMissing
        | Code::TokenUsed
        | Code::NoSigner
        | Code::ClaimUnderWay
        | Code::StaleLeader
        | Code::OtherFleet
        | Code::Interrupted
        | Code::Destroyed
        | Code::TakenOver
        | Code::NameTaken
        | Code::StoreConflict
        | Code::StoreLocked
        | Code::AuditBroken
        | Code::NeedsMending => 409,
        Code::ClaimEnded => 410,
        Code::TooLarge | Code::StoreTooLarge => 413,
        Code::NotJson => 415,
        Code::NotASigner => 421,
        Code::IdempotencyKeyReused
        | Code::ListenFailed
        | Code::FlakeMissing
        | Code::ProfileMissing
        | Code::FlakeForeign
        | Code::FlakeBuildFailed
        | Code::FlakeEvaluationFailed
        | Code::SandboxUnavailable
        | Code::SandboxRefused
        | Code::NotAKernel
        | Code::KernelCompression
        | Code::KernelUnfit
        | Code::KernelMissing
        | Code::CpuModelUnavailable
        | Code::PrewarmFailed
        | Code::ImageRefused => 422,
        Code::UpgradeRequired => 426,
        Code::QueueFull => 429,
        Code::IdentityDamaged
        | Code::NixMissing
        | Code::ToolMissing
        | Code::KernelFetchFailed
        | Code::ImageDamaged
        | Code::ImageCorrupt
        | Code::ToolFailed
        | Code::QemuNotFound
        | Code::QemuUnusable
        | Code::KvmUnavailable
        | Code::CpuDiffers
        | Code::SpawnFailed
        | Code::DiedAtBoot
        | Code::MachineDied
        | Code::InvalidSpec
        | Code::QmpTimeout
        | Code::QmpFailed
        | Code::SnapshotFailed
        | Code::NotPaused
        | Code::NetworkLost
        | Code::RestoreFailed
        | Code::NotOurs
        | Code::AlreadyRunning
        | Code::Gone
        | Code::Injected
        | Code::InstanceFailed
        | Code::JobFailed
        | Code::JobLost
        | Code::Io
        | Code::Socket
        | Code::OutputFailed
        | Code::OutputClosed
        | Code::NftMissing
        | Code::NftRefused
        | Code::NetworkFailed
        | Code::NotPermitted
        | Code::NetnsNotFound
        | Code::StoreTooNew
        | Code::StoreDamaged
        | Code::StoreFailed
        | Code::RootDamaged
        | Code::RecordDamaged
        | Code::KeyDamaged
        | Code::SshMissing
        | Code::BenchFailed
        | Code::Internal => 500,
        Code::PeerUntrusted
        | Code::TlsFailed
        | Code::GuestUnreachable
        | Code::GuestChannelBroken
        | Code::GuestError
        | Code::GuestIo
        | Code::GuestRestarted
        | Code::CommandNotFound
        | Code::CommandNotExecutable
        | Code::ConnectionRefused
        | Code::PermissionDenied
        | Code::NoNetworkCard
        | Code::NotAllowed
        | Code::ArchiveIo
        | Code::SessionLost
        | Code::ConnectionBroken
        | Code::Unexpected => 502,
        Code::Busy
        | Code::CoordinatorUnreachable
        | Code::NoLeader
        | Code::LeaderChanged
        | Code::NotReady
        | Code::NodeUnreachable
        | Code::NoMachine
        | Code::ClaimLost
        | Code::SessionEnded
        | Code::StoreUnreachable
        | Code::StoreUnknown
        | Code::StoreCompacted
        | Code::AgentNotStarted
        | Code::AgentUnreachable => 503,
        Code::WakeTimeout
        | Code::AgentSilent
        | Code::Timeout
        | Code::GuestSilent
        | Code::NotEnded
        | Code::NotConverged => 504,
        Code::NoSpace => 507,
    }
}

/// Returns the status of a code that another server sent. A code that only a later version knows is
/// 502.
pub(crate) fn of_any(code: &AnyCode) -> u16 {
    code.known().map_or(502, status)
}
