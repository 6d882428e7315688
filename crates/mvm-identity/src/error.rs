//! The errors of this crate.

use mvm_api::{ClientError, Problem};
use mvm_model::{AnyCode, Code, Fault, Name};
use std::borrow::Cow;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The error of a parser or library.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A failed call of this crate. [`Error::code`] is stable and for programs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // Identities.
    /// The directory holds no identity.
    #[error("there is no identity in {}", .0.display())]
    Missing(PathBuf),
    /// The parts of an identity cannot be read, or do not belong together.
    #[error("the identity cannot be read: {0}")]
    Damaged(#[source] Cause),
    /// TLS does not take the identity.
    #[error("the identity cannot be used: {0}")]
    Unusable(#[source] Cause),
    /// The identity in this directory has a fault.
    #[error("{}: {cause}", path.display())]
    In {
        /// The directory.
        path: PathBuf,
        /// What is wrong with the identity.
        #[source]
        cause: Box<Error>,
    },
    /// The identity's role only calls.
    #[error("{holder} is not one that serves")]
    DoesNotServe {
        /// Whose identity it is.
        holder: String,
    },

    // What an authority signs.
    /// The certificate cannot be read.
    #[error("cannot read the certificate: {0}")]
    Certificate(#[source] Cause),
    /// The revocation list cannot be read, or no trusted authority has signed it.
    #[error("cannot take the revocation list: {0}")]
    RevocationList(#[source] Cause),
    /// The text is not a signing request.
    #[error("no signing request: {0}")]
    SigningRequest(#[source] rcgen::Error),

    // The authority.
    /// The directory has an authority already.
    #[error("there is an authority in {} already", .0.display())]
    AuthorityExists(PathBuf),
    /// The directory has no authority.
    #[error("there is no authority in {}", .0.display())]
    AuthorityMissing(PathBuf),
    /// The authority's files cannot be read.
    #[error("the authority in {} cannot be read: {cause}", path.display())]
    AuthorityDamaged {
        /// The authority's directory.
        path: PathBuf,
        /// What is wrong with its files.
        #[source]
        cause: Cause,
    },
    /// A certificate of this lifetime leaves no time to renew it.
    #[error("a certificate cannot be good for {} ms only", .0.as_millis())]
    Lifetime(Duration),
    /// The time cannot be written into a certificate.
    #[error("a time that cannot be: {0}")]
    Time(#[source] time::error::ComponentRange),
    /// Signing has failed.
    #[error("cannot sign: {0}")]
    Signing(#[source] rcgen::Error),

    // Joining, and signers.
    /// The join token is not one. The message never contains the token, which is a secret.
    #[error("not a valid join token: {0}")]
    Token(#[source] Cause),
    /// The join token has expired.
    #[error("the token for {0} has run out")]
    TokenExpired(Name),
    /// The identity names no signer.
    #[error("the identity names no signer")]
    NoSigner,
    /// The coordinator does not have the authority's key (RFC 9110, 15.5.20).
    #[error("coordinator {0} does not sign")]
    NotASigner(Name),
    /// The signer refused, or could not be reached.
    #[error(transparent)]
    Client(#[from] ClientError),

    // TLS.
    /// The server does not take our certificate.
    #[error("{at} does not let us in: {why}")]
    Refused {
        /// The server's address.
        at: String,
        /// Why it refuses us.
        why: String,
    },
    /// We do not trust the server's certificate.
    #[error("{at} is not trusted: {why}")]
    Untrusted {
        /// The server's address.
        at: String,
        /// Why it is not trusted.
        why: String,
    },
    /// The server does not speak TLS 1.3.
    #[error("{at} does not speak TLS as we do: {cause}")]
    Tls {
        /// The server's address.
        at: String,
        /// The error of TLS.
        #[source]
        cause: rustls::Error,
    },

    // Sealed records.
    /// An answer cannot be sealed.
    #[error("an answer cannot be sealed")]
    Seal,
    /// The record was sealed by another authority, or under another name.
    #[error("what is kept as {0} was sealed by another")]
    SealedByAnother(String),

    // The operating system.
    /// The operating system gives no random bytes.
    #[error("cannot draw random bytes: {0}")]
    Random(#[source] getrandom::Error),
    /// A value cannot be written as JSON.
    #[error("cannot write JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// An operating system call failed.
    #[error("cannot {doing}: {}", told(cause))]
    Io {
        /// The action and its object.
        doing: String,
        /// The operating system's error.
        #[source]
        cause: std::io::Error,
    },

    /// A name or value is not valid.
    #[error(transparent)]
    Fault(#[from] Fault),
}

fn told(cause: &std::io::Error) -> Cow<'static, str> {
    match cause.kind() {
        ErrorKind::StorageFull => "no space left on the disk".into(),
        _ => cause.to_string().into(),
    }
}

impl Error {
    /// Returns the error's code. A signer's may be one of a later version.
    pub fn code(&self) -> AnyCode {
        let code = match self {
            Error::Missing(_) => Code::IdentityMissing,
            Error::Damaged(_) | Error::Unusable(_) | Error::AuthorityDamaged { .. } => {
                Code::IdentityDamaged
            }
            Error::In { cause, .. } => return cause.code(),
            Error::DoesNotServe { .. } => Code::WrongIdentity,
            Error::Certificate(_) => Code::CertificateUnreadable,
            Error::RevocationList(_) => Code::CrlInvalid,
            Error::SigningRequest(_) => Code::InvalidDocument,
            Error::AuthorityExists(_) => Code::Exists,
            Error::AuthorityMissing(_) => Code::CaMissing,
            Error::Lifetime(_) | Error::Time(_) => Code::InvalidValue,
            Error::Token(_) => Code::TokenInvalid,
            Error::TokenExpired(_) => Code::TokenExpired,
            Error::NoSigner => Code::NoSigner,
            Error::NotASigner(_) => Code::NotASigner,
            Error::Client(cause) => return cause.any_code(),
            Error::Refused { .. } => Code::CertificateRefused,
            Error::Untrusted { .. } => Code::PeerUntrusted,
            Error::Tls { .. } => Code::TlsFailed,
            Error::Io { cause, .. } if cause.kind() == ErrorKind::StorageFull => Code::NoSpace,
            Error::Io { .. } => Code::Io,
            Error::Fault(fault) => fault.code,
            Error::Signing(_)
            | Error::Seal
            | Error::SealedByAnother(_)
            | Error::Random(_)
            | Error::Json(_) => Code::Internal,
        };
        code.into()
    }

    /// Returns what to do next, or nothing.
    pub fn hint(&self) -> Cow<'_, str> {
        let hint = match self {
            Error::Missing(_) => {
                "a node gets one by `mvm node join`, all others by `mvm ca issue --out DIR`; \
                 --identity DIR (or MVM_IDENTITY) says where it is"
            }
            Error::Damaged(_) => {
                "get a new one: `mvm node join` for a node, `mvm ca issue` for all others"
            }
            Error::In { cause, .. } => return cause.hint(),
            Error::DoesNotServe { .. } => {
                "a node joins with `mvm node join`; for a coordinator: mvm ca issue --role coordinator"
            }
            Error::AuthorityExists(_) => {
                "name another --dir; nothing that this one signed would be accepted by a new one"
            }
            Error::AuthorityMissing(_) => {
                "make one with `mvm ca init`, or name its directory with --dir"
            }
            Error::AuthorityDamaged { .. } => "restore its files from a backup",
            Error::Lifetime(_) => "allowed are 3 s and more",
            Error::Token(_) => "`mvm node invite` prints one: give it as it stands, whole",
            Error::TokenExpired(name) => {
                return format!("ask for a new one: mvm node invite {name}").into();
            }
            Error::NoSigner => "name one: --address with `mvm ca issue` or `mvm node invite`",
            Error::NotASigner(_) => {
                "ask the one that was started with --ca, or name it in a list: HOST:PORT,HOST:PORT"
            }
            Error::Client(cause) => cause.hint(),
            Error::Refused { .. } => {
                "get a certificate of the same authority that is good: see docs/identity.md"
            }
            Error::Untrusted { .. } => {
                "check the address, and that both sides are of the same authority"
            }
            Error::Tls { .. } => {
                "check the address: the agent serves TLS 1.3 at what --listen says"
            }
            Error::Io { cause, .. } if cause.kind() == ErrorKind::StorageFull => {
                "free some space: mvm image gc, or destroy instances that are not needed"
            }
            Error::Fault(fault) => &fault.hint,
            _ => "",
        };
        hint.into()
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        match error {
            Error::Fault(fault) => fault.into(),
            Error::Client(error) => error.into_problem(),
            error => Problem::new(error.code(), error.to_string()).hint(error.hint()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Error;
    use mvm_api::Problem;
    use mvm_model::Code;

    #[test]
    fn a_full_disk_is_told_apart_from_other_errors_of_the_system() {
        let error = |cause| Error::Io { doing: "write ca.pem".to_owned(), cause };
        let full = Problem::from(error(std::io::ErrorKind::StorageFull.into()));
        assert_eq!(full.code, Code::NoSpace);
        assert_eq!(full.detail, "cannot write ca.pem: no space left on the disk");
        assert!(full.hint.contains("mvm image gc"));
        assert_eq!(error(std::io::ErrorKind::PermissionDenied.into()).code(), Code::Io);
    }

    #[test]
    fn a_fault_of_an_identity_names_its_directory() {
        let cause = Box::new(Error::Damaged("no authority is trusted".into()));
        let problem = Problem::from(Error::In { path: "/etc/mvm".into(), cause });
        assert_eq!(problem.code, Code::IdentityDamaged);
        assert_eq!(
            problem.detail,
            "/etc/mvm: the identity cannot be read: no authority is trusted"
        );
        assert!(problem.hint.contains("mvm node join"));
    }
}
