//! What the agent's requests share.

use crate::Error;
use mvm_code::Code;

/// The default `PATH` of programs.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes an I/O error in the guest, with a code that the host can act on.
pub(super) fn guest_error(doing: &str, cause: &std::io::Error) -> Error {
    let code = match cause.kind() {
        std::io::ErrorKind::NotFound => Code::NotFound,
        std::io::ErrorKind::PermissionDenied => Code::PermissionDenied,
        std::io::ErrorKind::StorageFull => Code::NoSpace,
        std::io::ErrorKind::ResourceBusy => Code::Busy,
        std::io::ErrorKind::ConnectionRefused => Code::ConnectionRefused,
        _ => Code::GuestIo,
    };
    Error::Guest { code, message: format!("{doing}: {cause}") }
}
